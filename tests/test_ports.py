"""Native ports: the logits and input gradients of RobustBench's and torchvision's own classes."""

import importlib
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from torch_references import (
    images,
    keras_logits_and_gradients,
    randomized,
    robustbench,
    torch,
    torch_logits_and_gradients,
)

from igam_tf.method.networks import features_of
from igam_tf.pytorch.weights import load_port

# PyTorch built for GPUs says so where there is none.
pytestmark = pytest.mark.filterwarnings("ignore:CUDA initialization:UserWarning")


class Imagenet(torch.nn.Module):
    """A network of torchvision behind the normalisation of ImageNet, as RobustBench has them."""

    def __init__(self, name: str):
        super().__init__()
        self.model = getattr(importlib.import_module("torchvision.models"), name)()
        for key, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            values = torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
            self.register_buffer(key, values, persistent=False)

    def forward(self, x):
        return self.model((x - self.mean) / self.std)


def _wrn(depth: int, width: int, **kwargs):
    return robustbench("wide_resnet").WideResNet(depth, widen_factor=width, **kwargs)


def _dm(kind: str, activation: str, **kwargs):
    activation = {"silu": torch.nn.SiLU, "relu": torch.nn.ReLU}[activation]
    return getattr(robustbench("dm_wide_resnet"), kind)(activation_fn=activation, **kwargs)


def _preact(block: str, **kwargs):
    module = robustbench("resnet")
    return module.PreActResNet(getattr(module, block), [2, 2, 2, 2], **kwargs)


# Architecture -> function that makes the original.
SMALL = {
    "wrn-10-2": lambda: _wrn(10, 2),
    "wrn-16-1": lambda: _wrn(16, 1, sub_block1=True, num_classes=7),
    "dm-wrn-10-2": lambda: _dm("DMWideResNet", "silu", depth=10, width=2),
    "dm-wrn-10-1-relu-pad2": lambda: _dm("DMWideResNet", "relu", depth=10, width=1, padding=2),
    "preact-resnet-18": lambda: _preact("PreActBlock"),
    "preact-resnet-18-v2": lambda: _preact("PreActBlockV2", bn_before_fc=True, num_classes=100),
    "dm-preact-resnet-18": lambda: _dm("DMPreActResNet", "silu"),
    "cifar-resnet-18": lambda: robustbench("resnet").ResNet18(),
}


REAL = {
    "wrn-28-10": lambda: _wrn(28, 10, sub_block1=True),
    "wrn-34-20": lambda: _wrn(34, 20, num_classes=100),
    "dm-wrn-28-10": lambda: _dm("DMWideResNet", "silu", depth=28, width=10),
    **{name: SMALL[name] for name in SMALL if "preact" in name},
    "cifar-resnet-50": lambda: robustbench("resnet").ResNet50(),
    "resnet-18": lambda: Imagenet("resnet18"),
    "resnet-50": lambda: Imagenet("resnet50"),
    "wide-resnet-50-2": lambda: Imagenet("wide_resnet50_2"),
}


def pair(name: str, original: Callable[[], torch.nn.Module], folder: Path) -> tuple:
    """(an original with random weights and batch norms, its port)."""
    torch.manual_seed(0)
    network, path = randomized(original()), folder / "network.pt"
    torch.save(network.state_dict(), path)
    return network, load_port(path, name)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """l2 norm of the difference over that of b."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_input_gradients_are_the_originals(name, tmp_path):
    """Beyond rounding, J differs where it puts an activation on the other side of 0."""
    network, port = pair(name, SMALL[name], tmp_path)
    x = images(28 if "pad" in name else 32)
    logits, y, j = torch_logits_and_gradients(network, x)
    our_logits, our_j = keras_logits_and_gradients(port, x, y)
    assert np.abs(our_logits - logits).max() <= 1e-4 * np.abs(logits).max()
    assert distance(our_j, j) <= 1e-3
    path = tmp_path / "port.keras"
    port.save(path)
    again = keras.saving.load_model(path)
    np.testing.assert_array_equal(again(x), port(x))
    assert again.pixel_max == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_sizes_in_float64(name, tmp_path, float64):
    """What remains of a difference is rounding: no activation is so near 0 that it decides over J."""
    network, port = pair(name, REAL[name], tmp_path)
    x = images(port.plan.family.image_shape[0], n=2).astype("float64")
    logits, y, j = torch_logits_and_gradients(network.double(), x)
    our_logits, our_j = keras_logits_and_gradients(port, x, y)
    found = distance(our_logits, logits), distance(our_j, j)
    print(f"{name}: {found[0]:.1e} {found[1]:.1e}")
    assert max(found) <= 1e-6


def test_features_and_double_backpropagation(tmp_path):
    """A port is a student like any other: its features are those of the logits, its J has a gradient."""
    _, port = pair("wrn-10-1", lambda: _wrn(10, 1), tmp_path)
    x = images(32, n=2)
    features = features_of(port)(x)
    np.testing.assert_allclose(port.logits_layer(features), port(x), rtol=1e-6)
    inputs = tf.constant(x)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(port(inputs, training=True)[:, 0])
        penalty = tf.reduce_sum(tf.abs(tape.gradient(loss, inputs)))
    gradients = outer.gradient(penalty, port.trainable_variables[:-1])
    assert all(g is not None and np.isfinite(g).all() for g in gradients)


def test_batch_statistics_move_only_in_training(tmp_path):
    _, port = pair("wrn-10-1", lambda: _wrn(10, 1), tmp_path)
    (norm,) = port.after
    before = norm.moving_mean.numpy()
    port(images(32), training=False)
    np.testing.assert_array_equal(norm.moving_mean, before)
    port(images(32), training=True)
    assert np.abs(norm.moving_mean.numpy() - before).max() > 0
