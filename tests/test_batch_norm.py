"""The batch norm with its own second derivative, against automatic differentiation in float64."""

import numpy as np
import pytest
import tensorflow as tf

from madry_models.batch_norm import BatchNormalization, normalize

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5, 5, 4)) * 2 + 1
GAMMA, BETA, U = RNG.normal(size=(3, 4)) + 1
W1, W2 = RNG.normal(size=(2, *X.shape))


def _plain(x, gamma, beta):
    mean = tf.reduce_mean(x, [0, 1, 2])
    variance = tf.reduce_mean((x - mean) ** 2, [0, 1, 2])
    return (x - mean) / tf.sqrt(variance + 1e-3) * gamma + beta


def _derivatives(f, dtype) -> list[tf.Tensor]:
    """y, its first derivatives, and those of a function of all of them."""
    x, gamma, beta = (tf.constant(t, dtype) for t in (X, GAMMA, BETA))
    w1, w2, u = (tf.constant(t, dtype) for t in (W1, W2, U))
    with tf.GradientTape() as outer:
        outer.watch([x, gamma, beta])
        with tf.GradientTape() as inner:
            inner.watch([x, gamma])
            y = f(x, gamma, beta)
            value = tf.reduce_sum(tf.sin(y) * w1)
        dx, dgamma = inner.gradient(value, [x, gamma])
        total = value + tf.reduce_sum(dx * dx * w2) + tf.reduce_sum(dgamma * u)
    return [y, dx, dgamma, *outer.gradient(total, [x, gamma, beta])]


@pytest.mark.parametrize("compiled", [False, True])
def test_first_and_second_derivatives(compiled):
    run = tf.function(_derivatives, autograph=False) if compiled else _derivatives
    ours = run(lambda *t: normalize(*t, epsilon=1e-3)[0], tf.float32)
    for got, expected in zip(ours, _derivatives(_plain, tf.float64), strict=True):
        expected = expected.numpy()
        np.testing.assert_allclose(got, expected, atol=4e-6 * np.abs(expected).max())


def test_first_and_second_derivatives_over_replicas():
    """What a layer that is synchronised computes, here on one replica, in float64."""
    layer = BatchNormalization(
        epsilon=1e-3, scale=False, center=False, synchronized=True, dtype="float64"
    )

    def f(x, gamma, beta):  # as tensors, which the tapes watch
        return layer(x, training=True) * gamma + beta

    for got, expected in zip(
        _derivatives(f, tf.float64), _derivatives(_plain, tf.float64), strict=True
    ):
        expected = expected.numpy()
        np.testing.assert_allclose(got, expected, atol=1e-12 * np.abs(expected).max())


def test_bfloat16_is_as_close_as_its_eight_bits_allow():
    x = tf.constant(X, tf.float32)
    y, mean, variance = normalize(
        tf.cast(x, tf.bfloat16), tf.constant(GAMMA, tf.float32), tf.constant(BETA, tf.float32),
        epsilon=1e-3,
    )  # fmt: skip
    assert y.dtype == tf.bfloat16
    assert mean.dtype == variance.dtype == tf.float32
    expected = _plain(x, GAMMA.astype("f4"), BETA.astype("f4")).numpy()
    np.testing.assert_allclose(tf.cast(y, tf.float32), expected, atol=0.02 * np.abs(expected).max())


def test_statistics_are_those_of_the_batch():
    _, mean, variance = normalize(tf.constant(X, tf.float32), tf.ones(4), tf.zeros(4), epsilon=1e-3)
    np.testing.assert_allclose(mean, X.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance, X.var((0, 1, 2)), rtol=1e-5)


def test_a_single_value_per_channel():
    y, _, variance = normalize(tf.ones((1, 1, 1, 4)), tf.ones(4), tf.zeros(4), epsilon=1e-3)
    assert y.numpy().tolist() == [[[[0.0] * 4]]]
    assert variance.numpy().tolist() == [0.0] * 4


def test_layer_moves_its_averages_in_training_alone():
    layer = BatchNormalization(momentum=0.9, epsilon=1e-3)
    x = tf.constant(X, tf.float32)
    layer(x, training=False)
    assert layer.moving_mean.numpy().tolist() == [0.0] * 4
    layer(x, training=True)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * X.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * X.var((0, 1, 2)), rtol=1e-5)
