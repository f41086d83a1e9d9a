"""The direction of white-box attacks: each image's gradient, independent of the logits' scale.

    x -> logits -> loss,   d loss / dx = sum_k (d loss / d logit_k) (d logit_k / dx)

The first factor is scaled to size 1 for each image before back-propagation, and so is the result.
So neither a nearly flat loss nor a narrow dtype loses the direction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from igam_tf.attacks.attack_losses import cw_margin
from igam_tf.attacks.norms import by_largest, image_axes, per_example
from igam_tf.common.errors import UserError
from igam_tf.common.lazy import tf
from igam_tf.formulas.losses import at_least_float32

_SCALE = 8.0  # of what is back-propagated: float16 holds nothing below 6e-8 (a power of 2 is exact)


class Direction(NamedTuple):
    """What `direction` finds, for each image.

    Attributes:
        gradient: of the loss, divided by its largest component, 0 where `none`; [B,...] as x.
        size: that component, per pixel unit of x; [B], in the dtype of x.
        value: the loss, [B].
        logits: [B,K].
        none: whether the gradient is 0 everywhere, [B] bool.
        not_finite: whether a component is NaN or infinite, which counts as 0; [B] bool.
    """

    gradient: tf.Tensor
    size: tf.Tensor
    value: tf.Tensor
    logits: tf.Tensor
    none: tf.Tensor
    not_finite: tf.Tensor


def direction(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    y: tf.Tensor,
    loss: Callable[..., tf.Tensor],
    *aim: tf.Tensor,
) -> Direction:
    """The gradient of loss(logits_fn(x), y, *aim) with respect to x, of each image alone.

    An image whose loss has no gradient in the logits is attacked on its margin, `cw_margin`.

    Raises:
        UserError: the logits have no gradient with respect to x.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        logits = logits_fn(x)
    value, slope = _slope(lambda z: loss(z, y, *aim), logits)
    slope, most = by_largest(slope)
    if logits.shape[1] != 1:  # a loss can use a single value that has no margin
        _, of_margin = _slope(lambda z: cw_margin(z, y), logits)
        flat = most == 0
        slope = tf.where(flat[:, None], of_margin, slope)
        most = tf.where(flat, tf.ones_like(most), most)
    gradient = tape.gradient(logits, x, output_gradients=tf.cast(_SCALE * slope, logits.dtype))
    if gradient is None:
        raise UserError(
            "expected logits that are differentiable in x; received logits without a gradient "
            "with respect to the input, such as after a cast, rounding or stop_gradient"
        )
    gradient = tf.ensure_shape(gradient, x.shape)  # that of tf.py_function has none
    not_finite = tf.reduce_any(~tf.math.is_finite(gradient), image_axes(x))
    gradient, size = by_largest(_finite(gradient))
    none, size = size == 0, size / _SCALE * tf.cast(most, x.dtype)
    return Direction(gradient, size, value, logits, none, not_finite)


def mean_direction(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    y: tf.Tensor,
    loss: Callable[..., tf.Tensor],
    *aim: tf.Tensor,
    eot: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(gradient of the mean loss over `eot` calls of a random network, the last loss, its logits).

    Expectation over transformation (Athalye et al. 2018), as AutoAttack's version "rand" has it. The
    gradient is divided by its largest component; [B,...] as x, [B], [B,K].
    """
    first = direction(logits_fn, x, y, loss, *aim)
    if eot == 1:
        return first.gradient, first.value, first.logits

    def again(i: tf.Tensor, total: tf.Tensor, *_: tf.Tensor) -> tuple:
        found = direction(logits_fn, x, y, loss, *aim)
        return i + 1, total + found.gradient * per_example(found.size, x), found.value, found.logits

    begun = (1, first.gradient * per_example(first.size, x), first.value, first.logits)
    _, total, value, logits = tf.while_loop(
        lambda i, *_: i < eot, again, begun, parallel_iterations=1
    )
    return by_largest(total)[0], value, logits


def _slope(
    loss: Callable[[tf.Tensor], tf.Tensor], logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """(values [B], their gradient in the logits [B,K], finite), in at least float32."""
    logits = at_least_float32(logits)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(logits)
        values = loss(logits)
    return values, _finite(tape.gradient(values, logits, unconnected_gradients="zero"))


def _finite(t: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.math.is_finite(t), t, tf.zeros_like(t))
