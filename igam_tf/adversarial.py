"""PGD adversarial training (paper eq. 3-4): robust teachers and the PGD7-trained baseline."""

import keras
import tensorflow as tf

from igam_tf import losses
from igam_tf.attacks import pgd
from igam_tf.classifier import Classifier


class PGDTraining(Classifier):
    """Trains on the result of a PGD attack from a random start instead of on x (eq. 3).

    Args:
        network, weight_decay: as in `Classifier`.
        eps, step_size: l-inf radius and step, in the network's own pixel unit.
        steps: of the attack; 7 in the challenge's CIFAR-10 code, 40 for MNIST.
        seed: of the random starts, which depend on it, the step's number and the replica alone.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        eps: float,
        step_size: float,
        steps: int,
        seed: int,
        **kwargs,
    ):
        super().__init__(network, **kwargs)
        self.eps, self.step_size, self.steps, self.seed = eps, step_size, steps, seed

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict:
        """One update on x + delta; the attack sees the network in inference mode."""
        x, y = data
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = tf.stack(
            [
                self.seed,
                tf.cast(self.optimizer.iterations, tf.int32) * 1024 + tf.cast(replica, tf.int32),
            ]
        )
        noise = tf.random.stateless_uniform(tf.shape(x), seed, -self.eps, self.eps, x.dtype)
        x_adv = pgd(
            lambda x: self.network(x, training=False),
            x,
            y,
            eps=self.eps,
            step_size=self.step_size,
            steps=self.steps,
            loss=losses.xent,
            bounds=(0.0, self.network.pixel_max),
            noise=noise,
        )
        return super().train_step((x_adv, y))
