"""The direction of an attack: at any scale of the logits, in any type, with pixels that have none."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf.attacks import apgd, dlr_targeted, fab, pgd
from igam_tf.attacks.attack_losses import LOSSES, cw_margin, dlr, log_odds_against, xent
from igam_tf.attacks.direction import direction
from igam_tf.attacks.norms import length, steepest, unit
from igam_tf.common.private_api import layers_of
from igam_tf.evaluation.evaluate import logits_function
from igam_tf.method.networks import LogProbabilities

N, CLASSES = 24, 5
SCALES = [1e-20, 1e-6, 1e-3, 1.0, 8.0, 100.0, 1e3, 1e10]
keras.utils.set_random_seed(0)


def layers(last: str | None = None, **how) -> list[keras.layers.Layer]:
    return [
        keras.Input((4, 4, 1)),
        keras.layers.Flatten(**how),
        keras.layers.Dense(16, activation="tanh", **how),
        keras.layers.Dense(CLASSES, activation=last, **how),
    ]


def like(other: keras.Model, *args, **how) -> keras.Model:
    """The same network in other terms."""
    model = keras.Sequential(layers(*args, **how))
    model.set_weights(other.get_weights())
    return model


NETWORK = keras.Sequential(layers())
NETWORK.set_weights([1.5 * w for w in NETWORK.get_weights()])
X = np.random.default_rng(1).uniform(0.3, 0.7, (N, 4, 4, 1)).astype("float32")
Y = NETWORK(X).numpy().argmax(1)
WEIGHTS = [tf.constant(w, tf.float64) for w in NETWORK.get_weights()]


def in_float64(x):
    """NETWORK's logits by hand."""
    a, b, c, d = WEIGHTS
    return tf.tanh(tf.reshape(tf.cast(x, tf.float64), [-1, 16]) @ a + b) @ c + d


def scaled(scale: float, network=NETWORK):
    """The network with its logits so many times as large."""
    return lambda x: tf.cast(scale, network.compute_dtype) * network(x)


def slope_in_float64(scale: float, loss=log_odds_against) -> np.ndarray:
    x = tf.constant(X, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(scale * in_float64(x), tf.constant(Y))
    return tape.gradient(value, x).numpy()


def by_largest(g: np.ndarray) -> np.ndarray:
    return g / np.abs(g).max((1, 2, 3), keepdims=True)


@pytest.mark.parametrize("loss", ["xent", "cw", "dlr"])
def test_direction_at_every_scale_of_the_logits(loss):
    """As in float64, and it says how long the gradient is."""
    x, y = tf.constant(X), tf.constant(Y)
    for scale in SCALES:
        found = direction(scaled(scale), x, y, LOSSES[loss])
        true = slope_in_float64(scale, LOSSES[loss])
        np.testing.assert_allclose(found.gradient, by_largest(true), atol=3e-4)
        if loss == "xent":
            np.testing.assert_allclose(found.size, np.abs(true).max((1, 2, 3)), rtol=1e-3)
        assert not (found.none | found.not_finite).numpy().any()
        assert np.isfinite(found.value).all()


def test_log_odds_rise_with_xent_and_point_where_it_points():
    z, y = (
        tf.constant(np.random.default_rng(0).normal(size=(50, 6), scale=3)),
        tf.zeros(50, tf.int64),
    )
    np.testing.assert_allclose(tf.math.softplus(log_odds_against(z, y)), xent(z, y), rtol=1e-9)
    x, y = tf.constant(X), tf.constant(Y)
    by_name, by_function = (direction(NETWORK, x, y, of) for of in (LOSSES["xent"], xent))
    np.testing.assert_allclose(by_name.gradient, by_function.gradient, atol=1e-4)


def test_tiny_logits_point_where_the_same_logits_of_usual_size_point():
    """In L_xent all other classes would weigh alike."""
    z = NETWORK(X).numpy()
    usual = (16 / np.ptp(z, axis=1))[:, None]
    true = by_largest(slope_in_float64(usual))
    for scale in (1e-20, 1e-3):
        found = direction(scaled(scale), tf.constant(X), tf.constant(Y), LOSSES["xent"])
        np.testing.assert_allclose(found.gradient, true, atol=3e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e25])
def test_lengths_at_every_scale(scale):
    """A square in float32 ends at 1e-38 and 3e38; 0 stays 0."""
    v = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype("float32")
    v[2] = 0
    true = np.linalg.norm(v.reshape(3, -1), axis=1)
    np.testing.assert_allclose(
        length(tf.constant(np.float32(scale) * v), "l2"), scale * true, rtol=1e-5
    )
    expected = v / np.where(true > 0, true, 1)[:, None, None, None]
    np.testing.assert_allclose(unit(tf.constant(np.float32(scale) * v), "l2"), expected, atol=1e-6)
    np.testing.assert_array_equal(steepest(tf.constant(v), "linf"), np.sign(v))


def test_dlr_of_tiny_and_of_equal_logits():
    z, y = tf.constant([[4.0, 1.0, 2.0]]), tf.constant([0])
    np.testing.assert_allclose(dlr(1e-20 * z, y), dlr(z, y), rtol=1e-5)
    assert dlr(0 * z, y).numpy() == 0


def true_pgd(scale: float, norm: str, eps: float, steps: int) -> np.ndarray:
    """Which images an own PGD in float64 leaves."""
    x, y = tf.constant(X, tf.float64), tf.constant(Y)
    x_adv = x
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(x_adv)
            value = log_odds_against(scale * in_float64(x_adv), y)
        g = tape.gradient(value, x_adv).numpy()
        size = np.linalg.norm(g.reshape(N, -1), axis=1)[:, None, None, None]
        delta = x_adv + eps / 4 * (np.sign(g) if norm == "linf" else g / size) - x
        if norm == "linf":
            delta = np.clip(delta, -eps, eps)
        else:
            size = np.linalg.norm(delta.numpy().reshape(N, -1), axis=1)[:, None, None, None]
            delta = delta * np.minimum(1, eps / size)
        x_adv = tf.clip_by_value(x + delta, 0, 1)
    return in_float64(x_adv).numpy().argmax(1) == Y


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.2)])
def test_pgd_leaves_what_float64_leaves(norm, eps):
    for scale in SCALES:
        x_adv = pgd(
            scaled(scale), X, Y, eps=eps, step_size=eps / 4, steps=10,
            bounds=(0.0, 1.0), norm=norm,
        )  # fmt: skip
        left, true = NETWORK(x_adv).numpy().argmax(1) == Y, true_pgd(scale, norm, eps, 10)
        assert 0.1 < true.mean() < 0.9
        assert (left != true).sum() <= 1, scale


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.2)])
def test_targeted_attacks_leave_the_same_at_every_scale(norm, eps):
    second = np.argsort(NETWORK(X).numpy(), 1)[:, -2]
    how = dict(target=second, bounds=(0.0, 1.0), eps=eps, steps=8, norm=norm)
    for attack in (fab, functools.partial(apgd, loss=dlr_targeted)):
        first, *others = (
            NETWORK(attack(scaled(s), X, Y, **how)).numpy().argmax(1) == Y for s in (1.0, 1e-6, 1e3)
        )
        for other in others:
            assert (first != other).sum() <= 1


# --- pixels and images without a gradient -----------------------------------------------------------


def test_pixels_whose_gradient_is_nan_are_left_out_and_told():
    """The derivative of a norm at 0: the logits are finite."""

    def logits_fn(x):
        corner = x[:, 0, 0, :]
        there = corner * tf.cast(corner > 0.5, x.dtype)
        return NETWORK(x) + 1e-20 * tf.norm(there, axis=1, keepdims=True) * tf.one_hot([0], CLASSES)

    x, y = tf.constant(X), tf.constant(Y)
    found, plain = (direction(f, x, y, LOSSES["xent"]) for f in (logits_fn, NETWORK))
    assert np.isfinite(found.gradient).all()
    broken = X[:, 0, 0, 0] <= 0.5
    np.testing.assert_array_equal(found.not_finite, broken)
    assert 0 < broken.sum() < N
    rest = np.sign(plain.gradient.numpy()).reshape(N, -1)[:, 1:]
    np.testing.assert_array_equal(np.sign(found.gradient.numpy()).reshape(N, -1)[:, 1:], rest)
    for norm, eps in (("linf", 0.06), ("l2", 0.2)):
        how = dict(eps=eps, bounds=(0.0, 1.0), norm=norm, steps=10)
        for attack in (apgd, lambda *a, **b: pgd(*a, **b, step_size=b["eps"] / 4)):
            left, true = (
                NETWORK(attack(f, X, Y, **how)).numpy().argmax(1) == Y for f in (logits_fn, NETWORK)
            )
            assert abs(int(left.sum()) - int(true.sum())) <= 2


def test_an_image_without_a_gradient_is_told():
    half = tf.reshape(tf.cast(np.arange(N) % 2 == 0, tf.float32), [N, 1])
    found = direction(
        lambda x: half * tf.round(NETWORK(x)) + 0 * NETWORK(x) + (1 - half) * NETWORK(x),
        tf.constant(X), tf.constant(Y), LOSSES["xent"],
    )  # fmt: skip
    np.testing.assert_array_equal(found.none, np.arange(N) % 2 == 0)
    assert not found.gradient.numpy()[::2].any()


def test_where_the_loss_is_flat_the_margin_is_attacked():
    flat = lambda z, y: 0 * z[:, 0]  # noqa: E731
    found = direction(NETWORK, tf.constant(X), tf.constant(Y), flat)
    np.testing.assert_allclose(
        found.gradient, by_largest(slope_in_float64(1.0, cw_margin)), atol=3e-4
    )


def test_a_gradient_that_comes_as_slices():
    def logits_fn(x):
        return NETWORK(tf.gather(x, np.arange(N)))

    x, y = tf.constant(X), tf.constant(Y)
    ours, plain = (direction(f, x, y, LOSSES["xent"]).gradient for f in (logits_fn, NETWORK))
    np.testing.assert_allclose(ours, plain, rtol=1e-5)


# --- types ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["mixed_float16", "float16"])
@pytest.mark.parametrize("wrap", ["plain", "nested", "subclassed"])
def test_float16_is_attacked_in_float32(dtype, wrap):
    """The same logits as the network has in float32, compiled or not; the model is as before."""
    model = like(NETWORK, dtype=dtype)
    reference = keras.Sequential(layers())
    reference.set_weights([w.astype("float16").astype("float32") for w in NETWORK.get_weights()])
    if wrap == "nested":
        model = keras.Sequential([keras.Input((4, 4, 1)), model])
    elif wrap == "subclassed":

        class Outer(keras.Model):
            def __init__(self, inner):
                super().__init__(dtype=dtype)
                self.inner = [inner]

            def call(self, x, training=False):
                return self.inner[0](tf.cast(x, self.compute_dtype))

        model = Outer(model)
    types = lambda: [part.compute_dtype for part in layers_of(model)]  # noqa: E731
    before, types_before = model(X).numpy(), types()
    logits_fn = logits_function(model, "inference")
    expected = (NETWORK if dtype == "mixed_float16" else reference)(X).numpy()
    for f in (logits_fn, tf.function(logits_fn), logits_function(model, "batch")):
        z = f(tf.constant(X))
        assert z.dtype == tf.float32
        np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-5)
    assert before.dtype == np.float16
    np.testing.assert_array_equal(model(X), before)
    assert types() == types_before


def test_a_float16_model_that_is_called_itself_has_the_right_direction():
    """As PGDTraining attacks it: float16 keeps what comes in at size 1."""
    model = like(NETWORK, dtype="mixed_float16")
    for scale in (1.0, 8.0, 100.0):
        z = lambda x, s=scale: tf.cast(s, tf.float16) * model(x)  # noqa: E731
        found = direction(z, tf.constant(X), tf.constant(Y), LOSSES["xent"])
        true = slope_in_float64(scale)
        cosine = (found.gradient.numpy() * true).sum((1, 2, 3)) / (
            np.linalg.norm(true.reshape(N, -1), axis=1)
            * np.linalg.norm(found.gradient.numpy().reshape(N, -1), axis=1)
        )
        assert np.median(cosine) > 0.99, scale
        assert not found.none.numpy().any()


# --- probabilities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("where", ["dense", "layer", "nested", "call"])
@pytest.mark.parametrize("dtype", [None, "mixed_float16"])
def test_a_last_activation_is_taken_off(activation, where, dtype):
    scaled = [1e3 * w if i > 1 else w for i, w in enumerate(NETWORK.get_weights())]
    model = keras.Sequential(
        layers(activation if where in ("dense", "nested") else None, dtype=dtype)
    )
    model.set_weights(scaled)
    if where == "nested":
        model = keras.Sequential([keras.Input((4, 4, 1)), model])
    elif where == "layer":
        model = keras.Sequential([model, keras.layers.Activation(activation, dtype="float32")])
    elif where == "call":

        class Called(keras.Model):
            def __init__(self, inner):
                super().__init__(dtype=dtype)
                self.inner = inner

            def call(self, x, training=False):
                return getattr(tf.nn, activation)(self.inner(x))

        model = Called(model)
    logits_fn = tf.function(logits_function(LogProbabilities(model), "inference"))
    np.testing.assert_allclose(
        logits_fn(tf.constant(X)), 1e3 * NETWORK(X).numpy(), rtol=1e-4, atol=0.1
    )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_where_none_is_found_logarithms_are_taken(activation, dtype):
    model = keras.Sequential([like(NETWORK, activation, dtype=dtype), keras.layers.Rescaling(1.0)])
    z = logits_function(LogProbabilities(model), "inference")(tf.constant(X)).numpy()
    true = NETWORK(X).numpy()
    if activation == "softmax":
        z, true = (t - t.max(1, keepdims=True) for t in (z, true))
    np.testing.assert_allclose(z, true, atol=1e-2 if dtype else 1e-4)


def test_logarithms_are_finite():
    for p in ([[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]):
        for dtype in ("float16", "float32", "float64"):

            class Constant(keras.Model):
                def call(self, x, training=False):
                    return tf.constant(p, dtype)  # noqa: B023

            assert np.isfinite(LogProbabilities(Constant())(X[:1])).all()
