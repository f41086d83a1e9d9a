"""The ported networks as Keras models.

Their layers are called as PyTorch's modules are, so the weights of a file find them by name.
"""

import keras
import tensorflow as tf

from igam_tf.common.checks import expect
from igam_tf.method.preprocess import Preprocess
from igam_tf.pytorch.architectures import Part, Unit, plan_of
from madry_models.batch_norm import BatchNormalization
from madry_models.network import wide_dtype

_ACTIVATIONS = {"relu": tf.nn.relu, "silu": tf.nn.silu}


class Convolution(keras.layers.Conv2D):
    """A convolution with PyTorch's padding: `pads` rows and columns of zeros before and behind.

    "same" is this for a stride of 1 alone. The zeros are laid by an operation of their own, because
    on CPUs the gradient of one with explicit padding takes twice the time.
    """

    def __init__(self, filters: int, kernel_size: int, strides: int, pads: tuple, **kwargs):
        super().__init__(
            filters, kernel_size, strides, "same" if strides == 1 else "valid", **kwargs
        )
        self._pads = [[0, 0], [*pads], [*pads], [0, 0]] if strides > 1 and any(pads) else None

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """[B,H,W,C] -> [B,H',W',filters], without the bias."""
        inputs = inputs if self._pads is None else tf.pad(inputs, self._pads)
        return super().convolution_op(inputs, kernel)


def _layer(part: Part, dtype, *, late_padding: bool = False) -> keras.layers.Layer:
    """The layer of a part, with its variables."""
    if len(part.shape) == 1:
        layer = BatchNormalization(momentum=0.9, epsilon=1e-5, name=part.name, dtype=dtype)
        layer.build((None, None, None, *part.shape))
    elif len(part.shape) == 2:
        layer = keras.layers.Dense(part.shape[0], name=part.name, dtype=dtype)
        layer.build((None, part.shape[1]))
    else:
        filters, channels, kernel, _ = part.shape
        pad = (kernel - 1) // 2
        pads = (0, pad) if late_padding and part.stride > 1 else (pad, pad)
        layer = Convolution(
            filters, kernel, part.stride, pads, use_bias=part.bias, name=part.name, dtype=dtype
        )
        layer.build((None, None, None, channels))
    return layer


class ResidualUnit(keras.layers.Layer):
    """h -> shortcut(h) + convolutions of h with batch norms and activations between; see `Family`."""

    def __init__(self, unit: Unit, plan, **kwargs):
        super().__init__(**kwargs)
        self._family, self._activation = plan.family, _ACTIVATIONS[plan.activation]
        self.norms, self.convs, self.shortcut = (
            [
                _layer(part, self.dtype_policy, late_padding=plan.family.late_padding)
                for part in parts
            ]
            for parts in unit
        )
        self.built = True

    def call(self, h: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[B,H,W,C] -> [B,H/stride,W/stride,filters]."""
        source = h
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            if self._family.preactivated:
                h = self._activation(norm(h, training=training))
                if i == 0 and self.shortcut and self._family.activated_shortcut:
                    source = h
                h = conv(h)
            else:
                h = norm(conv(h), training=training)
                h = self._activation(h) if i < len(self.convs) - 1 else h
        if self.shortcut:
            convolution, *norm = self.shortcut
            source = convolution(source)
            source = norm[0](source, training=training) if norm else source
        return h + source if self._family.preactivated else self._activation(h + source)


@keras.saving.register_keras_serializable("igam_tf")
class Port(keras.Model):
    """A network of `igam_tf.pytorch.architectures`, from pixels in 0..1 to logits.

    Args:
        architecture: its name; see `FAMILIES`.
        num_classes: outputs.
        preprocess: what it computes of the pixels first, see `igam_tf.Preprocess`; None is the
            family's own.

    Raises:
        UserError: no such architecture, or no convention is known for this number of classes.
    """

    pixel_max = 1.0

    def __init__(
        self, architecture: str, num_classes: int = 10, *, preprocess: str | None = None, **kwargs
    ):
        super().__init__(autocast=False, **kwargs)
        plan = self.plan = plan_of(architecture, num_classes)
        self.architecture, self.num_classes = architecture, num_classes
        self._activation = _ACTIVATIONS[plan.activation]
        self._convention = preprocess or plan.preprocess
        expect(
            self._convention,
            f"preprocess with {architecture} of {num_classes} classes, such as imagenet",
            "none, and the mean and deviation of its images are in no file",
        )
        dtype = self.dtype_policy
        self.preprocess = Preprocess(self._convention, dtype=wide_dtype(self.compute_dtype))
        self.before = [_layer(part, dtype) for part in plan.before]
        self.units = [ResidualUnit(unit, plan, dtype=dtype) for unit in plan.units]
        self.after = [_layer(part, dtype) for part in plan.after]
        self.logits_layer = _layer(plan.logits, wide_dtype(self.compute_dtype))
        self.built = True

    def igam_features(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] in 0..1 -> what the last layer reads, [B,F], float32 or float64."""
        wide = wide_dtype(self.compute_dtype)
        pads = [[0, 0], [self.plan.pad] * 2, [self.plan.pad] * 2, [0, 0]]
        h = self.preprocess(tf.pad(tf.cast(x, wide), pads) if self.plan.pad else tf.cast(x, wide))
        h = tf.cast(h, self.compute_dtype)
        if not self.units:
            return tf.cast(self._chain(h), wide)
        stem, *norm = self.before
        h = stem(h)
        if norm:
            h = self._activation(norm[0](h, training=training))
        if self.plan.family.imagenet:  # no value is below zero, so zeros around are as good as none
            h = tf.nn.max_pool2d(h, 3, 2, [[0, 0], [1, 1], [1, 1], [0, 0]])
        for unit in self.units:
            h = unit(h, training=training)
        for norm in self.after:
            h = self._activation(norm(h, training=training))
        return tf.reduce_mean(tf.cast(h, wide), (1, 2))

    def _chain(self, h: tf.Tensor) -> tf.Tensor:
        for layer in self.before:
            if isinstance(layer, keras.layers.Dense):  # flattened in the order channel, row, column
                h = tf.reshape(tf.transpose(h, (0, 3, 1, 2)), (-1, layer.kernel.shape[0]))
            h = self._activation(layer(h))
        return h

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] in 0..1 -> logits [B,num_classes], float32 or float64."""
        return self.logits_layer(self.igam_features(x, training=training))

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "preprocess": self._convention,
        }
