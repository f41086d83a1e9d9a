"""Fast Adaptive Boundary attack (Croce and Hein 2020, ICML): the nearest adversarial point.

Each step projects the current point and the original image onto the linearised boundary between the
true class and the target, or the class whose boundary is nearest, and goes to a mixture of both
projections.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from igam_tf.attacks.attack_losses import misclassified, need_classes, of_class
from igam_tf.attacks.direction import direction
from igam_tf.attacks.draws import Draws
from igam_tf.attacks.inputs import checked
from igam_tf.attacks.norms import dual_length, length, per_example, unit
from igam_tf.attacks.shrinking import State, shrinking_loop
from igam_tf.attacks.spec import STEPS, TARGETS, AttackSpec, Kind, Threat
from igam_tf.common.lazy import tf

ALPHA_MAX, ETA, BETA = 0.1, 1.05, 0.9  # most pull to x, overshoot, backward step (their §3)
STARTS = 5  # without a target: the image, then random points, as in AutoAttack's version "plus"
_TINY, _NEAREST = 1e-12, 1e-8  # of a normal's largest component; of the pixel range


def _gap(logits: tf.Tensor, y: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    need_classes(logits, 2, "fab")
    return of_class(logits, target) - of_class(logits, y)


def project_to_plane(x: tf.Tensor, w: tf.Tensor, gap: tf.Tensor, *, bounds, norm: str) -> tf.Tensor:
    """Shortest d with <w, x + d> = <w, x> + gap and x + d within the bounds.

    Where no point of the box fulfils it, every coordinate goes to its end. In l1 the coordinates of
    the largest weights go to their ends one after the other. In l-inf and l2, with r_i the largest
    multiplier that coordinate i can follow, the constraint on the multiplier m reads
    sum_i slope_i min(m, r_i) = |gap|, concave and piecewise linear in m: Newton's method from 0
    rises to the solution and ends there exactly.

    Args:
        x: points within the bounds [B,n].
        w: normals of the planes [B,n], their largest component about 1.
        gap: how much <w, x> has to rise [B].
        bounds: lowest and highest pixel value.
        norm: "linf", "l2" or "l1".

    Returns:
        d, [B,n].
    """
    direction = tf.sign(w) * tf.sign(gap)[:, None]
    room = tf.where(direction > 0, bounds[1] - x, x - bounds[0])
    size = tf.abs(w)
    if norm == "l1":
        order = tf.argsort(size, direction="DESCENDING")
        gain = tf.gather(size * room, order, batch_dims=1)
        before = tf.cumsum(gain, axis=1, exclusive=True)
        taken = tf.clip_by_value(tf.abs(gap)[:, None] - before, 0, gain)
        taken = tf.gather(taken, tf.argsort(order), batch_dims=1)
        return direction * tf.minimum(tf.math.divide_no_nan(taken, size), room)
    rate = tf.cast(size > 0, x.dtype) if norm == "linf" else size  # |d_i| = rate_i * multiplier
    slope = size * rate
    reach = tf.where(rate > 0, room / tf.maximum(rate, tf.constant(_TINY, x.dtype)), 0)

    def newton(_, m: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        full = reach <= m[:, None]
        behind = tf.reduce_sum(tf.where(full, slope * reach, 0), 1)
        ahead = tf.reduce_sum(tf.where(full, tf.zeros_like(slope), slope), 1)
        new = tf.where(ahead > 0, (tf.abs(gap) - behind) / ahead, m)
        return m, tf.maximum(new, m)

    start = tf.zeros_like(gap)
    _, multiplier = tf.while_loop(
        lambda before, m: tf.reduce_any(m > before), newton, newton(start, start)
    )
    return direction * rate * tf.minimum(multiplier[:, None], reach)


def nearest_boundary(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    y: tf.Tensor,
    classes: int,
    norm: str,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(gradient, size, value) of the gap to the class whose linearised boundary is nearest to x.

    As `direction` has them: the gap z_class - z_y is value, its gradient size * gradient.
    """

    def boundary(offset: tf.Tensor) -> tuple:
        found = direction(logits_fn, x, y, _gap, (y + offset) % classes)
        value = tf.cast(found.value, x.dtype)
        slope = found.size * dual_length(found.gradient, norm)
        distance = tf.where(slope > 0, tf.abs(value) / tf.where(slope > 0, slope, 1), np.inf)
        return found.gradient, found.size, value, distance

    def nearer(offset: tf.Tensor, *best: tf.Tensor) -> tuple:
        found = boundary(offset)
        better = found[-1] < best[-1]
        chosen = (tf.where(per_example(better, b), f, b) for f, b in zip(found, best, strict=True))
        return offset + 1, *chosen

    one = tf.ones([], y.dtype)
    _, *found, _ = tf.while_loop(
        lambda offset, *_: offset < classes,
        nearer,
        (one + 1, *boundary(one)),
        parallel_iterations=1,
    )
    return tuple(found)


def fab(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    y: tf.Tensor,
    *,
    target: tf.Tensor | None = None,
    bounds: tuple[float, float],
    steps: int = STEPS,
    eps: float | None = None,
    norm: str = "linf",
    start: tf.Tensor | None = None,
) -> tf.Tensor:
    """Searches the adversarial point nearest to x, towards one class, or the nearest in each step.

    Args:
        logits_fn: x [B,...] -> logits [B,K]; each example's alone, without batch statistics.
        x: images [B,...] that are classified as y, float32 or float64, within `bounds`.
        y: labels [B], of any integer type.
        target: classes [B]; any misclassified point counts. None: in each step the class whose
            linearised boundary is nearest, which takes a gradient for each class.
        bounds: lowest and highest pixel value.
        steps: gradient steps, at least 1.
        eps: an example leaves once its point is within this radius, in the pixel unit of x; None
            continues all to the end and returns their nearest points.
        norm: "linf", "l2" or "l1".
        start: point within the bounds to begin at, as x; None: x itself.

    Returns:
        The nearest misclassified point that was found, as x; x itself if there is none.

    Raises:
        UserError: the logits have no gradient with respect to x, or see `inputs.checked`.

    Example:
        >>> import tensorflow as tf
        >>> logits_fn = lambda x: tf.concat([x, 1 - x], 1)
        >>> x_adv = fab(logits_fn, tf.constant([[0.75]]), [0], target=[1], bounds=(0.0, 1.0))
        >>> bool(0.49 < x_adv < 0.5)
        True
    """
    logits_fn, x, y = checked(
        logits_fn, x, y, eps=0.0 if eps is None else eps, bounds=bounds, norm=norm, steps=steps
    )
    # The published constants are for pixels in 0..1, which only the smallest distance depends on.
    low, high = (tf.convert_to_tensor(value, x.dtype) for value in bounds)
    enough = tf.constant(-1.0, x.dtype) if eps is None else tf.convert_to_tensor(eps, x.dtype)
    nearest = tf.constant(_NEAREST, x.dtype) * (high - low)
    flat_shape, shape = [-1, x.shape[1:].num_elements()], [-1, *x.shape[1:]]

    def step(_, s: State) -> State:
        if target is None:
            gradient, size, value = nearest_boundary(logits_fn, s["x_adv"], s["y"], classes, norm)
        else:
            found = direction(logits_fn, s["x_adv"], s["y"], _gap, s["target"])
            gradient, size, value = found.gradient, found.size, tf.cast(found.value, x.dtype)
        w = tf.reshape(gradient, flat_shape)
        here, origin = tf.reshape(s["x_adv"], flat_shape), tf.reshape(s["x"], flat_shape)
        # The plane gap + size <w, z - here> = 0, seen from both points.
        rise = -tf.math.divide_no_nan(value, size)
        from_origin = rise - tf.reduce_sum(w * (origin - here), 1)
        both = project_to_plane(
            tf.concat([here, origin], 0),
            tf.concat([w, w], 0),
            tf.concat([rise, from_origin], 0),
            bounds=(low, high),
            norm=norm,
        )
        d_here, d_origin = tf.split(both, 2)
        l_here, l_origin = tf.split(tf.maximum(length(both, norm), nearest), 2)
        alpha = tf.minimum(l_here / (l_here + l_origin), ALPHA_MAX)[:, None]
        moved = (here + ETA * d_here) * (1 - alpha) + (origin + ETA * d_origin) * alpha
        x_adv = tf.reshape(tf.clip_by_value(moved, low, high), shape)

        wrong = misclassified(logits_fn(x_adv), s["y"])
        distance = length(x_adv - s["x"], norm)
        nearer = wrong & (distance < s["distance"])
        back = s["x"] + BETA * (x_adv - s["x"])
        best = tf.where(nearer, distance, s["distance"])
        return s | {
            "x_adv": tf.where(per_example(wrong, x), back, x_adv),
            "answer": tf.where(per_example(nearer, x), x_adv, s["answer"]),
            "distance": best,
            "done": best <= enough,
        }

    far = tf.fill(tf.shape(y), tf.constant(float("inf"), x.dtype))
    classes = logits_fn(x).shape[1] if target is None else 0
    begin = x if start is None else tf.convert_to_tensor(start, x.dtype)
    state = {"x": x, "y": y, "x_adv": begin, "answer": x, "distance": far}
    state["done"] = tf.zeros_like(y, tf.bool)
    if target is not None:
        state["target"] = tf.cast(target, y.dtype)
    return tf.stop_gradient(shrinking_loop(step, state, steps=steps))


def _spec(name: str, threat: Threat) -> AttackSpec:
    targets = min(TARGETS, threat.num_classes - 1) if name == "fab-t" else 0
    return AttackSpec(
        name=name, kind="fab", norm=threat.norm, eps=threat.eps, steps=STEPS, targets=targets,
        restarts=1 if targets else STARTS, loss="distance",
    )  # fmt: skip


def _draws(spec: AttackSpec, shape, generator: np.random.Generator, eps: float, dtype) -> Draws:
    """The direction of a start, 0 for the image itself: from a cube, or normal."""
    if spec.targets:
        return {}
    if not spec.random_start:
        return {"noise": np.zeros(shape, dtype)}
    if spec.norm == "linf":
        return {"noise": 2 * generator.random(shape, dtype) - 1}
    return {"noise": generator.standard_normal(shape, dtype)}


def _run(
    logits_fn, x, y, spec: AttackSpec, *, eps, bounds, step_size, steps, target, noise=None
) -> tf.Tensor:
    start = None
    if noise is not None:  # half way to the surface of the ball, as in the authors' code
        start = tf.clip_by_value(x + unit(noise, spec.norm) * eps / 2, *bounds)
    x_adv = fab(
        logits_fn, x, y, target=target, bounds=bounds, steps=spec.steps, eps=eps, norm=spec.norm,
        start=start,
    )  # fmt: skip
    # If the nearest point is beyond eps, the attack has failed and returns x.
    return tf.where(per_example(length(x_adv - x, spec.norm) <= eps, x), x_adv, x)


KIND = Kind(names="fab(-t)?", shown="fab, fab-t", spec=_spec, draws=_draws, run=_run)
