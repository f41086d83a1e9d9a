"""The networks of the MadryLab challenges, and their checkpoints."""

from madry_models.mnist_cnn import MnistCNN
from madry_models.wide_resnet import WideResNet

__all__ = ["MnistCNN", "WideResNet"]
