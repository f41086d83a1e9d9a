"""The base of both networks of the challenges: features, a logits layer, a pixel range."""

import keras
import tensorflow as tf

from igam_tf.common.checks import expect


def wide_dtype(dtype: str) -> str:
    """The dtype for statistics and logits: float64 for float64, else float32."""
    return "float64" if dtype == "float64" else "float32"


class Network(keras.Model):
    """logits = logits_layer(features(x)).

    Subclasses set `pixel_max` (x lies in 0..pixel_max), make `logits_layer` and define `build`,
    which creates every variable, `features`, and `kernels`, the variables under weight decay.
    Images are cast here and not by Keras, so that mixed policies do not reduce their precision.
    """

    pixel_max: float
    logits_layer: keras.layers.Dense

    def __init__(self, num_classes: int, **kwargs):
        expect(num_classes >= 1, "num_classes of at least 1", num_classes)
        super().__init__(autocast=False, **kwargs)
        self.num_classes = num_classes

    def features(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] in 0..pixel_max -> the activations the logits layer reads, [B,F]."""
        raise NotImplementedError

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] in 0..pixel_max -> logits [B,num_classes], float32 or float64."""
        return self.logits_layer(self.features(x, training=training))

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "num_classes": self.num_classes}
