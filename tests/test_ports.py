"""Native ports: the logits and input gradients of RobustBench's and torchvision's own classes."""

import keras
import numpy as np
import pytest
from torch_references import (
    images,
    keras_logits_and_gradients,
    randomized,
    robustbench,
    torch,
    torch_logits_and_gradients,
)

from igam_tf.pytorch.weights import load_port

# PyTorch built for GPUs says so where there is none.
pytestmark = pytest.mark.filterwarnings("ignore:CUDA initialization:UserWarning")


def _imagenet(name: str):
    from torchvision import models

    network = getattr(models, name)()
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return network, lambda x: network((x - mean) / std)


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


def compared(name: str, network, called, size: int, tmp_path) -> keras.Model:
    """The port of a network after its logits and J have been compared with the original's."""
    path = tmp_path / "network.pt"
    torch.save(network.state_dict(), path)
    port, x = load_port(path, name), images(size)
    logits, y, j = torch_logits_and_gradients(called, x)
    ours, our_j = keras_logits_and_gradients(port, x, y)
    assert np.abs(ours - logits).max() <= 1e-4 * np.abs(logits).max()
    assert np.linalg.norm(our_j - j) <= 1e-3 * np.linalg.norm(j)
    return port


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_input_gradients_are_the_originals(name, tmp_path):
    torch.manual_seed(0)
    network = randomized(SMALL[name]())
    size = 28 if "pad" in name else 32
    port = compared(name, network, network, size, tmp_path)
    path = tmp_path / "port.keras"
    port.save(path)
    again = keras.saving.load_model(path)
    x = images(size)
    np.testing.assert_array_equal(again(x), port(x))
    assert again.pixel_max == 1.0
