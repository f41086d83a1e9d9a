"""Validation during training: accuracy, pictures of J in TensorBoard, catastrophic overfitting."""

from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf
from absl import logging

from igam_tf.attacks import pgd
from igam_tf.datasets import Split, in_pixel_range
from igam_tf.formulas import losses
from igam_tf.method.igam import IGAM
from igam_tf.storage.run_folder import read_metrics
from igam_tf.training.loop import Log

VALIDATION_STEPS = 20  # for monitoring on few images; it does not replace an evaluation
CLEAN, ROBUST = "validation/clean_percent", f"validation/pgd{VALIDATION_STEPS}_percent"
# Catastrophic overfitting: accuracy falls below this share of the best, which was above
# ONCE_ROBUST percent.
FALLEN, ONCE_ROBUST = 0.2, 5.0


def picture(j: tf.Tensor) -> tf.Tensor:
    """Gradients [B,H,W,C] as images in [0,1]: 0 is grey; each is scaled by its largest entry."""
    largest = tf.reduce_max(tf.abs(j), axis=(1, 2, 3), keepdims=True)
    return 0.5 + 0.5 * tf.math.divide_no_nan(j, largest)


def grid(x: tf.Tensor, *js: tf.Tensor) -> tf.Tensor:
    """One image [1, B H, columns W, C]: each row an image in [0,1] and its gradients."""
    columns = tf.concat([x, *map(picture, js)], axis=2)
    return tf.concat(tf.unstack(columns), axis=0)[None]


class Monitor:
    """Called every `validate_every` steps: clean and PGD-20 validation accuracy, grids of J.

    Args:
        network: the network being trained; it is evaluated in inference mode.
        split: validation images; its spec gives eps and step size of PGD-20.
        num_examples: number of images, the first of `split`.
        igam: if given, J_s and J_t are drawn beside the first images.
    """

    def __init__(
        self,
        network: keras.Model,
        split: Split,
        *,
        num_examples: int = 250,
        igam: IGAM | None = None,
    ):
        self.network, self.igam = network, igam
        spec, self.pixel_max = split.spec, split.spec.pixel_max
        images = in_pixel_range(split.images[:num_examples], self.pixel_max)
        self.x, self.y = tf.constant(images), tf.constant(split.labels[:num_examples])
        sizes = {"eps": spec.eps * self.pixel_max, "step_size": spec.step_size * self.pixel_max}
        self._attack = sizes | {"steps": VALIDATION_STEPS, "loss": losses.xent}
        self._accuracies = tf.function(self._accuracies, autograph=False)

    def _logits(self, x: tf.Tensor) -> tf.Tensor:
        return self.network(x, training=False)

    def _accuracies(self, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        right = tf.argmax(self._logits(x), 1) == y

        def still_right() -> tf.Tensor:
            x_right, y_right = x[right], y[right]  # the others need no attack
            bounds = (0.0, self.pixel_max)
            x_adv = pgd(self._logits, x_right, y_right, bounds=bounds, **self._attack)
            return tf.math.count_nonzero(tf.argmax(self._logits(x_adv), 1) == y_right)

        # Not every kernel accepts an empty batch.
        still = tf.cond(tf.reduce_any(right), still_right, lambda: tf.constant(0, tf.int64))
        return tuple(100 * hits / y.shape[0] for hits in (tf.math.count_nonzero(right), still))

    def __call__(self, step: int, log: Log) -> dict[str, float]:
        """Returns the scalars of one step, in percent, and draws the grid."""
        clean, robust = self._accuracies(self.x, self.y)
        if self.igam:
            x, y = self.x[:8], self.y[:8]
            j_s, _, _ = self.igam.input_gradient(self.network, x, y, training=False)
            j_t, _, _ = self.igam.input_gradient(self.igam.teacher, x, y, training=False)
            with log.tensorboard.as_default(step=step):
                tf.summary.image("x, J_s, J_t", grid(x / self.pixel_max, j_s, j_t))
        return {CLEAN: float(clean), ROBUST: float(robust)}


class OverfittingWatch:
    """Wraps a validation, and warns of catastrophic overfitting.

    Students trained on one-step attacks can suffer it (Wong et al. 2020, arXiv 2001.03994, §5.4):
    accuracy under PGD falls to near zero within a few hundred steps, while accuracy under the
    training's own attack rises.

    Args:
        validate: (step, log) -> scalars, among them `robust`.
        robust: name of the accuracy under PGD, in percent.
        metrics: the run's metrics.jsonl, from which the best accuracy so far is read, also after a
            resume.
    """

    def __init__(self, validate: Callable[..., dict[str, float]], robust: str, metrics: Path):
        self._validate, self._robust, self._metrics = validate, robust, metrics

    def __call__(self, step: int, log) -> dict[str, float]:
        """The scalars of `validate`, and 1 for catastrophic overfitting or 0."""
        scalars = self._validate(step, log)
        rows = read_metrics(self._metrics)
        best = max((row.get(self._robust, 0.0) for row in rows), default=0.0)
        now = scalars[self._robust]
        fallen = best > ONCE_ROBUST and now < FALLEN * best
        if fallen:
            logging.warning(
                "step %d: CATASTROPHIC OVERFITTING: accuracy under PGD on validation images fell "
                "to %.1f %% from %.1f %%. The student resists only its own training attack: "
                "shorten --train_steps, lower --learning_rate or use --method=pgd.",
                step, now, best,
            )  # fmt: skip
        return scalars | {"validation/catastrophic_overfitting": float(fallen)}
