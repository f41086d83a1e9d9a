"""The activations of a residual network."""

from __future__ import annotations

from collections.abc import Callable

from igam_tf.common.lazy import tf


def leaky_relu(h: tf.Tensor) -> tf.Tensor:
    """max(h, 0.1 h), exact in float64; the fused kernel has a float32 slope."""
    return tf.maximum(h, 0.1 * h) if h.dtype == tf.float64 else tf.nn.leaky_relu(h, alpha=0.1)


# To add an activation, add an entry: name -> h [...] to the same shape, in the dtype of h.
ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "leaky_relu": leaky_relu,  # of the challenge
    "silu": lambda h: tf.nn.silu(h),
    "gelu": lambda h: tf.nn.gelu(h),
}
