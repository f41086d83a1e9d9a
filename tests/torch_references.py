"""Networks of other people's packages, which the ports are compared with."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import keras
import numpy as np
import pytest
import tensorflow as tf

sys.modules.setdefault("triton", None)  # its library and TensorFlow's cannot be in one process
torch = pytest.importorskip("torch", reason="no PyTorch: pip install igam_tf[torch]")


def robustbench(name: str) -> ModuleType:
    """A module of RobustBench's architectures; the package itself imports more than is installed."""
    package = importlib.util.find_spec("robustbench")
    if package is None:
        pytest.skip("no RobustBench: pip install robustbench")
    path = Path(package.origin).parent / "model_zoo" / "architectures" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"robustbench_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomized(network):
    """The network in inference mode, with random batch norms; the rest is random as it is made."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for t, low, high in (
                    (module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3),
                    (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 1.5),
                ):  # fmt: skip
                    t.uniform_(low, high)
    return network.eval()


def images(size: int, channels: int = 3, n: int = 8) -> np.ndarray:
    """[n,size,size,channels] in 0..1, float32."""
    shape = (n, size, size, channels)
    return np.random.default_rng(0).uniform(size=shape).astype("float32")


def torch_logits_and_gradients(network, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(logits [B,K], least likely classes [B], J of their cross-entropy [B,H,W,C])."""
    inputs = torch.tensor(x.transpose(0, 3, 1, 2)).requires_grad_()
    logits = network(inputs)
    y = logits.argmin(1)
    loss = torch.nn.functional.cross_entropy(logits, y, reduction="sum")
    (j,) = torch.autograd.grad(loss, inputs)
    return logits.detach().numpy(), y.numpy(), j.numpy().transpose(0, 2, 3, 1)


def keras_logits_and_gradients(
    network: keras.Model, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(logits [B,K], J of the cross-entropy of the classes y [B,H,W,C])."""
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        logits = network(inputs, training=False)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
    return logits.numpy(), tape.gradient(loss, inputs).numpy()
