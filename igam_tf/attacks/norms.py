"""What depends on an attack's norm: length, steepest direction, projection to the ball."""

from __future__ import annotations

from igam_tf.common.checks import expect
from igam_tf.common.lazy import tf

NORMS = ("linf", "l2")


def check_norm(norm: str) -> None:
    """Raises a UserError where the norm is not one of NORMS."""
    expect(norm in NORMS, f"a norm among {', '.join(NORMS)}", repr(norm))


def per_example(values: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """[B] -> [B,1,...,1], to be multiplied with x [B,...]."""
    return tf.reshape(values, tf.concat([tf.shape(values), tf.ones(x.shape.rank - 1, tf.int32)], 0))


def image_axes(v: tf.Tensor) -> list[int]:
    """All axes but the first."""
    return list(range(1, v.shape.rank))


def by_largest(v: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(each example divided by its largest |component|, that); 0 stays 0. [B,...] -> [B,...], [B].

    The result can be squared without underflow or overflow.
    """
    largest = tf.reduce_max(tf.abs(v), image_axes(v))
    return tf.math.divide_no_nan(v, per_example(largest, v)), largest


def length(v: tf.Tensor, norm: str) -> tf.Tensor:
    """The norm of each example. [B,...] -> [B]."""
    v, largest = by_largest(v)
    return largest if norm == "linf" else largest * _l2(v)


def unit(v: tf.Tensor, norm: str) -> tf.Tensor:
    """v scaled to length 1; 0 stays 0. [B,...] -> [B,...]."""
    v, _ = by_largest(v)
    return v if norm == "linf" else tf.math.divide_no_nan(v, per_example(_l2(v), v))


def _l2(v: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(tf.reduce_sum(tf.square(v), image_axes(v)))


def steepest(gradient: tf.Tensor, norm: str) -> tf.Tensor:
    """The step of length 1 that raises the linearised loss most: sign, or the unit gradient."""
    return tf.sign(gradient) if norm == "linf" else unit(gradient, norm)


def project(x_adv: tf.Tensor, x: tf.Tensor, *, eps, bounds, norm: str) -> tf.Tensor:
    """x_adv within eps of x and within the bounds; [B,...] each.

    In l2, projects to the ball, then clips to the bounds; clipping cannot leave the ball.
    """
    if norm == "linf":
        return tf.clip_by_value(
            x_adv, tf.maximum(x - eps, bounds[0]), tf.minimum(x + eps, bounds[1])
        )
    delta = x_adv - x
    shorter = tf.minimum(tf.cast(eps, x.dtype), length(delta, norm))
    return tf.clip_by_value(x + unit(delta, norm) * per_example(shorter, x), bounds[0], bounds[1])
