"""Affine maps x' = A x + b from a target image to the teacher's input (paper §4.3, eq. 15-17).

Each map is a layer, so back-propagation through it gives J_t = A^T g. `teacher_view` restricts a
gradient to what the teacher sees: where A discards pixels or channels, every J_t is zero or grey,
which would let a discriminator tell J_t from J_s at once (§4.3.2). A map that pads or resizes
discards nothing, so its view is the whole gradient.

Two maps are not fixed: `RandomPad` draws a new A for each image and step, and
`TransposeConvolution` has weights, which stage 1 trains.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from igam_tf.common.errors import UserError
from igam_tf.method.maps import SAMPLINGS, Size

_PACKAGE = "igam_tf"


def _sides(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


@keras.saving.register_keras_serializable(_PACKAGE)
class Identity(keras.layers.Layer):
    """A = I, b = 0: source and target have the same image shape and pixel range.

    All other maps are subclasses of it and keep the dtype of x.

    Example:
        >>> Identity()(np.ones((1, 2, 2, 3), "float32")).shape.as_list()
        [1, 2, 2, 3]
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B,H,W,C] -> [B,H,W,C]."""
        return x

    def compute_output_shape(self, input_shape: Sequence) -> tuple:
        """Shape [B,H,W,C] of an image after the map.

        Raises:
            UserError: the map does not accept images of this shape.
        """
        return tuple(input_shape)

    def teacher_view(self, j: tf.Tensor) -> tf.Tensor:
        """The part of J [B,H,W,C] that the teacher can see."""
        return j

    def draw_from(self, key: Callable[[], tf.Tensor | None] | None) -> None:
        """Sets the source of the random key, [2] int32; without one the map is not random."""


@keras.saving.register_keras_serializable(_PACKAGE)
class Scale(Identity):
    """x' = factor x: from the target's pixel unit to the teacher's (0..255 to 0..1 is 1/255).

    Example:
        >>> Scale(1 / 255)(np.full((1, 1, 1, 1), 51.0, "float32")).numpy().item()
        0.2...
    """

    def __init__(self, factor: float, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B,H,W,C] in the target's unit -> the same in the teacher's."""
        return x * tf.cast(self.factor, x.dtype)

    def get_config(self) -> dict:
        """Keras configuration."""
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(_PACKAGE)
class ChannelMean(Identity):
    """Mean over the channels (§4.3.1): each row of A holds 1/C at one pixel's C channels.

    Example:
        >>> ChannelMean()(np.float32([[[[1, 2, 6]]]])).numpy().item()
        3.0
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B,H,W,C] -> [B,H,W,1]."""
        return tf.reduce_mean(x, axis=-1, keepdims=True)

    def compute_output_shape(self, input_shape: Sequence) -> tuple:
        """[B,H,W,C] -> [B,H,W,1]."""
        return (*input_shape[:3], 1)

    def teacher_view(self, j: tf.Tensor) -> tf.Tensor:
        """The sum over the channels: the derivative along the grey direction, [B,H,W,1]."""
        return tf.reduce_sum(j, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable(_PACKAGE)
class ChannelRepeat(Identity):
    """Repeats one channel C times: A has C ones for each pixel; J_t is the sum over the copies.

    Example:
        >>> ChannelRepeat(3)(np.ones((1, 2, 2, 1), "float32")).shape.as_list()
        [1, 2, 2, 3]
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B,H,W,1] -> [B,H,W,channels]."""
        return tf.repeat(x, self.compute_output_shape(x.shape)[-1], axis=-1)

    def compute_output_shape(self, input_shape: Sequence) -> tuple:
        """[B,H,W,1] -> [B,H,W,channels]."""
        if input_shape[-1] != 1:
            raise UserError(
                f"expected images of one channel for ChannelRepeat; received {input_shape[-1]} channels"
            )
        return (*input_shape[:3], self.channels)

    def get_config(self) -> dict:
        """Keras configuration."""
        return {**super().get_config(), "channels": self.channels}


class _Sized(Identity):
    """A map to `size` pixels, the side of a square or (height, width)."""

    def __init__(self, size: Size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def compute_output_shape(self, input_shape: Sequence) -> tuple:
        """[B,H,W,C] -> [B,*size,C]."""
        return (input_shape[0], *_sides(self.size), input_shape[3])

    def get_config(self) -> dict:
        """Keras configuration."""
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable(_PACKAGE)
class CenterCrop(_Sized):
    """The central `size` pixels (§4.3.2): A is the identity without the rows that are cropped.

    Args:
        size: side of the square that remains, or (height, width).

    Example:
        >>> CenterCrop(2)(np.arange(16, dtype="float32").reshape(1, 4, 4, 1))[0, :, :, 0].numpy()
        array([[ 5.,  6.],
               [ 9., 10.]], dtype=float32)
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B,H,W,C] -> [B,*size,C]."""
        (height, width), (rows, columns) = x.shape[1:3], self.compute_output_shape(x.shape)[1:3]
        top, left = (height - rows) // 2, (width - columns) // 2
        return x[:, top : top + rows, left : left + columns]

    def compute_output_shape(self, input_shape: Sequence) -> tuple:
        """[B,H,W,C] -> [B,*size,C]."""
        (height, width), (rows, columns) = input_shape[1:3], _sides(self.size)
        if height < rows or width < columns:
            raise UserError(
                f"expected images of at least {rows}x{columns} pixels for CenterCrop; received "
                f"{height}x{width}"
            )
        return super().compute_output_shape(input_shape)

    def teacher_view(self, j: tf.Tensor) -> tf.Tensor:
        """J, cropped in the same way."""
        return self.call(j)


@keras.saving.register_keras_serializable(_PACKAGE)
class CenterPad(_Sized):
    """Pads the image with zeros to `size` pixels (§4.3.3): A is the identity between zero rows.

    Of an odd number of rows or columns the larger half is added below or on the right.

    Args:
        size: side of the square that results, or (height, width).

    Example:
        >>> CenterPad(3)(np.ones((1, 1, 1, 1), "float32"))[0, :, :, 0].numpy()
        array([[0., 0., 0.],
               [0., 1., 0.],
               [0., 0., 0.]], dtype=float32)
    """

    def compute_output_shape(self, input_shape: Sequence) -> tuple:
        """[B,H,W,C] -> [B,*size,C]."""
        (height, width), (rows, columns) = input_shape[1:3], _sides(self.size)
        if height > rows or width > columns:
            raise UserError(
                f"expected images of at most {rows}x{columns} pixels for {type(self).__name__}; "
                f"received {height}x{width}"
            )
        return super().compute_output_shape(input_shape)

    def _room(self, x: tf.Tensor) -> tuple[int, int]:
        """Rows and columns to add."""
        _, rows, columns, _ = self.compute_output_shape(x.shape)
        return rows - x.shape[1], columns - x.shape[2]

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B,H,W,C] -> [B,*size,C]."""
        rows, columns = self._room(x)
        top, left = rows // 2, columns // 2
        return tf.pad(x, [[0, 0], [top, rows - top], [left, columns - left], [0, 0]])


@keras.saving.register_keras_serializable(_PACKAGE)
class RandomPad(CenterPad):
    """`CenterPad` with a random, uniformly distributed offset for each image (§5.1.2).

    The offsets are a function of the key that `draw_from` sets and of the image's index in the
    batch, so the forward and the backward pass use the same A_i for a key. Without a key, as in
    evaluation and after loading, the images are centred.

    Example:
        >>> random_pad = RandomPad(3)
        >>> random_pad.draw_from(lambda: tf.constant([0, 1]))
        >>> float(tf.reduce_sum(random_pad(np.ones((2, 1, 1, 1), "float32"))))
        2.0
    """

    _key: Callable[[], tf.Tensor | None] | None = None

    def draw_from(self, key: Callable[[], tf.Tensor | None] | None) -> None:
        """Draws the offsets from `key()` at every later call; None centres the images."""
        self._key = key

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B,H,W,C] -> [B,*size,C]."""
        key = None if self._key is None else self._key()
        if key is None:
            return super().call(x)
        rows, columns = self._room(x)
        top, left = self.offsets(key, tf.shape(x)[0], rows, columns)
        # Pad `rows` rows of zeros on either side, and take the window that begins at row `rows -
        # top`.
        x = tf.pad(x, [[0, 0], [rows, rows], [columns, columns], [0, 0]])
        down, across = map(np.arange, _sides(self.size))
        x = tf.gather(x, (rows - top)[:, None] + down, axis=1, batch_dims=1)
        return tf.gather(x, (columns - left)[:, None] + across, axis=2, batch_dims=1)

    @staticmethod
    def offsets(key: tf.Tensor, batch_size: int, rows: int, columns: int) -> list[tf.Tensor]:
        """[top, left], each [B] int32, within 0..rows and 0..columns, both ends included."""
        share = tf.random.stateless_uniform([2, batch_size], key, alg="philox")
        return tf.unstack(tf.cast(share * [[rows + 1.0], [columns + 1.0]], tf.int32))


def resize_matrix(size: int, new_size: int, sampling: str = "half_pixel") -> np.ndarray:
    """One axis of a resize as a matrix [new_size, size], float64; each row sums to 1.

    If new_size divides size, it is the mean of each block, which for half the size equals bilinear
    sampling (§4.3.1). Otherwise it is bilinear sampling at size / new_size (i + 1/2) - 1/2
    ("half_pixel"), or at size / new_size i ("legacy", R12).

    Example:
        >>> resize_matrix(4, 2)
        array([[0.5, 0.5, 0. , 0. ],
               [0. , 0. , 0.5, 0.5]])
        >>> resize_matrix(2, 4, "legacy")
        array([[1. , 0. ],
               [0.5, 0.5],
               [0. , 1. ],
               [0. , 1. ]])
    """
    if size % new_size == 0:
        return np.repeat(np.eye(new_size), size // new_size, axis=1) * new_size / size
    centre = 0.5 if sampling == "half_pixel" else 0.0
    place = np.clip((np.arange(new_size) + centre) * size / new_size - centre, 0, size - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(size)))


@keras.saving.register_keras_serializable(_PACKAGE)
class Resize(_Sized):
    """Resizes to `size` pixels (§4.3.1), bilinearly or by the mean of blocks; see `resize_matrix`.

    Args:
        size: side of the square that results, or (height, width).
        sampling: "half_pixel", or "legacy", as in TensorFlow 1 (R12); see `resize_matrix`.

    Example:
        >>> Resize(1)(np.float32([[[[1], [2]], [[3], [6]]]])).numpy().item()
        3.0
    """

    def __init__(self, size: Size, sampling: str = "half_pixel", **kwargs):
        if sampling not in SAMPLINGS:
            raise UserError(f"expected sampling of {', '.join(SAMPLINGS)}; received {sampling!r}")
        super().__init__(size, **kwargs)
        self.sampling = sampling

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B,H,W,C] -> [B,*size,C]."""
        rows, columns = (
            tf.constant(resize_matrix(n, new, self.sampling), x.dtype)
            for n, new in zip(x.shape[1:3], _sides(self.size), strict=True)
        )
        return tf.einsum("sh,bhwc,tw->bstc", rows, x, columns)

    def get_config(self) -> dict:
        """Keras configuration."""
        return {**super().get_config(), "sampling": self.sampling}


@keras.saving.register_keras_serializable(_PACKAGE)
class TransposeConvolution(Identity):
    """One 3x3 transpose convolution of stride 2, with a bias: twice the height and width (§5.1.2).

    It is trained with the new logits in stage 1 and frozen afterwards; A and b of eq. 15 are then
    its kernel [3,3,C,C] and its bias [C]. Unlike Keras's Conv2DTranspose it keeps the dtype of x
    and has a `teacher_view`, as all maps do.

    Example:
        >>> TransposeConvolution()(np.ones((1, 32, 32, 3), "float32")).shape.as_list()
        [1, 64, 64, 3]
    """

    def build(self, input_shape):
        """Creates kernel and bias; input_shape [B,H,W,C], of which only C matters."""
        channels = input_shape[-1]
        self.kernel = self.add_weight(
            name="kernel", shape=(3, 3, channels, channels), initializer="glorot_uniform"
        )
        self.bias = self.add_weight(name="bias", shape=(channels,), initializer="zeros")
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B,H,W,C] -> [B,2H,2W,C]."""
        b, (height, width, channels) = tf.shape(x)[0], x.shape[1:]
        kernel, bias = tf.cast(self.kernel, x.dtype), tf.cast(self.bias, x.dtype)
        shape = tf.stack([b, 2 * height, 2 * width, channels])
        y = tf.nn.conv2d_transpose(x, kernel, shape, strides=2)
        return tf.ensure_shape(y, [None, 2 * height, 2 * width, channels]) + bias

    def compute_output_shape(self, input_shape: Sequence) -> tuple:
        """[B,H,W,C] -> [B,2H,2W,C]."""
        b, height, width, channels = input_shape
        return (b, 2 * height, 2 * width, channels)


@keras.saving.register_keras_serializable(_PACKAGE)
class Compose(Identity):
    """Several maps one after another: A = A_n ... A_1.

    Maps that discard pixels or channels have to come first, because `teacher_view` applies to J in
    the target's frame.

    Example:
        >>> a = Compose([ChannelMean(), CenterCrop(28), Scale(1 / 255)])  # CIFAR-10 to MNIST's network
        >>> a(np.ones((1, 32, 32, 3), "float32")).shape.as_list()
        [1, 28, 28, 1]
    """

    def __init__(self, maps: Sequence[Identity], **kwargs):
        super().__init__(**kwargs)
        self.maps = list(maps)

    def build(self, input_shape):
        """Creates every map's variables; input_shape [B,H,W,C] of the target images."""
        self.call(tf.zeros((1, *input_shape[1:])))
        self.built = True

    def draw_from(self, key: Callable[[], tf.Tensor | None] | None) -> None:
        """Passes `key` to every map."""
        for m in self.maps:
            m.draw_from(key)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Applies the maps in order."""
        for m in self.maps:
            x = m(x)
        return x

    def compute_output_shape(self, input_shape: Sequence) -> tuple:
        """The shape after all maps."""
        for m in self.maps:
            input_shape = m.compute_output_shape(input_shape)
        return tuple(input_shape)

    def teacher_view(self, j: tf.Tensor) -> tf.Tensor:
        """Applies the maps' fields of view in order."""
        for m in self.maps:
            j = m.teacher_view(j)
        return j

    def get_config(self) -> dict:
        """Keras configuration."""
        maps = [keras.saving.serialize_keras_object(m) for m in self.maps]
        return {**super().get_config(), "maps": maps}

    @classmethod
    def from_config(cls, config: dict) -> "Compose":
        """Inverse of `get_config`."""
        maps = [keras.saving.deserialize_keras_object(m) for m in config.pop("maps")]
        return cls(maps, **config)


_NEAR = 5 / 4  # up to this ratio, sides are cropped or padded, which avoids blur


def map_between(
    target_shape: Sequence[int], source_shape: Sequence[int], *, up_resize: str = "half_pixel"
) -> tuple[str, Compose]:
    """A map from target images to a teacher's input: (its description, the map).

    First the channels: unchanged if the numbers are equal, averaged to one, or one repeated. Then
    the size: if no side differs by more than a quarter, longer sides are cropped and shorter ones
    padded with zeros; otherwise the image is resized.

    Args:
        target_shape: (H, W, C) of the target's images.
        source_shape: (H, W, C) of the teacher's input.
        up_resize: where a resize samples, see `resize_matrix`.

    Raises:
        UserError: both sides have several channels, in different numbers.

    Example:
        >>> map_between((32, 32, 3), (28, 28, 1))[0]
        'mean of 3 channels, 28x28 of 32x32 pixels cropped from the centre'
        >>> map_between((28, 28, 1), (64, 64, 3))[0]
        'channel repeated 3 times, 28x28 pixels resized to 64x64'
        >>> map_between((32, 32, 3), (32, 32, 3))[0]
        'as it is'
    """
    (*size, channels), (*wanted, source_channels) = target_shape, source_shape
    maps: list[Identity] = []
    words: list[str] = []
    if channels != source_channels:
        if source_channels == 1:
            maps.append(ChannelMean())
            words.append(f"mean of {channels} channels")
        elif channels == 1:
            maps.append(ChannelRepeat(source_channels))
            words.append(f"channel repeated {source_channels} times")
        else:
            raise UserError(
                "expected as many channels in target images as in the teacher's, or one on either side; "
                f"received {channels} and {source_channels}"
            )
    pairs = list(zip(size, wanted, strict=True))
    if any(max(n, new) > _NEAR * min(n, new) for n, new in pairs):
        maps.append(Resize(_size(wanted), up_resize))
        words.append(f"{_text(size)} pixels resized to {_text(wanted)}")
    elif size != wanted:
        kept = [min(pair) for pair in pairs]
        if kept != size:
            maps.append(CenterCrop(_size(kept)))
            words.append(f"{_text(kept)} of {_text(size)} pixels cropped from the centre")
        if kept != wanted:
            maps.append(CenterPad(_size(wanted)))
            words.append(f"{_text(kept)} pixels padded with zeros to {_text(wanted)}")
    return ", ".join(words) or "as it is", Compose(maps)


def _size(sides: Sequence[int]) -> Size:
    height, width = sides
    return height if height == width else (height, width)


def _text(sides: Sequence[int]) -> str:
    return f"{sides[0]}x{sides[1]}"
