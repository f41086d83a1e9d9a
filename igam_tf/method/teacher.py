"""The teacher: a robust network behind an affine map, with new logits for the target task (§4.1)."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from igam_tf.common.checks import check_model, expect, logits_of
from igam_tf.common.errors import UserError
from igam_tf.common.private_api import layers_of, reason_of
from igam_tf.method.look import misplaced_range, refuse
from igam_tf.method.networks import are_probabilities, features_of
from igam_tf.method.trainer import ClassifierTrainer, in_training_step, step_key
from igam_tf.method.transforms import Identity
from madry_models.network import Network, wide_dtype

# The highest value of images, as a share of the network's range, when they are of that range.
DARKEST, BRIGHTEST = 0.02, 5.0
# Untrained logits that are so far apart come of features that are too large by orders of magnitude.
HUGE = 100.0


@keras.saving.register_keras_serializable("igam_tf")
class Teacher(keras.Model):
    """f_t(x) = new logits(features(A x + b)) (eq. 6, 15).

    Args:
        network: robust source model, any Keras model; all of it stays frozen.
        transform: the map from the target image to the network's input; None: the identity.
        num_classes: classes of the target task.
        features: name of the layer whose output [B,F] the new logits read; empty: what the network's
            own last dense layer reads, see `igam_tf.method.networks.features_of`.

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
        super().__init__(autocast=False, **kwargs)
        expect(num_classes >= 1, "num_classes of at least 1", num_classes)
        self.network, self.transform = network, transform or Identity()
        self.num_classes, self._layer = num_classes, features
        self._features = features_of(network, features)
        self.logits_layer = keras.layers.Dense(
            num_classes, dtype=wide_dtype(network.compute_dtype or "float32")
        )

    def build(self, input_shape):
        """Creates logits layer and map; input_shape [B,H,W,C] of the target images.

        Raises:
            UserError: the network fails on the map's images, or has no features [B,F].
        """
        if not self.transform.built:
            self.transform.build(input_shape)
        x = tf.zeros((1, *input_shape[1:]), self.network.variable_dtype)
        try:
            features = self._features(self.transform(x))
        except UserError:
            raise
        except Exception as error:  # a network may fail in any way on images it was not made for
            raise UserError(
                f"expected a map from images {list(input_shape[1:])} to those of this "
                f"{type(self.network).__name__}, which fails on what {type(self.transform).__name__} "
                f"makes of them: {reason_of(error)}"
            ) from error
        self.logits_layer.build((None, features.shape[-1]))
        self.built = True

    def check_range(self, x: np.ndarray) -> None:
        """Holds what the map makes of images x [n,H,W,C] against the range that the network tells.

        Raises:
            UserError: the network is made for pixels of another range.
        """
        high = float(np.abs(self.transform(tf.convert_to_tensor(x))).max())
        own = getattr(self.network, "pixel_max", None)
        factor = high / own if own else 1.0
        if high and not DARKEST <= factor <= BRIGHTEST:
            wrong = f"the network takes pixels in 0..{own:g}"
        elif high and (found := misplaced_range(self.network, high)):
            wrong = found[0].sentence
        else:
            return
        raise UserError(
            f"expected a map to the network's own pixel range; what it makes of these images goes up to "
            f"{high:.3g}, and {wrong}: put igam_tf.Scale into the transform, such as Scale(1 / 255) "
            "from 0..255 to 0..1"
        )

    @property
    def trained_variables(self) -> list:
        """What stage 1 trains: psi_logit, and the map where it has weights (§5.1.2)."""
        return self.logits_layer.trainable_variables + self.transform.trainable_variables

    @property
    def kernels(self) -> list:
        """The variables under weight decay: the new logits layer's alone (R11)."""
        return [self.logits_layer.kernel]

    def set_precision(self, precision: str) -> None:
        """Lets all of a challenge's network but its first layer and the logits compute in `precision`.

        J_t stays float32. In the first layer bfloat16 costs J_t far more accuracy than time. Any other
        network keeps the precision it came with.
        """
        if not isinstance(self.network, Network):
            return
        wide = (self.network.layers[0], self.network.logits_layer)
        for layer in layers_of(self.network, include_self=False):
            if layer not in wide:
                layer.dtype_policy = precision

    @contextmanager
    def offsets_of(self, optimizer: keras.optimizers.Optimizer, seed: int) -> Iterator[None]:
        """Context in which a random map draws from (seed, step of `optimizer`, replica) alone.

        So J_t at x and all that one step does with it share one map, the next step has another, and
        a resumed run repeats the steps of the one that was killed. Outside a step, as in validation,
        images are centred, and afterwards.
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

        `training` only chooses the frozen network's batch statistics (R6).
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

    A map with weights is trained with it (§5.1.2). Everything else stays as it is.

    Args:
        teacher: what is fine-tuned.
        **kwargs: as of `ClassifierTrainer`.

    Example:
        See `Teacher`.

        >>> FineTune.batch_statistics
        False
    """

    batch_statistics = False  # the frozen features stay as they are

    def __init__(self, teacher: Teacher, **kwargs):
        if not isinstance(teacher, Teacher):
            raise UserError(
                f"expected an igam_tf.Teacher to fine-tune; received a {type(teacher).__name__}"
            )
        super().__init__(teacher, **kwargs)
        if self.network is not teacher:
            raise UserError(
                "expected an igam_tf.Teacher as it is; received preprocess or from_probabilities: put "
                "igam_tf.Preprocess into its transform, and leave out its network's softmax"
            )

    def _make(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        self.network.check_range(x)
        if (spread := float(np.median(np.ptp(z, axis=1)))) > HUGE:
            logging.warning(
                "DOUBTFUL: the untrained logits of the teacher are %.3g apart in the median: does its "
                "network take other pixels than the map makes, such as those of 0..1? Then put "
                "igam_tf.Scale or igam_tf.Preprocess into the transform.", spread,
            )  # fmt: skip
        super()._make(x, y, z)

    @property
    def trained_variables(self) -> list:
        """psi_logit, and the map's weights where it has some."""
        return self.network.trained_variables

    @property
    def state_variables(self) -> list:
        """What is trained and its optimizer; everything else is frozen."""
        return self.trained_variables + self.optimizer.variables


def check_teacher(teacher: keras.Model | None, method: str) -> None:
    """Raises a UserError where that is no teacher for the method: no model, or one without variables."""
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
        UserError: other classes, probabilities, or a network of another pixel range.
    """
    z_t = logits_of(teacher, x, "teacher", z.shape[1])
    expect(
        not are_probabilities(z_t), "a teacher that returns logits", "probabilities",
        "leave out its softmax",
    )  # fmt: skip
    if isinstance(teacher, Teacher):
        teacher.check_range(x)
    else:
        refuse(misplaced_range(teacher, pixel_max))
