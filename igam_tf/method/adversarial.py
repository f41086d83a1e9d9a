"""Training on adversarial examples (paper eq. 3-4): robust teachers and the baselines that need them."""

import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from igam_tf.attacks import pgd
from igam_tf.common.checks import expect
from igam_tf.formulas import losses
from igam_tf.formulas.gradients import input_gradient
from igam_tf.method.objectives import METHODS, Objective, adversarial_xent
from igam_tf.method.teacher import check_teacher_outputs
from igam_tf.method.trainer import ClassifierTrainer, step_key, training_step

NEAR_X = 1e-3  # standard deviation of the noise from which TRADES starts, in pixels of 0..1

# A saved trainer names its objective, so Keras has to know each of them.
for _objective in {m.adversarial for m in METHODS.values()} - {None}:
    keras.saving.register_keras_serializable("igam_tf")(_objective)


@keras.saving.register_keras_serializable("igam_tf")
class PGDTraining(ClassifierTrainer):
    """Trains on PGD examples of x (eq. 3), or on both x and these (`igam_tf.method.objectives`).

    The attack runs the network in inference mode.

    Args:
        network, pixel_max, weight_decay, terms: as in `ClassifierTrainer`.
        eps: l-inf radius, as a fraction of the pixel range, such as 8/255.
        step_size: of the attack, as such a fraction too; None means a quarter of eps.
        steps: of the attack; the challenges use 7 for CIFAR-10 and 40 for MNIST.
        noise: the attack starts from uniform noise within noise * eps of x; above 1 the example is
            not projected back to the ball (N-FGSM).
        ramp_steps: training steps over which eps and step_size grow from 0 to their value; with
            l-inf 0.3, training without this warm-up can end with the same logits for every image.
        seed: of the random starts, which depend only on it, the step number and the replica.
        objective: (f, x, x_adv, y) -> loss and terms; a functools.partial can fix its numbers.
        teacher: passed to the objective under this name, if it is given.
        attack_loss: the loss that the attack maximises: "xent", or "kl", the divergence from p(x).
            With "kl" the start is close to x, where the divergence is smallest (TRADES).

    Raises:
        UserError: eps or step_size is not a fraction of the pixel range.

    Example:
        >>> import keras, numpy as np
        >>> network = keras.Sequential(
        ...     [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> trainer = PGDTraining(network, eps=0.3, step_size=0.1, steps=3, seed=0, pixel_max=1.0)
        >>> trainer.compile("adam")
        >>> x, y = np.zeros((8, 4, 4, 1), "float32"), np.arange(8) % 2
        >>> sorted(trainer.fit(x, y, verbose=0).history)
        ['L_xent', 'accuracy', 'loss']
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        eps: float,
        step_size: float | None = None,
        steps: int = 7,
        seed: int = 0,
        noise: float = 1.0,
        ramp_steps: int = 0,
        objective: Callable[..., Objective] = adversarial_xent,
        attack_loss: str = "xent",
        teacher: keras.Model | None = None,
        **kwargs,
    ):
        super().__init__(network, **kwargs)
        step_size = eps / 4 if step_size is None else step_size
        for name, radius in {"eps": eps, "step_size": step_size}.items():
            what = f"{name} as a fraction of the pixel range, such as 8/255"
            expect(0 <= radius <= 1, what, repr(radius))
        self.teacher = teacher
        self.eps, self.step_size, self.steps, self.seed = eps, step_size, steps, seed
        self.noise, self.ramp_steps = noise, ramp_steps
        self.objective, self.attack_loss = objective, attack_loss

    def _make(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        """Raises a UserError if the network has no input gradient, or the teacher other classes."""
        if self.teacher is not None:
            check_teacher_outputs(self.teacher, x, z, self.pixel_max)
        logits_fn = functools.partial(self.network, training=False)
        input_gradient(logits_fn, tf.constant(x), tf.constant(y), losses.xent)

    def attack(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """The adversarial examples [B,H,W,C] of this step and replica."""
        x, seed = losses.at_least_float32(x), step_key(self.optimizer, self.seed)
        shape, loss = tf.shape(x), "xent"
        grown = tf.cast(self.ramp(0, self.ramp_steps), x.dtype)
        eps, step_size = (grown * (share * self.pixel_max) for share in (self.eps, self.step_size))
        if self.attack_loss == "kl":
            # In float32 the gradient p - q loses most of its digits where both are close to 1.
            wide = functools.partial(tf.cast, dtype=tf.float64)
            p = wide(self.network(x, training=False))
            loss = lambda logits, _: losses.kl(p, wide(logits))  # noqa: E731
            deviation = NEAR_X * self.pixel_max
            noise = tf.random.stateless_normal(shape, seed, 0.0, deviation, x.dtype)
        else:
            noise = self.noise * eps
            noise = tf.random.stateless_uniform(shape, seed, -noise, noise, x.dtype)
            if self.noise > 1:
                eps = self.noise * eps + self.steps * step_size
        return pgd(
            lambda x: self.network(x, training=False),
            x,
            y,
            eps=eps,
            step_size=step_size,
            steps=self.steps,
            loss=loss,
            bounds=(0.0, self.pixel_max),
            noise=noise,
        )

    @training_step()
    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict:
        """One update; data = (x [B,H,W,C], y [B])."""
        x, y = self.batch_of(data)
        x_adv = self.attack(x, y)
        f = functools.partial(self.network, training=True)
        more = {} if self.teacher is None else {"teacher": self.teacher}
        return self.descend(lambda: self.objective(f, x, x_adv, y, xent=self.xent, **more), y)

    def get_config(self) -> dict:
        """Keras configuration: the networks, the attack, and the objective by its registered name."""
        names = ("eps", "step_size", "steps", "seed", "noise", "ramp_steps", "attack_loss")
        # A partial of the objective, even if it fixes nothing, has `func` and `keywords`.
        objective = functools.partial(self.objective)
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            "objective": serialize(objective.func),
            "numbers": dict(objective.keywords),
            "teacher": self.teacher and serialize(self.teacher),
        }

    @classmethod
    def from_config(cls, config: dict) -> "PGDTraining":
        """Inverse of `get_config`."""
        config = keras.saving.deserialize_keras_object(config)
        if numbers := config.pop("numbers"):
            config["objective"] = functools.partial(config["objective"], **numbers)
        return cls(config.pop("network"), **config)
