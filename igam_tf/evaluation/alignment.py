"""The similarity of a student's input gradients to its teacher's, on test images."""

import math
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from igam_tf.datasets import Split, in_pixel_range
from igam_tf.formulas import gradients, losses
from igam_tf.formulas.statistics import mean_interval


def linearised(model: keras.Model, x: tf.Tensor, pixel_max: float) -> tuple[tf.Tensor, tf.Tensor]:
    """(alpha, rho) of eq. 18, [B] each: l2 distances in pixels of 0..1.

    With m the difference of the two largest logits and g = dm/dx: alpha = |<x, g>| / |g|, and rho =
    m / |g|, the distance to the decision boundary of the model linearised at x. 0 where g is 0.
    A model that standardises each image has alpha = 0 by construction: its logits do not change when
    x is scaled, so that <x, g> = 0 (Euler).
    """

    def margin(logits: tf.Tensor, _) -> tf.Tensor:
        top = tf.math.top_k(losses.at_least_float32(logits), 2).values
        return top[:, 0] - top[:, 1]

    g, m, _ = gradients.input_gradient(partial(model, training=False), x, None, margin)
    norm = gradients.l2_norm(g)
    along = tf.abs(tf.reduce_sum(gradients.flatten(x * g), axis=1))
    return tuple(tf.math.divide_no_nan(value, norm) / pixel_max for value in (along, m))


def alignment(
    student: keras.Model,
    teacher: keras.Model,
    split: Split,
    *,
    num_examples: int,
    input_gradient: str,
    batch_size: int = 100,
) -> dict:
    """cos(J_s, J_t) and related figures on the first images of a split, in inference mode.

    J_t is the teacher's gradient, also if the student was matched to another (--teacher_gradient).

    Args:
        student, teacher: models of the same images.
        split: natural images.
        num_examples: number of images, the first of the split.
        input_gradient: the loss whose gradient is J, see `igam_tf.formulas.losses.GRADIENT_OF`.
        batch_size: images per batch.

    Returns:
        n; the mean of the cosine and of its square (the share of |J_s|^2 that J_t explains), with
            95 % intervals (normal approximation); the medians of |J_s| / |J_t|, and of alpha and
            rho of eq. 18 for both models.
    """
    of, pixel_max = losses.GRADIENT_OF[input_gradient], split.spec.pixel_max

    @tf.function(autograph=False)
    def measure(x, y):
        j_s, j_t = (
            gradients.input_gradient(partial(model, training=False), x, y, of)[0]
            for model in (student, teacher)
        )
        return (
            gradients.cosine(j_s, j_t),
            gradients.norm_ratio(j_s, j_t),
            *linearised(student, x, pixel_max),
            *linearised(teacher, x, pixel_max),
        )

    parts = []
    for start in range(0, num_examples, batch_size):
        chosen = slice(start, min(start + batch_size, num_examples))
        x = in_pixel_range(split.images[chosen], pixel_max)
        parts.append(measure(tf.constant(x), tf.constant(split.labels[chosen])))
    cosine, ratio, *eq18 = (np.concatenate(values) for values in zip(*parts, strict=True))
    names = ("student_alpha", "student_rho", "teacher_alpha", "teacher_rho")
    return {
        "n": len(cosine),
        "input_gradient": input_gradient,
        "cosine": float(cosine.mean()),
        "cosine_ci95": list(mean_interval(cosine) or (math.nan, math.nan)),
        "explained": float((cosine**2).mean()),
        "explained_ci95": list(mean_interval(cosine**2) or (math.nan, math.nan)),
        "norm_ratio_median": float(np.median(ratio)),
        "distance_unit": "l2, pixels of 0..1",
    } | {f"{n}_median": float(np.median(v)) for n, v in zip(names, eq18, strict=True)}
