"""The teacher: a robust network behind an affine map, with new logits for the target task (§4.1)."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from igam_tf.common.checks import channels_last, check_model, expect, logits_of
from igam_tf.common.errors import UserError
from igam_tf.common.private_api import layers_of, reason_of
from igam_tf.method.look import misplaced_range, refuse
from igam_tf.method.networks import are_probabilities, features_of
from igam_tf.method.trainer import ClassifierTrainer, in_training_step, step_key
from igam_tf.method.transforms import Identity
from madry_models.network import Network, wide_dtype

# Images of the network's range have a highest value within these multiples of the range.
DARKEST, BRIGHTEST = 0.02, 5.0
# Untrained logits that differ this much mean that the features are far too large.
HUGE = 100.0


@keras.saving.register_keras_serializable("igam_tf")
class Teacher(keras.Model):
    """f_t(x) = new logits(features(A x + b)) (eq. 6, 15).

    Args:
        network: robust source model, any Keras model; it is not trained.
        transform: the map from the target image to the network's input; None means the identity.
        num_classes: classes of the target task.
        features: name of the layer whose output [B,F] the new logits read; if empty, they read the
            input of the network's last dense layer, see `igam_tf.method.networks.features_of`.

    Example:
        >>> import keras, numpy as np
        >>> network = keras.Sequential([
        ...     keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(5)])
        >>> from igam_tf.method.transforms import ChannelMean
        >>> teacher = Teacher(network, ChannelMean(), num_classes=3)
        >>> tuner = FineTune(teacher)
        >>> tuner.compile("adam")
        >>> x, y = np.ones((6, 4, 4, 3), "float32"), np.arange(6) % 3
        >>> history = tuner.fit(x, y, verbose=0)
        >>> teacher(x).shape.as_list(), len(teacher.trained_variables)
        ([6, 3], 2)
    """

    def __init__(
        self,
        network: keras.Model,
        transform: Identity | None = None,
        *,
        num_classes: int,
        features: str = "",
        **kwargs,
    ):
        check_model(network, "network of a Teacher")
        super().__init__(autocast=False, **kwargs)
        expect(num_classes >= 1, "num_classes of at least 1", num_classes)
        self.network, self.transform = network, transform or Identity()
        self.num_classes, self._layer = num_classes, features
        self._features = features_of(network, features)
        self.logits_layer = keras.layers.Dense(
            num_classes, dtype=wide_dtype(network.compute_dtype or "float32")
        )

    def build(self, input_shape):
        """Creates the variables of logits and map; input_shape [B,H,W,C] of the target images.

        Raises:
            UserError: the network fails on the output of the map, or has no features [B,F].
        """
        if not self.transform.built:
            self.transform.build(input_shape)
        x = tf.zeros((1, *input_shape[1:]), self.network.variable_dtype)
        try:
            features = self._features(self.transform(x))
        except UserError:
            raise
        except Exception as error:  # on such images a network can fail in any way
            raise UserError(
                f"expected a map from images {list(input_shape[1:])} to those of this "
                f"{type(self.network).__name__}, which fails on the output of "
                f"{type(self.transform).__name__}: {reason_of(error)}"
                f"{channels_last(input_shape[1:])}"
            ) from error
        self.logits_layer.build((None, features.shape[-1]))
        self.built = True

    def check_range(self, x: np.ndarray) -> None:
        """Compares the map's output for images x [n,H,W,C] with the network's pixel range.

        Raises:
            UserError: the network expects another pixel range.
        """
        high = float(np.abs(self.transform(tf.convert_to_tensor(x))).max())
        own = getattr(self.network, "pixel_max", None)
        factor = high / own if own else 1.0
        if high and not DARKEST <= factor <= BRIGHTEST:
            wrong = f"the network takes pixels in 0..{own:g}"
        elif high and (found := misplaced_range(self.network, high)):
            wrong = found.sentence
        else:
            return
        raise UserError(
            "expected a map to the network's own pixel range; its output for these images goes up "
            f"to {high:.3g}, and {wrong}: put igam_tf.Scale into the transform, such as Scale(1 / "
            "255) from 0..255 to 0..1"
        )

    @property
    def trained_variables(self) -> list:
        """The variables of stage 1: psi_logit, and the weights of the map if it has any (§5.1.2)."""
        return self.logits_layer.trainable_variables + self.transform.trainable_variables

    @property
    def kernels(self) -> list:
        """The variables with weight decay: only those of the new logits layer (R11)."""
        return [self.logits_layer.kernel]

    def set_precision(self, precision: str) -> None:
        """Casts a MadryLab network to `precision`, except its first layer and its logits.

        J_t stays float32. bfloat16 in the first layer would cost J_t much accuracy and save little
        time. Any other network keeps its precision.
        """
        if not isinstance(self.network, Network):
            return
        wide = (self.network.layers[0], self.network.logits_layer)
        for layer in layers_of(self.network, include_self=False):
            if layer not in wide:
                layer.dtype_policy = precision

    @contextmanager
    def offsets_of(self, optimizer: keras.optimizers.Optimizer, seed: int) -> Iterator[None]:
        """Context that fixes a random map for each (seed, step of `optimizer`, replica).

        Within one step J_t always uses the same map, the next step draws another, and a resumed run
        repeats the draws of the run that was killed. Outside a training step, as in validation, and
        after the context, images are centred.
        """

        def key() -> tf.Tensor | None:
            return step_key(optimizer, seed) if in_training_step() else None

        self.transform.draw_from(key)
        try:
            yield
        finally:
            self.transform.draw_from(None)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Target images [B,H,W,C] in the target's pixel range -> logits [B,num_classes].

        `training` only makes the frozen network use batch statistics (R6).
        """
        return self.logits_layer(self._features(self.transform(x), training=training))

    def get_config(self) -> dict:
        """Keras configuration."""
        named = {"features": self._layer} if self._layer else {}
        return named | {
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


@keras.saving.register_keras_serializable("igam_tf")
class FineTune(ClassifierTrainer):
    """Stage 1: trains the teacher's new logits layer on natural target images (eq. 5-6).

    A map with weights is trained with it (§5.1.2). Everything else stays frozen.

    Args:
        teacher: the teacher that is fine-tuned.
        **kwargs: see `ClassifierTrainer`.

    Example:
        See `Teacher`.

        >>> FineTune.batch_statistics
        False
    """

    batch_statistics = False  # the frozen features do not change

    def __init__(self, teacher: Teacher, **kwargs):
        if not isinstance(teacher, Teacher):
            raise UserError(
                f"expected an igam_tf.Teacher to fine-tune; received a {type(teacher).__name__}"
            )
        super().__init__(teacher, **kwargs)
        if self.network is not teacher:
            raise UserError(
                "expected an igam_tf.Teacher alone; received preprocess or from_probabilities: "
                "put igam_tf.Preprocess into its transform, and remove the softmax of its network"
            )

    def _make(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        self.network.check_range(x)
        if (spread := float(np.median(np.ptp(z, axis=1)))) > HUGE:
            logging.warning(
                "DOUBTFUL: the untrained logits of the teacher differ by %.3g in the median. If "
                "its network expects another pixel range than the map's output, such as 0..1, put "
                "igam_tf.Scale or igam_tf.Preprocess into the transform.",
                spread,
            )  # fmt: skip
        super()._make(x, y, z)

    @property
    def trained_variables(self) -> list:
        """psi_logit, and the map's weights if it has any."""
        return self.network.trained_variables

    @property
    def state_variables(self) -> list:
        """The trained variables and their optimizer; everything else is frozen."""
        return self.trained_variables + self.optimizer.variables


def check_teacher(teacher: keras.Model | None, method: str) -> None:
    """Raises a UserError if this is not a teacher for the method: no model, or without variables."""
    expect(teacher is not None, f"a teacher with method={method}", "none")
    check_model(teacher, f"teacher of method={method}", keras.Model)
    expect(
        teacher.built, "a teacher whose logits are trained",
        f"a {type(teacher).__name__} without variables",
        "train its new logits with igam_tf.FineTune first",
    )  # fmt: skip


def check_teacher_outputs(
    teacher: keras.Model, x: np.ndarray, z: np.ndarray, pixel_max: float
) -> None:
    """Compares a teacher at images x [n,H,W,C] in 0..pixel_max with the student's logits z [n,K].

    Raises:
        UserError: the classes differ, it returns probabilities, or it expects another pixel range.
    """
    z_t = logits_of(teacher, x, "teacher", z.shape[1])
    expect(
        not are_probabilities(z_t), "a teacher that returns logits", "probabilities",
        "remove its softmax",
    )  # fmt: skip
    if isinstance(teacher, Teacher):
        teacher.check_range(x)
    else:
        refuse(misplaced_range(teacher, pixel_max))
