"""Projected gradient descent inside an eps-ball (Madry et al. 2018); one step of it is FGSM."""

from collections.abc import Callable

import tensorflow as tf

from igam_tf.attacks.gradient import ascent
from igam_tf.attacks.norms import check_norm, project, steepest


def pgd(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    y: tf.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    loss: Callable[..., tf.Tensor],
    bounds: tuple[float, float],
    noise: tf.Tensor | None = None,
    target: tf.Tensor | None = None,
    norm: str = "linf",
    decay: float = 0.0,
) -> tf.Tensor:
    """Ascends the sum over the batch of loss(logits, y) in signed steps, projecting after each.

    x_0 = P(x + noise);  x_{t+1} = P(x_t + step_size sign(grad));  P: into the eps-ball, then bounds.

    FGSM is steps=1, step_size=eps, no noise. eps and step_size may be scalar tensors of the
    dtype of x, steps one of int32.

    Args:
        logits_fn: x [B,...] -> logits [B,K].
        x: images [B,...], float32 or float64, within `bounds`.
        y: labels [B], int.
        eps, step_size: radius and step, in the pixel unit of x.
        steps: number of gradient steps.
        loss: (logits, y) -> [B], or (logits, y, target) -> [B] where there is a target; see
            `igam_tf.attacks.losses`.
        bounds: lowest and highest pixel value.
        noise: random start, of the shape and dtype of x; None starts at x itself.
        target: classes [B] of a targeted loss.
        norm: "linf", or "l2", where the step is along the gradient itself.
        decay: the step falls linearly to (1 - decay) of itself at the last one.

    Returns:
        x_adv, as x; no gradient flows back through it.

    Raises:
        UserError: the logits have no gradient with respect to x, or another norm.
    """
    check_norm(norm)
    # Not tf.cast, which would round a Python float to float32 first.
    eps, step_size, *bounds = (
        tf.convert_to_tensor(value, x.dtype) for value in (eps, step_size, *bounds)
    )
    threat = {"eps": eps, "bounds": bounds, "norm": norm}
    last = tf.cast(tf.maximum(steps - 1, 1), x.dtype)
    aim = () if target is None else (target,)

    def values(x_adv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = logits_fn(x_adv)
        return loss(logits, y, *aim), logits

    def step(t: tf.Tensor, x_adv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        gradient, _, _ = ascent(values, x_adv)
        size = step_size * (1 - decay * tf.cast(t, x.dtype) / last) if decay else step_size
        return t + 1, project(x_adv + size * steepest(gradient, norm), x, **threat)

    start = x if noise is None else project(x + noise, x, **threat)
    _, x_adv = tf.while_loop(
        lambda t, _: t < steps, step, (tf.constant(0), start), parallel_iterations=1
    )
    return tf.stop_gradient(x_adv)
