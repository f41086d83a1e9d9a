"""The networks of the MadryLab challenges and their checkpoints; names are imported at first use."""

from typing import TYPE_CHECKING, Any

from igam_tf.common.lazy import register_later

if TYPE_CHECKING:
    from madry_models.mnist_cnn import MnistCNN
    from madry_models.wide_resnet import WideResNet

__all__ = ["MnistCNN", "WideResNet"]
# Name of a class in a Keras file -> its module.
SAVED = {
    "madry_models>BatchNormalization": "madry_models.batch_norm",
    "madry_models>MnistCNN": "madry_models.mnist_cnn",
    "madry_models>WideResNet": "madry_models.wide_resnet",
}
register_later(SAVED)


def __getattr__(name: str) -> Any:
    if name == "MnistCNN":
        from madry_models.mnist_cnn import MnistCNN

        return MnistCNN
    if name == "WideResNet":
        from madry_models.wide_resnet import WideResNet

        return WideResNet
    raise AttributeError(f"module 'madry_models' has no attribute {name!r}")
