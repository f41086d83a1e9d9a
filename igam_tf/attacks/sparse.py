"""APGD in l1 (Croce and Hein 2021, Mind the box, arXiv:2103.01208): steps that move few pixels.

A step changes the pixels of the largest gradient by the same amount. Their number follows how many
pixels the best point has changed. The search begins in a larger ball, which shrinks to eps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from igam_tf.attacks.norms import image_axes, per_example, project
from igam_tf.attacks.shrinking import State, shrinking_loop
from igam_tf.common.lazy import tf

# All as in autoattack/autopgd_base.py of github.com/fra31/auto-attack, commit a392200.
RADII = (3.0, 2.0, 1.0)  # of the balls, in eps
LARGE_SHARE = 0.3  # of the steps in each of the larger balls; the last gets the rest
FIRST_SHARE = 0.2  # of the pixels that a step moves, without a larger ball before
FEWER = 1.5  # a step moves this times fewer pixels than the best point has changed
PERIOD = 0.04  # share of the steps after which step size and number of pixels are reviewed
SPARSER = 0.95  # below this ratio of changed pixels, the step returns to its full size
SHRINK, LEAST = 1.5, 10  # else it is divided by this, at most to this part of its full size


def schedule(steps: int, radii: Sequence[float] = RADII) -> list[int]:
    """How many of all steps are made in each ball.

    Example:
        >>> schedule(100), schedule(5), schedule(7, (1.0,))
        ([30, 30, 40], [2, 2, 1], [7])
    """
    large = [math.ceil(LARGE_SHARE * steps)] * (len(radii) - 1)
    return [*large, steps - sum(large)]


def sparse_step(gradient: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """The sign of each example's largest share of components, over their number: l1 length 1.

    gradient [B,...], share [B] -> [B,...].

    Example:
        >>> sparse_step(tf.constant([[0.1, -3.0, 2.0, 0.0]]), tf.constant([0.5])).numpy()
        array([[ 0. , -0.5,  0.5,  0. ]], dtype=float32)
    """
    size = tf.reshape(tf.abs(gradient), [tf.shape(gradient)[0], -1])
    count = tf.cast(tf.shape(size)[1], share.dtype)
    rank = tf.cast(tf.clip_by_value((1 - share) * count, 0, count - 1), tf.int32)
    least = tf.gather(tf.sort(size, axis=1), rank, axis=1, batch_dims=1)
    kept = tf.where(tf.abs(gradient) >= per_example(least, gradient), tf.sign(gradient), 0)
    moved = tf.reduce_sum(tf.abs(kept), image_axes(kept), keepdims=True)
    return tf.math.divide_no_nan(kept, moved)


def sparse_ascent(
    look: Callable[[State], State],
    keep_best: Callable[[State], State],
    begun: Callable[[tf.Tensor], State],
    start: tf.Tensor,
    x: tf.Tensor,
    *,
    eps: tf.Tensor,
    bounds: Sequence[tf.Tensor],
    steps: int,
    radii: Sequence[float],
) -> tf.Tensor:
    """What `igam_tf.attacks.apgd` does in l1.

    Args:
        look: adds gradient, loss and `done` at x_adv to a state.
        keep_best: adds the best point, its gradient and its loss.
        begun: start [B,...] -> the state there.
        start: points anywhere, as x.
        x: the images, [B,...].
        eps: l1 radii, [B].
        bounds: lowest and highest pixel value.
        steps: in all balls together.
        radii: of the balls, in eps.
    """
    for i, (radius, part) in enumerate(zip(radii, schedule(steps, radii), strict=True)):
        start = _in_one_ball(
            look, keep_best, begun, start, x,
            eps=eps, factor=radius, bounds=bounds, steps=part, alone=len(radii) == 1,
            last=i == len(radii) - 1,
        )  # fmt: skip
    return tf.stop_gradient(start)


def _in_one_ball(
    look, keep_best, begun, start, x, *, eps, factor, bounds, steps: int, alone: bool, last: bool
) -> tf.Tensor:
    """The best point of one ball; in the last one an example leaves once it is misclassified."""
    size = x.shape[1:].num_elements()

    def into_ball(x_adv: tf.Tensor, s: State) -> tf.Tensor:
        return project(x_adv, s["x"], eps=factor * s["eps"], bounds=bounds, norm="l1")

    def going_on(s: State) -> State:
        """No point of a larger ball is an answer."""
        return s if last else s | {"done": tf.zeros_like(s["done"]), "answer": s["best_x_adv"]}

    def changed(x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(x_adv != x, x.dtype), image_axes(x))

    def review(s: State) -> State:
        now = changed(s["best_x_adv"], s["x"])
        sparser = now / s["changed"] < SPARSER
        back = per_example(sparser, s["x"])
        radius = factor * s["eps"]
        smaller = tf.maximum(s["step_size"] / SHRINK, radius / LEAST)
        return s | {
            "step_size": tf.where(sparser, radius, smaller),
            "x_adv": tf.where(back, s["best_x_adv"], s["x_adv"]),
            "gradient": tf.where(back, s["best_gradient"], s["gradient"]),
            "share": now / size / FEWER,
            "changed": now,
        }

    period = max(int(PERIOD * steps), 1)

    def step(t: tf.Tensor, s: State) -> State:
        move = per_example(s["step_size"], s["x"]) * sparse_step(s["gradient"], s["share"])
        s = keep_best(look(s | {"x_adv": into_ball(s["x_adv"] + move, s)}))
        s = tf.cond(tf.equal((t + 1) % period, 0), lambda: review(s), lambda: dict(s))
        return going_on(s)

    start = into_ball(start, {"x": x, "eps": eps})
    state = begun(start)
    full = tf.zeros_like(state["loss"]) + size
    count = full if alone else changed(start, x)
    share = FIRST_SHARE + 0 * full if alone else count / size / FEWER
    state |= {"step_size": factor * eps, "share": share, "changed": count}
    return shrinking_loop(step, going_on(state), steps=steps)
