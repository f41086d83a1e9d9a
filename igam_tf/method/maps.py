"""The maps to the teacher's input by name (§4.3); TensorFlow is not loaded for the names."""

from collections.abc import Callable
from types import ModuleType

SAMPLINGS = ("half_pixel", "legacy")  # where bilinear resizing samples
AUTO = "auto"  # name of the choice of `igam_tf.method.transforms.map_between`
Size = int | tuple[int, int]  # of a square image, or (height, width)

# Name -> its layers, which are classes of the module `igam_tf.method.transforms`, given the teacher's
# image size and `up_resize`.
MAPS: dict[str, Callable[[ModuleType, Size, str], list]] = {
    "identity": lambda layer, size, up_resize: [],
    "grey_crop": lambda layer, size, up_resize: [layer.ChannelMean(), layer.CenterCrop(size)],
    "crop": lambda layer, size, up_resize: [layer.CenterCrop(size)],
    "resize": lambda layer, size, up_resize: [layer.Resize(size, up_resize)],
    "pad": lambda layer, size, up_resize: [layer.CenterPad(size)],
    "random_pad": lambda layer, size, up_resize: [layer.RandomPad(size)],
    "transpose_conv": lambda layer, size, up_resize: [layer.TransposeConvolution()],
}
