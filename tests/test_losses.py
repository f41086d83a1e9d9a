"""The formulas against hand-computed numbers, and their doctests."""

import doctest
import math

import numpy as np
import pytest
import tensorflow as tf

from igam_tf.common.errors import UserError
from igam_tf.formulas import gradients, losses
from igam_tf.method import optimizers
from igam_tf.method.discriminator import normalize


@pytest.mark.parametrize("module", [losses, gradients])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_true_class_probability():
    logits = tf.constant([[0.0, math.log(3.0)]])
    assert losses.true_class_probability(logits, [1]).numpy() == pytest.approx([0.75])


def test_l_adv_is_minus_log_4_where_the_discriminator_is_undecided():
    assert losses.l_adv(tf.zeros([3]), tf.zeros([3])).numpy() == pytest.approx(-losses.LOG_4)


def test_l_adv_by_hand():
    """f_disc(J_t) = 0.8, f_disc(J_s) = 0.3: log 0.8 + log 0.7."""
    d_t, d_s = math.log(0.8 / 0.2), math.log(0.3 / 0.7)
    value = losses.l_adv(tf.constant([d_s]), tf.constant([d_t]))
    assert value.numpy() == pytest.approx([math.log(0.8) + math.log(0.7)], rel=1e-6)


def test_l_adv_has_no_log_of_zero():
    d = tf.constant([1e4])
    with tf.GradientTape() as tape:
        tape.watch(d)
        value = losses.l_adv(d, -d)
    assert value.numpy() == pytest.approx([-2e4])
    assert tape.gradient(value, d).numpy() == pytest.approx([-2.0])


def test_discriminator_accuracy_counts_both_sides():
    d_s, d_t = tf.constant([-1.0, 1.0, -1.0]), tf.constant([1.0, -1.0, -1.0])
    assert list(losses.discriminator_accuracy(d_s, d_t)) == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("loss", [losses.xent, losses.true_class_probability])
def test_losses_of_half_precision_logits_are_float32(loss):
    assert loss(tf.zeros([2, 3], tf.bfloat16), tf.constant([0, 1])).dtype == tf.float32


@pytest.mark.parametrize(
    ("norm", "expected", "slope"),
    [("squared_l2", 29.0, [4, -10, 0]), ("l2", 29**0.5, [2 / 29**0.5, -5 / 29**0.5, 0]),
     ("l1", 7.0, [1, -1, 0])],
)  # fmt: skip
def test_norms_of_the_difference(norm, expected, slope):
    j = tf.Variable([[[[3.0, -5.0, 1.0]]]])
    with tf.GradientTape() as tape:
        value = losses.DIFF_NORMS[norm](j, tf.constant([[[[1.0, 0.0, 1.0]]]]))
    assert value.numpy() == pytest.approx([expected])
    assert tape.gradient(value, j).numpy().ravel() == pytest.approx(slope)
    with tf.GradientTape() as tape:
        nothing = losses.DIFF_NORMS[norm](j, j + 0)
    assert np.isfinite(tape.gradient(nothing, j)).all()


def test_l_diff_of_half_precision_is_float32_and_per_image():
    j = tf.ones([2, 4, 4, 3], tf.bfloat16)
    assert losses.l_diff(j, 0 * j).dtype == tf.float32
    assert losses.l_diff(j, 0 * j).numpy() == pytest.approx([48.0, 48.0])


def test_l2_is_half_the_squares():
    assert float(losses.l2([tf.Variable([3.0]), tf.Variable([4.0])])) == pytest.approx(12.5)


def test_input_gradient_of_a_quadratic_eagerly_and_compiled():
    """d/dx of x^T x is 2x."""
    x = tf.constant([[1.0, 2.0], [3.0, -4.0]])

    def run(x):
        of = lambda z, y: tf.reduce_sum(y * z * z, 1)  # noqa: E731
        return gradients.input_gradient(tf.identity, x, 1.0, of)

    for f in (run, tf.function(run)):
        j, values, _ = f(x)
        assert j.numpy().tolist() == [[2.0, 4.0], [6.0, -8.0]]
        assert values.numpy().tolist() == [5.0, 25.0]


def test_norm_ratio():
    a, b = tf.constant([[3.0, 4.0], [1.0, 0.0]]), tf.constant([[10.0, 0.0], [0.0, 0.0]])
    assert gradients.norm_ratio(a, b).numpy().tolist() == [0.5, 0.0]


def test_momentum_is_tensorflow_1s_when_the_learning_rate_drops():
    """w = 0, gradient 1: a = 1, 1.9; w = -lr_0 - lr_1 1.9 with lr 0.1, then 0.01."""
    optimizer = optimizers.Momentum(0.1, momentum=0.9)
    w = tf.Variable([0.0])
    optimizer.apply([tf.constant([1.0])], [w])
    optimizer.learning_rate = 0.01
    optimizer.apply([tf.constant([1.0])], [w])
    assert w.numpy() == pytest.approx([-0.1 - 0.01 * 1.9])


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("constant", 70, 0.1),
        ("step", 49, 0.1),
        ("step", 51, 0.01),
        ("step", 76, 0.001),
        ("cosine", 5, 0.05),
        ("cosine", 10, 0.1),
        ("cosine", 55, 0.05),
        ("cosine", 100, 0.0),
    ],
)
def test_schedules(name, step, expected):
    rate = optimizers.schedule(name, 0.1, 100)
    value = rate if name == "constant" else float(rate(step))
    assert value == pytest.approx(expected, abs=1e-7)


def test_momentum_looks_ahead_where_it_is_asked_to():
    """w = 0, gradients 1 and -1: a = 1, -0.1; w = -lr (0.9 a + g) of each."""
    optimizer = optimizers.Momentum(0.1, momentum=0.9, nesterov=True)
    w = tf.Variable([0.0])
    for g in (1.0, -1.0):
        optimizer.apply([tf.constant([g])], [w])
    assert w.numpy() == pytest.approx([-0.1 * (0.9 + 1) - 0.1 * (0.9 * -0.1 - 1)])


def test_unknown_schedule():
    with pytest.raises(UserError, match="constant, step or cosine"):
        optimizers.schedule("linear", 0.1, 100)


def test_one_schedule_then_another():
    first = optimizers.schedule("cosine", 0.1, 100)
    second = optimizers.schedule("constant", 0.02, 50)
    rate = optimizers.JoinSchedules(first, second, 100)
    found = [float(rate(step)) for step in (0, 10, 55, 99, 100, 149)]
    assert found == pytest.approx([0.0, 0.1, 0.05, float(first(99)), 0.02, 0.02], abs=1e-7)


@pytest.mark.parametrize("name", ["constant", "step", "cosine"])
def test_a_schedule_of_no_steps_before_another(name):
    """--igam_start=0; or 0 steps of IGAM after it."""
    none, all_ = (optimizers.schedule(name, rate, n) for rate, n in ((0.1, 0), (0.02, 50)))
    rate = optimizers.JoinSchedules(none, all_, 0)
    for step in (0, 5, 30, 49):
        expected = 0.02 if name == "constant" else float(all_(step))
        assert float(rate(step)) == pytest.approx(expected, abs=1e-9)


def test_scaled_back_propagation_keeps_what_float16_would_lose():
    x = tf.constant([[1.0], [2.0]])

    def logits_fn(x):
        return 1e-8 * tf.cast(tf.cast(x, tf.float16), tf.float32)  # 6e-8 is float16's smallest

    first = lambda z, _: z[:, 0]  # noqa: E731
    lost, _, _ = gradients.input_gradient(logits_fn, x, None, first)
    kept, _, _ = gradients.input_gradient(logits_fn, x, None, first, 1e5)
    assert not lost.numpy().any()
    np.testing.assert_allclose(kept, [[1e-8], [1e-8]], rtol=1e-3)
    w = tf.constant([3.0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([x, w])
        y = tf.reduce_sum(x * w)
    for a, b in zip(gradients.scaled(tape, y, [x, w], 8.0), tape.gradient(y, [x, w]), strict=True):
        np.testing.assert_array_equal(a, b)


# --- what has no unit does not depend on the size of J --------------------------------------------

_A, _B = np.random.default_rng(1).normal(size=(2, 5, 4, 4, 3))


def _cosine(a, b):
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def _l2(a):
    return np.linalg.norm(a.reshape(len(a), -1), axis=1)


def _centred(a, _):
    a = a - a.mean((1, 2, 3), keepdims=True)
    return a / _l2(a)[:, None, None, None]


FREE = {
    "cosine": (gradients.cosine, _cosine),
    "l_cosine": (losses.l_cosine, lambda a, b: 1 - _cosine(a, b)),
    "norm_ratio": (gradients.norm_ratio, lambda a, b: _l2(a) / _l2(b)),
    "attack_share": (
        gradients.attack_share,
        lambda a, b: (a * np.sign(b)).sum((1, 2, 3)) / np.abs(a).sum((1, 2, 3)),
    ),
    "normalize": (lambda a, _: normalize(a), _centred),
}


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-7, 1.0, 1e30])
def test_what_has_no_unit_does_not_depend_on_the_size_of_j(name, size):
    ours, expected = FREE[name]
    a, b = (tf.constant(size * j, tf.float32) for j in (_A, _B))
    np.testing.assert_allclose(ours(a, b), expected(_A, _B), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours(a, 2 * a), expected(_A, 2 * _A), rtol=1e-4, atol=1e-6)
    at_zero = np.full_like(expected(_A, _B), name == "l_cosine")
    np.testing.assert_array_equal(ours(tf.zeros_like(a), b), at_zero)


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_gradients_are_compared_in_float32(name, dtype):
    ours, expected = FREE[name]
    a, b = (tf.cast(1e-3 * j, dtype) for j in (_A, _B))
    wide = [tf.cast(j, tf.float64).numpy() for j in (a, b)]
    assert ours(a, b).dtype == tf.float32
    np.testing.assert_allclose(ours(a, b), expected(*wide), rtol=1e-4, atol=1e-6)


_SLOPED = [losses.l_cosine, lambda a, b: normalize(a) * tf.cast(_B, a.dtype), losses.l_diff_l2]


@pytest.mark.parametrize("size", [1e-26, 1e-20, 1e-7, 1.0])
@pytest.mark.parametrize("f", _SLOPED)
def test_their_slopes_are_those_of_float64(f, size):
    def slope(dtype, size):
        a, b = tf.constant(size * _A, dtype), tf.constant(size * _B, dtype)
        with tf.GradientTape() as tape:
            tape.watch(a)
            value = tf.reduce_sum(f(a, b))
        return tape.gradient(value, a).numpy()

    per_size = 1.0 if f is losses.l_diff_l2 else size
    expected = slope(tf.float64, 1.0)
    found = per_size * slope(tf.float32, size).astype("float64")
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_slopes_at_zero_and_at_a_constant_are_zero():
    for j in (tf.zeros((2, 4, 4, 1)), tf.fill((2, 4, 4, 1), 1e-9), tf.fill((2, 33, 35, 3), 0.3)):
        with tf.GradientTape() as tape:
            tape.watch(j)
            value = tf.reduce_sum(normalize(j) * tf.range(2, dtype="float32")[:, None, None, None])
        assert not np.any(normalize(j))
        assert not np.any(tape.gradient(value, j))


@pytest.mark.parametrize("size", [1e-28, 1e-37, 1e-44])
@pytest.mark.parametrize("f", _SLOPED)
def test_a_j_whose_slope_would_overflow_has_none(f, size):
    a, b = tf.constant(size * _A, tf.float32), tf.constant(size * _B, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(a)
        value = tf.reduce_sum(f(a, b))
    assert np.isfinite(value)
    np.testing.assert_array_equal(tape.gradient(value, a), 0)
