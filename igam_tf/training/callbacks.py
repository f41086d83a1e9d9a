"""Keras callbacks for `fit` of any model."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import keras
import numpy as np
from absl import logging

from igam_tf.attacks import attack_names, attack_specs
from igam_tf.common.checks import check_eps, expect
from igam_tf.common.private_api import directions, metrics_of
from igam_tf.evaluation.arrays import Data, in_memory
from igam_tf.evaluation.evaluate import logits_function, look_at, split_of_arrays
from igam_tf.evaluation.robust import robust_flags
from igam_tf.method.look import doubtful_outputs, misplaced_range, refuse
from igam_tf.method.networks import pixel_max_of
from igam_tf.method.preprocess import preprocessed
from igam_tf.method.trainer import ClassifierTrainer


class RobustAccuracy(keras.callbacks.Callback):
    """Adds accuracy under attack to an epoch's logs as `val_<attack>`, a fraction like `accuracy`.

    Put it before callbacks that monitor that name, such as `keras.callbacks.ModelCheckpoint(path,
    monitor="val_pgd20", mode="max", save_best_only=True)`, which keeps the most robust weights.
    Attacks and random starts are those of `igam_tf.evaluate`, on a network in inference mode. The
    figures are for monitoring; they do not replace an evaluation.

    Args:
        images: [n,H,W,C], uint8 in 0..255 or float in 0..pixel_max. Or, without labels, batches of
            pairs, see `igam_tf.evaluate`; they are read at once, and kept.
        labels: [n] int.
        eps: l-inf radius, as a fraction of the pixel range.
        step_size: of PGD, as such a fraction too; None means a quarter of eps.
        attacks: "clean,pgd20", or a list of names; see `igam_tf.attacks.attack_names`.
        pixel_max: highest pixel value of the model's input; None means that of the trained model.
        preprocess: the input that the model expects instead of pixels in 0..pixel_max, see
            `igam_tf.evaluate`.
        num_examples, class_order: see `igam_tf.evaluate`.
        every: attack after every N-th epoch.
        seed: of the random starts.
        batch_size: images attacked at once.

    Raises:
        UserError: an attack is unknown; when training begins, images or labels do not fit the
            model.

    Example:
        >>> import keras, numpy as np
        >>> x, y = np.zeros((8, 4, 4, 1), "float32"), np.arange(8) % 2
        >>> x[y == 1] = 1.0
        >>> network = keras.Sequential(
        ...     [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> network.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> look = RobustAccuracy(x, y, eps=0.1, attacks="pgd5", pixel_max=1.0)
        >>> stop = keras.callbacks.EarlyStopping("val_pgd5", patience=2)
        >>> list(network.fit(x, y, epochs=2, callbacks=[look, stop], verbose=0).history)
        ['loss', 'val_pgd5']
    """

    def __init__(
        self,
        images: Data,
        labels: np.ndarray | None = None,
        *,
        eps: float,
        step_size: float | None = None,
        attacks: str | Sequence[str] = "pgd20",
        pixel_max: float | None = None,
        preprocess: str | None = None,
        num_examples: int | None = None,
        class_order: Sequence[int] | None = None,
        every: int = 1,
        seed: int = 0,
        batch_size: int = 100,
    ):
        super().__init__()
        expect(every >= 1, "every of at least 1", every)
        check_eps(eps, "linf")
        self._images, self._labels = in_memory(images, labels, num_examples)
        self._eps, self._step_size = eps, eps / 4 if step_size is None else step_size
        self._names = attack_names(attacks)
        self._pixel_max, self._every, self._preprocess = pixel_max, every, preprocess
        self._seed, self._batch_size, self._class_order = seed, batch_size, class_order
        self._directions = directions(up=self._names)  # names that tell Keras which way is better

    def on_train_begin(self, logs=None):
        """Checks the images against the model, and traces the attacks again."""
        network, given = self.model, self._pixel_max
        if isinstance(self.model, ClassifierTrainer):
            network = self.model.network
            given = self.model.pixel_max if given is None else given
        self._range = pixel_max_of(network, given)
        self._network = network = preprocessed(network, self._preprocess, self._range)
        self._split, logits = split_of_arrays(
            network, self._images, self._labels,
            eps=self._eps, pixel_max=self._range, batch_size=self._batch_size,
            class_order=self._class_order,
        )  # fmt: skip
        refuse(doubtful_outputs(logits), "probabilities")
        refuse(misplaced_range(network, self._range))
        self._logits_fn = logits_function(network, "inference")
        self._compiled: dict = {}
        self._specs = attack_specs(
            self._names, eps=self._eps, step_size=self._step_size, restarts=1, loss="xent",
            num_classes=self._split.spec.num_classes, norm="linf",
        )  # fmt: skip
        self._withdraw()
        metrics_of(self.model).append(self._directions)

    def _withdraw(self) -> None:
        """Removes what an earlier, interrupted training left in the model's metrics."""
        metrics = metrics_of(self.model)
        metrics[:] = [metric for metric in metrics if metric is not self._directions]

    def on_epoch_end(self, epoch, logs=None):
        """Attacks after every N-th epoch."""
        if (epoch + 1) % self._every or logs is None:
            return
        flags = robust_flags(
            self._logits_fn, self._split.images, self._split.labels, attacks=self._specs,
            pixel_max=self._range, seed=self._seed, batch_size=self._batch_size,
            batch_norm="inference", progress=False, compiled=self._compiled,
        )  # fmt: skip
        logs |= {f"val_{name}": float(robust.mean()) for name, robust in flags.items()}

    def on_train_end(self, logs=None):
        """Warns if the last figures are doubtful, and frees the functions traced for this training."""
        self._withdraw()
        self._compiled.clear()
        doubts = look_at(
            self._network, self._split,
            pixel_max=self._range, eps=self._eps, seed=self._seed, batch_size=self._batch_size,
        )  # fmt: skip
        for doubt in doubts:
            logging.warning("DOUBTFUL: val_%s: %s", self._names[-1], doubt)


class OverfittingStop(RobustAccuracy):
    """A `RobustAccuracy` that stops a training at catastrophic overfitting, with the weights before it.

    In training on examples of one step, the accuracy under PGD can fall to 0 within an epoch, while
    that under FGSM stays or rises (Wong et al. 2020; Andriushchenko and Flammarion 2020). It stops
    where FGSM's accuracy is more than `gap` above that of the last attack. Then the weights are those
    of the last epoch that was measured before. Wong et al. stop where the accuracy under PGD falls by
    0.2. A network in standard training can have such a gap from the start.

    Args:
        images, labels: see `RobustAccuracy`.
        gap: accuracy under FGSM less that under the last attack; above it, training stops.
        attacks: fgsm and, as the last, an attack of many steps.
        **settings: of `RobustAccuracy`.

    Attributes:
        stopped_epoch: the epoch that was the last, counted from 0; None: training was not stopped.

    Raises:
        UserError: as `RobustAccuracy`; fgsm is missing or the last, or the gap is not within 0..1.

    Example:
        >>> import keras, numpy as np
        >>> x, y = np.zeros((8, 4, 4, 1), "float32"), np.arange(8) % 2
        >>> x[y == 1] = 1.0
        >>> network = keras.Sequential(
        ...     [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> network.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> stop = OverfittingStop(x, y, eps=0.1, attacks="fgsm,pgd5", pixel_max=1.0)
        >>> list(network.fit(x, y, epochs=2, callbacks=[stop], verbose=0).history)
        ['loss', 'val_fgsm', 'val_pgd5']
    """

    def __init__(
        self,
        images: Data,
        labels: np.ndarray | None = None,
        *,
        gap: float = 0.2,
        attacks: str | Sequence[str] = "fgsm,pgd20",
        **settings: Any,
    ):
        super().__init__(images, labels, attacks=attacks, **settings)
        last = self._names[-1]
        both = "fgsm" in self._names and last not in ("fgsm", "clean")
        expect(both, "fgsm among the attacks, and PGD as the last", repr(attacks))
        expect(isinstance(gap, Real) and 0 <= gap <= 1, "a gap within 0..1", repr(gap))
        self._gap, self._keys = gap, ("val_fgsm", f"val_{last}")

    def on_train_begin(self, logs=None):
        """As `RobustAccuracy`."""
        super().on_train_begin(logs)
        self.stopped_epoch: int | None = None
        self._weights: list | None = None

    def on_epoch_end(self, epoch, logs=None):
        """Attacks, and stops the training where the gap is too wide."""
        super().on_epoch_end(epoch, logs)
        if not logs or self._keys[0] not in logs:
            return
        fgsm, last = (logs[key] for key in self._keys)
        if fgsm - last <= self._gap:
            self._weights = self.model.get_weights()
            return
        self.stopped_epoch, self.model.stop_training = epoch, True
        logging.warning(
            "epoch %d: %s is %.3f and %s %.3f, which is catastrophic overfitting: training stops, %s",
            epoch + 1, self._keys[0], fgsm, self._keys[1], last,
            "and the weights of the epoch measured before come back" if self._weights else
            "and no epoch before was measured, so the weights stay",
        )  # fmt: skip

    def on_train_end(self, logs=None):
        """Puts the weights back, if training was stopped; then as `RobustAccuracy`."""
        if self.stopped_epoch is not None and self._weights:
            self.model.set_weights(self._weights)
        self._weights = None
        super().on_train_end(logs)
