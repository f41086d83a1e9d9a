"""What an attack maximises: (logits [B,K], y [B]) -> one value per example [B], at least float32.

"xent" is L_xent in values that do not saturate, `log_odds_against`.

Targeted ones take the class to be reached as well: (logits, y, target [B]) -> [B].
"""

from __future__ import annotations

from collections.abc import Callable

from igam_tf.common.errors import UserError
from igam_tf.common.lazy import tf
from igam_tf.formulas.losses import at_least_float32, xent


def of_class(logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """logits[i, y[i]]. logits [B,K], y [B] -> [B]."""
    return tf.gather(logits, y, axis=1, batch_dims=1)


def other_logits(logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The logits of the classes that are not y, and -inf for y. logits [B,K], y [B] -> [B,K]."""
    true = tf.one_hot(y, tf.shape(logits)[1], on_value=True, off_value=False, dtype=tf.bool)
    return tf.where(true, tf.constant(float("-inf"), logits.dtype), logits)


def class_of_rank(logits: tf.Tensor, y: tf.Tensor, rank: tf.Tensor, ranks: int) -> tf.Tensor:
    """The class with the highest logit beside y (rank 0), the next (1), ... [B], below `ranks`."""
    ranked = tf.math.top_k(other_logits(logits, y), ranks).indices
    return tf.cast(ranked[:, rank], y.dtype)


def aimed_at(aim: str, logits: tf.Tensor, y: tf.Tensor, share: tf.Tensor | None) -> tf.Tensor:
    """The class that each image of a targeted attack has to reach, [B] as y.

    Args:
        aim: "least_likely", "random" (any but y), or a class, such as "3".
        logits: of the clean images, [B,K].
        y: labels [B].
        share: random numbers in [0,1), [B], for "random".

    Example:
        >>> z, y = tf.constant([[3.0, 1.0, 2.0]] * 2), tf.constant([0, 0])
        >>> [aimed_at(aim, z, y, tf.constant([0.1, 0.9])).numpy().tolist()
        ...  for aim in ("least_likely", "random", "2")]
        [[1, 1], [1, 2], [2, 2]]
    """
    if aim == "least_likely":
        return tf.argmin(logits, 1, output_type=y.dtype)
    if aim == "random":
        others = logits.shape[1] - 1
        return (y + 1 + tf.minimum(tf.cast(share * others, y.dtype), others - 1)) % (others + 1)
    return tf.fill(tf.shape(y), tf.cast(int(aim), y.dtype))


# No trained classifier has logits as close as FLAT; those of a usual one are SHARP apart.
FLAT, SHARP, _TINIEST = 0.05, 16.0, 1e-30


def misclassified(logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Whether another class is predicted, by the first of equal logits as everywhere; not by NaN.

    logits [B,K], y [B] -> [B] bool.
    """
    predicted = tf.argmax(logits, 1, output_type=y.dtype)
    return (predicted != y) & (cw_margin(logits, y) >= 0)


def reached(logits: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Whether the target is predicted, as in `misclassified`. logits [B,K], target [B] -> [B] bool."""
    predicted = tf.argmax(logits, 1, output_type=target.dtype)
    return (predicted == target) & (cw_margin(logits, target) <= 0)


def log_odds_against(logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """log of the odds that softmax gives against y, log sum_{i != y} exp logits_i - logits_y.

    L_xent is log(1 + exp(this)): it rises with it, and its gradient points the same way. But the
    gradient of L_xent vanishes if the probabilities of the other classes are too small for float32.
    And if all logits are within FLAT, the softmax is uniform and L_xent gives all other classes the
    same weight: then the logits are scaled to a spread of SHARP, and the value is divided by the
    same factor.

    Example:
        >>> log_odds_against(tf.constant([[0.0, 0.0, 0.0], [1000.0, 1.0, -9.0]]), [0, 0]).numpy()
        array([   0.6931472, -998.99994  ], dtype=float32)
    """
    need_classes(logits, 2, "xent")
    logits = at_least_float32(logits)
    spread = tf.stop_gradient(tf.reduce_max(logits, 1) - tf.reduce_min(logits, 1))
    flat = (spread > _TINIEST) & (spread < FLAT)
    factor = tf.where(flat, SHARP / tf.maximum(spread, _TINIEST), tf.ones_like(spread))
    others = tf.reduce_logsumexp(factor[:, None] * other_logits(logits, y), axis=1) / factor
    return others - of_class(logits, y)


def cw_margin(logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Carlini and Wagner's margin max_{i != y} logits_i - logits_y, above 0 where misclassified.

    The challenges' CW attack clips it at 50, -relu(50 - margin), which has the same gradient for every
    margin below 50; here it is not clipped.

    Example:
        >>> cw_margin(tf.constant([[3.0, 1.0, 2.0]]), tf.constant([0])).numpy()
        array([-1.], dtype=float32)
    """
    need_classes(logits, 2, "cw")
    logits = at_least_float32(logits)
    return tf.reduce_max(other_logits(logits, y), axis=1) - of_class(logits, y)


def dlr(logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Difference of logits ratio (Croce and Hein 2020, eq. 6): the margin, whatever its scale.

    margin / (z_1 - z_3), with z_1 >= z_2 >= ... the sorted logits.

    Raises:
        UserError: fewer than 3 classes.

    Example:
        >>> dlr(tf.constant([[4.0, 1.0, 2.0]]), tf.constant([0])).numpy()
        array([-0.6666667], dtype=float32)
    """
    need_classes(logits, 3, "dlr")
    logits = at_least_float32(logits)
    z = tf.math.top_k(logits, 3).values
    return _ratio(cw_margin(logits, y), z[:, 0] - z[:, 2])


def dlr_targeted(logits: tf.Tensor, y: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Targeted difference of logits ratio (Croce and Hein 2020, eq. 7).

    (logits_target - logits_y) / (z_1 - (z_3 + z_4) / 2).

    Raises:
        UserError: fewer than 4 classes.

    Example:
        >>> dlr_targeted(tf.constant([[4.0, 1.0, 2.0, 0.0]]), tf.constant([0]), tf.constant([1])).numpy()
        array([-0.85714287], dtype=float32)
    """
    need_classes(logits, 4, "targeted dlr")
    logits = at_least_float32(logits)
    z = tf.math.top_k(logits, 4).values
    gap = of_class(logits, target) - of_class(logits, y)
    return _ratio(gap, z[:, 0] - (z[:, 2] + z[:, 3]) / 2)


def _ratio(gap: tf.Tensor, spread: tf.Tensor) -> tf.Tensor:
    """gap / spread; gap where the logits are all the same. [B] x 2 -> [B]."""
    return gap / tf.where(spread > 0, spread, tf.ones_like(spread))


LOSSES: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "xent": log_odds_against,
    "cw": cw_margin,
    "dlr": dlr,
}


def aimed_loss(name: str) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """(logits, y, target) -> [B] of an attack towards a target: minus the loss of the target as label.

    "dlr" is `dlr_targeted`, as in AutoAttack, and so is the name that APGD-T has for it.
    """
    if name in ("dlr", "dlr_targeted"):
        return dlr_targeted
    loss = loss_named(name)
    return lambda logits, y, target: -loss(logits, target)


_ONE = ": for a single output z of two classes return tf.concat([0 * z, z], 1)"


def need_classes(logits: tf.Tensor, least: int, name: str) -> None:
    """Raises a UserError where a loss of this name needs more classes than there are logits."""
    if logits.shape[1] < least:
        raise UserError(
            f"expected at least {least} classes for the {name} loss; received logits of "
            f"{logits.shape[1]}{_ONE if logits.shape[1] == 1 else ''}"
        )


def loss_named(name: str) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The loss of that name in LOSSES.

    Raises:
        UserError: there is none.
    """
    if name not in LOSSES:
        raise UserError(f"expected an attack loss among {', '.join(LOSSES)}; received {name!r}")
    return LOSSES[name]


def as_loss(loss: str | Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """A loss by its name in LOSSES, or as it is; L_xent itself in the form for attacks."""
    if loss is xent:
        return log_odds_against
    return loss_named(loss) if isinstance(loss, str) else loss
