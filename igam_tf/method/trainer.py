"""Plain training of a classifier, and what every trainer here shares: one step, one reduction.

A trainer is a keras.Model around the network it trains, so `fit` and `igam_tf.training.loop` drive it
alike.
Losses come one per example; `mean` and `total` below reduce them by the *global* batch, so that the
sum over replicas which `optimizer.apply` takes is the gradient of the global mean, however unevenly
a batch is split.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from igam_tf.formulas import gradients, losses
from igam_tf.method.objectives import Objective


def replicas() -> int:
    """Number of replicas that run the current step."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def global_size(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Number of examples of the current step over all replicas, from this replica's batch x."""
    n = tf.cast(tf.shape(x)[0], dtype)
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, n)


# float16 holds nothing below 6e-8: what is back-propagated there is so many times as large.
FLOAT16_SCALE = 8.0


class ClassifierTrainer(keras.Model):
    """Trains `network` on L_xent + weight_decay * half the squared kernels (eq. 7).

    Args:
        network: model with `call(x, training)` -> logits [B,K] and `kernels`; x in its pixel range.
        weight_decay: factor of half the summed squares of `network.kernels` (method of Madry's code).
        terms: names of the per-example terms that a step reports.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        weight_decay: float = 0.0,
        terms: Sequence[str] = ("L_xent", "accuracy"),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.network, self.weight_decay = network, weight_decay
        self._means = {name: keras.metrics.Mean(name) for name in terms}

    # Whether the network's batch norm runs on batch statistics while it is trained.
    batch_statistics = True

    def compile(self, optimizer, *, jit_compile: bool = False, **kwargs):
        """As Keras's, but without XLA: on processors it makes these steps slower (bench/README.md)."""
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)

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
            l_xent = losses.xent(logits, y)
            return l_xent, {"L_xent": l_xent}, logits

        return self.descend(objective, y)

    def descend(self, objective: Callable[[], Objective], y: tf.Tensor) -> dict:
        """One update on the global mean of `objective`'s loss, and weight decay."""
        with tf.GradientTape() as tape:
            loss, terms, logits = objective()
            total = self.mean(loss) + self.decay(self.network.kernels)
        # Zero for what the loss does not see: JARN's adaptor, while J_s is not looked at.
        variables = [v.value for v in self.trained_variables]
        grads = gradients.scaled(
            tape, total, variables, self.mean_scale(loss), unconnected_gradients="zero"
        )
        self.optimizer.apply(grads, self.trained_variables)
        return self.log(terms, logits, y)

    def mean(self, per_example: tf.Tensor) -> tf.Tensor:
        """This replica's share of the mean over the global batch. [B] -> []."""
        return tf.reduce_sum(per_example) / global_size(per_example, per_example.dtype)

    def decay(self, kernels: list) -> tf.Tensor:
        """This replica's share of the weight decay term of the loss."""
        return self.weight_decay * losses.l2(kernels) / replicas()

    def log(self, terms: dict[str, tf.Tensor], logits: tf.Tensor, y: tf.Tensor) -> dict:
        """Adds per-example terms to the running means; a term that is not finite stops the step."""
        hits = tf.cast(tf.argmax(logits, 1) == tf.cast(y, tf.int64), tf.float32)
        for name, value in (terms | {"accuracy": hits}).items():
            self._means[name].update_state(tf.debugging.check_numerics(value, name))
        if tf.distribute.get_strategy().cluster_resolver:
            # Between workers Keras averages what a step returns, one by one, along a first axis.
            return {"L_xent": self._means["L_xent"].result()[None]}
        return {name: mean.result() for name, mean in self._means.items()}
