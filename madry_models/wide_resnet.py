"""The network of the CIFAR-10 challenge: a wide pre-activation ResNet (MadryLab/cifar10_challenge)."""

import keras
import tensorflow as tf

from igam_tf.common.checks import expect
from madry_models.activations import ACTIVATIONS
from madry_models.batch_norm import BatchNormalization
from madry_models.network import Network, wide_dtype

INPUT_LAYERS = ("standardize", "unit_norm")


def normalize_images(x: tf.Tensor, input_layer: str) -> tf.Tensor:
    """Images [B,H,W,C] -> zero mean and unit deviation, or unit l2 norm, per image of N values.

    "standardize" is TensorFlow's per-image standardization, (x - mean) / max(std, 1/sqrt(N));
    "unit_norm" divides this by sqrt(N). The minimum of the standard deviation is a minimum of 1 for
    the l2 norm; it is applied inside the root, so that constant images have finite derivatives of
    any order. Mean and deviation are differentiated too.
    """
    centred = x - tf.reduce_mean(x, (1, 2, 3), keepdims=True)
    squared_norm = tf.reduce_sum(tf.square(centred), (1, 2, 3), keepdims=True)
    unit = centred * tf.math.rsqrt(tf.maximum(squared_norm, 1.0))
    if input_layer == "unit_norm":
        return unit
    return unit * tf.sqrt(tf.cast(tf.reduce_prod(tf.shape(x)[1:]), x.dtype))


def _convolution(filters: int, stride: int, dtype) -> keras.layers.Conv2D:
    return keras.layers.Conv2D(
        filters,
        3,
        stride,
        "same",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(
            2.0, "fan_out", "untruncated_normal"
        ),  # std sqrt(2 / (k k out)); a new one each time, because a Keras initializer repeats itself
        dtype=dtype,
    )


class NormReLU(keras.layers.Layer):
    """Batch norm, then an activation of `ACTIVATIONS`."""

    def __init__(self, synchronized: bool, activation: str, **kwargs):
        super().__init__(**kwargs)
        self.activation = ACTIVATIONS[activation]
        self.norm = BatchNormalization(
            momentum=0.9, epsilon=1e-3, synchronized=synchronized, dtype=self.dtype_policy
        )

    def build(self, input_shape: tuple):
        """Creates every variable; input_shape [B,H,W,C]."""
        self.norm.build(input_shape)
        self.built = True

    def call(self, h: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[B,H,W,C] -> the same shape; batch statistics if `training`."""
        return self.activation(self.norm(h, training=training))


class ResidualUnit(keras.layers.Layer):
    """h -> shortcut(h) + two 3x3 convolutions of the activated h.

    Args:
        filters: output channels.
        stride: of the first convolution and of the shortcut's average pooling.
        shared_activation: whether the shortcut also starts from the activated h.
        synchronized, activation: see `WideResNet`.
    """

    def __init__(
        self,
        filters: int,
        stride: int,
        *,
        shared_activation: bool,
        synchronized: bool,
        activation: str,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.stride, self.shared_activation = filters, stride, shared_activation
        dtype = self.dtype_policy
        self.activation1 = NormReLU(synchronized, activation, dtype=dtype)
        self.convolution1 = _convolution(filters, stride, dtype)
        self.activation2 = NormReLU(synchronized, activation, dtype=dtype)
        self.convolution2 = _convolution(filters, 1, dtype)

    def build(self, input_shape: tuple):
        """Creates every variable; input_shape [B,H,W,C]."""
        inner_shape = (None, None, None, self.filters)
        self.activation1.build(input_shape)
        self.convolution1.build(input_shape)
        self.activation2.build(inner_shape)
        self.convolution2.build(inner_shape)
        self.built = True

    def call(self, h: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[B,H,W,C] -> [B,ceil(H/stride),ceil(W/stride),filters]."""
        activated = self.activation1(h, training=training)
        shortcut = activated if self.shared_activation else h
        if self.stride > 1:
            # The original's VALID padding is the same for even sizes, and fails for odd ones.
            shortcut = tf.nn.avg_pool2d(shortcut, self.stride, self.stride, "SAME")
        if missing := self.filters - h.shape[-1]:
            shortcut = tf.pad(shortcut, [[0, 0], [0, 0], [0, 0], [missing // 2, missing // 2]])
        h = self.convolution1(activated)
        return shortcut + self.convolution2(self.activation2(h, training=training))


@keras.saving.register_keras_serializable("madry_models")
class WideResNet(Network):
    """Pre-activation ResNet of `depth` = 6n+2 with filters 16, then 16, 32 and 64 times `width`.

    (32, 10) is the challenge's network, 45.9 M parameters. It takes images of any size with pixels
    in 0..255. The `training` argument chooses between batch statistics and moving averages; Keras's
    `trainable` would interfere with it, so freeze the network by not applying gradients.

    Args:
        depth: 6n+2 for n units in each of the three groups.
        width: factor on the filters of the groups.
        num_classes: outputs.
        input_layer: "standardize" (the challenge), or "unit_norm" (the IGAM release, R5).
        synchronized: batch statistics over all replicas of a distribution strategy.
        activation: name in `madry_models.activations.ACTIVATIONS`; the challenge has leaky ReLU.
    """

    pixel_max = 255.0

    def __init__(
        self,
        depth: int = 32,
        width: int = 10,
        *,
        num_classes: int = 10,
        input_layer: str = "standardize",
        synchronized: bool = False,
        activation: str = "leaky_relu",
        **kwargs,
    ):
        for name, value, allowed in (
            ("activation", activation, ACTIVATIONS), ("input_layer", input_layer, INPUT_LAYERS)
        ):  # fmt: skip
            expect(value in allowed, f"{name} among {', '.join(allowed)}", repr(value))
        expect(depth >= 8 and depth % 6 == 2, "depth 6n+2 with n >= 1, so 8, 14, 20, ...", depth)
        expect(width >= 1, "width of at least 1", width)
        super().__init__(num_classes, **kwargs)
        self.depth, self.width = depth, width
        self.input_layer, self.synchronized = input_layer, synchronized
        self.activation = activation
        dtype = self.dtype_policy
        self.first_convolution = _convolution(16, 1, dtype)
        self.units = [
            ResidualUnit(
                filters * width,
                stride if i == 0 else 1,
                shared_activation=(filters == 16 and i == 0),
                synchronized=synchronized,
                activation=activation,
                dtype=dtype,
            )
            for filters, stride in ((16, 1), (32, 2), (64, 2))
            for i in range((depth - 2) // 6)
        ]
        self.last_activation = NormReLU(synchronized, activation, dtype=dtype)
        self.logits_layer = keras.layers.Dense(
            num_classes,
            kernel_initializer=keras.initializers.VarianceScaling(1.0, "fan_in", "uniform"),
            dtype=wide_dtype(self.compute_dtype),
        )

    def build(self, input_shape: tuple):
        """Creates every variable; input_shape [B,H,W,C], of which only C matters."""
        self.first_convolution.build((None, None, None, input_shape[-1]))
        channels = 16
        for unit in self.units:
            unit.build((None, None, None, channels))
            channels = unit.filters
        self.last_activation.build((None, None, None, channels))
        self.logits_layer.build((None, channels))
        self.built = True

    @property
    def kernels(self) -> list:
        """The variables under weight decay."""
        branches = [layer for u in self.units for layer in (u.convolution1, u.convolution2)]
        return [layer.kernel for layer in (self.first_convolution, *branches, self.logits_layer)]

    def features(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] in 0..255 -> global means [B,64 width], float32 or float64."""
        h = normalize_images(tf.cast(x, wide_dtype(self.compute_dtype)), self.input_layer)
        return self.features_of_normalized(h, training=training)

    def features_of_normalized(self, h: tf.Tensor, training: bool = False) -> tf.Tensor:
        """What the input layer returns [B,H,W,C] -> as `features`."""
        h = self.first_convolution(tf.cast(h, self.compute_dtype))
        for unit in self.units:
            h = unit(h, training=training)
        h = self.last_activation(h, training=training)
        return tf.reduce_mean(tf.cast(h, wide_dtype(self.compute_dtype)), (1, 2))

    def get_config(self) -> dict:
        """The constructor's arguments, without the activation if it is the challenge's."""
        own = {} if self.activation == "leaky_relu" else {"activation": self.activation}
        return own | {
            **super().get_config(),
            "depth": self.depth,
            "width": self.width,
            "input_layer": self.input_layer,
            "synchronized": self.synchronized,
        }
