"""Input gradients: the one place where a tape watches x."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from madry_models.errors import UserError


def scaled(
    tape: tf.GradientTape, target: tf.Tensor, sources: Any, scale: Any = None, **kwargs
) -> Any:
    """`tape.gradient`, back-propagated `scale` times as large, so that float16 does not lose it."""
    if scale is None:
        return tape.gradient(target, sources, **kwargs)
    seed = tf.fill(tf.shape(target), tf.cast(scale, target.dtype))
    grads = tape.gradient(target, sources, output_gradients=seed, **kwargs)
    return tf.nest.map_structure(lambda g: None if g is None else g / scale, grads)


def connected(j: tf.Tensor | None) -> tf.Tensor:
    """The gradient with respect to x that was found.

    Raises:
        UserError: there is none.
    """
    if j is None:
        raise UserError(
            "expected logits that are differentiable in x; received some cut off from it: look for "
            "tf.stop_gradient, tf.round, tf.argmax, a cast to integers or NumPy in the network"
        )
    return j


def missing_gradient(error: LookupError) -> str:
    """The operation of which TensorFlow has no gradient, by its own error."""
    return str(error).strip().rsplit(":", 1)[-1].strip()


def input_gradient(
    per_example: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    x: tf.Tensor,
    scale: float | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """J = d(sum over the batch of per_example(x)) / dx (paper eq. 8, 9 and 17).

    Without batch statistics each image's J is the gradient of its own value alone. Under an outer
    tape the result can be differentiated again, which is how the student's update sees J_s.

    Args:
        per_example: maps x to (values [B], logits [B,K]).
        x: images [B,H,W,C], float32 or float64, in any pixel unit.
        scale: of back-propagation alone, see `scaled`.

    Returns:
        (J [B,H,W,C] per pixel unit of x, values [B], logits [B,K]), J in the dtype of x.

    Raises:
        UserError: the values have no gradient with respect to x.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        values, logits = per_example(x)
    try:
        return connected(scaled(tape, values, x, scale)), values, logits
    except LookupError as error:
        raise UserError(
            "expected logits that are differentiable in x; TensorFlow has no gradient of "
            f"{missing_gradient(error)}, which the network uses"
        ) from error


def flatten(j: tf.Tensor) -> tf.Tensor:
    """[B, ...] -> [B, everything else]."""
    return tf.reshape(j, [tf.shape(j)[0], -1])


def cosine(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Cosine between two gradients of one image; 0 where one of them is 0. [B,...] x 2 -> [B].

    Example:
        >>> cosine(tf.constant([[3.0, 4.0], [0.0, 0.0]]), tf.constant([[4.0, 3.0], [1.0, 1.0]])).numpy()
        array([0.96, 0.  ], dtype=float32)
    """
    a, b = flatten(a), flatten(b)
    return tf.math.divide_no_nan(tf.reduce_sum(a * b, 1), tf.norm(a, axis=1) * tf.norm(b, axis=1))


def norm_ratio(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """l2 norm of a over that of b for each image; 0 where b is 0. [B,...] x 2 -> [B]."""
    return tf.math.divide_no_nan(tf.norm(flatten(a), axis=1), tf.norm(flatten(b), axis=1))


def attack_share(j: tf.Tensor, guide: tf.Tensor) -> tf.Tensor:
    """<j, sign guide> / |j|_1 for each image, in -1..1; 0 where j is 0. [B,...] x 2 -> [B].

    To first order a step of eps sign(j) raises the loss by eps |j|_1, the most that l-inf allows. This
    is the part of it that a step of eps sign(guide) gains.

    Example:
        >>> attack_share(tf.constant([[3.0, -1.0]]), tf.constant([[0.1, 0.2]])).numpy()
        array([0.5], dtype=float32)
    """
    j, guide = flatten(j), flatten(guide)
    return tf.math.divide_no_nan(tf.reduce_sum(j * tf.sign(guide), 1), tf.norm(j, ord=1, axis=1))
