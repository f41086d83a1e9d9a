"""Projected gradient descent inside an eps-ball (Madry et al. 2018); one step of it is FGSM."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from igam_tf.attacks.attack_losses import aimed_loss, as_loss
from igam_tf.attacks.direction import direction
from igam_tf.attacks.draws import Draws, in_ball
from igam_tf.attacks.inputs import checked
from igam_tf.attacks.norms import project, steepest
from igam_tf.attacks.spec import AttackSpec, Kind, Threat
from igam_tf.common.checks import expect
from igam_tf.common.lazy import tf


def pgd(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    y: tf.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    bounds: tuple[float, float],
    loss: str | Callable[..., tf.Tensor] = "xent",
    noise: tf.Tensor | None = None,
    start: tf.Tensor | None = None,
    target: tf.Tensor | None = None,
    norm: str = "linf",
    clip_first: bool = False,
) -> tf.Tensor:
    """Ascends the sum over the batch of loss(logits, y) in signed steps, projecting after each.

    x_0 = P(x + noise);  x_{t+1} = P(x_t + step_size sign(grad));  P: into the eps-ball, then bounds.

    FGSM is steps=1, step_size=eps, noise=None. eps and step_size may be scalar tensors of the dtype of
    x, steps a scalar int32 tensor.

    Args:
        logits_fn: x [B,...] -> logits [B,K].
        x: images [B,...], float32 or float64, within `bounds`.
        y: labels [B], of any integer type.
        eps, step_size: radius and step, in the pixel unit of x.
        steps: number of gradient steps.
        bounds: lowest and highest pixel value.
        loss: name in `igam_tf.attacks.LOSSES`, or (logits, y) -> [B], or (logits, y, target) -> [B]
            where there is a target.
        noise: random start, of the shape and dtype of x; None starts at x itself.
        start: point of the ball to begin at, such as what another call returned; None: x + noise.
        target: classes [B] of a targeted loss.
        norm: "linf", or "l2", where the step is along the gradient itself. In l1, take `apgd`.
        clip_first: in l2, whether the bounds come before the ball, as in the Adversarial Robustness
            Toolbox; this leaves a longer perturbation.

    Returns:
        x_adv, as x; no gradient flows back through it.

    Raises:
        UserError: the norm is l1, the logits have no gradient with respect to x, or see
            `inputs.checked`.

    Example:
        >>> import tensorflow as tf
        >>> logits_fn = lambda x: tf.concat([x, 1 - x], 1)
        >>> pgd(logits_fn, tf.constant([[0.75]]), [0], eps=0.25, step_size=0.125, steps=5,
        ...     bounds=(0.0, 1.0)).numpy()
        array([[0.5]], dtype=float32)
    """
    logits_fn, x, y = checked(
        logits_fn, x, y, eps=eps, bounds=bounds, norm=norm, steps=steps, least=0
    )
    _no_l1("pgd", norm)
    loss = as_loss(loss)
    # Not tf.cast, which would round a Python float to float32 first.
    eps, step_size, *limits = (
        tf.convert_to_tensor(value, x.dtype) for value in (eps, step_size, *bounds)
    )
    threat: dict = {"eps": eps, "bounds": limits, "norm": norm}
    aim = () if target is None else (target,)

    def step(t: tf.Tensor, x_adv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        gradient = direction(logits_fn, x_adv, y, loss, *aim).gradient
        moved = x_adv + step_size * steepest(gradient, norm)
        if clip_first:
            moved = tf.clip_by_value(moved, *limits)
        return t + 1, project(moved, x, **threat)

    if start is None:
        start = x if noise is None else project(x + noise, x, **threat)
    _, x_adv = tf.while_loop(
        lambda t, _: t < steps, step, (tf.constant(0), start), parallel_iterations=1
    )
    return tf.stop_gradient(x_adv)


# What PGD is in other libraries unless told otherwise, but for the number of steps; both maximise the
# cross-entropy of the label, once.
LIBRARIES: dict[str, Callable[[Threat], dict]] = {
    # foolbox/attacks/projected_gradient_descent.py of Foolbox 3.3.4: rel_stepsize, random_start
    "foolbox": lambda threat: {
        "step_size": {"linf": 0.01 / 0.3, "l2": 0.025}[threat.norm] * threat.eps,
        "random_start": True,
    },
    # art/attacks/evasion/projected_gradient_descent of the Toolbox 1.20.1: eps_step, num_random_init,
    # _apply_perturbation; the step is in the pixel unit there, here that of 0..1
    "art": lambda threat: {
        "step_size": 0.1,
        "random_start": False,
        "clip_first": threat.norm == "l2",
    },
}


def _no_l1(name: str, norm: str) -> None:
    remedy = "in l1 take apgd-ce or autoattack, whose steps move few pixels"
    expect(norm != "l1", f"{name} with norm linf or l2", norm, remedy)


def _spec(name: str, threat: Threat) -> AttackSpec:
    """FGSM is one step of eps from the image itself, as in the challenges."""
    _no_l1(name, threat.norm)
    own: dict = {
        "name": name, "norm": threat.norm, "eps": threat.eps, "loss": threat.loss, "aim": threat.aim,
    }  # fmt: skip
    if name == "fgsm":
        return AttackSpec(step_size=threat.eps, steps=1, restarts=1, **own)
    steps, _, library = name.removeprefix("pgd").partition(":")
    how: dict = {
        "step_size": threat.step_size, "restarts": threat.restarts, "random_start": True,
    }  # fmt: skip
    if library:
        how = LIBRARIES[library](threat) | {"restarts": 1}
        own["loss"] = "xent"
    return AttackSpec(steps=int(steps), **own | how)


def _draws(spec: AttackSpec, shape, generator: np.random.Generator, eps: float, dtype) -> Draws:
    if not spec.random_start:
        return {"noise": np.zeros(shape, dtype)}
    return {"noise": (in_ball(generator, shape, dtype, spec.norm) * eps).astype(dtype)}


def _begin(x, spec: AttackSpec, *, eps, bounds, noise) -> tf.Tensor:
    limits = tf.convert_to_tensor(bounds, x.dtype)
    return project(x + noise, x, eps=eps, bounds=limits, norm=spec.norm)


def _run(logits_fn, x, y, spec: AttackSpec, **inputs) -> tf.Tensor:
    loss = aimed_loss(spec.loss) if spec.targeted else spec.loss
    clip = spec.clip_first
    return pgd(logits_fn, x, y, loss=loss, norm=spec.norm, clip_first=clip, **inputs)


KIND = Kind(
    names=rf"fgsm|pgd[1-9]\d*(:({'|'.join(LIBRARIES)}))?",
    shown="fgsm, pgd<steps>, pgd<steps>:foolbox, pgd<steps>:art", spec=_spec, draws=_draws, run=_run,
    aims=True, on_batch_statistics=True, traced_by_steps=False, begin=_begin,
)  # fmt: skip
