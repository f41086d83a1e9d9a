"""Plain training of a classifier, and what every trainer here shares: one step, one reduction.

A trainer is a keras.Model around the network it trains, so `fit` and `igam_tf.training.loop` drive it
alike.
Losses come one per example; `mean` and `total` below reduce them by the *global* batch, so that the
sum over replicas which `optimizer.apply` takes is the gradient of the global mean, however unevenly
a batch is split.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from igam_tf.formulas import gradients, losses
from igam_tf.method.checks import check_batch, check_logits, first_batch
from igam_tf.method.look import misplaced_range, refuse
from igam_tf.method.networks import (
    LogProbabilities,
    decayed_variables,
    logits_of,
    own_pixel_max,
)
from igam_tf.method.objectives import Objective
from igam_tf.method.optimizers import Momentum
from madry_models.errors import UserError

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 2e-4  # of the challenge and of the paper (R7)
_CHECKED = 32  # images of the first batch that are classified before training


def replicas() -> int:
    """Number of replicas that run the current step."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def global_size(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Number of examples of the current step over all replicas, from this replica's batch x."""
    n = tf.cast(tf.shape(x)[0], dtype)
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, n)


def step_key(optimizer: keras.optimizers.Optimizer, seed: int) -> tf.Tensor:
    """Key [2] int32 of what is random in a step: of seed, the optimizer's step and the replica alone."""
    context = tf.distribute.get_replica_context()  # None outside a step
    replica = context.replica_id_in_sync_group if context else 0
    step = tf.cast(optimizer.iterations, tf.int32) * 1024
    return tf.stack([seed, step + tf.cast(replica, tf.int32)])


# float16 holds nothing below 6e-8: what is back-propagated there is so many times as large.
FLOAT16_SCALE = 8.0


class Mean(keras.metrics.Mean):
    """A running mean; NaN where nothing came: a term that was not measured is not 0."""

    def result(self):
        """The mean of what came since the last reset."""
        return self.total / self.count


@keras.saving.register_keras_serializable("igam_tf")
class ClassifierTrainer(keras.Model):
    """Trains any Keras model on L_xent + weight_decay * half the squared kernels (eq. 7).

    `fit` takes what Keras's takes and checks the first batch; `validation_data`, `evaluate` and
    callbacks see L_xent as `loss`, and `accuracy`.

    Args:
        network: x [B,H,W,C] -> logits [B,K].
        weight_decay: factor of half the summed squares of the kernels (method of Madry's code).
        pixel_max: x lies in 0..pixel_max; None: as a network of `madry_models` tells, else unknown.
        decayed: regular expression of the paths of the variables under weight decay; None: the
            kernels of convolutions and dense layers.
        from_probabilities: the network returns probabilities, whose logarithm is trained.
        label_smoothing: share of each label that is spread over all classes, within L_xent.
        terms: names of the per-example terms that a step reports.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        weight_decay: float = 0.0,
        pixel_max: float | None = None,
        decayed: str | None = None,
        from_probabilities: bool = False,
        label_smoothing: float = 0.0,
        terms: Sequence[str] = ("L_xent", "accuracy"),
        **kwargs,
    ):
        if not isinstance(network, keras.Model):
            raise UserError(f"expected a keras.Model to train; received a {type(network).__name__}")
        super().__init__(**kwargs)
        self.network = LogProbabilities(network) if from_probabilities else network
        self.weight_decay, self.decayed = weight_decay, decayed
        self.from_probabilities, self._given_pixel_max = from_probabilities, pixel_max
        self.label_smoothing = label_smoothing
        self._means = {name: Mean(name) for name in terms}

    # Whether the network's batch norm runs on batch statistics while it is trained.
    batch_statistics = True

    @property
    def pixel_max(self) -> float:
        """Highest pixel value of x.

        Raises:
            UserError: nobody said.
        """
        return own_pixel_max(self.network, self._given_pixel_max)

    @property
    def kernels(self) -> list:
        """The variables under weight decay."""
        return decayed_variables(self.network, self.decayed)

    def compile(self, optimizer=None, *, jit_compile: bool = False, **kwargs):
        """As Keras's. Without an optimizer: the challenge's momentum, at a constant rate of 0.1.

        XLA stays off unless it is asked for: on processors it slows these steps (bench/README.md).
        """
        if optimizer is None:
            optimizer = Momentum(LEARNING_RATE, momentum=MOMENTUM)
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)

    # --- Keras's loop -------------------------------------------------------------------------------

    def fit(self, x=None, y=None, **kwargs):
        """As Keras's `fit`; the first batch is looked at before training begins.

        Args:
            x, y: arrays, or a tf.data.Dataset or keras.utils.PyDataset of pairs: images [B,H,W,C] in
                0..pixel_max, labels [B] of an integer type below K.
            **kwargs: `epochs`, `batch_size`, `validation_data`, `callbacks` and all else.

        Raises:
            UserError: images, labels, networks or settings that do not go together, or a term that
                is NaN or infinite.
        """
        for name in ("sample_weight", "class_weight"):
            if kwargs.get(name) is not None:
                raise UserError(f"expected images and labels alone; received {name} as well")
        first = first_batch(x, y)
        if first is not None:
            self.prepare(*first)
        elif not self.optimizer.built:
            raise UserError(
                "expected arrays, a tf.data.Dataset or a PyDataset, whose first batch can be looked at "
                f"before training; received a {type(x).__name__}: call prepare(x, y) with one batch"
            )
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # a data set shuffles itself; Keras would warn
        with _training_errors():
            return super().fit(x, y, **kwargs)

    def prepare(self, x: np.ndarray, y: np.ndarray) -> None:
        """Checks a batch against the networks, and makes every variable that training needs.

        Raises:
            UserError: they do not go together.
        """
        x, y = np.asarray(x), np.asarray(y)
        pixel_max = self._known_pixel_max()
        check_batch(x, y, pixel_max)
        x, y = x[:_CHECKED], y[:_CHECKED]
        with self.distribute_strategy.scope():
            z = logits_of(self.network, x, "network")
            check_logits(z, y)
            if pixel_max is not None:
                refuse(misplaced_range(self.network, pixel_max))
            self._make(x, y, z)
            self._build_optimizers()
        self.built = True

    def _known_pixel_max(self) -> float | None:
        """Plain training needs no pixel range; where one is known, the images are held to it."""
        try:
            return self.pixel_max
        except UserError:
            return None

    def _make(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        """Makes what else there is to train, for images x [n,H,W,C] with labels y and logits z."""

    def _build_optimizers(self) -> None:
        """Makes the optimizers' variables."""
        if not self.optimizer.built:
            self.optimizer.build(self.trained_variables)

    def test_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict:
        """L_xent and accuracy in inference mode; data = (x [B,H,W,C], y [B])."""
        x, y = data[:2]
        logits = self.network(x, training=False)
        logs = self.log({"L_xent": losses.xent(logits, y)}, logits, y)
        return {name: logs[name] for name in ("loss", "L_xent", "accuracy") if name in logs}

    def get_config(self) -> dict:
        """Keras configuration: the networks and every setting."""
        network = self.network.base if self.from_probabilities else self.network
        return {
            "name": self.name,
            "network": keras.saving.serialize_keras_object(network),
            "weight_decay": self.weight_decay,
            "pixel_max": self._given_pixel_max,
            "decayed": self.decayed,
            "from_probabilities": self.from_probabilities,
            "label_smoothing": self.label_smoothing,
        }

    @classmethod
    def from_config(cls, config: dict) -> "ClassifierTrainer":
        """Inverse of `get_config`."""
        return cls(**keras.saving.deserialize_keras_object(config))

    def get_compile_config(self) -> dict:
        """The optimizer alone; the objective is the trainer's own."""
        return {"optimizer": keras.saving.serialize_keras_object(self.optimizer)}

    def compile_from_config(self, config: dict) -> None:
        """Compiles as before; the optimizer's variables are made where the network has its own."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.network.built:
            self._build_optimizers()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Running means of the logged terms; Keras resets them at each epoch."""
        return list(self._means.values())

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits of the network, [B,K]."""
        return self.network(x, training=training)

    @property
    def trained_variables(self) -> list:
        """The variables that `optimizer` updates."""
        return self.network.trainable_variables

    @property
    def loss_scale(self) -> float | None:
        """Scale of each example's loss in back-propagation (`gradients.scaled`); None: as it is."""
        return FLOAT16_SCALE if self.network.compute_dtype == "float16" else None

    def mean_scale(self, per_example: tf.Tensor) -> tf.Tensor | None:
        """`loss_scale` where the global mean of these losses [B] is differentiated."""
        return self.loss_scale and self.loss_scale * global_size(per_example, per_example.dtype)

    @property
    def state_variables(self) -> list:
        """Everything that training changes, in a fixed order; the optimizer must be built."""
        return self.network.variables + self.optimizer.variables

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict:
        """One update on natural images; data = (x [B,H,W,C], y [B])."""
        x, y = data

        def objective() -> Objective:
            logits = self.network(x, training=self.batch_statistics)
            l_xent = self.xent(logits, y)
            return l_xent, {"L_xent": l_xent}, logits

        return self.descend(objective, y)

    def descend(self, objective: Callable[[], Objective], y: tf.Tensor) -> dict:
        """One update on the global mean of `objective`'s loss, and weight decay."""
        with tf.GradientTape() as tape:
            loss, terms, logits = objective()
            total = self.mean(loss) + self.decay(self.kernels)
        # A variable that the loss does not depend on has gradient 0: JARN's adaptor in plain steps.
        variables = [v.value for v in self.trained_variables]
        grads = gradients.scaled(
            tape, total, variables, self.mean_scale(loss), unconnected_gradients="zero"
        )
        self.optimizer.apply(grads, self.trained_variables)
        return self.log(terms, logits, y)

    def xent(self, logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """L_xent of training, with `label_smoothing`. logits [B,K], y [B] -> [B]."""
        return losses.xent(logits, y, self.label_smoothing)

    def ramp(self, start: int, steps: int) -> tf.Tensor | float:
        """Grows evenly from 1 / steps at step number `start` to 1; 1 where `steps` is 0."""
        if not steps:
            return 1.0
        since = tf.cast(self.optimizer.iterations, tf.float32) - start + 1
        return tf.clip_by_value(since / steps, 0.0, 1.0)

    def mean(self, per_example: tf.Tensor) -> tf.Tensor:
        """This replica's share of the mean over the global batch. [B] -> []."""
        return tf.reduce_sum(per_example) / global_size(per_example, per_example.dtype)

    def decay(self, kernels: list) -> tf.Tensor | float:
        """This replica's share of the weight decay term of the loss."""
        return self.weight_decay * losses.l2(kernels) / replicas() if kernels else 0.0

    def log(self, terms: dict[str, tf.Tensor], logits: tf.Tensor, y: tf.Tensor) -> dict:
        """Adds per-example terms to the running means; a term that is not finite stops the step.

        Returns:
            The means, and `loss`, what they add up to in the objective; NaN where nothing came.
        """
        hits = tf.cast(tf.argmax(logits, 1) == tf.cast(y, tf.int64), tf.float32)
        for name, value in (terms | {"accuracy": hits}).items():
            self._means[name].update_state(tf.debugging.check_numerics(value, name))
        if tf.distribute.get_strategy().cluster_resolver:
            # Between workers Keras averages what a step returns, one by one, along a first axis.
            return {"L_xent": self._means["L_xent"].result()[None]}
        means = {name: mean.result() for name, mean in self._means.items()}
        return {"loss": self.loss_of(means)} | means

    def loss_of(self, means: dict[str, tf.Tensor]) -> tf.Tensor:
        """The objective without weight decay, from the means of its terms."""
        return means["L_xent"]


def not_finite(error: tf.errors.OpError) -> str | None:
    """The term that `ClassifierTrainer.log` found to be NaN or infinite, if that is the error."""
    found = re.search(r"(\w+) : Tensor had", error.message)
    return found[1] if found else None


@contextlib.contextmanager
def _training_errors() -> Iterator[None]:
    """Says in one sentence what a graph error of a step means.

    Raises:
        UserError: a term that is not finite, or a label beyond the classes.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if term := not_finite(error):
            raise UserError(
                f"expected finite losses; {term} is NaN or infinite: lower the learning rate, or look "
                "for images that are not finite"
            ) from error
        if found := re.search(
            r"label value of (-?\d+) which is outside the valid range of (\[.*?\))", error.message
        ):
            raise UserError(
                f"expected labels within {found[2]}, the classes; received {found[1]}"
            ) from error
        raise
