"""The networks of the MadryLab challenges, and their checkpoints; each is loaded when asked for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from madry_models.mnist_cnn import MnistCNN
    from madry_models.wide_resnet import WideResNet

__all__ = ["MnistCNN", "WideResNet"]


def __getattr__(name: str) -> Any:
    if name == "MnistCNN":
        from madry_models.mnist_cnn import MnistCNN

        return MnistCNN
    if name == "WideResNet":
        from madry_models.wide_resnet import WideResNet

        return WideResNet
    raise AttributeError(f"module 'madry_models' has no attribute {name!r}")
