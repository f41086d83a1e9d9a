"""Projected gradient descent inside an l-inf ball (Madry et al. 2018); one step of it is FGSM."""

from collections.abc import Callable

import tensorflow as tf

from madry_models.errors import UserError


def pgd(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    y: tf.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    bounds: tuple[float, float],
    noise: tf.Tensor | None = None,
) -> tf.Tensor:
    """Ascends the sum over the batch of loss(logits, y) in signed steps, projecting after each.

    x_0 = P(x + noise);  x_{t+1} = P(x_t + step_size sign(grad));  P: into the eps-ball, then bounds.

    FGSM is steps=1, step_size=eps, no noise. eps and step_size may be scalar tensors of the
    dtype of x, steps one of int32.

    Args:
        logits_fn: x [B,...] -> logits [B,K].
        x: images [B,...], float32 or float64, within `bounds`.
        y: labels [B], int.
        eps, step_size: l-inf radius and step, in the pixel unit of x.
        steps: number of gradient steps.
        loss: (logits, y) -> [B], see `igam_tf.attacks.losses`.
        bounds: lowest and highest pixel value.
        noise: random start, of the shape and dtype of x; None starts at x itself.

    Returns:
        x_adv, as x; no gradient flows back through it.

    Raises:
        UserError: the logits have no gradient with respect to x.
    """
    # Not tf.cast, which would round a Python float to float32 first.
    eps, step_size, floor, ceiling = (
        tf.convert_to_tensor(value, x.dtype) for value in (eps, step_size, *bounds)
    )
    low, high = tf.maximum(x - eps, floor), tf.minimum(x + eps, ceiling)

    def step(t: tf.Tensor, x_adv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x_adv)
            values = loss(logits_fn(x_adv), y)
        gradient = tape.gradient(values, x_adv)  # of the sum over the batch
        if gradient is None:
            raise UserError(
                "expected logits that are differentiable in x; received some cut off from it, which "
                "no gradient attack can judge"
            )
        return t + 1, tf.clip_by_value(x_adv + step_size * tf.sign(gradient), low, high)

    start = x if noise is None else tf.clip_by_value(x + noise, low, high)
    _, x_adv = tf.while_loop(
        lambda t, _: t < steps, step, (tf.constant(0), start), parallel_iterations=1
    )
    return tf.stop_gradient(x_adv)
