"""Our attacks against Foolbox's and the Adversarial Robustness Toolbox's, on the same Keras model."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf import datasets
from igam_tf.attacks import KINDS, attack_names, attack_specs, pgd, random_inputs
from igam_tf.attacks.attack_losses import xent
from igam_tf.evaluation.evaluate import logits_function
from igam_tf.evaluation.robust import robust_flags
from madry_models.tf1_checkpoint import from_tf1_checkpoint

EPS, STEP_SIZE, STEPS, N = 0.3, 0.02, 20, 60
CHANCE = 1.5  # images, of N, that random numbers decide over

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other libraries


def _import(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            name, reason=f"{name} is not installed: pip install -e .[crosscheck]"
        )


@pytest.fixture(scope="module")
def model(golden_dir) -> keras.Model:
    """The challenge's robust MNIST network: gradients that lead somewhere."""
    return from_tf1_checkpoint(golden_dir / "mnist" / "models" / "adv_trained")


@pytest.fixture(scope="module")
def images(data_dir):
    """The first N test images, float32 in 0..1, and their labels."""
    folder = str(data_dir / "tensorflow_datasets")
    split = datasets.load("mnist", "test", source="tfds", data_dir=folder)
    return split.images[:N].astype("float32") / 255, split.labels[:N].astype("int64")


@pytest.fixture(scope="module")
def ours(model, images) -> np.ndarray:
    """PGD from the images themselves."""
    x, y = map(tf.constant, images)
    attack = tf.function(
        lambda x, y: pgd(
            logits_function(model, "inference"), x, y,
            eps=EPS, step_size=STEP_SIZE, steps=STEPS, loss=xent, bounds=(0.0, 1.0),
        )
    )  # fmt: skip
    return attack(x, y).numpy()


def _agree(ours: np.ndarray, theirs: np.ndarray, model, y) -> None:
    """Same points, image by image, but where the sign of a gradient of rounding size decides."""
    same = np.isclose(ours, theirs, atol=1e-5).mean((1, 2, 3))
    assert np.median(same) > 0.999
    assert same.min() > 0.95
    labels = [np.argmax(model(tf.constant(x), training=False), 1) for x in (ours, theirs)]
    np.testing.assert_array_equal(labels[0] == y, labels[1] == y)


def test_pgd_is_foolbox_pgd(model, images, ours):
    foolbox = _import("foolbox")
    x, y = map(tf.constant, images)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS, random_start=False)
    fmodel = foolbox.TensorFlowModel(model, bounds=(0, 1), device="/device:CPU:0")
    _, theirs, _ = attack(fmodel, x, y, epsilons=EPS)
    _agree(ours, theirs.numpy(), model, images[1])


def _art_classifier(model, shape=(28, 28, 1), classes=10):
    estimators = _import("art.estimators.classification")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return estimators.TensorFlowV2Classifier(
        lambda x, training=False: model(x, training=False),
        nb_classes=classes, input_shape=shape, loss_object=loss, clip_values=(0.0, 1.0),
    )  # fmt: skip


def test_pgd_is_art_pgd(model, images, ours):
    evasion = _import("art.attacks.evasion")
    attack = evasion.ProjectedGradientDescentTensorFlowV2(
        _art_classifier(model), eps=EPS, eps_step=STEP_SIZE, max_iter=STEPS, num_random_init=0,
        batch_size=N, verbose=False,
    )  # fmt: skip
    _agree(ours, attack.generate(images[0], images[1]), model, images[1])


@pytest.fixture(scope="module")
def small():
    """A network of five classes on 6x6 pixels, and images with pixels at the ends of the range."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((6, 6, 1)), keras.layers.Conv2D(8, 3, activation="tanh"), keras.layers.Flatten(),
        keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(5, kernel_initializer="normal"),
    ])  # fmt: skip
    model.layers[-1].set_weights([40 * w for w in model.layers[-1].get_weights()])
    x = np.clip(np.random.default_rng(0).normal(0.5, 0.5, (20, 6, 6, 1)), 0, 1).astype("float32")
    return model, x, model(x).numpy().argmax(1)


def _by_name(small, name: str, norm: str, eps: float, noise=None) -> np.ndarray:
    """What `pgd<steps>:<library>` returns, from the images themselves where there is no noise."""
    model, x, y = small
    (spec,) = attack_specs(
        [name], eps=eps, step_size=1.0, restarts=3, loss="cw", num_classes=5, norm=norm
    )
    assert spec.random_start == ("foolbox" in name)
    x_adv = KINDS["pgd"].run(
        logits_function(model, "inference"), tf.constant(x), tf.constant(y), spec, eps=eps,
        step_size=spec.step_size, steps=spec.steps, bounds=(0.0, 1.0), target=None, noise=noise,
    )  # fmt: skip
    return x_adv.numpy()


def _same(ours: np.ndarray, theirs: np.ndarray, small) -> None:
    """The same points, and the same images are still right, some of them but not all."""
    model, _, y = small
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    right = [model(x).numpy().argmax(1) == y for x in (ours, theirs)]
    np.testing.assert_array_equal(*right)
    assert 0 < right[0].sum() < len(y)


BALLS = [("linf", 0.05), ("l2", 0.3)]


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_pgd_by_the_name_of_foolbox_has_its_defaults(small, norm, eps):
    """The points without the random start, and where it is uniform: its mean square."""
    foolbox = _import("foolbox")
    model, x, y = small
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    assert kind().random_start
    fmodel = foolbox.TensorFlowModel(model, bounds=(0, 1), device="/device:CPU:0")
    attack = kind(steps=20, random_start=False)
    _, theirs, _ = attack(fmodel, tf.constant(x), tf.constant(y), epsilons=eps)
    _same(_by_name(small, "pgd20:foolbox", norm, eps), theirs.numpy(), small)
    tf.random.set_seed(0)
    middle = np.full((500, 6, 6, 1), 0.5, "float32")
    start = kind().get_random_start(_import("eagerpy").astensor(tf.constant(middle)), eps)
    start = start.numpy() - middle
    (spec,) = attack_specs(
        ["pgd20:foolbox"], eps=eps, step_size=1.0, restarts=1, loss="xent", norm=norm
    )
    own = random_inputs(
        spec, (6, 6, 1), range(500), eps=eps, seed=0, restart=0, dtype=np.float32
    )["noise"]  # fmt: skip
    assert np.square(own).mean() == pytest.approx(np.square(start).mean(), rel=0.02)
    assert np.abs(own).max() == pytest.approx(np.abs(start).max(), rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_pgd_by_the_name_of_art_has_its_defaults(small, norm, eps):
    """Also in l2, where the Toolbox clips to the pixel range before it projects."""
    evasion = _import("art.attacks.evasion")
    model, x, y = small
    attack = evasion.ProjectedGradientDescent(
        _art_classifier(model, (6, 6, 1), 5), norm={"linf": np.inf, "l2": 2}[norm], eps=eps,
        max_iter=20, verbose=False,
    )  # fmt: skip
    assert attack.num_random_init == 0
    _same(_by_name(small, "pgd20:art", norm, eps), attack.generate(x, y), small)


def _robust(model, images, name: str, seed: int = 0) -> int:
    specs = attack_specs(attack_names(name), eps=EPS, step_size=STEP_SIZE, restarts=1, loss="xent")
    found = robust_flags(
        logits_function(model, "inference"), *images, attacks=specs, pixel_max=1.0, seed=seed,
        batch_size=N, batch_norm="inference", progress=False,
    )  # fmt: skip
    return int(found[name].sum())


def _art_robust(model, images, attack) -> int:
    x_adv = attack.generate(images[0], images[1])
    assert np.abs(x_adv - images[0]).max() <= EPS + 1e-5
    return int((np.argmax(model(tf.constant(x_adv), training=False), 1) == images[1]).sum())


@pytest.mark.slow
def test_apgd_is_as_strong_as_art_auto_pgd(model, images):
    """In the mean over 4 starts; on this network a start decides over a handful of images."""
    evasion = _import("art.attacks.evasion")
    theirs = evasion.AutoProjectedGradientDescent(
        _art_classifier(model), norm=np.inf, eps=EPS, eps_step=2 * EPS, max_iter=100,
        nb_random_init=1, batch_size=N, loss_type="cross_entropy", verbose=False,
    )  # fmt: skip
    ours, art = [], []
    for seed in range(4):
        np.random.seed(seed)  # which the Toolbox draws from
        ours.append(_robust(model, images, "apgd-ce", seed))
        art.append(_art_robust(model, images, theirs))
    assert np.mean(ours) <= np.mean(art) + CHANCE


@pytest.mark.slow
def test_square_is_as_strong_as_art_square(model, images):
    """Both with 5000 queries."""
    evasion = _import("art.attacks.evasion")
    theirs = evasion.SquareAttack(
        _art_classifier(model), norm=np.inf, eps=EPS, max_iter=5000, p_init=0.8, nb_restarts=1,
        batch_size=N, verbose=False,
    )  # fmt: skip
    assert _robust(model, images, "square") <= _art_robust(model, images, theirs) + CHANCE


@pytest.mark.slow
def test_autoattack_is_as_strong_as_long_pgd_golden(model, data_dir):
    """At least as strong as 100 steps of PGD from 10 starts, on 200 images."""
    folder = str(data_dir / "tensorflow_datasets")
    split = datasets.load("mnist", "test", source="tfds", data_dir=folder)
    specs = attack_specs(
        attack_names("pgd100,autoattack"), eps=EPS, step_size=0.01, restarts=10, loss="xent"
    )
    found = robust_flags(
        logits_function(model, "inference"), split.images[:200], split.labels[:200], attacks=specs,
        pixel_max=1.0, seed=0, batch_size=200, batch_norm="inference", progress=False,
    )  # fmt: skip
    assert found["autoattack"].sum() <= found["pgd100"].sum()
