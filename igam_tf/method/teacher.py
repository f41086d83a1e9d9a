"""The teacher: a robust network behind an affine map, with new logits for the target task (§4.1)."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf

from igam_tf.method.trainer import ClassifierTrainer
from igam_tf.method.transforms import Identity


@keras.saving.register_keras_serializable("igam_tf")
class Teacher(keras.Model):
    """f_t(x) = new logits(features(A x + b)) (eq. 6, 15).

    Args:
        network: robust source model with `features(x, training)`; all of it stays frozen.
        transform: the map from the target image to the network's input.
        num_classes: classes of the target task.
    """

    def __init__(self, network: keras.Model, transform: Identity, *, num_classes: int, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.network, self.transform, self.num_classes = network, transform, num_classes
        self.logits_layer = keras.layers.Dense(num_classes, dtype=network.logits_layer.dtype_policy)

    def build(self, input_shape):
        """Creates logits layer and map; input_shape [B,H,W,C] of the target images."""
        self.logits_layer.build((None, self.network.logits_layer.kernel.shape[0]))
        if not self.transform.built:
            self.transform.build(input_shape)
        self.built = True

    @property
    def trained_variables(self) -> list:
        """What stage 1 trains: psi_logit, and the map where it has weights (§5.1.2)."""
        return self.logits_layer.trainable_variables + self.transform.trainable_variables

    @property
    def kernels(self) -> list:
        """The variables under weight decay: the new logits layer's alone (R11)."""
        return [self.logits_layer.kernel]

    def set_precision(self, precision: str) -> None:
        """Lets all of the network but its first layer and the logits compute in `precision`.

        J_t stays float32. In the first layer bfloat16 costs J_t far more accuracy than time.
        """
        wide = (self.network.layers[0], self.network.logits_layer)
        for layer in self.network._flatten_layers(include_self=False):
            if layer not in wide:
                layer.dtype_policy = precision

    @contextmanager
    def offsets_of(self, optimizer: keras.optimizers.Optimizer, seed: int) -> Iterator[None]:
        """While it lasts, a random map draws from (seed, step of `optimizer`, replica) alone.

        So J_t at x and all that one step does with it share one map, the next step has another, and
        a resumed run repeats the steps of the one that was killed. Afterwards images are centred.
        """

        def key() -> tf.Tensor:
            context = tf.distribute.get_replica_context()  # None outside a step
            replica = context.replica_id_in_sync_group if context else 0
            step = tf.cast(optimizer.iterations, tf.int32) * 1024
            return tf.stack([seed, step + tf.cast(replica, tf.int32)])

        self.transform.draw_from(key)
        try:
            yield
        finally:
            self.transform.draw_from(None)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Target images [B,H,W,C] in the target's pixel range -> logits [B,num_classes].

        `training` only chooses the frozen network's batch statistics (R6).
        """
        features = self.network.features(self.transform(x), training=training)
        return self.logits_layer(features)

    def get_config(self) -> dict:
        """Keras configuration."""
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            "transform": keras.saving.serialize_keras_object(self.transform),
            "num_classes": self.num_classes,
        }

    @classmethod
    def from_config(cls, config: dict) -> "Teacher":
        """Inverse of `get_config`."""
        parts = {
            k: keras.saving.deserialize_keras_object(config.pop(k))
            for k in ("network", "transform")
        }
        return cls(**parts, **config)


class FineTune(ClassifierTrainer):
    """Stage 1: trains the teacher's new logits layer on natural target images (eq. 5-6).

    A map with weights is trained with it (§5.1.2).
    """

    batch_statistics = False  # the frozen features stay as they are

    @property
    def trained_variables(self) -> list:
        """psi_logit, and the map's weights where it has some."""
        return self.network.trained_variables

    @property
    def state_variables(self) -> list:
        """What is trained and its optimizer; everything else is frozen."""
        return self.trained_variables + self.optimizer.variables
