"""Networks to try the audit on: two honest ones, and six that hide their gradients on purpose.

    python -m igam_tf.audit --model=igam_tf.audit.controls:quantised --dataset=mnist --data=builtin \
        --eps=0.1

Each function returns a network for MNIST-like images in 0..1; without a `base` it trains a small one on
the built-in (synthetic) digits first, in seconds. None of them is a defence.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from igam_tf.datasets import Augment, load, train_batches
from igam_tf.method.adversarial import PGDTraining
from igam_tf.method.trainer import ClassifierTrainer
from madry_models.activations import leaky_relu
from madry_models.batch_norm import BatchNormalization
from madry_models.network import Network

EPS = 0.1  # l-inf radius that `pgd_trained` is trained for, as a fraction of the pixel range
_EXAMPLES, _BATCH = 4000, 64


@keras.saving.register_keras_serializable("igam_tf")
class SmallNetwork(Network):
    """Two strided 5x5 convolutions with batch norm and one dense layer, for images in 0..1."""

    pixel_max = 1.0

    def __init__(self, num_classes: int = 10, *, hidden: int = 64, seed: int = 0, **kwargs):
        super().__init__(num_classes, **kwargs)
        self.hidden, self.seed = hidden, seed

        def initializer(k: int) -> keras.initializers.Initializer:
            return keras.initializers.HeNormal(seed=10 * seed + k)

        self.convolutions = [
            keras.layers.Conv2D(f, 5, 2, "same", use_bias=False, kernel_initializer=initializer(f))
            for f in (8, 16)
        ]
        self.norms = [
            BatchNormalization(momentum=0.9, epsilon=1e-3, synchronized=False) for _ in range(2)
        ]
        self.dense = keras.layers.Dense(hidden, kernel_initializer=initializer(1))
        self.logits_layer = keras.layers.Dense(num_classes, kernel_initializer=initializer(2))

    def build(self, input_shape: tuple):
        """Creates every variable; input_shape [B,H,W,C]."""
        _, height, width, channels = input_shape
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            convolution.build((None, height, width, channels))
            height, width, channels = -(-height // 2), -(-width // 2), convolution.filters
            norm.build((None, height, width, channels))
        self.dense.build((None, height * width * channels))
        self.logits_layer.build((None, self.hidden))
        self.built = True

    @property
    def kernels(self) -> list:
        """The variables under weight decay."""
        return [layer.kernel for layer in (*self.convolutions, self.dense, self.logits_layer)]

    def features(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] in 0..1 -> hidden activations [B,hidden]."""
        h = tf.cast(x, tf.float32)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            h = leaky_relu(norm(convolution(h), training=training))
        return leaky_relu(self.dense(tf.reshape(h, (-1, self.dense.kernel.shape[0]))))

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "hidden": self.hidden, "seed": self.seed}


def trained(
    network: keras.Model | None = None,
    *,
    eps: float = 0.0,
    steps: int = 300,
    attack_steps: int = 5,
    seed: int = 0,
    **settings: Any,
) -> keras.Model:
    """A network trained on built-in digits: by PGD within eps, or plainly where eps is 0.

    Args:
        network: for images [B,28,28,1] in 0..1; default: a `SmallNetwork`.
        eps: l-inf radius, as a fraction of the pixel range.
        steps, attack_steps: of training, and of PGD in each of them.
        seed: of the default network's weights, the images' order and the attack.
        **settings: of `PGDTraining`.
    """
    split = load("mnist", "train", source="builtin", num=_EXAMPLES, seed=seed)
    if network is None:
        network = SmallNetwork(seed=seed)
        network.build((None, *split.spec.image_shape))
    trainer = ClassifierTrainer(network, pixel_max=1.0)
    if eps:
        trainer = PGDTraining(
            network, eps=eps, step_size=2.5 * eps / attack_steps, steps=attack_steps, seed=seed,
            pixel_max=1.0, **settings,
        )  # fmt: skip
    trainer.compile(keras.optimizers.Adam(2e-3))
    batches = train_batches(
        split, batch_size=_BATCH, seed=seed, augment=Augment(pad=0, flip=False), num_steps=steps
    )
    trainer.fit(batches, shuffle=False, verbose=0)  # the batches come shuffled
    return network


def standard() -> SmallNetwork:
    """A plainly trained network: not robust, and nothing hidden."""
    return trained()


def pgd_trained() -> SmallNetwork:
    """A network trained by PGD within EPS: honestly robust, to a degree."""
    return trained(eps=EPS)


class Wrapper(keras.Model):
    """A network behind a change of its input, and before one of its logits; subclasses hide with it.

    Args:
        base: network with `features` and `logits_layer`; default: `standard()`.
    """

    def __init__(self, base: Network | None = None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.base = standard() if base is None else base
        self.pixel_max = self.base.pixel_max
        self.built = True

    def before(self, x: tf.Tensor) -> tf.Tensor:
        """What the base network sees."""
        return x

    def after(self, logits: tf.Tensor) -> tf.Tensor:
        """What is returned as logits."""
        return logits

    def igam_features(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The base network's features, [B,F]; see `igam_tf.method.networks.features_of`."""
        return self.base.features(self.before(x), training=training)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] -> what passes for logits, [B,K]."""
        return self.after(self.base.logits_layer(self.igam_features(x, training=training)))


class Quantised(Wrapper):
    """Pixels are rounded to 8 levels: the gradient is 0 or missing (Athalye et al. 2018, §3)."""

    def before(self, x: tf.Tensor) -> tf.Tensor:
        """Rounded pixels."""
        return tf.round(x / self.pixel_max * 7) / 7 * self.pixel_max


class Saturated(Wrapper):
    """Logits are multiplied until the cross-entropy's gradient underflows (Carlini & Wagner 2017)."""

    def after(self, logits: tf.Tensor) -> tf.Tensor:
        """The same classes with a confidence of 1."""
        return 1e5 * logits


class Noisy(Wrapper):
    """Gaussian noise on the pixels at every call, in inference too."""

    def before(self, x: tf.Tensor) -> tf.Tensor:
        """Noisy pixels."""
        return x + tf.random.normal(tf.shape(x), stddev=0.2 * self.pixel_max, dtype=x.dtype)


class Shattered(Wrapper):
    """A ripple too small to see whose slope drowns the gradient (Athalye et al. 2018, §3)."""

    def before(self, x: tf.Tensor) -> tf.Tensor:
        """Pixels with a ripple of 1 % of the range and 40 times their slope."""
        phases = np.random.default_rng(0).uniform(0, 2 * np.pi, x.shape[1:]).astype(np.float32)
        ripple = tf.sin(4000.0 / self.pixel_max * tf.cast(x, tf.float32) + phases)
        return x + tf.cast(0.01 * self.pixel_max * ripple, x.dtype)


class Probabilities(Wrapper):
    """Returns softmax(logits) where logits are expected, so that a second softmax flattens it."""

    def after(self, logits: tf.Tensor) -> tf.Tensor:
        """Probabilities."""
        return tf.nn.softmax(logits)


class BatchStatistics(Wrapper):
    """Normalises by the statistics of the batch in inference too: images see each other."""

    igam_features = None  # of one image alone, there are none

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits on batch statistics; no variable is changed."""
        base = self.base
        logits, _ = base.stateless_call(
            base.trainable_variables, base.non_trainable_variables, self.before(x), training=True
        )
        return logits


# What --model=igam_tf.audit.controls:<name> calls.
quantised, saturated, noisy = Quantised, Saturated, Noisy
shattered, probabilities, batch_statistics = Shattered, Probabilities, BatchStatistics
