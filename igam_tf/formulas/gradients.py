"""Input gradients; only here does a tape watch x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from igam_tf.common.errors import UserError
from igam_tf.common.lazy import tf
from igam_tf.common.private_api import missing_gradient


def scaled(
    tape: tf.GradientTape, target: tf.Tensor, sources: Any, scale: Any = None, **kwargs
) -> Any:
    """`tape.gradient` with loss scaling: back-propagates `scale` times the target, for float16."""
    if scale is None:
        return tape.gradient(target, sources, **kwargs)
    seed = tf.fill(tf.shape(target), tf.cast(scale, target.dtype))
    grads = tape.gradient(target, sources, output_gradients=seed, **kwargs)
    return tf.nest.map_structure(
        lambda g: None if g is None else g / tf.cast(scale, g.dtype), grads
    )


def connected(j: tf.Tensor | None) -> tf.Tensor:
    """Returns the gradient with respect to x if there is one.

    Raises:
        UserError: it is None.
    """
    if j is None:
        raise UserError(
            "expected logits that are differentiable in x; received logits without a gradient "
            "with respect to the input: look for tf.stop_gradient, tf.round, tf.argmax, a cast to "
            "integers or NumPy in the network"
        )
    return j


def input_gradient(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    y: tf.Tensor,
    of: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    scale: float | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """J = d(sum over the batch of of(logits_fn(x), y)) / dx (paper eq. 8, 9 and 17).

    Without batch statistics each image's J is the gradient of its own value only. Under an outer
    tape the result can be differentiated again, as the student's update needs.

    Args:
        logits_fn: x -> logits [B,K].
        x: images [B,H,W,C], float32 or float64, in any pixel unit.
        y: labels [B], passed to `of`.
        of: (logits, y) -> values [B], such as `igam_tf.formulas.losses.xent`.
        scale: loss scale of the back-propagation, see `scaled`.

    Returns:
        (J [B,H,W,C] per pixel unit of x, values [B], logits [B,K]), J in the dtype of x.

    Raises:
        UserError: the values have no gradient with respect to x.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        logits = logits_fn(x)
        values = of(logits, y)
    try:
        return connected(scaled(tape, values, x, scale)), values, logits
    except LookupError as error:
        raise UserError(
            "expected logits that are differentiable in x; TensorFlow has no gradient of "
            f"{missing_gradient(error)}, which the network uses"
        ) from error


# The derivative of J's direction is 1 / J: below this, what is back-propagated overflows float32. A
# softmax whose highest logit is 62 above the others has such a J.
LEAST_SIZE = 2.0**-90


def flatten(j: tf.Tensor) -> tf.Tensor:
    """[B, ...] -> [B, everything else]."""
    return tf.reshape(j, [tf.shape(j)[0], -1])


def of_unit_size(j: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(J flattened and scaled to a largest entry in 1..2, the divisor), so that no square underflows.

    The divisor is a power of two, so the division is exact; it is 1 where J is 0. It is treated as
    a constant in derivatives, which are 0 where it is below `LEAST_SIZE`.

    Args:
        j: [B,...], computed in at least float32.

    Returns:
        ([B,n], [B,1]).
    """
    j = tf.convert_to_tensor(j)
    flat = flatten(tf.cast(j, tf.float32) if j.dtype.size < 4 else j)
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(flat), axis=1, keepdims=True))
    integer, exponent = (
        (tf.int32, 0x7F800000) if flat.dtype == tf.float32 else (tf.int64, 0x7FF0000000000000)
    )  # integer type of the same width, mask of the exponent
    power = tf.bitcast(tf.bitwise.bitwise_and(tf.bitcast(largest, integer), exponent), flat.dtype)
    power = tf.where(power > 0, power, tf.ones_like(power))
    flat = tf.where(power < LEAST_SIZE, tf.stop_gradient(flat), flat)
    return flat / power, power


def unit(flat: tf.Tensor, least: float = 0.0) -> tf.Tensor:
    """Rows [B,n] of `of_unit_size` at l2 norm 1; 0 with derivative 0 for a norm of at most `least`."""
    squared = tf.reduce_sum(tf.square(flat), axis=1, keepdims=True)
    above = squared > least**2
    inverse = tf.math.rsqrt(tf.where(above, squared, tf.ones_like(squared)))
    return flat * tf.where(above, inverse, tf.zeros_like(inverse))


def l2_norm(j: tf.Tensor) -> tf.Tensor:
    """l2 norm of each image's J, exact for tiny J; its derivative is 0 at 0. [B,...] -> [B]."""
    flat, power = of_unit_size(j)
    squared = tf.reduce_sum(tf.square(flat), axis=1)
    root = tf.sqrt(tf.where(squared > 0, squared, tf.ones_like(squared)))
    return tf.where(squared > 0, root * power[:, 0], tf.zeros_like(root))


def cosine(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Cosine between two gradients of one image; 0 where one of them is 0. [B,...] x 2 -> [B].

    Example:
        >>> cosine(tf.constant([[3.0, 4.0], [0.0, 0.0]]), tf.constant([[4.0, 3.0], [1.0, 1.0]])).numpy()
        array([0.96, 0.  ], dtype=float32)
    """
    a, b = (of_unit_size(j)[0] for j in (a, b))
    return tf.math.divide_no_nan(tf.reduce_sum(a * b, 1), tf.norm(a, axis=1) * tf.norm(b, axis=1))


def norm_ratio(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """l2 norm of a over that of b for each image; 0 where b is 0. [B,...] x 2 -> [B]."""
    return tf.math.divide_no_nan(l2_norm(a), l2_norm(b))


def attack_share(j: tf.Tensor, guide: tf.Tensor) -> tf.Tensor:
    """<j, sign guide> / |j|_1 for each image, in -1..1; 0 where j is 0. [B,...] x 2 -> [B].

    To first order a step of eps sign(j) raises the loss by eps |j|_1, the maximum within l-inf.
    This is the fraction of it that a step of eps sign(guide) reaches.

    Example:
        >>> attack_share(tf.constant([[3.0, -1.0]]), tf.constant([[0.1, 0.2]])).numpy()
        array([0.5], dtype=float32)
    """
    j, guide = of_unit_size(j)[0], flatten(guide)
    gained = tf.reduce_sum(j * tf.cast(tf.sign(guide), j.dtype), axis=1)
    return tf.math.divide_no_nan(gained, tf.norm(j, ord=1, axis=1))
