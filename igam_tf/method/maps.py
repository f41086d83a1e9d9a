"""The maps to the teacher's input by name (§4.3); TensorFlow is not imported for the names."""

from collections.abc import Callable
from types import ModuleType

SAMPLINGS = ("half_pixel", "legacy")  # the points at which bilinear resizing samples
AUTO = "auto"  # the name under which `igam_tf.method.transforms.map_between` chooses
Size = int | tuple[int, int]  # side of a square image, or (height, width)

# Name -> function from the module `igam_tf.method.transforms`, the teacher's image size and
# `up_resize` to the layers of the map.
MAPS: dict[str, Callable[[ModuleType, Size, str], list]] = {
    "identity": lambda layer, size, up_resize: [],
    "grey_crop": lambda layer, size, up_resize: [layer.ChannelMean(), layer.CenterCrop(size)],
    "crop": lambda layer, size, up_resize: [layer.CenterCrop(size)],
    "resize": lambda layer, size, up_resize: [layer.Resize(size, up_resize)],
    "pad": lambda layer, size, up_resize: [layer.CenterPad(size)],
    "random_pad": lambda layer, size, up_resize: [layer.RandomPad(size)],
    "transpose_conv": lambda layer, size, up_resize: [layer.TransposeConvolution()],
}
