"""What depends on an attack's norm: length, steepest direction, projection to the ball."""

from __future__ import annotations

import numpy as np

from igam_tf.common.checks import expect
from igam_tf.common.lazy import tf

NORMS = ("linf", "l2", "l1")
_MOST_STEPS = 60  # towards the threshold of `_project_l1`; some ten are enough


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
    return largest if norm == "linf" else largest * _SIZES[norm](v)


def dual_length(v: tf.Tensor, norm: str) -> tf.Tensor:
    """The dual norm of each example: the most that a step of length 1 gains along v. [B,...] -> [B]."""
    return length(v, {"linf": "l1", "l2": "l2", "l1": "linf"}[norm])


def unit(v: tf.Tensor, norm: str) -> tf.Tensor:
    """v scaled to length 1; 0 stays 0. [B,...] -> [B,...]."""
    v, _ = by_largest(v)
    return v if norm == "linf" else tf.math.divide_no_nan(v, per_example(_SIZES[norm](v), v))


def _l2(v: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(tf.reduce_sum(tf.square(v), image_axes(v)))


def _l1(v: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.abs(v), image_axes(v))


_SIZES = {"l2": _l2, "l1": _l1}


def steepest(gradient: tf.Tensor, norm: str) -> tf.Tensor:
    """The step of length 1 that raises the linearised loss most: sign, or in l2 the unit gradient."""
    return tf.sign(gradient) if norm == "linf" else unit(gradient, norm)


def project(x_adv: tf.Tensor, x: tf.Tensor, *, eps, bounds, norm: str) -> tf.Tensor:
    """x_adv within eps of x and within the bounds; [B,...] each, eps one or [B].

    In l2, projects to the ball, then clips to the bounds; clipping cannot leave the ball. In l1 and
    in l-inf it is the nearest point of ball and bounds together.
    """
    if norm == "linf":
        eps = per_example(tf.convert_to_tensor(eps, x.dtype), x)
        return tf.clip_by_value(
            x_adv, tf.maximum(x - eps, bounds[0]), tf.minimum(x + eps, bounds[1])
        )
    delta = x_adv - x
    if norm == "l1":
        return x + _project_l1(delta, x, tf.cast(eps, x.dtype), bounds)
    shorter = tf.minimum(tf.cast(eps, x.dtype), length(delta, norm))
    return tf.clip_by_value(x + unit(delta, norm) * per_example(shorter, x), bounds[0], bounds[1])


def _project_l1(delta: tf.Tensor, x: tf.Tensor, eps: tf.Tensor, bounds) -> tf.Tensor:
    """The nearest perturbation to delta whose l1 norm is at most eps, with x + it within the bounds.

    Croce and Hein 2021 (Mind the box), Prop. 2.1: |d_i| = min(max(|delta_i| - a, 0), room_i), with the
    least threshold a >= 0 that makes them add up to eps at most. [B,...] x 2 -> [B,...].
    """
    size, axes = tf.abs(delta), image_axes(x)
    room = tf.maximum(tf.where(delta > 0, bounds[1] - x, x - bounds[0]), 0)

    def left(threshold: tf.Tensor) -> tf.Tensor:
        return tf.minimum(tf.maximum(size - per_example(threshold, x), 0), room)

    def narrow(i: tf.Tensor, a: tf.Tensor, low: tf.Tensor, high: tf.Tensor, _) -> tuple:
        """Newton's method on the sum, which is piecewise linear in a; bisection where it leaves."""
        excess = tf.reduce_sum(left(a), axes) - eps
        rest = size - per_example(a, x)
        falling = tf.reduce_sum(tf.cast((rest > 0) & (rest <= room), x.dtype), axes)
        low, high = tf.where(excess > 0, a, low), tf.where(excess > 0, high, a)
        newton = a + tf.math.divide_no_nan(excess, falling)
        inside = (newton > low) & (newton < high)
        found = (tf.abs(excess) <= enough) | (low >= high)
        return (
            i + 1,
            tf.where(found, a, tf.where(inside, newton, (low + high) / 2)),
            low,
            high,
            found,
        )

    enough = 4 * np.finfo(x.dtype.as_numpy_dtype).eps * eps
    highest = tf.reduce_max(size, axes)
    none = tf.zeros_like(highest)
    _, a, _, high, found = tf.while_loop(
        lambda i, a, low, high, found: (i < _MOST_STEPS) & ~tf.reduce_all(found),
        narrow, (0, none, none, highest, highest < 0), parallel_iterations=1,
    )  # fmt: skip
    return tf.sign(delta) * left(tf.where(found, a, high))
