"""Methods on adversarial examples, their formulas by hand, and the alignment of finished students."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import igam_tf
from igam_tf.datasets import SPECS, Split
from igam_tf.evaluation.alignment import alignment, linearised
from igam_tf.formulas import losses
from igam_tf.method import objectives
from igam_tf.method.adversarial import PGDTraining
from igam_tf.method.objectives import METHODS
from igam_tf.method.optimizers import Momentum
from igam_tf.method.trainer import ClassifierTrainer
from igam_tf.training.monitor import OverfittingWatch

RNG = np.random.default_rng(0)
X, X_ADV = (tf.constant(RNG.normal(size=(5, 2, 2, 1)).astype("float32")) for _ in range(2))
Y = tf.constant([0, 1, 2, 0, 1])


class Linear(keras.Model):
    """logits = W x."""

    pixel_max = 1.0

    def __init__(self, w: np.ndarray):
        super().__init__()
        self.w = self.add_weight(name="kernel", shape=w.shape)
        self.w.assign(w)

    def call(self, x, training=False):
        return tf.reshape(x, [tf.shape(x)[0], -1]) @ self.w


def linear(seed: int = 0, pixels: int = 4, classes: int = 3) -> Linear:
    return Linear(np.random.default_rng(seed).normal(size=(pixels, classes)).astype("float32"))


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.sum(p * np.log(p / q), axis=1)


def xent(z: np.ndarray) -> np.ndarray:
    return -np.log(softmax(z)[np.arange(5), Y.numpy()])


def test_adversarial_training_sees_x_adv_alone():
    f = linear()
    loss, terms, logits = objectives.adversarial_xent(f, X, X_ADV, Y)
    np.testing.assert_allclose(loss, xent(f(X_ADV).numpy()), rtol=1e-5)
    np.testing.assert_array_equal(logits, f(X_ADV))
    assert terms.keys() == {"L_xent"}


def test_trades_by_hand():
    f = linear()
    loss, terms, logits = objectives.trades(f, X, X_ADV, Y, beta=6.0)
    clean, adversarial = f(X).numpy(), f(X_ADV).numpy()
    l_kl = divergence(softmax(clean), softmax(adversarial))
    np.testing.assert_allclose(terms["L_kl"], l_kl, rtol=1e-4)
    np.testing.assert_allclose(loss, xent(clean) + 6 * l_kl, rtol=1e-4)
    np.testing.assert_array_equal(logits, clean)


def test_ard_by_hand():
    f, teacher = linear(), linear(1)
    numbers = {"alpha": 0.7, "temperature": 30.0}
    loss, _, _ = objectives.ard(f, X, X_ADV, Y, teacher=teacher, **numbers)
    l_kl = divergence(softmax(teacher(X).numpy() / 30), softmax(f(X_ADV).numpy() / 30))
    np.testing.assert_allclose(loss, 0.3 * xent(f(X).numpy()) + 0.7 * 900 * l_kl, rtol=1e-3)


def trainer(
    name: str, network: keras.Model, teacher: keras.Model | None = None, **settings
) -> PGDTraining:
    own = {"step_size": 0.02, "steps": 7} if METHODS[name].many_steps else {}
    settings = {"eps": 0.1, "weight_decay": 0.0} | own | settings
    compiled = igam_tf.trainer(name, network, teacher, **settings)
    compiled.compile(Momentum(0.01, momentum=0.9))
    return compiled


def test_fast_is_one_step_of_a_fourth_more_than_eps_from_a_random_start():
    """Of a linear model, whose gradient has the same sign everywhere, from any start."""
    f = linear(classes=2)
    x = tf.fill([5, 2, 2, 1], 0.5)
    y = Y % 2
    assert METHODS["fast"].one_step == 1.25
    x_adv = trainer("fast", f).attack(x, y)
    uphill = np.sign(f.w.numpy()[:, 1] - f.w.numpy()[:, 0])
    delta = np.reshape(x_adv - x, (5, 4)) * np.where(y == 0, 1, -1)[:, None] * uphill
    assert (delta <= 0.1 + 1e-6).all()
    assert (delta >= 0.025 - 1e-6).all()  # -eps + 1.25 eps, the worst start
    assert delta.std() > 1e-3  # the starts differ


def test_n_fgsm_steps_from_noise_of_two_eps_and_stays_there():
    """Of a linear model: noise within 2 eps, then eps uphill; pixels alone hold it."""
    f = linear(classes=2)
    x, y = tf.fill([5, 2, 2, 1], 0.5), Y % 2
    x_adv = trainer("n_fgsm", f).attack(x, y)
    uphill = np.sign(f.w.numpy()[:, 1] - f.w.numpy()[:, 0])
    delta = np.reshape(x_adv - x, (5, 4)) * np.where(y == 0, 1, -1)[:, None] * uphill
    assert (np.abs(delta - 0.1) <= 0.2 + 1e-6).all()
    assert delta.max() > 0.1 + 1e-6  # beyond eps
    far = trainer("n_fgsm", f, eps=1.0).attack(x, y)
    assert np.min(far) >= 0
    assert np.max(far) <= 1


def test_eps_grows_over_the_ramp():
    """From a start in the middle, the whole of a linear model's steps: 1/4 of eps, then 2/4, ..."""
    f = linear(classes=2)
    x, y = tf.fill([5, 2, 2, 1], 0.5), Y % 2
    ours = trainer("pgd", f, steps=11, ramp_steps=4)
    for step in range(6):
        ours.optimizer.iterations.assign(step)
        reached = np.abs(ours.attack(x, y) - x).max()
        np.testing.assert_allclose(reached, 0.1 * min(1, (step + 1) / 4), rtol=1e-5)


def test_label_smoothing_by_hand_and_in_training():
    f = linear()
    z = f(X).numpy()
    smooth = 0.7 * xent(z) - 0.3 * np.log(softmax(z)).mean(1)
    np.testing.assert_allclose(losses.xent(f(X), Y, 0.3), smooth, rtol=1e-5)
    onehot = keras.ops.one_hot(Y, 3)
    library = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.3, reduction=None
    )
    np.testing.assert_allclose(losses.xent(f(X), Y, 0.3), library(onehot, z), rtol=1e-5)
    trained = ClassifierTrainer(f, label_smoothing=0.3)
    trained.compile(Momentum(0.0))
    trained.optimizer.build(f.trainable_variables)
    np.testing.assert_allclose(trained.train_step((X, Y))["L_xent"], smooth.mean(), rtol=1e-5)


def test_trades_attack_raises_the_divergence_from_a_start_where_it_has_no_slope():
    f = linear()
    x = tf.random.stateless_uniform((5, 2, 2, 1), (0, 1))
    x_adv = trainer("trades", f).attack(x, Y)
    assert np.abs(x_adv - x).max() <= 0.1 + 1e-6
    random = x + 0.1 * tf.sign(tf.random.stateless_normal(x.shape, (0, 2)))
    found, by_chance = (losses.kl(f(x), f(z)).numpy() for z in (x_adv, random))
    assert (found > by_chance).all()


@pytest.mark.parametrize("name", ["fast", "n_fgsm", "pgd", "trades", "ard"])
def test_a_step_reports_the_methods_terms(name):
    f, teacher = linear(), linear(1) if METHODS[name].teacher else None
    if teacher:
        teacher(X)
    ours = trainer(name, f, teacher)
    before = f.w.numpy()
    x = tf.random.stateless_uniform((5, 2, 2, 1), (0, 1))
    assert ours.train_step((x, Y)).keys() == {"loss", *METHODS[name].terms}
    assert np.abs(f.w.numpy() - before).max() > 0


def test_catastrophic_overfitting_is_said(tmp_path, caplog):
    """Below a fifth of the best so far, which earlier lines of the run remember."""
    path = tmp_path / "metrics.jsonl"
    lines = [{"stage": "student", "step": 1, "robust": 30.0}, {"stage": "student", "step": 2}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    now = [6.5, 5.5]
    watch = OverfittingWatch(lambda *_: {"robust": now.pop(0)}, "robust", path)
    fine = watch(3, None)
    assert fine == {"robust": 6.5, "validation/catastrophic_overfitting": 0.0}
    assert not caplog.records
    assert watch(4, None)["validation/catastrophic_overfitting"] == 1.0
    assert "CATASTROPHIC OVERFITTING" in caplog.text
    assert "5.5 % from 30.0 %" in caplog.text


# --- eq. 18 and the alignment ----------------------------------------------------------------------


def test_linearised_robustness_of_a_linear_model_is_its_distance():
    f = linear()
    alpha, rho = linearised(f, X, pixel_max=2.0)
    w, flat = f.w.numpy(), X.numpy().reshape(5, 4)
    z = flat @ w
    order = np.argsort(z, 1)
    first, second = order[:, -1], order[:, -2]
    g = (w[:, first] - w[:, second]).T
    length = np.linalg.norm(g, axis=1)
    rows = np.arange(5)
    np.testing.assert_allclose(rho, (z[rows, first] - z[rows, second]) / length / 2, rtol=1e-4)
    np.testing.assert_allclose(alpha, np.abs(np.sum(flat * g, 1)) / length / 2, rtol=1e-4)
    np.testing.assert_allclose(alpha, rho, rtol=1e-4)  # of a linear model without a bias


@pytest.fixture
def split() -> Split:
    spec = dataclasses.replace(SPECS["mnist"], image_shape=(2, 2, 1), num_classes=3)
    images = RNG.integers(0, 256, (7, 2, 2, 1), np.uint8)
    return Split(images, np.arange(7) % 3, spec, "builtin", "test")


@pytest.mark.parametrize("input_gradient", ["xent", "softmax"])
def test_alignment_with_oneself_and_with_a_stranger(split, input_gradient):
    def of(student, teacher):
        return alignment(
            student, teacher, split, num_examples=7, input_gradient=input_gradient, batch_size=3
        )

    same = of(linear(), linear())
    assert same["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert same["norm_ratio_median"] == pytest.approx(1.0, abs=1e-5)
    assert same["student_rho_median"] == pytest.approx(same["teacher_rho_median"])
    other = of(linear(), linear(1))
    assert other["n"] == 7
    low, high = other["cosine_ci95"]
    assert low < other["cosine"] < high < 1


def test_alignment_by_hand(split):
    """J = W (p - onehot(y)); mean and 95 % interval of the cosine over 7 images."""
    found = alignment(
        linear(), linear(1), split, num_examples=7, input_gradient="xent", batch_size=4
    )
    flat = split.images.reshape(7, 4) / 255 * split.spec.pixel_max
    js = []
    for model in (linear(), linear(1)):
        w = model.w.numpy()
        js.append((softmax(flat @ w) - np.eye(3)[split.labels]) @ w.T)
    norms = [np.linalg.norm(j, axis=1) for j in js]
    cosine = np.sum(js[0] * js[1], 1) / norms[0] / norms[1]
    half = 1.959964 * cosine.std(ddof=1) / 7**0.5
    assert found["cosine"] == pytest.approx(cosine.mean(), rel=1e-4)
    assert found["cosine_ci95"] == pytest.approx(
        [cosine.mean() - half, cosine.mean() + half], rel=1e-4
    )
    assert found["norm_ratio_median"] == pytest.approx(np.median(norms[0] / norms[1]), rel=1e-4)
