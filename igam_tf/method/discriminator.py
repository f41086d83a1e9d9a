"""f_disc classifies input gradients as the teacher's (1) or the student's (0) (paper §4.2.1, A)."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from igam_tf.formulas.gradients import flatten, of_unit_size, unit
from madry_models.activations import leaky_relu
from madry_models.batch_norm import BatchNormalization

CHANNELS = (16, 32, 64, 128, 256)  # of IGAM-MNIST (App. A.1)


def normalize(j: tf.Tensor) -> tf.Tensor:
    """Zero mean and unit l2 norm per gradient (R4), so that f_disc sees direction, not length.

    J [B,...] -> the same shape, in at least float32. A J that is constant up to rounding becomes 0,
    and its derivative is 0.
    """
    flat, _ = of_unit_size(j)
    rounding = 256 * float(np.finfo(flat.dtype.as_numpy_dtype).eps)
    n = j[0].shape.num_elements()
    flat = unit(flat - tf.reduce_mean(flat, 1, keepdims=True), least=rounding * n**0.5)
    return tf.reshape(flat, tf.shape(j))


@keras.saving.register_keras_serializable("igam_tf")
class Discriminator(keras.Model):
    """4x4 convolutions of stride 2 with bias, BN, leaky ReLU 0.1; flatten; dense (App. A, R4).

    Batch norm always runs on batch statistics, as GANs do: call it on a single batch that holds
    both J_s and J_t.

    Args:
        channels: output channels of each convolution, e.g. (16, 32, 64, 128, 256).
        outputs: 1 for a sigmoid output (eq. 10), 2 for the release's two-class softmax, whose
            difference z_1 - z_0 is the same logit.
        synchronized: batch statistics over all replicas.

    Example:
        >>> Discriminator((4, 8))(tf.random.stateless_normal((6, 8, 8, 3), (0, 1))).shape.as_list()
        [6]
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        outputs: int = 1,
        synchronized: bool = False,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # J is too small for float16 before `normalize`
        self.channels, self.outputs = tuple(channels), outputs
        self.synchronized = synchronized
        dtype = self.dtype_policy
        self.convolutions = [
            keras.layers.Conv2D(c, 4, 2, "same", kernel_initializer="he_normal", dtype=dtype)
            for c in self.channels
        ]
        self.norms = [
            BatchNormalization(momentum=0.9, epsilon=1e-3, synchronized=synchronized, dtype=dtype)
            for _ in self.channels
        ]
        self.logits_layer = keras.layers.Dense(outputs, dtype=dtype)

    def build(self, input_shape):
        """Creates every variable; input_shape [B,H,W,C] of the gradients shown to f_disc."""
        _, height, width, c = input_shape
        for conv, norm in zip(self.convolutions, self.norms, strict=True):
            conv.build((None, None, None, c))
            c, height, width = conv.filters, -(-height // 2), -(-width // 2)
            norm.build((None, None, None, c))
        self.logits_layer.build((None, height * width * c))
        self.built = True

    @property
    def kernels(self) -> list:
        """The variables under weight decay."""
        return [layer.kernel for layer in (*self.convolutions, self.logits_layer)]

    def call(self, j: tf.Tensor) -> tf.Tensor:
        """J [B,H,W,C] -> logit that J is the teacher's, [B]."""
        h = normalize(j)
        for conv, norm in zip(self.convolutions, self.norms, strict=True):
            h = leaky_relu(norm(conv(h), training=True))
        z = self.logits_layer(flatten(h))
        return z[:, 0] if self.outputs == 1 else z[:, 1] - z[:, 0]

    def get_config(self) -> dict:
        """Keras configuration."""
        return {
            **super().get_config(),
            "channels": self.channels,
            "outputs": self.outputs,
            "synchronized": self.synchronized,
        }
