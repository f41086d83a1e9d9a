"""Measures what a teacher's gradients can give to a student, on an already robust network."""

from collections.abc import Callable
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from igam_tf.datasets import Split, in_pixel_range
from igam_tf.formulas import gradients, losses
from igam_tf.formulas.statistics import Excess, mean_interval

LEAST_EXPLAINED = 0.05  # share of |J_s|^2; a rule of thumb, see docs/methods.md
MEASURES: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "cosine": gradients.cosine,
    "explained": lambda j, j_t: gradients.cosine(j, j_t) ** 2,
    "attack_share": gradients.attack_share,
}


def input_gradients(
    model: keras.Model, split: Split, *, input_gradient: str, batch_size: int = 100
) -> np.ndarray:
    """J of every image of a split, [n,H,W,C] float32, with the model in inference mode.

    Args:
        model: [B,H,W,C] -> logits [B,K].
        split: images and labels.
        input_gradient: the loss whose gradient is J, see `igam_tf.formulas.losses.GRADIENT_OF`.
        batch_size: images per batch.
    """
    of, pixel_max = losses.GRADIENT_OF[input_gradient], split.spec.pixel_max

    @tf.function(reduce_retracing=True, autograph=False)
    def measure(x, y):
        return gradients.input_gradient(partial(model, training=False), x, y, of)[0]

    parts = []
    for start in range(0, len(split.labels), batch_size):
        chosen = slice(start, start + batch_size)
        x = tf.constant(in_pixel_range(split.images[chosen], pixel_max))
        parts.append(measure(x, tf.constant(split.labels[chosen])).numpy())
    return np.concatenate(parts)


def teaching(j: np.ndarray, j_t: np.ndarray) -> dict[str, dict]:
    """How well J_t fits J, and how well the J_t of the next image does, as means over images.

    The share of |J|^2 that J_t explains is cos(J, J_t)^2: with the best factor a, |J - a J_t|^2 is
    (1 - cos^2) |J|^2. So it is also the largest change of L_diff that a teacher can make, compared
    with J_t = 0.

    Args:
        j, j_t: input gradients of a robust network and of the teacher, [n,H,W,C], n > 1.

    Returns:
        For each of `MEASURES`: `teacher`, `shuffled` and their paired `difference`, each as mean and
        95 % interval (normal approximation).
    """
    found = {}
    for name, measure in MEASURES.items():
        own, other = (measure(j, guide).numpy() for guide in (j_t, np.roll(j_t, 1, axis=0)))
        found[name] = {
            what: {"mean": float(values.mean()), "ci95": list(mean_interval(values) or ())}
            for what, values in (("teacher", own), ("shuffled", other), ("difference", own - other))
        }
    return found


def verdict(found: dict[str, dict], over: Excess) -> str:
    """Whether a student can be expected to gain from this teacher, and what to do.

    Args:
        found: the result of `teaching`.
        over: how many more examples the teacher withstands under an attack than the reference.
    """
    explained = found["explained"]
    least, most = (100 * bound for bound in explained["teacher"]["ci95"])
    if explained["difference"]["ci95"][0] <= 0:
        return (
            "NOTHING TO GIVE: the teacher's gradient for an image fits no better than that of a "
            "random other image. Train without it: --method=gradient_penalty."
        )
    if most < 100 * LEAST_EXPLAINED:
        return (
            f"NEXT TO NOTHING TO GIVE: at most {most:.1f} % of the squared length of J is J_t's, below "
            f"the {100 * LEAST_EXPLAINED:g} % from which on a gain could show. Train without it: "
            "--method=gradient_penalty."
        )
    if over.low <= 0:
        return (
            f"DOUBTFUL: {least:.1f} % of the squared length of J or more is J_t's, but the teacher is "
            "not more robust than the reference. Train --teacher_gradient=zero beside it, and keep the "
            "teacher if the difference is above 0."
        )
    return (
        f"WORTH A TRY: {least:.1f} % of the squared length of J or more is J_t's, and the teacher is "
        "more robust than the reference. Train --teacher_gradient=zero beside it all the same."
    )
