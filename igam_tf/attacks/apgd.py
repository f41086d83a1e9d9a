"""Auto-PGD (Croce and Hein 2020, Algorithm 1): PGD with momentum that halves its own step size.

In l1 its steps are sparse: `igam_tf.attacks.sparse`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from igam_tf.attacks.attack_losses import (
    aimed_loss,
    as_loss,
    misclassified,
    reached,
)
from igam_tf.attacks.direction import mean_direction
from igam_tf.attacks.draws import Draws, for_each, in_ball
from igam_tf.attacks.inputs import checked, known_size
from igam_tf.attacks.norms import per_example, project, steepest, unit
from igam_tf.attacks.shrinking import State, shrinking_loop
from igam_tf.attacks.sparse import RADII, sparse_ascent
from igam_tf.attacks.spec import STEPS, TARGETS, AttackSpec, Kind, Threat
from igam_tf.common.errors import UserError
from igam_tf.common.lazy import tf

MOMENTUM = 0.75  # alpha of Algorithm 1: weight of the gradient step against the last move
RHO = 0.75  # halve the step unless more than this share of the steps since the last check rose
# p_1, the least decrease between periods and the shortest period, as shares of all steps (§3.1)
FIRST_PERIOD, PERIOD_DECREASE, SHORTEST_PERIOD = 0.22, 0.03, 0.06
STARTS_L1, TARGETS_L1 = 5, 5  # in l1, as in AutoAttack's standard version


def checkpoints(steps: int) -> list[int]:
    """The steps after which the step size is reviewed (Croce and Hein 2020, §3.1).

    Example:
        >>> checkpoints(100)
        [22, 41, 57, 70, 80, 87, 93, 99]
    """
    period, decrease, shortest = (
        max(int(share * steps), 1) for share in (FIRST_PERIOD, PERIOD_DECREASE, SHORTEST_PERIOD)
    )
    at, found = period, []
    while at <= steps:
        found.append(at)
        period = max(period - decrease, shortest)
        at += period
    return found


def apgd(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    y: tf.Tensor,
    *,
    eps: float | tf.Tensor,
    bounds: tuple[float, float],
    steps: int = STEPS,
    loss: str | Callable[..., tf.Tensor] = "xent",
    noise: tf.Tensor | None = None,
    seed: int = 0,
    target: tf.Tensor | None = None,
    norm: str = "linf",
    eot: int = 1,
    radii: Sequence[float] = RADII,
    aimed: bool = False,
) -> tf.Tensor:
    """Maximises the loss within eps, from a random start on the ball's surface.

    An example leaves at its first misclassified point, unless the network is random (eot above 1).

    Args:
        logits_fn: x [B,...] -> logits [B,K]; each example's alone, without batch statistics.
        x: images [B,...], float32 or float64, within `bounds`.
        y: labels [B], of any integer type.
        eps: radius, in the pixel unit of x; one, or one for each image [B].
        bounds: lowest and highest pixel value.
        steps: gradient steps, at least 1.
        loss: name in `igam_tf.attacks.LOSSES`, or (logits, y) -> [B], or (logits, y, target) -> [B]
            where there is a target.
        noise: direction of the start, of the shape of x: uniform in +-1 for linf, normal for l2 and
            l1 (there in units of the pixel range, and projected); None: drawn by the seed.
        seed: of the random start, where there is no noise.
        target: classes [B] of a targeted loss.
        norm: "linf", "l2" or "l1".
        eot: draws of a random network over which each gradient is averaged; loss and class of a
            point are of the last of them, as in AutoAttack's version "rand".
        radii: in l1, multiples of eps in which the search goes on one after the other, the last 1:
            (3, 2, 1) with 30, 30 and 40 % of the steps, or (1,).
        aimed: whether an example has to reach its target: it leaves there, at no other class.

    Returns:
        x_adv, as x: misclassified if that was found, else the point of highest loss. With eot above
        1 the last point that was misclassified, else x.

    Raises:
        UserError: the logits have no gradient with respect to x, or see `inputs.checked`.

    Example:
        >>> import tensorflow as tf
        >>> logits_fn = lambda x: tf.concat([x, 1 - x], 1)
        >>> apgd(logits_fn, tf.constant([[0.75]]), [0], eps=0.25, bounds=(0.0, 1.0)).numpy()
        array([[0.5]], dtype=float32)
    """
    least = len(radii) if norm == "l1" else 1
    logits_fn, x, y = checked(
        logits_fn, x, y, eps=eps, bounds=bounds, norm=norm, steps=steps, least=least
    )
    loss = as_loss(loss)
    if noise is None:
        dtype = x.dtype.as_numpy_dtype
        shape = tuple(x.shape[1:])
        noise = for_each(
            lambda generator: {"noise": _noise(generator, shape, dtype, norm)},
            range(known_size(x, "noise")), seed=seed,
        )["noise"]  # fmt: skip
    noise = tf.convert_to_tensor(noise, x.dtype)
    eps, *limits = (tf.convert_to_tensor(value, x.dtype) for value in (eps, *bounds))
    eps = tf.broadcast_to(eps, tf.shape(y))

    def look(s: State) -> State:
        """Loss and gradient at s["x_adv"], and whether it is misclassified (`done`)."""
        aim = () if target is None else (s["target"],)
        gradient, value, logits = mean_direction(logits_fn, s["x_adv"], s["y"], loss, *aim, eot=eot)
        wrong = reached(logits, s["target"]) if aimed else misclassified(logits, s["y"])
        new = s | {"gradient": gradient, "loss": tf.cast(value, x.dtype), "done": wrong}
        if eot > 1:  # one draw proves nothing: the search goes on
            new["done"] = tf.zeros_like(wrong)
            new["answer"] = tf.where(per_example(wrong, x), s["x_adv"], s["answer"])
        return new

    def begun(start: tf.Tensor) -> State:
        """The state of a search at its start."""
        state = {"x": x, "y": y, "eps": eps, "x_adv": start, "answer": start if eot == 1 else x}
        if target is not None:
            state["target"] = target
        state = look(state)
        return state | {
            "best_x_adv": start,
            "best_gradient": state["gradient"],
            "best_loss": state["loss"],
        }

    def into_ball(x_adv: tf.Tensor, s: State) -> tf.Tensor:
        return project(x_adv, s["x"], eps=s["eps"], bounds=limits, norm=norm)

    def keep_best(s: State) -> State:
        better = s["loss"] > s["best_loss"]
        new = s | {"best_loss": tf.where(better, s["loss"], s["best_loss"])}
        for name in ("x_adv", "gradient"):
            best = f"best_{name}"
            new[best] = tf.where(per_example(better, x), s[name], s[best])
        if eot > 1:
            return new
        return new | {"answer": tf.where(per_example(s["done"], x), s["x_adv"], new["best_x_adv"])}

    if norm == "l1":
        start = x + noise * (limits[1] - limits[0])
        return sparse_ascent(
            look, keep_best, begun, start, x, eps=eps, bounds=limits, steps=steps, radii=radii
        )
    reviews = checkpoints(steps)
    first_of_period = tf.constant([0, *reviews[:-1]])
    reviews = tf.constant(reviews)

    def review(s: State, period: tf.Tensor) -> State:
        """Halves the step where the loss oscillated or no longer rose, and restarts from the best."""
        oscillates = s["rises"] <= RHO * tf.cast(period, x.dtype)
        stalled = ~s["halved"] & (s["reviewed_loss"] >= s["best_loss"])
        halve = oscillates | stalled
        back = per_example(halve, x)
        return s | {
            "step_size": tf.where(halve, s["step_size"] / 2, s["step_size"]),
            "x_adv": tf.where(back, s["best_x_adv"], s["x_adv"]),
            "gradient": tf.where(back, s["best_gradient"], s["gradient"]),
            "halved": halve,
            "reviewed_loss": s["best_loss"],
            "rises": tf.zeros_like(s["rises"]),
        }

    def step(t: tf.Tensor, s: State) -> State:
        x_adv, before = s["x_adv"], s["loss"]
        momentum = tf.where(t > 0, tf.constant(MOMENTUM, x.dtype), tf.constant(1, x.dtype))
        z = into_ball(x_adv + per_example(s["step_size"], x) * steepest(s["gradient"], norm), s)
        moved = x_adv + momentum * (z - x_adv) + (1 - momentum) * (x_adv - s["last"])
        s = look(s | {"x_adv": into_ball(moved, s), "last": x_adv})
        s = keep_best(s | {"rises": s["rises"] + tf.cast(s["loss"] > before, x.dtype)})
        due = tf.equal(reviews, t + 1)
        period = t + 1 - tf.reduce_sum(tf.where(due, first_of_period, 0))
        return tf.cond(tf.reduce_any(due), lambda: review(s, period), lambda: s)

    start = into_ball(x + per_example(eps, x) * unit(noise, norm), {"x": x, "eps": eps})
    state = begun(start)
    state |= {"last": start, "reviewed_loss": state["loss"]}
    none = tf.zeros_like(state["loss"])
    # A step of 2 eps reaches any point of the ball; "halved" at first, so that only oscillation counts.
    state |= {"step_size": none + 2 * eps, "rises": none, "halved": tf.ones_like(y, tf.bool)}
    return tf.stop_gradient(shrinking_loop(step, state, steps=steps))


_LEAST_CLASSES = {"apgd-ce": 0, "apgd-dlr": 3, "apgd-t": 4}  # 4 where apgd-dlr has an aim


def _spec(name: str, threat: Threat) -> AttackSpec:
    least = _LEAST_CLASSES["apgd-t" if name == "apgd-dlr" and threat.aim else name]
    if threat.num_classes < least:
        raise UserError(
            f"expected at least {least} classes for {name}, as in autoattack, whose "
            f"difference of logits ratio is not defined below; received {threat.num_classes}"
        )
    loss = {"apgd-ce": "xent", "apgd-dlr": "dlr", "apgd-t": "dlr_targeted"}[name]
    sparse = threat.norm == "l1"
    most = TARGETS_L1 if sparse else TARGETS
    targets = min(most, threat.num_classes - 1) if name == "apgd-t" else 0
    starts = STARTS_L1 if sparse and threat.eot == 1 else threat.starts
    return AttackSpec(
        name=name, kind="apgd", norm=threat.norm, eps=threat.eps, steps=STEPS, loss=loss,
        restarts=1 if targets else starts, targets=targets, random_start=True, eot=threat.eot,
        aim=None if targets else threat.aim,
    )  # fmt: skip


def _noise(generator: np.random.Generator, shape, dtype, norm: str) -> np.ndarray:
    if norm == "l1":
        return generator.standard_normal(shape, dtype)
    return in_ball(generator, shape, dtype, norm)


def _draws(spec: AttackSpec, shape, generator: np.random.Generator, eps: float, dtype) -> Draws:
    return {"noise": _noise(generator, shape, dtype, spec.norm)}


def _run(
    logits_fn, x, y, spec: AttackSpec, *, eps, bounds, step_size, steps, target, noise
) -> tf.Tensor:
    loss = aimed_loss(spec.loss) if spec.targeted else spec.loss
    return apgd(
        logits_fn, x, y, eps=eps, bounds=bounds, steps=spec.steps, noise=noise, norm=spec.norm,
        loss=loss, target=target, eot=spec.eot, aimed=spec.aim is not None,
        radii=RADII if spec.eot == 1 else RADII[-1:],  # as in the authors' versions
    )  # fmt: skip


KIND = Kind(
    names="apgd-ce|apgd-dlr|apgd-t", shown="apgd-ce, apgd-dlr, apgd-t", spec=_spec, draws=_draws,
    run=_run, aims=True,
)  # fmt: skip
