"""Converts pixels in 0..pixel_max to the input that a network expects."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from igam_tf.common.errors import UserError
from igam_tf.method.conventions import parsed
from igam_tf.method.networks import features_of
from igam_tf.method.transforms import Identity


@keras.saving.register_keras_serializable("igam_tf")
class Preprocess(Identity):
    """x' = (x / pixel_max - mean) / deviation in each channel; see `CONVENTIONS`.

    Args:
        convention: one of `CONVENTIONS`, or "mean=0.5,0.5,0.5/std=0.2,0.2,0.2" in pixels of 0..1;
            "/bgr" at the end reverses the channels first.
        pixel_max: highest pixel value of x.

    Example:
        >>> import numpy as np
        >>> Preprocess("-1..1")(np.full((1, 1, 1, 3), 0.75, "float32")).numpy().ravel()
        array([0.5, 0.5, 0.5], dtype=float32)
    """

    def __init__(self, convention: str, pixel_max: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.convention, self.pixel_max = convention, float(pixel_max)
        mean, std, self._bgr = parsed(convention)
        self.factor = 1 / (std * self.pixel_max)
        self._offset = -mean / std

    def build(self, input_shape: Sequence) -> None:
        """Checks the number of channels.

        Raises:
            UserError: the convention has another number of channels.
        """
        channels, expected = input_shape[-1], max(self.factor.size, self._offset.size)
        if expected not in (1, channels):
            raise UserError(
                f"expected images of {expected} channels with preprocess={self.convention}; received "
                f"{channels}"
            )
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Pixels [B,H,W,C] in 0..pixel_max -> the network's input [B,H,W,C]."""
        x = x[..., ::-1] if self._bgr else x
        return x * tf.cast(self.factor, x.dtype) + tf.cast(self._offset, x.dtype)

    def get_config(self) -> dict:
        """Keras configuration."""
        own = {"convention": self.convention, "pixel_max": self.pixel_max}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("igam_tf")
class Preprocessed(keras.Model):
    """A network with `Preprocess` in front of it: a model that takes pixels in 0..pixel_max.

    Args:
        base: the network, which takes the output of `Preprocess`.
        convention, pixel_max: see `Preprocess`.

    Example:
        >>> import keras, numpy as np
        >>> network = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten()])
        >>> Preprocessed(network, "caffe")(np.zeros((1, 4, 4, 3), "float32")).numpy()[0, :3]
        array([-103.939, -116.779, -123.68 ], dtype=float32)
    """

    def __init__(self, base: keras.Model, convention: str, pixel_max: float = 1.0, **kwargs):
        super().__init__(autocast=False, **kwargs)
        # In the order in which they are called.
        self.preprocess, self.base = Preprocess(convention, pixel_max), base
        self.pixel_max = float(pixel_max)
        if base.built:
            self.built = True

    def build(self, input_shape: Sequence) -> None:
        """Builds the network if it is not built yet."""
        self.preprocess.build(input_shape)
        if not self.base.built:
            self.base.build(input_shape)
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] in 0..pixel_max -> logits [B,K]."""
        return self.base(self.preprocess(x), training=training)

    def igam_features(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The features of the network, see `igam_tf.method.networks.features_of`."""
        return features_of(self.base)(self.preprocess(x), training=training)

    def get_config(self) -> dict:
        """Keras configuration."""
        return {
            **super().get_config(),
            "base": keras.saving.serialize_keras_object(self.base),
            "convention": self.preprocess.convention,
            "pixel_max": self.pixel_max,
        }

    @classmethod
    def from_config(cls, config: dict) -> "Preprocessed":
        """Inverse of `get_config`."""
        return cls(keras.saving.deserialize_keras_object(config.pop("base")), **config)


def preprocessed(model: keras.Model, convention: str | None, pixel_max: float = 1.0) -> keras.Model:
    """The model with `Preprocess` in front of it; the model itself if the convention is None."""
    return model if convention is None else Preprocessed(model, convention, pixel_max)
