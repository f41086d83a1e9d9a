"""Measures the numbers that the figures show, with models in inference mode."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from igam_tf.attacks import pgd
from igam_tf.common.errors import UserError
from igam_tf.datasets import Split, in_pixel_range
from igam_tf.evaluation.alignment import linearised
from igam_tf.figures.chosen import EXTENT, PGD_STEPS
from igam_tf.formulas import gradients, losses
from igam_tf.formulas.statistics import mean_interval
from igam_tf.method.networks import in_float32

BATCH = 100


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnModel:
    """A model to draw, and its pixel range 0..pixel_max."""

    label: str
    model: keras.Model
    pixel_max: float

    def logits(self, x: tf.Tensor) -> tf.Tensor:
        """[B,H,W,C] in 0..pixel_max -> [B,K]."""
        with in_float32(self.model):
            return self.model(x, training=False)


def sensitivity(
    drawn: DrawnModel, split: Split, *, input_gradient: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """J, and alpha and rho of eq. 18, for every image.

    Args:
        drawn: the model.
        split: n images.
        input_gradient: the loss whose gradient is J, see `igam_tf.formulas.losses.GRADIENT_OF`.

    Returns:
        (J [n,H,W,C] per unit of pixels in 0..1, alpha [n], rho [n]), float32; see `linearised`.
    """
    of = losses.GRADIENT_OF[input_gradient]

    def measure(x, y):
        j, _, _ = gradients.input_gradient(drawn.logits, x, y, of)
        return j * drawn.pixel_max, *linearised(drawn.model, x, drawn.pixel_max)

    x = in_pixel_range(split.images, drawn.pixel_max)
    return _in_batches(measure, x, split.labels)


def statistics(values: np.ndarray) -> dict:
    """Quartiles and mean of [n] values, with the mean's 95 % interval (normal; None if n = 1)."""
    low, median, high = (float(v) for v in np.percentile(values, [25, 50, 75]))
    interval = mean_interval(values)
    return {
        "median": median,
        "quartiles": [low, high],
        "mean": float(values.mean()),
        "mean_ci95": interval and list(interval),
    }


def adversarial_direction(
    drawn: DrawnModel, split: Split, *, eps: float, step_size: float, attack: str
) -> np.ndarray:
    """sign(x_adv - x) of one image, [H,W,C]: by FGSM, or PGD-20 from x itself, on L_xent.

    A pixel at an end of the range has 0 if the attack would leave the range there.

    Args:
        drawn: the model attacked.
        split: one image.
        eps, step_size: l-inf, as fractions of the pixel range; step_size is PGD's.
        attack: "fgsm" or "pgd".

    Raises:
        UserError: J is 0 at this image, so there is no such direction.
    """
    x = tf.constant(in_pixel_range(split.images, drawn.pixel_max))
    steps = {"fgsm": 1, "pgd": PGD_STEPS}[attack]
    x_adv = pgd(
        drawn.logits, x, tf.constant(split.labels),
        eps=eps * drawn.pixel_max,
        step_size=(eps if attack == "fgsm" else step_size) * drawn.pixel_max,
        steps=steps, bounds=(0.0, drawn.pixel_max),
    )  # fmt: skip
    direction = np.sign((x_adv - x).numpy()[0])
    if not direction.any():
        raise UserError(
            f"expected an input gradient other than 0 for an adversarial direction; that of "
            f"{drawn.label} is 0 at the image, choose another --image"
        )
    return direction


def random_direction(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """-1 or 1 with even odds (Rademacher), float32 of this shape."""
    return np.random.default_rng(seed).choice(np.float32([-1, 1]), size=shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Plane:
    """L_xent and predicted class at x + a adversarial + b random direction, clipped to the range.

    A point is within l-inf eps of x where |a| + |b| <= eps: on some pixels the directions agree.

    Attributes:
        ticks: [P] values of both a and b, as fractions of the pixel range.
        loss: [P,P] nats; rows are b, columns a.
        predicted: [P,P] classes, in the same order.
    """

    ticks: np.ndarray
    loss: np.ndarray
    predicted: np.ndarray

    def within(self, eps: float) -> np.ndarray:
        """[P,P] bool: whether a point is within the l-inf ball."""
        return np.abs(self.ticks)[:, None] + np.abs(self.ticks)[None] <= eps * (1 + 1e-6)

    def at_x(self, values: np.ndarray):
        """The value at x itself."""
        centre = len(self.ticks) // 2
        return values[centre, centre].item()


def plane(
    drawn: DrawnModel,
    split: Split,
    adversarial: np.ndarray,
    random: np.ndarray,
    *,
    eps: float,
    points: int,
) -> Plane:
    """Measures points x points values on a square that extends EXTENT eps to each side of one image.

    Args:
        drawn: the model.
        split: one image.
        adversarial, random: directions [H,W,C].
        eps: as a fraction of the pixel range.
        points: odd, so that x is one of them.
    """
    ticks = np.linspace(-EXTENT * eps, EXTENT * eps, points)
    ticks[points // 2] = 0.0
    x = in_pixel_range(split.images, drawn.pixel_max)
    b, a = (v.reshape(-1, 1, 1, 1) for v in np.meshgrid(ticks, ticks, indexing="ij"))

    def measure(x, y):
        logits = drawn.logits(x)
        return losses.xent(logits, y), tf.argmax(logits, 1)

    moved = x + drawn.pixel_max * (a * adversarial + b * random)
    moved = np.clip(moved, 0, drawn.pixel_max).astype(np.float32)
    loss, predicted = _in_batches(measure, moved, np.repeat(split.labels, len(moved)))
    return Plane(ticks, loss.reshape(points, points), predicted.reshape(points, points))


def _in_batches(
    measure: Callable[..., tuple[tf.Tensor, ...]], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Runs measure(x, y), traced once, over all examples; x [n,...] float32, y [n] int64."""
    signature = [tf.TensorSpec((None, *x.shape[1:]), x.dtype), tf.TensorSpec((None,), y.dtype)]
    graph = tf.function(measure, input_signature=signature, autograph=False)
    traced = graph.get_concrete_function()
    parts = [
        traced(tf.constant(x[i : i + BATCH]), tf.constant(y[i : i + BATCH]))
        for i in range(0, len(x), BATCH)
    ]
    return tuple(np.concatenate(values) for values in zip(*parts, strict=True))
