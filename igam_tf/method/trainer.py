"""Plain training of a classifier, and what all trainers share: the step and its reduction.

A trainer is a keras.Model around the network it trains, so both `fit` and `igam_tf.training.loop`
can run it. A loss is one value per example. `mean` and `total` below divide by the size of the
*global* batch. So the sum over replicas, which `optimizer.apply` takes, is the gradient of the
global mean, even if the replicas have unequal shares of a batch.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers import LossScaleOptimizer

from igam_tf.common.checks import (
    check_images,
    check_labels,
    check_model,
    expect,
    logits_of,
    told_alone,
)
from igam_tf.common.errors import UserError
from igam_tf.common.private_api import (
    EVALUATED_BY_FIT,
    directions,
    label_outside,
    layers_of,
    metrics_of,
    not_finite,
)
from igam_tf.formulas import gradients, losses
from igam_tf.method.first_batch import with_first
from igam_tf.method.look import doubtful_outputs, misplaced_range, refuse
from igam_tf.method.networks import (
    LogProbabilities,
    decayed_variables,
    inference_only,
    pixel_max_of,
)
from igam_tf.method.objectives import Objective
from igam_tf.method.optimizers import Momentum
from igam_tf.method.preprocess import Preprocessed
from madry_models.network import wide_dtype

LEARNING_RATE, MOMENTUM = 0.1, 0.9
WEIGHT_DECAY = 2e-4  # that of the challenge and of the paper (R7)
_CHECKED = 32  # images of the first batch on which the network is checked before training


def replicas() -> int:
    """Number of replicas that run the current step."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def global_size(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Number of examples of the current step over all replicas, from this replica's batch x."""
    n = tf.cast(tf.shape(x)[0], dtype)
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, n)


_running = threading.local()  # replicas are threads


@contextlib.contextmanager
def training_step() -> Iterator[None]:
    """Context or decorator of a training step; random maps draw only within it."""
    before, _running.step = in_training_step(), True
    try:
        yield
    finally:
        _running.step = before


def in_training_step() -> bool:
    """Whether this thread is within a training step."""
    return getattr(_running, "step", False)


def step_key(optimizer: keras.optimizers.Optimizer, seed: int) -> tf.Tensor:
    """Key [2] int32 of a step's random numbers: depends only on seed, optimizer step and replica."""
    context = tf.distribute.get_replica_context()  # None outside a step
    replica = context.replica_id_in_sync_group if context else 0
    step = tf.cast(optimizer.iterations, tf.int32) * 1024
    return tf.stack([seed, step + tf.cast(replica, tf.int32)])


# Static loss scale for float16, which has no numbers below 6e-8.
FLOAT16_SCALE = 8.0


def float16_scale(model: keras.Model) -> float | None:
    """Loss scale of each example in back-propagation (`gradients.scaled`); None means no scaling."""
    narrow = any(layer.compute_dtype == "float16" for layer in layers_of(model))
    return FLOAT16_SCALE if narrow else None


def mean_scale(
    optimizer: keras.optimizers.Optimizer, model: keras.Model, per_example: tf.Tensor
) -> tf.Tensor | None:
    """The loss scale for the gradient of the global mean of these losses [B].

    A LossScaleOptimizer has its own; otherwise it is that of `float16_scale`.
    """
    if isinstance(optimizer, LossScaleOptimizer) or optimizer.loss_scale_factor:
        return optimizer.scale_loss(1.0)
    scale = float16_scale(model)
    return scale and scale * global_size(per_example, per_example.dtype)


def apply(optimizer: keras.optimizers.Optimizer, grads: list, variables: list) -> None:
    """Applies one update; a LossScaleOptimizer divides the gradients by its scale itself."""
    optimizer.apply([optimizer.scale_loss(g) for g in grads], variables)


def total_of(first: tf.Tensor, *others: tf.Tensor | float) -> tf.Tensor:
    """The sum, in the dtype of the first term."""
    return first + sum(tf.cast(t, first.dtype) for t in others)


class Mean(keras.metrics.Mean):
    """A running mean; NaN if never updated, because a term that was not measured is not 0.

    It sums in at least float32, because float16 cannot count beyond 2048.
    """

    def __init__(self, name: str):
        super().__init__(name, dtype=wide_dtype(keras.config.floatx()))

    def result(self):
        """The mean since the last reset."""
        return self.total / self.count


@keras.saving.register_keras_serializable("igam_tf")
class ClassifierTrainer(keras.Model):
    """Trains any Keras model on L_xent + weight_decay * half the squared kernels (eq. 7).

    `fit` has Keras's arguments and checks the first batch; `validation_data`, `evaluate` and
    callbacks get L_xent as `loss`, and `accuracy`.

    Args:
        network: x [B,H,W,C] -> logits [B,K].
        weight_decay: factor of half the summed squares of the kernels (method of Madry's code).
        pixel_max: x lies in 0..pixel_max; None means that of a network of `madry_models`, else
            unknown.
        decayed: regular expression for the paths of the variables with weight decay; None means the
            kernels of convolutions and dense layers.
        from_probabilities: whether the network returns probabilities; their logarithms are trained.
        preprocess: the input that the network expects instead of pixels in 0..pixel_max, see
            `igam_tf.evaluate`; None means pixels.
        label_smoothing: fraction of each label that L_xent spreads over all classes.
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
        preprocess: str | None = None,
        label_smoothing: float = 0.0,
        terms: Sequence[str] = ("L_xent", "accuracy"),
        **kwargs,
    ):
        check_model(network, "network to train", keras.Model)
        super().__init__(autocast=False, **kwargs)  # pixels keep their precision
        network = LogProbabilities(network) if from_probabilities else network
        if preprocess is not None:
            network = Preprocessed(network, preprocess, pixel_max_of(network, pixel_max))
        self.network, self.preprocess = network, preprocess
        self.weight_decay, self.decayed = weight_decay, decayed
        self.from_probabilities, self._given_pixel_max = from_probabilities, pixel_max
        self.label_smoothing = label_smoothing
        self._prepared = False  # whether a batch has been checked
        self._means = {name: Mean(name) for name in terms}
        self._directions = directions(
            up=("accuracy", "cosine"), down=("L_xent", "L_adv", "L_diff", "L_kl")
        )

    # Whether batch norm uses batch statistics during training.
    batch_statistics = True

    def build(self, input_shape: tuple) -> None:
        """Creates the network's variables for images [B,H,W,C], if it has none."""
        if not self.network.built:
            self.network(tf.zeros((1, *input_shape[1:])))
        self.built = True

    @property
    def pixel_max(self) -> float:
        """Highest pixel value of x.

        Raises:
            UserError: it is not known.
        """
        return pixel_max_of(self.network, self._given_pixel_max)

    @property
    def kernels(self) -> list:
        """The variables under weight decay."""
        return decayed_variables(self.network, self.decayed)

    def compile(
        self,
        optimizer=None,
        *,
        jit_compile: bool = False,
        auto_scale_loss: bool = False,
        **kwargs,
    ):
        """As Keras's `compile`; by default with the challenge's momentum at a constant rate of 0.1.

        XLA is off by default, because it slows these steps on CPUs (bench/README.md). The
        LossScaleOptimizer for float16 is off as well, because the steps have a static loss scale,
        for which no step is skipped. Either is used if it is requested.

        Raises:
            UserError: a loss or metrics are given; the trainer defines its own.
        """
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.get(name) is not None:
                raise UserError(
                    f"expected only an optimizer, because {type(self).__name__} defines its loss "
                    f"and metrics; received {name}={kwargs[name]!r}: leave it out"
                )
        if optimizer is None:
            optimizer = Momentum(LEARNING_RATE, momentum=MOMENTUM)
        super().compile(
            optimizer=optimizer, jit_compile=jit_compile, auto_scale_loss=auto_scale_loss, **kwargs
        )

    # --- Keras's loop -------------------------------------------------------------------------------

    def fit(self, x=None, y=None, *args, **kwargs):
        """As Keras's `fit`; the first batch is checked before training begins.

        Args:
            x, y: arrays, or a tf.data.Dataset, keras.utils.PyDataset or generator of pairs: images
                [B,H,W,C] in 0..pixel_max, labels [B] of any integer type, below K.
            *args, **kwargs: `epochs`, `batch_size`, `validation_data`, `callbacks` and so on;
                `validation_data` is checked like x and y.

        Raises:
            UserError: images, labels, networks or settings do not fit together, or a term is NaN or
                infinite.
        """
        _refuse_weights(kwargs)
        x, first = with_first(x, y)
        self.prepare(*first)
        validation = kwargs.get("validation_data")
        if validation is not None:
            pair = isinstance(validation, tuple | list)
            with _naming("validation_data"):
                x_val, y_val = pair_of(validation) if pair else (validation, None)
                x_val, first = with_first(x_val, y_val)
                self.check(*first)
            kwargs["validation_data"] = (x_val, y_val) if pair else x_val
        if y is None and not isinstance(x, keras.utils.PyDataset):
            kwargs.setdefault("shuffle", False)  # a data set shuffles itself, and Keras would warn
        with _training_errors():
            return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As Keras's; the first batch is checked as in `fit`, with the same errors."""
        _refuse_weights(kwargs)
        if not kwargs.get(EVALUATED_BY_FIT):  # called by Keras within `fit`
            x, first = with_first(x, y)
            self._check_or_prepare(*first)
        with _training_errors():
            return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """As Keras's: logits [n,K]; the first images are checked as in `fit`."""
        x, (images, _) = with_first(x, labels=False)
        self._check_images(images)
        return super().predict(x, *args, **kwargs)

    def train_on_batch(
        self, x, y=None, sample_weight=None, class_weight=None, return_dict: bool = False
    ):
        """As Keras's; each batch is checked, the first as in `fit`."""
        self._check_one_batch(x, y, sample_weight=sample_weight, class_weight=class_weight)
        with _training_errors():
            return super().train_on_batch(x, y, return_dict=return_dict)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict: bool = False):
        """As Keras's; each batch is checked, the first as in `fit`."""
        self._check_one_batch(x, y, sample_weight=sample_weight)
        with _training_errors():
            return super().test_on_batch(x, y, return_dict=return_dict)

    def predict_on_batch(self, x):
        """As Keras's: logits [B,K]; the images are checked as in `fit`."""
        self._check_images(np.asarray(x))
        return super().predict_on_batch(x)

    def _check_one_batch(self, x, y, **weights) -> None:
        _refuse_weights(weights)
        _, (x, y) = with_first(x, y)
        self._check_or_prepare(x, y)

    def _check_or_prepare(self, x: np.ndarray, y: np.ndarray) -> None:
        ready = self._prepared and self.compiled and self.optimizer.built
        (self.check if ready else self.prepare)(x, y)

    def _check_images(self, x: np.ndarray) -> np.ndarray:
        check_images(x, self._known_pixel_max())
        return logits_of(self.network, x[:_CHECKED], "network")

    def check(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Checks a batch against the network; returns the logits [n,K] of its first images.

        Raises:
            UserError: they do not go together.
        """
        check_images(x, self._known_pixel_max())
        check_labels(y, n=len(x))
        with self.distribute_strategy.scope():
            z = logits_of(self.network, x[:_CHECKED], "network")
        refuse(doubtful_outputs(z), "not_finite", "probabilities")
        check_labels(y[:_CHECKED], classes=z.shape[1])
        return z

    def prepare(self, x: np.ndarray, y: np.ndarray) -> None:
        """Checks a batch against the networks, and creates every variable that training needs.

        Raises:
            UserError: they do not go together.
        """
        if not self.compiled:
            raise UserError(
                f"expected a compiled trainer; this {type(self).__name__} is not: call compile() first"
            )
        x, y = np.asarray(x), np.asarray(y)
        z = self.check(x, y)
        if not self.trained_variables:
            remedy = "set its `trainable` to True"
            if inference_only(self.network):
                remedy = "PyTorch holds its weights; make it the network of an igam_tf.Teacher"
            raise UserError(
                f"expected something to train; this {type(self.network).__name__} has no trainable "
                f"variables: {remedy}"
            )
        with self.distribute_strategy.scope():
            x = x[:_CHECKED].astype(wide_dtype(self.network.compute_dtype))
            if (pixel_max := self._known_pixel_max()) is not None:
                refuse(misplaced_range(self.network, pixel_max))
            self._make(x, y[:_CHECKED].astype(np.int64), z)
            self._build_optimizers()
        self.built = self._prepared = True

    def _known_pixel_max(self) -> float | None:
        """Plain training needs no pixel range; a known one is used to check the images."""
        try:
            return self.pixel_max
        except UserError:
            return None

    def _make(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        """Creates other trained parts, for images x [n,H,W,C] with labels y and logits z."""

    def _build_optimizers(self) -> None:
        """Creates the optimizers' variables."""
        if not self.optimizer.built:
            self.optimizer.build(self.trained_variables)

    def test_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict:
        """L_xent and accuracy in inference mode; data = (x [B,H,W,C], y [B])."""
        x, y = self.batch_of(data)
        logits = self.network(x, training=False)
        logs = self.log({"L_xent": losses.xent(logits, y)}, logits, y)
        return {name: logs[name] for name in ("loss", "L_xent", "accuracy") if name in logs}

    def get_config(self) -> dict:
        """Keras configuration: the networks and every setting."""
        network = self.network
        for wrapped in (self.preprocess is not None, self.from_probabilities):
            network = network.base if wrapped else network
        return {
            "name": self.name,
            "network": keras.saving.serialize_keras_object(network),
            "weight_decay": self.weight_decay,
            "pixel_max": self._given_pixel_max,
            "decayed": self.decayed,
            "from_probabilities": self.from_probabilities,
            "preprocess": self.preprocess,
            "label_smoothing": self.label_smoothing,
            "terms": list(self._means),
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config: dict) -> "ClassifierTrainer":
        """Inverse of `get_config`."""
        config = keras.saving.deserialize_keras_object(config)
        return cls(config.pop("network"), **config)

    def get_compile_config(self) -> dict | None:
        """The optimizer and how steps run, if it is compiled; the trainer defines the objective."""
        if not self.compiled:
            return None
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "run_eagerly": self.run_eagerly,
            "jit_compile": self.jit_compile,
            "steps_per_execution": self.steps_per_execution,
        }

    def compile_from_config(self, config: dict) -> None:
        """Compiles as before; creates the optimizer's variables if the network has its own."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.network.built:
            self._build_optimizers()

    @property
    def means(self) -> list[Mean]:
        """Running means of the logged terms."""
        return list(self._means.values())

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics that Keras resets at each epoch: the means, and those of callbacks."""
        return list(metrics_of(self))

    @property
    def metrics_names(self) -> list[str]:
        """Names of the values that `train_on_batch` returns, in order."""
        return [*self._means, "loss"]

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits of the network, [B,K]."""
        return self.network(x, training=training)

    @property
    def trained_variables(self) -> list:
        """The variables that `optimizer` updates."""
        return self.network.trainable_variables

    @property
    def trainable_variables(self) -> list:
        """As `trained_variables`, for Keras."""
        return self.trained_variables

    trainable_weights = trainable_variables

    def batch_of(self, data: tuple) -> tuple[tf.Tensor, tf.Tensor]:
        """(x, y) of the data that Keras passes to a step: x float64 if the network is, y int64.

        Raises:
            UserError: there are no labels, or there are sample weights.
        """
        x, y = pair_of(data)
        return tf.cast(x, wide_dtype(self.network.compute_dtype)), tf.cast(y, tf.int64)

    @property
    def state_variables(self) -> list:
        """Everything that training changes, in a fixed order; the optimizer must be built."""
        return self.network.variables + self.optimizer.variables

    @training_step()
    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict:
        """One update on natural images; data = (x [B,H,W,C], y [B])."""
        x, y = self.batch_of(data)

        def objective() -> Objective:
            logits = self.network(x, training=self.batch_statistics)
            l_xent = self.xent(logits, y)
            return l_xent, {"L_xent": l_xent}, logits

        return self.descend(objective, y)

    def descend(self, objective: Callable[[], Objective], y: tf.Tensor) -> dict:
        """One update on the global mean of `objective`'s loss plus weight decay."""
        with tf.GradientTape() as tape:
            loss, terms, logits = objective()
            total = total_of(self.mean(loss), self.decay(self.kernels))
        # A variable that the loss does not depend on gets gradient 0, such as JARN's adaptor in
        # plain steps.
        variables = [v.value for v in self.trained_variables]
        scale = mean_scale(self.optimizer, self.network, loss)
        grads = gradients.scaled(tape, total, variables, scale, unconnected_gradients="zero")
        apply(self.optimizer, grads, self.trained_variables)
        return self.log(terms, logits, y)

    def xent(self, logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """L_xent of training, with `label_smoothing`. logits [B,K], y [B] -> [B]."""
        return losses.xent(logits, y, self.label_smoothing)

    def ramp(self, start: int, steps: int) -> tf.Tensor | float:
        """Linear warm-up from 1 / steps at step number `start` to 1; 1 if `steps` is 0."""
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
            The means, and `loss`, see `loss_of`; NaN for terms that were not measured.
        """
        unknown = ", ".join(sorted(terms.keys() - self._means.keys()))
        expect(not unknown, "own_terms of the method to name all terms that it reports", unknown)
        hits = tf.cast(tf.argmax(logits, 1) == tf.cast(y, tf.int64), tf.float32)
        for name, value in (terms | {"accuracy": hits}).items():
            self._means[name].update_state(tf.debugging.check_numerics(value, name))
        if tf.distribute.get_strategy().cluster_resolver:
            # Between workers Keras averages the values that a step returns along a first axis.
            return {"L_xent": self._means["L_xent"].result()[None]}
        means = {name: mean.result() for name, mean in self._means.items()}
        return {"loss": self.loss_of(means)} | means

    def loss_of(self, means: dict[str, tf.Tensor]) -> tf.Tensor:
        """The loss that is logged, from the means of the terms: L_xent; IGAM adds its own terms.

        Where trades and ard add L_kl to the objective, that is logged beside it.
        """
        return means["L_xent"]


def pair_of(data) -> tuple:
    """(images, labels) of the data that Keras passes: a pair, or a triple without weights.

    Raises:
        UserError: something else.
    """
    x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
    if y is None or weights is not None:
        raise UserError(
            "expected images and labels alone; received "
            + ("images without labels" if y is None else "sample weights as well")
        )
    return x, y


def _refuse_weights(given: dict) -> None:
    for name in ("sample_weight", "class_weight"):
        if given.get(name) is not None:
            raise UserError(f"expected images and labels alone; received {name} as well")


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Context that adds to an error which data it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}, in {what}") from error


@contextlib.contextmanager
def _training_errors() -> Iterator[None]:
    """Context that turns a graph error of a step into one sentence.

    Raises:
        UserError: a term is not finite, a label is none of the classes, or a network of PyTorch fails.
    """
    try:
        with told_alone():
            yield
    except tf.errors.OpError as error:
        if term := not_finite(error):
            raise UserError(
                f"expected finite losses; {term} is NaN or infinite: lower the learning rate, or look "
                "for images that are not finite"
            ) from error
        if found := label_outside(error):
            label, classes = found
            raise UserError(
                f"expected labels within {classes}, the classes; received {label}"
            ) from error
        raise
