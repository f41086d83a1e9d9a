"""What an attack maximises: (logits [B,K], y [B]) -> one value per example [B], at least float32."""

from collections.abc import Callable

import tensorflow as tf

from igam_tf.losses import at_least_float32, xent
from madry_models.errors import UserError


def cw_margin(logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Carlini and Wagner's margin max_{i != y} logits_i - logits_y, above 0 where misclassified.

    The challenges' CW attack stops it at a confidence of 50, -relu(50 - margin), which has the same
    gradient for every margin below 50; here it is not stopped.

    Example:
        >>> cw_margin(tf.constant([[3.0, 1.0, 2.0]]), tf.constant([0])).numpy()
        array([-1.], dtype=float32)
    """
    logits = at_least_float32(logits)
    true = tf.one_hot(y, tf.shape(logits)[1], on_value=True, off_value=False, dtype=tf.bool)
    others = tf.where(true, tf.constant(float("-inf"), logits.dtype), logits)
    return tf.reduce_max(others, axis=1) - tf.gather(logits, y, axis=1, batch_dims=1)


LOSSES: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {"xent": xent, "cw": cw_margin}


def loss_named(name: str) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The loss of that name in LOSSES.

    Raises:
        UserError: there is none.
    """
    if name not in LOSSES:
        raise UserError(f"expected an attack loss among {', '.join(LOSSES)}; received {name!r}")
    return LOSSES[name]
