"""Affine maps x' = A x + b from a target image to the teacher's input (paper §4.3, eq. 15-17).

Each map is a layer without weights, so J_t is taken through it by back-propagation: J_t = A^T g.
`visible` shows a gradient as the teacher's field of view: where A discards pixels or channels,
every J_t is zero or grey there, and a discriminator that saw it would tell J_t from J_s at a glance
(§4.3.2).
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

_PACKAGE = "igam_tf"


@keras.saving.register_keras_serializable(_PACKAGE)
class Identity(keras.layers.Layer):
    """A = I, b = 0: source and target have the same image shape and pixel range."""

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)  # a map keeps the dtype of x

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B,H,W,C] -> [B,H,W,C]."""
        return x

    def visible(self, j: tf.Tensor) -> tf.Tensor:
        """The part of J [B,H,W,C] that the teacher can see."""
        return j


@keras.saving.register_keras_serializable(_PACKAGE)
class Scale(Identity):
    """x' = factor x: from the target's pixel unit to the teacher's (0..255 to 0..1 is 1/255)."""

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
    """Mean over the channels (§4.3.1): each row of A holds 1/C at one pixel's C channels."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B,H,W,C] -> [B,H,W,1]."""
        return tf.reduce_mean(x, axis=-1, keepdims=True)

    def visible(self, j: tf.Tensor) -> tf.Tensor:
        """The sum over the channels: the derivative along the grey direction, [B,H,W,1]."""
        return tf.reduce_sum(j, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable(_PACKAGE)
class CenterCrop(Identity):
    """The central size x size pixels (§4.3.2): A is the identity without the rows cut away."""

    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B,H,W,C] -> [B,size,size,C]."""
        height, width = x.shape[1], x.shape[2]
        if height < self.size or width < self.size:
            raise ValueError(
                f"CenterCrop needs images of at least {self.size}x{self.size} pixels. "
                f"Received: {height}x{width}"
            )
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return x[:, top : top + self.size, left : left + self.size]

    def visible(self, j: tf.Tensor) -> tf.Tensor:
        """J cropped likewise."""
        return self.call(j)

    def get_config(self) -> dict:
        """Keras configuration."""
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable(_PACKAGE)
class Compose(Identity):
    """Several maps one after another: A = A_n ... A_1."""

    def __init__(self, maps: Sequence[Identity], **kwargs):
        super().__init__(**kwargs)
        self.maps = list(maps)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Every map in turn."""
        for m in self.maps:
            x = m(x)
        return x

    def visible(self, j: tf.Tensor) -> tf.Tensor:
        """Every map's field of view in turn."""
        for m in self.maps:
            j = m.visible(j)
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
