"""Published defences and honest networks, each with an attack that knows it, to try the audit on.

    python -m igam_tf.audit --model=igam_tf.audit.zoo:anti_adversary --dataset=mnist --data=builtin \
        --eps=0.15

Each is the idea of its source in a few lines, before or within a small network for MNIST-like images in
0..1 that is trained on the built-in (synthetic) digits in seconds; none is the authors' own code, and no
figure here says anything of theirs. `bench/zoo.py` audits all of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from igam_tf.attacks import AttackSpec
from igam_tf.audit import controls
from igam_tf.datasets import load
from igam_tf.evaluation.robust import LogitsFn, robust_flags
from igam_tf.formulas.losses import xent
from igam_tf.method.objectives import trades

EPS = 0.15  # l-inf radius of the zoo's figures, as a fraction of the pixel range
DRAWS = 20  # of a random defence, in each step of the attack that knows it and in each prediction
_CLASSES, _SIDE = 10, 28


def inference(model: keras.Model) -> LogitsFn:
    """x -> the model's own logits in inference mode."""
    return functools.partial(model, training=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Specimen:
    """One network of the zoo; called, it makes it.

    Attributes:
        build: () -> the network; of a defence of the image also (base) -> the same around that one.
        source: authors, year and where it was published; of an honest one, what it is.
        checks: names of the audit's checks one of which must WARN or FAIL, unless the headline is
            true; none for an honest network, on which no check may FAIL.
        stand_in: network -> differentiable logits that an attacker who knows the defence climbs.
    """

    build: Callable[..., keras.Model]
    source: str
    checks: tuple[str, ...] = ()
    stand_in: Callable[[keras.Model], LogitsFn] = inference

    @property
    def random(self) -> bool:
        """Whether every call draws, so that the attacker averages."""
        return "deterministic" in self.checks

    def __call__(self, *base: keras.Model) -> keras.Model:
        """The network."""
        return self.build(*base)


# name -> Specimen; each is an attribute of this module, too.
ZOO: dict[str, Specimen] = {}


@functools.cache
def plain(seed: int = 0) -> keras.Model:
    """A plainly trained network, trained once a process."""
    return controls.trained(seed=seed)


@functools.cache
def robust() -> keras.Model:
    """A network trained by PGD within `controls.EPS`, trained once a process."""
    return controls.pgd_trained()


class Defence(keras.Model):
    """A network behind a defence.

    Args:
        base: the network that is defended.
        before: (x, base) -> what the network sees.
        after: logits -> what is returned.
    """

    pixel_max = 1.0

    def __init__(self, base: keras.Model, before=None, after=None):
        super().__init__(autocast=False)
        self.base, self.before, self.after = base, before, after
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] -> logits [B,K]."""
        x = tf.cast(x, tf.float32)
        z = self.base(x if self.before is None else self.before(x, self.base), training=training)
        return z if self.after is None else self.after(z)


def undefended(model: Defence) -> LogitsFn:
    """The network without its defence, as BPDA differentiates it (Athalye et al. 2018)."""
    return inference(model.base)


def _network(source: str, checks: str = "", *, stand_in=inference, name: str = ""):
    """Makes a specimen of a function () -> network; `checks` are names with spaces between them.

    The function's own name is the specimen's if no other is given.
    """

    def of(build) -> Specimen:
        specimen = Specimen(
            build=build, source=source, checks=tuple(checks.split()), stand_in=stand_in
        )
        ZOO[name or build.__name__] = specimen
        return specimen

    return of


def _before(source: str, checks: str = "", *, base=plain, stand_in=undefended):
    """Makes a specimen of a function (x, base) -> what the base network sees."""

    def of(before) -> Specimen:
        def build(network: keras.Model | None = None) -> keras.Model:
            return Defence(base() if network is None else network, before)

        return _network(source, checks, stand_in=stand_in, name=before.__name__)(build)

    return of


# --- parts ---------------------------------------------------------------------------------------


def convnet(
    activation=tf.nn.relu, *, encode=None, outputs: int = _CLASSES, pool=None, dtype="float32"
) -> keras.Model:
    """Two 5x5 convolutions and one dense layer, without batch norm.

    Args:
        activation: of every layer.
        encode: images [B,28,28,1] -> what the first convolution sees.
        outputs: number of outputs.
        pool: layer after each convolution in the place of its stride.
        dtype: policy of the layers.
    """
    x = keras.Input((_SIDE, _SIDE, 1))
    h = x if encode is None else keras.layers.Lambda(encode)(x)
    for k, filters in enumerate((8, 16)):
        init = keras.initializers.HeNormal(seed=k)
        stride = 1 if pool else 2
        h = keras.layers.Conv2D(
            filters, 5, stride, "same", kernel_initializer=init, dtype=dtype
        )(h)  # fmt: skip
        h = keras.layers.Lambda(activation, dtype=dtype)(h)
        h = pool(2)(h) if pool else h
    init = keras.initializers.HeNormal(seed=2)
    h = keras.layers.Flatten(dtype=dtype)(h)
    h = keras.layers.Dense(64, kernel_initializer=init, dtype=dtype)(h)
    h = keras.layers.Lambda(activation, dtype=dtype)(h)
    init = keras.initializers.GlorotUniform(seed=3)
    z = keras.layers.Dense(outputs, kernel_initializer=init, dtype=dtype)(h)
    return keras.Model(x, z)


def _with_weights_of(model: keras.Model, other: keras.Model) -> keras.Model:
    model.set_weights(other.get_weights())
    return model


@functools.cache
def _examples() -> tuple[np.ndarray, np.ndarray]:
    """Training images [2000,28,28,1] in 0..1 and labels [2000]."""
    split = load("mnist", "train", source="builtin", num=2000)
    return (split.images / 255).astype(np.float32), split.labels.astype(np.int64)


@functools.cache
def _principal(k: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean [784], the first k principal directions [k,784]) of the training images."""
    flat = _examples()[0].reshape(-1, _SIDE**2)
    mean = flat.mean(0)
    return mean, np.linalg.svd(flat - mean, full_matrices=False)[2][:k]


def _on_subspace(x: tf.Tensor, k: int = 40) -> tf.Tensor:
    """The nearest images of the span of k principal directions, [B,28,28,1]."""
    mean, directions = _principal(k)
    flat = tf.reshape(x, (-1, _SIDE**2)) - mean
    return tf.reshape(mean + flat @ directions.T @ directions, tf.shape(x))


def _dct(n: int) -> np.ndarray:
    """The orthonormal cosine transform, [n,n]."""
    k = np.arange(n)
    d = np.sqrt(2 / n) * np.cos(np.pi * (k[None] + 0.5) * k[:, None] / n)
    d[0] /= np.sqrt(2)
    return d.astype(np.float32)


def _purified(x: tf.Tensor, loss, *, eps=0.15, steps=5, step_size=0.05) -> tf.Tensor:
    """x after steps down the loss within eps, with the gradient of x itself: what a purifier returns."""
    d = tf.zeros_like(x)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(d)
            value = tf.reduce_sum(loss(x + d))
        d = tf.clip_by_value(d - step_size * tf.sign(tape.gradient(value, d)), -eps, eps)
    return x + tf.stop_gradient(d)


# --- defences that change the image -------------------------------------------------------------


@_before("Xu, Evans, Qi 2018, Feature Squeezing, arXiv:1704.01155", "gradients")
def bit_depth(x, _):
    """Pixels of one bit."""
    return tf.round(x)


@_before("Xu, Evans, Qi 2018, Feature Squeezing, arXiv:1704.01155", "square finite_difference")
def median(x, _):
    """The median of each 3x3 window."""
    windows = tf.image.extract_patches(x, (1, 3, 3, 1), (1, 1, 1, 1), (1, 1, 1, 1), "SAME")
    return tf.sort(windows, axis=-1)[..., 4:5]


@_before("Guo, Rana, Cissé, van der Maaten 2018, arXiv:1711.00117", "gradients")
def jpeg(x, _):
    """Cosine coefficients of 8x8 blocks in steps of 0.4."""
    d, pad = _dct(8), tf.pad(x[..., 0], ((0, 0), (0, 4), (0, 4)))
    blocks = tf.reshape(pad, (-1, 4, 8, 4, 8))
    coefficients = tf.round(tf.einsum("ui,baicj,vj->baucv", d, blocks, d) / 0.4) * 0.4
    image = tf.reshape(tf.einsum("ui,baucv,vj->baicj", d, coefficients, d), (-1, 32, 32))
    return tf.clip_by_value(image[:, :_SIDE, :_SIDE, None], 0.0, 1.0)


@_before("Guo, Rana, Cissé, van der Maaten 2018, arXiv:1711.00117", "deterministic gradients")
def total_variation(x, _):
    """Half of the pixels dropped, and filled in by the least total variation."""
    kept = tf.cast(tf.random.uniform(tf.shape(x)) < 0.5, x.dtype)

    def loss(image):
        across, down = image[:, :, 1:] - image[:, :, :-1], image[:, 1:] - image[:, :-1]
        smooth = [tf.reduce_sum(tf.sqrt(tf.square(d) + 1e-4), (1, 2, 3)) for d in (across, down)]
        return 0.1 * (smooth[0] + smooth[1]) + tf.reduce_sum(
            tf.square(kept * (image - x)), (1, 2, 3)
        )

    start = tf.stop_gradient(kept * x + (1 - kept) * 0.5)
    return _purified(start, loss, eps=1.0, steps=15, step_size=0.06)


@_before("Xie, Wang, Zhang, Ren, Yuille 2018, arXiv:1711.01991", "deterministic")
def resize_and_pad(x, _):
    """A random smaller size at a random place."""
    side = tf.random.uniform((), 22, _SIDE + 1, tf.int32)
    left, top = (tf.random.uniform((), 0, _SIDE - side + 1, tf.int32) for _ in range(2))
    small = tf.image.resize(x, (side, side))
    return tf.ensure_shape(
        tf.image.pad_to_bounding_box(small, top, left, _SIDE, _SIDE), (None, _SIDE, _SIDE, 1)
    )


@_before("Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918, a single draw", "deterministic")
def smoothing(x, _):
    """Gaussian noise."""
    return x + tf.random.normal(tf.shape(x), stddev=0.25)


@_before("Prakash, Moran, Garber, DiLillo, Storer 2018, arXiv:1801.08926", "deterministic")
def pixel_deflection(x, _):
    """A fifth of the pixels are replaced by a random neighbour."""
    moved = tf.roll(x, tf.random.uniform((2,), -2, 3, tf.int32), (1, 2))
    return tf.where(tf.random.uniform(tf.shape(x)) < 0.2, moved, x)


@_before("Raff, Sylvester, Forsyth, McLean 2019, CVPR", "deterministic")
def barrage(x, _):
    """Noise, contrast, shift and blur, each or not, of random strength."""
    u = tf.random.uniform((6,))
    x = tf.where(u[0] < 0.5, x + 0.2 * u[1] * tf.random.normal(tf.shape(x)), x)
    x = tf.where(u[2] < 0.5, (x - 0.5) * (0.5 + u[1]) + 0.5, x)
    x = tf.where(u[3] < 0.5, tf.roll(x, tf.random.uniform((2,), -1, 2, tf.int32), (1, 2)), x)
    return tf.where(u[4] < 0.5, tf.nn.avg_pool2d(x, 3, 1, "SAME"), x)


@_before(
    "Zhang, Liang 2019, Randomized Discretization, arXiv:1903.04666", "deterministic gradients"
)
def random_discretisation(x, _):
    """Three grey levels after noise."""
    return tf.round(2 * (x + tf.random.normal(tf.shape(x), stddev=0.15))) / 2


@_before("Yang, Zhang, Katabi, Xu 2019, ME-Net, arXiv:1905.11971", "deterministic gradients")
def me_net(x, _):
    """A fifth of the pixels dropped, and the matrix completed at rank 8."""
    kept = tf.cast(tf.random.uniform(tf.shape(x)) < 0.8, x.dtype) / 0.8
    s, u, v = tf.linalg.svd(tf.stop_gradient(kept * x)[..., 0])
    return tf.einsum("bik,bk,bjk->bij", u[..., :8], s[..., :8], v[..., :8])[..., None]


@_before("Rakin, He, Gong, Fan 2018, Blind Pre-Processing, arXiv:1802.01549", "gradients")
def blind_preprocessing(x, _):
    """A steep tanh, then four levels."""
    return tf.round(3 * (0.5 + 0.5 * tf.tanh(4 * (x - 0.5)))) / 3


@_before("Samangouei, Kabkab, Chellappa 2018, Defense-GAN, arXiv:1805.06605", "gradients")
def generator_range(x, _):
    """The nearest image in a generator's range; here the span of principal directions."""
    return tf.stop_gradient(tf.clip_by_value(_on_subspace(x), 0.0, 1.0))


@_before(
    "Marzi, Gopalakrishnan, Madhow, Pedarsani 2018, arXiv:1801.04695",
    "square finite_difference linearity",
)
def sparse_front_end(x, _):
    """The 40 largest cosine coefficients of each image."""
    d = _dct(_SIDE)
    c = tf.einsum("ui,bij,vj->buv", d, x[..., 0], d)
    least = tf.math.top_k(tf.abs(tf.reshape(c, (-1, _SIDE**2))), 40).values[:, -1, None, None]
    return tf.einsum("ui,buv,vj->bij", d, tf.where(tf.abs(c) >= least, c, 0.0), d)[..., None]


@functools.cache
def _patches() -> np.ndarray:
    """32 patches [32,4] of 2x2 pixels: 10 rounds of k-means over the training images."""
    rng = np.random.default_rng(0)
    blocks = _examples()[0][:500].reshape(-1, 14, 2, 14, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4)
    centres = blocks[rng.choice(len(blocks), 32, replace=False)] + rng.normal(0, 0.01, (32, 4))
    for _ in range(10):
        nearest = ((blocks[:, None] - centres) ** 2).sum(-1).argmin(1)
        for k in np.unique(nearest):
            centres[k] = blocks[nearest == k].mean(0)
    return centres.astype(np.float32)


def _by_patches(x: tf.Tensor, width: float = 0.0) -> tf.Tensor:
    """x with each 2x2 patch put by the nearest known one, or by a soft choice of that width."""
    patches = tf.constant(_patches())
    blocks = tf.reshape(tf.nn.space_to_depth(x, 2), (-1, 4))
    far = tf.reduce_sum(tf.square(blocks[:, None] - patches), -1)
    soft = lambda: tf.nn.softmax(-far / width) @ patches  # noqa: E731
    chosen = soft() if width else tf.gather(patches, tf.argmin(far, 1))
    chosen = tf.reshape(chosen, (-1, _SIDE // 2, _SIDE // 2, 4))
    return tf.nn.depth_to_space(chosen, 2)


@_before(
    "Moosavi-Dezfooli, Shrivastava, Tuzel 2018, Divide, Denoise and Defend, arXiv:1802.06806, "
    "straight-through",
    "finite_difference transfer square",
    base=robust,
    stand_in=lambda model: lambda x: model.base(_by_patches(x, 0.05), training=False),
)
def nearest_patch(x, _):
    """The nearest of 32 patches of 2x2 pixels, differentiated as if it were the identity."""
    return x + tf.stop_gradient(_by_patches(x) - x)


@_before(
    "Alfarra, Pérez, Thabet, Bibi, Torr, Ghanem 2022, Combating Adversaries with Anti-Adversaries, "
    "arXiv:2103.14347",
    "finite_difference transfer square",
    base=robust,
)
def anti_adversary(x, base):
    """Two steps towards the predicted class."""
    y, d = tf.argmax(base(x, training=False), 1), tf.zeros_like(x)
    for _ in range(2):
        with tf.GradientTape() as tape:
            tape.watch(d)
            value = tf.reduce_sum(xent(base(x + d, training=False), y))
        d -= 0.15 * tf.sign(tape.gradient(value, d))
    return x + tf.stop_gradient(d)


@_before(
    "Wu, Pan, Zhang, Jia, He 2021, Attacking Adversarial Attacks as a Defense, arXiv:2106.04938",
    "finite_difference transfer square",
    base=robust,
)
def hedge(x, base):
    """Steps away from all classes together."""

    def loss(x):
        return tf.reduce_sum(tf.nn.log_softmax(base(x, training=False)), 1)

    return _purified(x, loss)


@_before(
    "Shi, Holtz, Mishne 2021, Online Adversarial Purification based on Self-Supervision, "
    "arXiv:2101.09387",
    "finite_difference transfer square",
    base=robust,
)
def purification(x, _):
    """Steps towards a smaller error of reconstruction, by an autoencoder of principal directions."""

    def loss(x):
        return tf.reduce_sum(tf.square(x - _on_subspace(x)), (1, 2, 3))

    return _purified(x, loss)


@_before("Pang, Xu, Zhu 2020, Mixup Inference, arXiv:1909.11515", "deterministic")
def mixup_inference(x, _):
    """Mixed with a random training image."""
    images = tf.constant(_examples()[0][:200])
    other = tf.gather(images, tf.random.uniform((tf.shape(x)[0],), 0, 200, tf.int32))
    return 0.7 * x + 0.3 * other


# --- defences within the network ------------------------------------------------------------------


class Neighbours(keras.Model):
    """The mean of what belongs to the 10 nearest training images, which has no gradient.

    Args:
        features: images [B,H,W,C] -> [B,F], where they are compared.
        values: of each training image, [N,K].
        width: of the attacker's soft choice, as a share of the mean squared distance.
    """

    pixel_max = 1.0

    def __init__(self, features, values: np.ndarray, width: float = 0.02):
        super().__init__()
        self.of, self.values, self.width = features, values.astype(np.float32), width
        self.known = np.asarray(features(tf.constant(_examples()[0])))
        self.built = True

    def squared(self, x: tf.Tensor) -> tf.Tensor:
        """Squared distances to the training images, [B,N]."""
        h, known = self.of(tf.cast(x, tf.float32)), self.known
        square = tf.reduce_sum(tf.square(h), 1, keepdims=True) + (known**2).sum(1)
        return square - 2 * h @ known.T

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] -> [B,K]."""
        nearest = tf.math.top_k(-self.squared(x), 10).indices
        return tf.reduce_mean(tf.gather(self.values, nearest), 1)

    def soft(self, x: tf.Tensor) -> tf.Tensor:
        """The same with smooth weights in the place of the choice."""
        squared = self.squared(x)
        width = self.width * tf.stop_gradient(tf.reduce_mean(squared, 1, keepdims=True))
        return tf.nn.softmax(-squared / width) @ self.values


@_network(
    "Dubey, van der Maaten, Yalniz, Li, Mahajan 2019, arXiv:1903.01612",
    "gradients",
    stand_in=lambda model: model.soft,
)
def nearest_images():
    """A network's logits of the training images nearest to x."""
    logits = plain()(_examples()[0], training=False).numpy()
    return Neighbours(lambda x: tf.reshape(x, (-1, _SIDE**2)), logits)


@_network(
    "Papernot, McDaniel 2018, Deep k-Nearest Neighbors, arXiv:1803.04765",
    "gradients",
    stand_in=lambda model: model.soft,
)
def deep_neighbours():
    """Votes of the training images whose features are nearest."""
    return Neighbours(plain().features, 10 * np.eye(_CLASSES)[_examples()[1]])


def _trained(activation, **settings) -> keras.Model:
    return controls.trained(convnet(activation, **settings))


def _as_relu(model: keras.Model) -> LogitsFn:
    """The same weights with plain ReLUs."""
    return inference(_with_weights_of(convnet(), model))


LEVELS = 10


def _thermometer(x: tf.Tensor) -> tf.Tensor:
    """[B,H,W,1] -> [B,H,W,LEVELS] of 0 and 1: how many levels each pixel has passed."""
    return tf.cast(x > np.arange(LEVELS, dtype=np.float32) / LEVELS, x.dtype)


def _smooth_thermometer(x: tf.Tensor) -> tf.Tensor:
    """The same with slopes, by which Athalye et al. 2018 (section 5.1) broke it."""
    return tf.clip_by_value(LEVELS * x - np.arange(LEVELS, dtype=np.float32), 0.0, 1.0)


@_network(
    "Buckman, Roy, Raffel, Goodfellow 2018, Thermometer Encoding, ICLR",
    "gradients",
    stand_in=lambda model: inference(_with_weights_of(convnet(encode=_smooth_thermometer), model)),
)
def thermometer():
    """Pixels as bars of bits."""
    return _trained(tf.nn.relu, encode=_thermometer)


@_network(
    "Xiao, Zhong, Zheng 2020, k-Winners-Take-All, arXiv:1905.10510",
    "finite_difference linearity square",
    stand_in=_as_relu,
)
def k_winners():
    """The highest fifth of each layer's activations; the others are 0."""

    def winners(h):
        flat = tf.reshape(h, (-1, int(np.prod(h.shape[1:]))))
        least = tf.math.top_k(flat, flat.shape[1] // 5).values[:, -1:]
        return tf.reshape(tf.where(flat >= least, flat, 0.0), tf.shape(h))

    return _trained(winners)


@_network("Dhillon et al. 2018, Stochastic Activation Pruning, arXiv:1803.01442", "deterministic")
def activation_pruning():
    """Activations are kept by a draw in proportion to their size, and scaled."""

    def pruned(h):
        h = tf.nn.relu(h)
        axes = list(range(1, h.shape.rank))
        share = h / (tf.reduce_sum(h, axes, keepdims=True) + 1e-9)
        draws = 0.5 * np.prod(h.shape[1:])
        kept = 1 - tf.exp(draws * tf.math.log1p(-tf.minimum(share, 0.999)))
        drawn = tf.random.uniform(tf.shape(h)) < kept
        return tf.where(drawn, h / tf.maximum(kept, 1e-6), 0.0)

    return _with_weights_of(convnet(pruned), _trained(tf.nn.relu))


@_network("Wang et al. 2018, Defensive Dropout, arXiv:1809.05165", "deterministic")
def dropout():
    """Dropout that is not turned off."""
    return _trained(lambda h: tf.nn.dropout(tf.nn.relu(h), 0.3))


@_network("Liu, Cheng, Zhang, Hsieh 2018, Random Self-Ensemble, arXiv:1712.00673", "deterministic")
def self_ensemble():
    """Noise within every layer, trained with it."""
    return _trained(lambda h: tf.nn.relu(h + tf.random.normal(tf.shape(h), stddev=0.3)))


class Several(keras.Model):
    """Networks joined by a function of their logits [M,B,K]."""

    pixel_max = 1.0

    def __init__(self, members: list[keras.Model], join):
        super().__init__()
        self.members, self.join = members, join
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] -> [B,K]."""
        return self.join(tf.stack([member(x, training=training) for member in self.members]))


def _mean_of_members(model: Several) -> LogitsFn:
    return lambda x: tf.reduce_mean(tf.stack([m(x, training=False) for m in model.members]), 0)


@_network(
    "Sengupta, Chakraborti, Kambhampati 2019, MTDeep, arXiv:1705.07213",
    "deterministic",
    stand_in=_mean_of_members,
)
def random_member():
    """One of three networks, drawn in every call."""
    members = [plain(seed) for seed in range(3)]
    return Several(members, lambda z: z[tf.random.uniform((), 0, 3, tf.int32)])


@_network(
    "Sen, Ravindran, Raghunathan 2020, EMPIR, arXiv:2004.10162",
    "gradients",
    stand_in=_mean_of_members,
)
def mixed_precision_ensemble():
    """Votes of a network in full precision and of two with coarse weights."""

    def coarse(levels, seed):
        weights = [
            np.round(w / np.abs(w).max() * levels) / levels * np.abs(w).max()
            for w in plain(seed).get_weights()
        ]
        model = controls.SmallNetwork()
        model.build((None, _SIDE, _SIDE, 1))
        model.set_weights(weights)
        return model

    def votes(z):
        return 10 * tf.reduce_mean(tf.one_hot(tf.argmax(z, -1), _CLASSES), 0)

    return Several([plain(), coarse(7, 1), coarse(15, 2)], votes)


@_network(
    "Galloway, Taylor, Moussa 2018, Attacking Binarized Neural Networks, arXiv:1711.00449",
    "gradients finite_difference square",
    stand_in=lambda model: inference(_with_weights_of(convnet(tf.tanh), model)),
)
def binarised():
    """Activations of -1 and 1, trained and differentiated straight through."""

    def signs(h):
        slope = tf.clip_by_value(h, -1.0, 1.0)
        return slope + tf.stop_gradient(tf.where(h > 0, 1.0, -1.0) - slope)

    return _trained(signs)


@_network(
    "Nayebi, Ganguli 2017, Biologically Inspired Protection, arXiv:1703.09202",
    "gradients losses square",
    stand_in=lambda model: inference(
        _with_weights_of(convnet(lambda h: tf.sigmoid(h) + 0.02 * h), model)
    ),
)
def saturated_units():
    """Sigmoid units, sharpened after training until they saturate."""
    model = _trained(lambda h: tf.sigmoid(4 * h))
    return _with_weights_of(convnet(lambda h: tf.sigmoid(30 * h)), model)


@_network(
    "Papernot, McDaniel, Wu, Jha, Swami 2016, Distillation as a Defense, arXiv:1511.04508",
    "gradients losses logits",
    stand_in=undefended,
)
def distilled():
    """Logits times 100, as training at a temperature of 100 leaves them."""
    return Defence(plain(), after=lambda z: 100 * z)


def _codes() -> np.ndarray:
    """Ten code words of 16 bits in -1 and 1, rows of Hadamard's matrix, [16,10]."""
    h = np.ones((1, 1))
    for _ in range(4):
        h = np.block([[h, h], [h, -h]])
    return h[:, 1 : 1 + _CLASSES].astype(np.float32)


@_network(
    "Verma, Swami 2019, Error Correcting Output Codes, NeurIPS",
    "gradients losses logits",
    stand_in=lambda model: lambda x: model.base(x) @ _codes(),
)
def output_codes():
    """Bits through a steep tanh, compared with each class's code word."""
    base = convnet(outputs=16)
    controls.trained(Defence(base, after=lambda z: tf.tanh(z) @ _codes()))
    return Defence(base, after=lambda z: tf.tanh(20 * z) @ _codes())


# The controls, none of which is a defence: what they hide, and by what.
for _name, _source, _check in (
    ("quantised", "gradients of 0, Athalye et al. 2018, arXiv:1802.00420", "gradients"),
    ("saturated", "a sure softmax, Carlini, Wagner 2017, arXiv:1608.04644", "losses"),
    ("noisy", "noise in every call, Athalye et al. 2018, arXiv:1802.00420", "deterministic"),
    ("shattered", "a ripple's slope, Athalye et al. 2018, arXiv:1802.00420", "linearity"),
    ("probabilities", "a second softmax, Carlini et al. 2019, arXiv:1902.06705", "logits"),
    (
        "batch_statistics",
        "images see each other, Carlini et al. 2019, arXiv:1902.06705",
        "batch_norm",
    ),
):
    made = _network(_source, _check, stand_in=undefended, name=f"control_{_name}")
    made(lambda name=_name: getattr(controls, name)(plain()))


# --- honest networks ---------------------------------------------------------------------------


@_network("plainly trained; batch norm and leaky ReLU")
def honest_plain():
    """The network behind most of the defences."""
    return plain()


@_network("Madry et al. 2018, trained by PGD within 0.1, arXiv:1706.06083")
def honest_pgd():
    """The network behind the other defences."""
    return robust()


@_network("Zhang et al. 2019, TRADES within 0.1, arXiv:1901.08573")
def honest_trades():
    """Trained for a steady prediction."""
    objective = functools.partial(trades, beta=6.0)
    terms = ("L_xent", "L_kl", "accuracy")
    return controls.trained(
        convnet(), eps=0.1, objective=objective, attack_loss="kl", ramp_steps=150, terms=terms
    )


@_network("Zantedeschi, Nicolae, Rawat 2017, bounded ReLU and noise in training, arXiv:1707.06728")
def honest_noise_trained():
    """Noise in training alone, and activations of at most 1."""
    noise = keras.layers.GaussianNoise(0.2, seed=0)
    return controls.trained(convnet(lambda h: tf.clip_by_value(h, 0.0, 1.0), encode=noise))


@_network("SiLU and average pooling")
def honest_smooth():
    """A network whose gradients are smooth."""
    return controls.trained(convnet(tf.nn.silu, pool=keras.layers.AveragePooling2D))


@_network("tanh and max pooling")
def honest_max_pool():
    """A network with kinks of another kind."""
    return controls.trained(convnet(tf.tanh, pool=keras.layers.MaxPooling2D))


@_network("linear, logits times 8")
def honest_linear():
    """Softmax regression whose softmax is sure of itself."""
    x = keras.Input((_SIDE, _SIDE, 1))
    init = keras.initializers.GlorotUniform(seed=0)
    base = keras.Model(
        x, keras.layers.Dense(10, kernel_initializer=init)(keras.layers.Flatten()(x))
    )
    return Defence(controls.trained(base), after=lambda z: 8 * z)


@_network("two heads of self-attention over 4x4 patches")
def honest_attention():
    """A small vision transformer of one block, in smooth activations."""
    x = keras.Input((_SIDE, _SIDE, 1))
    init = functools.partial(keras.initializers.GlorotUniform, seed=0)
    h = keras.layers.Conv2D(24, 4, 4, kernel_initializer=init())(x)
    h = keras.layers.Reshape((49, 24))(h)
    place = keras.layers.Embedding(49, 24, embeddings_initializer=init())(tf.range(49))
    h = h + place
    normal = keras.layers.LayerNormalization()(h)
    h = h + keras.layers.MultiHeadAttention(2, 12, kernel_initializer=init())(normal, normal)
    wide = keras.layers.Dense(48, activation="gelu", kernel_initializer=init())
    h = h + keras.layers.Dense(24, kernel_initializer=init())(
        wide(keras.layers.LayerNormalization()(h))
    )
    h = keras.layers.Flatten()(keras.layers.LayerNormalization()(h))
    return controls.trained(keras.Model(x, keras.layers.Dense(10, kernel_initializer=init())(h)))


@functools.cache
def _robust_convnet() -> keras.Model:
    return controls.trained(convnet(), eps=controls.EPS, ramp_steps=150)


def _in_float32(_: keras.Model) -> LogitsFn:
    return inference(_robust_convnet())


@_network("trained by PGD, then in bfloat16, logits too", stand_in=_in_float32)
def honest_bfloat16():
    """All layers in mixed_bfloat16."""
    return _with_weights_of(convnet(dtype="mixed_bfloat16"), _robust_convnet())


@_network("trained by PGD, then in float16, logits too", stand_in=_in_float32)
def honest_float16():
    """All layers in mixed_float16."""
    return _with_weights_of(convnet(dtype="mixed_float16"), _robust_convnet())


# --- the true figure ----------------------------------------------------------------------------

_STEPS, _LOOKS, _QUERIES = 40, 10, 1000


def _margin(z: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Highest other logit minus that of y, [B]; no softmax can saturate it."""
    own = tf.one_hot(y, z.shape[-1], dtype=z.dtype)
    return tf.reduce_max(z - 1e9 * own, 1) - tf.reduce_sum(z * own, 1)


def robust_mask(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    eps: float,
    stand_in: LogitsFn,
    random: bool = False,
    helpers: Sequence[keras.Model] = (),
    pixel_max: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """Which images are left by attacks that know the defence, [n] bool: the zoo's true figure.

    PGD of 40 falling steps on the margin and on the cross-entropy, from a random start each,
    through the stand-in, the model itself and the helpers; and Square where nothing is random. An
    image is lost where the model, averaged over DRAWS calls if it is random, errs at any look.

    Args:
        model: images [B,H,W,C] in 0..pixel_max -> logits.
        images: [n,H,W,C] uint8.
        labels: [n] int.
        eps: l-inf radius, a fraction of the pixel range.
        stand_in: see `Specimen`.
        random: whether the model draws.
        helpers: networks whose adversarial examples are tried, too.
        pixel_max: of the model's input.
        seed: of the random starts.
    """
    x0, y = images.astype(np.float32) * np.float32(pixel_max / 255), labels.astype(np.int64)
    draws, size, rng = DRAWS if random else 1, eps * pixel_max, np.random.default_rng(seed)

    @tf.function(reduce_retracing=True)
    def logits(x):
        total = tf.zeros((len(y), _CLASSES))
        for _ in tf.range(draws):
            total += tf.cast(model(x, training=False), tf.float32)
        return total

    left = logits(tf.constant(x0)).numpy().argmax(1) == y
    climbs = [stand_in, inference(model), *map(inference, helpers)]
    for climbed in map(tf.autograph.experimental.do_not_convert, climbs):
        for loss in (_margin, xent):

            @tf.function(reduce_retracing=True)
            def ascend(x, step, climbed=climbed, loss=loss):
                g = tf.zeros_like(x)
                for _ in tf.range(draws):
                    with tf.GradientTape() as tape:
                        tape.watch(x)
                        value = loss(tf.cast(climbed(x), tf.float32), y)
                    g += tape.gradient(value, x, unconnected_gradients="zero")
                x = tf.clip_by_value(x + step * tf.sign(g), x0 - size, x0 + size)
                return tf.clip_by_value(x, 0.0, pixel_max)

            start = x0 + rng.uniform(-size, size, x0.shape).astype(np.float32)
            x = tf.constant(np.clip(start, 0, pixel_max))
            for k in range(_STEPS):
                x = ascend(x, tf.constant(np.float32(size * 0.25 * (1 - k / _STEPS))))
                if (k + 1) % _LOOKS == 0:
                    left &= logits(x).numpy().argmax(1) == y
    if not random:
        spec = AttackSpec(
            name="square", kind="square", eps=eps, steps=_QUERIES, restarts=1, loss="cw",
            random_start=True,
        )  # fmt: skip
        left &= robust_flags(
            inference(model), images, labels, attacks=[spec], pixel_max=pixel_max, seed=seed,
            batch_size=len(images), batch_norm="inference", progress=False,
        )["square"]  # fmt: skip
    return left
