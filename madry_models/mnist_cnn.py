"""The network of the MNIST challenge: two convolutions, two dense layers (MadryLab/mnist_challenge)."""

import keras
import tensorflow as tf

from madry_models.network import Network, wide_dtype


def _initializers() -> dict:
    # New objects at every call, because a Keras initializer repeats its values.
    return {
        "kernel_initializer": keras.initializers.TruncatedNormal(stddev=0.1),
        "bias_initializer": keras.initializers.Constant(0.1),
    }


@keras.saving.register_keras_serializable("madry_models")
class MnistCNN(Network):
    """conv 5x5x32, max-pool 2, conv 5x5x64, max-pool 2, dense 1024, dense `num_classes`; ReLU.

    Images are [B,28,28,1] in [0,1]; `build` accepts any other H, W, C, which determines the size of
    the dense layer.
    """

    pixel_max = 1.0

    def __init__(self, num_classes: int = 10, **kwargs):
        super().__init__(num_classes, **kwargs)
        dtype = self.dtype_policy
        self.convolutions = [
            keras.layers.Conv2D(
                filters, 5, padding="same", activation="relu", dtype=dtype, **_initializers()
            )
            for filters in (32, 64)
        ]
        self.hidden_layer = keras.layers.Dense(
            1024, activation="relu", dtype=dtype, **_initializers()
        )
        self.logits_layer = keras.layers.Dense(
            num_classes, dtype=wide_dtype(self.compute_dtype), **_initializers()
        )

    def build(self, input_shape: tuple):
        """Creates every variable; input_shape [B,H,W,C]."""
        _, height, width, channels = input_shape
        for convolution in self.convolutions:
            convolution.build((None, height, width, channels))
            height, width, channels = -(-height // 2), -(-width // 2), convolution.filters
        self.hidden_layer.build((None, height * width * channels))
        self.logits_layer.build((None, self.hidden_layer.units))
        self.built = True

    @property
    def kernels(self) -> list:
        """The variables under weight decay."""
        return [
            layer.kernel for layer in (*self.convolutions, self.hidden_layer, self.logits_layer)
        ]

    def features(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,28,28,1] in [0,1] -> hidden activations [B,1024]; `training` has no effect."""
        h = tf.cast(x, self.compute_dtype)
        for convolution in self.convolutions:
            h = tf.nn.max_pool2d(convolution(h), 2, 2, "SAME")
        return self.hidden_layer(tf.reshape(h, (-1, self.hidden_layer.kernel.shape[0])))
