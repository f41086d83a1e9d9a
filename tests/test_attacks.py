"""PGD against closed forms and brute force; its losses against hand numbers; attacks as a library."""

import doctest
import functools
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf.attacks import LOSSES, apgd, fab, loss_named, pgd, square
from igam_tf.attacks.attack_losses import cw_margin, of_class, xent
from igam_tf.common.errors import UserError

RNG = np.random.default_rng(0)


def _linear(w: np.ndarray):
    """Two-class logits (0, w.x), for which the worst l-inf perturbation is known."""
    w = tf.constant(w)

    def logits_fn(x):
        z = tf.reduce_sum(x * w, axis=tf.range(1, tf.rank(x)))
        return tf.stack([tf.zeros_like(z), z], axis=1)

    return logits_fn


# --- losses ------------------------------------------------------------------------------------


def test_cw_margin_by_hand():
    logits = tf.constant([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert cw_margin(logits, tf.constant([0, 1, 2])).numpy().tolist() == [-1.0, 2.0, 0.0]


def test_cw_margin_gradient_is_plus_one_minus_one():
    logits = tf.constant([[3.0, 1.0, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        margin = cw_margin(logits, tf.constant([0]))
    assert tape.gradient(margin, logits).numpy().tolist() == [[-1.0, 0.0, 1.0]]


def test_xent_by_hand():
    values = xent(tf.constant([[0.0, np.log(3.0)], [0.0, 1000.0]], tf.float64), tf.constant([0, 0]))
    np.testing.assert_allclose(values, [np.log(4.0), 1000.0], rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("dtype", "wide"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_losses_are_at_least_float32(name, dtype, wide):
    values = loss_named(name)(tf.constant([[1.0, 2.0, 4.0]], dtype), tf.constant([0]))
    assert values.dtype == wide


def test_unknown_loss():
    with pytest.raises(
        UserError, match="expected an attack loss among xent, cw, dlr; received 'l2'"
    ):
        loss_named("l2")


# --- pgd ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [xent, cw_margin])
@pytest.mark.parametrize("compiled", [False, True])
def test_linear_model_in_closed_form(loss, compiled):
    """The worst point is x -+ eps sign(w), cut at the bounds; PGD gets there from any start."""
    w = RNG.normal(size=(4, 4, 1))
    x = RNG.uniform(size=(6, 4, 4, 1))
    y = tf.constant([0, 1, 0, 1, 1, 0])
    sign = np.where(y.numpy() == 0, 1, -1)[:, None, None, None] * np.sign(w)
    noise = tf.constant(RNG.uniform(-0.1, 0.1, x.shape))
    attack = lambda x, y: pgd(  # noqa: E731
        _linear(w), x, y,
        eps=0.1, step_size=0.03, steps=7, loss=loss, bounds=(0.0, 1.0), noise=noise,
    )  # fmt: skip
    x_adv = (tf.function(attack) if compiled else attack)(tf.constant(x), y)
    assert x_adv.dtype == tf.float64
    np.testing.assert_allclose(x_adv, np.clip(x + 0.1 * sign, 0, 1), atol=1e-12)


def test_l2_steps_along_the_gradient():
    w, x = RNG.normal(size=(4, 4, 1)), RNG.uniform(0.3, 0.7, size=(3, 4, 4, 1))
    x_adv = pgd(
        _linear(w), tf.constant(x), tf.constant([0, 0, 1]),
        eps=0.2, step_size=0.05, steps=6, loss=xent, bounds=(0.0, 1.0), norm="l2",
    )  # fmt: skip
    sign = np.array([1, 1, -1])[:, None, None, None]
    np.testing.assert_allclose(x_adv, x + 0.2 * sign * w / np.linalg.norm(w), atol=1e-9)


@pytest.mark.parametrize(("clip_first", "end"), [(False, [1.0, 0.74]), (True, [1.0, 0.8])])
def test_the_order_of_ball_and_bounds_in_l2_by_hand(clip_first, end):
    """A step of 1 along (0.6, 0.8) from (1, 0.5); the second pixel alone may rise, by up to 0.3."""
    x_adv = pgd(
        lambda x: tf.concat([0 * x[:, :1], x @ [[0.6], [0.8]]], 1), tf.constant([[1.0, 0.5]]), [0],
        eps=0.3, step_size=1.0, steps=1, bounds=(0.0, 1.0), norm="l2", clip_first=clip_first,
    )  # fmt: skip
    np.testing.assert_allclose(x_adv[0], end, atol=1e-6)


def test_a_targeted_loss_has_its_target():
    """Up the margin of the target alone: x + eps sign(w_target - w_y)."""
    w, x = RNG.normal(size=(9, 4)), RNG.uniform(0.3, 0.7, size=(5, 9))
    y, target = np.array([0, 1, 2, 3, 0]), np.array([1, 0, 3, 1, 2])
    x_adv = pgd(
        lambda x: x @ w, *map(tf.constant, (x, y)), eps=0.1, step_size=0.04, steps=4,
        loss=lambda z, y, t: of_class(z, t) - of_class(z, y), bounds=(0.0, 1.0),
        target=tf.constant(target),
    )  # fmt: skip
    np.testing.assert_allclose(x_adv, x + 0.1 * np.sign(w[:, target] - w[:, y]).T, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_apgd_with_a_radius_of_each_image(norm):
    """Each image gets what it gets alone, also after others have left."""
    w, x = RNG.normal(size=(9, 4)), RNG.uniform(0.3, 0.7, size=(4, 9))
    y, eps = (
        np.argmax(x @ w, 1),
        {"linf": 1, "l2": 3, "l1": 9}[norm] * np.array([0, 0.01, 0.02, 0.3]),
    )
    noise = RNG.uniform(-1, 1, size=x.shape)

    def attacked(i, eps):
        x_i, y_i, noise_i = (tf.constant(a[list(i)]) for a in (x, y, noise))
        how = {"bounds": (0.0, 1.0), "steps": 6, "norm": norm, "noise": noise_i}
        return apgd(lambda x: x @ w, x_i, y_i, eps=eps, **how).numpy()

    together = attacked(range(4), eps)
    for i in (1, 3):
        np.testing.assert_allclose(together[i], attacked([i], eps[i])[0], atol=1e-12)
    size = np.linalg.norm(together - x, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    assert (size <= eps + 1e-9).all()
    assert size[1] > 0.5 * eps[1]


def test_unknown_norm():
    with pytest.raises(UserError, match="expected a norm among linf, l2, l1; received 'l0'"):
        pgd(
            _linear(np.float32([1])), tf.zeros((1, 1)), tf.constant([0]),
            eps=0.1, step_size=0.1, steps=1, loss=xent, bounds=(0.0, 1.0), norm="l0",
        )  # fmt: skip


def test_brute_force_in_two_dimensions():
    """A quadratic boundary: PGD with restarts breaks exactly the points that a fine grid breaks."""

    def logits_fn(x):
        z = (x[:, 0] - 0.5) ** 2 + 2 * (x[:, 1] - 0.4) ** 2 - 0.05
        return tf.stack([tf.zeros_like(z), z], axis=1)

    x = RNG.uniform(size=(200, 2))
    y = tf.argmax(logits_fn(tf.constant(x)), 1)
    eps = 0.06
    offsets = np.stack(np.meshgrid(*[np.linspace(-eps, eps, 41)] * 2), -1).reshape(-1, 2)
    grid = np.clip(x[:, None] + offsets, 0, 1)
    labels = tf.argmax(logits_fn(tf.constant(grid.reshape(-1, 2))), 1).numpy().reshape(200, -1)
    by_grid = (labels != y.numpy()[:, None]).any(1)
    assert 0.1 < by_grid.mean() < 0.9
    by_pgd = np.zeros(200, bool)
    attack = tf.function(
        lambda noise: pgd(
            logits_fn, tf.constant(x), y,
            eps=eps, step_size=eps / 10, steps=40, loss=cw_margin, bounds=(0.0, 1.0), noise=noise,
        )
    )  # fmt: skip
    for _ in range(5):
        noise = tf.constant(RNG.uniform(-eps, eps, x.shape))
        x_adv = attack(noise)
        by_pgd |= tf.argmax(logits_fn(x_adv), 1).numpy() != y.numpy()
    assert (by_pgd | ~by_grid).all()  # whatever the grid finds
    assert (by_pgd != by_grid).sum() <= 2  # points nearer to the boundary than the grid is fine


@pytest.mark.parametrize(("high", "eps", "step_size"), [(1.0, 0.3, 0.1), (255.0, 8.0, 3.0)])
def test_stays_within_ball_and_bounds(high, eps, step_size):
    x = tf.constant(RNG.uniform(0, high, size=(8, 5, 5, 3)), tf.float32)
    w = tf.constant(RNG.normal(size=(75, 4)), tf.float32)
    noise = tf.random.stateless_uniform(x.shape, (0, 1), -3 * eps, 3 * eps)  # more than the ball
    for steps in (0, 1, 10):
        x_adv = pgd(
            lambda x: tf.reshape(x, (-1, 75)) @ w, x, tf.zeros(8, tf.int64),
            eps=eps, step_size=step_size, steps=steps, loss=xent, bounds=(0.0, high), noise=noise,
        )  # fmt: skip
        assert tf.reduce_max(tf.abs(x_adv - x)) <= eps * (1 + 1e-4)
        assert tf.reduce_max(tf.abs(x_adv - x)) > 0.9 * eps  # and uses what it may
        assert tf.reduce_min(x_adv) >= 0.0
        assert tf.reduce_max(x_adv) <= high


def test_fgsm_is_one_signed_step_that_does_not_wrap():
    x = tf.constant([[250.0, 3.0, 100.0, 100.0]])
    w = np.float32([1.0, -1.0, 2.0, 0.0])
    x_adv = pgd(
        _linear(w), x, tf.constant([0]), eps=8.0, step_size=8.0, steps=1, loss=xent, bounds=(0, 255)
    )
    assert x_adv.numpy().tolist() == [[255.0, 0.0, 108.0, 100.0]]  # no gradient, no step


def test_examples_do_not_influence_each_other():
    w, x = RNG.normal(size=(9, 3)), RNG.uniform(size=(5, 9))
    attack = lambda x, y: pgd(  # noqa: E731
        lambda x: tf.tanh(x @ w), tf.constant(x), tf.constant(y),
        eps=0.1, step_size=0.02, steps=5, loss=xent, bounds=(0.0, 1.0),
    )  # fmt: skip
    y = np.array([0, 1, 2, 0, 1])
    together = attack(x, y)
    for i in range(5):
        np.testing.assert_array_equal(attack(x[i : i + 1], y[i : i + 1])[0], together[i])


def test_changes_no_variable():
    model = keras.Sequential(
        [
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    x = tf.constant(RNG.uniform(size=(4, 6, 6, 1)), tf.float32)
    model(x, training=False)
    before = [v.numpy().copy() for v in model.variables]
    attack = tf.function(
        lambda x, y: pgd(
            lambda x: model(x, training=False), x, y,
            eps=0.3, step_size=0.1, steps=5, loss=xent, bounds=(0.0, 1.0),
        )
    )  # fmt: skip
    assert np.abs(attack(x, tf.constant([0, 1, 2, 0])) - x).max() > 0.29
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_nothing_flows_back_through_the_attack():
    x = tf.constant([[0.5, 0.5]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        x_adv = pgd(
            _linear(np.float32([1, 2])), x, tf.constant([0]),
            eps=0.1, step_size=0.1, steps=2, loss=xent, bounds=(0.0, 1.0),
        )  # fmt: skip
    assert tape.gradient(x_adv, x) is None


def test_logits_without_a_gradient_are_refused():
    with pytest.raises(UserError, match="expected logits that are differentiable in x"):
        pgd(
            lambda x: tf.one_hot(tf.argmax(x, 1), 2), tf.zeros((1, 2)), tf.constant([0]),
            eps=0.1, step_size=0.1, steps=1, loss=xent, bounds=(0.0, 1.0),
        )  # fmt: skip


def test_arrays_and_names_serve_as_well():
    """numpy arrays and a loss by its name: the same as tensors and the function."""
    w = RNG.normal(size=4).astype("float32")
    x, y = RNG.uniform(size=(5, 4)).astype("float32"), np.array([0, 1, 1, 0, 1])
    common = dict(eps=0.1, step_size=0.05, steps=3, bounds=(0.0, 1.0))
    by_names = pgd(_linear(w), x, y, loss="xent", **common)
    by_values = pgd(_linear(w), tf.constant(x), tf.constant(y), loss=xent, **common)
    np.testing.assert_array_equal(by_names, by_values)


@pytest.mark.parametrize("attack", [apgd, square])
def test_what_is_not_given_is_drawn_by_the_seed(attack):
    def logits_fn(x):
        z = tf.reduce_sum(tf.sin(40 * x), (1, 2, 3))  # many maxima: the start decides
        return tf.stack([tf.zeros_like(z) + 99, z, 0 * z], 1)

    x = RNG.uniform(size=(3, 4, 4, 1)).astype("float32")
    y = np.zeros(3, int)
    size = {apgd: {"steps": 1}, square: {"queries": 2}}[attack]
    first, again, other = (
        attack(logits_fn, x, y, eps=0.2, bounds=(0.0, 1.0), seed=seed, **size).numpy()
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0
    of_one = attack(logits_fn, x[:1], y[:1], eps=0.2, bounds=(0.0, 1.0), seed=0, **size)
    np.testing.assert_array_equal(of_one, first[:1])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"eps": -0.1}, "expected eps of at least 0, in the pixel unit of x; received -0.1"),
        ({"eps": float("nan")}, "expected eps of at least 0, in the pixel unit of x; received nan"),
        *(
            ({"x": tf.zeros((1, 1), dtype)}, f"images x of float32 or float64.*{dtype}: cast them")
            for dtype in ("uint8", "float16", "bfloat16", "int64")
        ),
        ({"y": np.zeros((1, 1), int)}, r"labels .*int64 \[1, 1\]: take y\[:, 0\]"),
        ({"y": np.eye(2)[:1]}, r"labels .*float64 \[1, 2\]: take y.argmax\(1\)"),
        ({"eps": 1.5}, "expected eps of at most 1, the pixel range of the bounds.*; received 1.5"),
        ({"y": np.zeros((1, 2))}, "labels .*float64"),
        ({"steps": -1}, "expected at least 0 steps; received -1"),
        ({"bounds": (1.0, 0.0)}, r"expected bounds \(lowest, highest pixel value\); received"),
        ({"loss": "hinge"}, "expected an attack loss among xent, cw, dlr; received 'hinge'"),
    ],
)
def test_wrong_use(changes, sentence):
    arguments = dict(
        x=np.zeros((1, 1), "float32"), y=np.zeros(1, int), eps=0.1, step_size=0.1, steps=1,
        bounds=(0.0, 1.0),
    )  # fmt: skip
    with pytest.raises(UserError, match=sentence):
        pgd(_linear(np.float32([1])), **(arguments | changes))


def test_start_and_moves_come_together():
    x, y = np.zeros((1, 2, 2, 1), "float32"), np.zeros(1, int)
    with pytest.raises(UserError, match="expected both start and moves, or neither"):
        square(lambda x: x[:, 0, 0], x, y, eps=0.1, bounds=(0.0, 1.0), start=np.ones((1, 2, 1)))


ATTACKS = {
    "pgd": functools.partial(pgd, steps=2, step_size=0.1),
    "apgd": functools.partial(apgd, steps=2),
    "fab": functools.partial(fab, steps=2, target=[1]),
    "square": functools.partial(square, queries=2),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_outputs_that_are_no_logits_are_told_in_one_sentence(attack):
    """Within a tf.function too, and with no line on whose code it was."""
    flat = lambda x: tf.reduce_sum(x, (2, 3))[:, :2]  # noqa: E731
    cases = {
        "received a dict of 2 outputs": lambda x: {"a": x, "b": x},
        "received a tuple of 2 outputs": lambda x: (flat(x), x),
        r"logits \[B,K\] .*received float32 \[\w+, 4, 4, 1\]": lambda x: x,
        r"logits \[B,K\] .*received int32": lambda x: tf.cast(flat(x), tf.int32),
        "received logits of 1: for a single output z": lambda x: flat(x)[:, :1],
    }
    x, how = tf.zeros((1, 4, 4, 1)), dict(eps=0.1, bounds=(0.0, 1.0))
    for sentence, logits_fn in cases.items():
        for f in (ATTACKS[attack], tf.function(ATTACKS[attack])):
            with pytest.raises(UserError, match=f"^expected.*{sentence}") as error:
                f(logits_fn, x, [0], **how)
            assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"function .*str"):
        ATTACKS[attack]("model", x, [0], **how)


@pytest.mark.parametrize("attack", ATTACKS)
def test_labels_of_every_integer_type(attack):
    logits_fn = lambda x: tf.reduce_sum(x, (2, 3))[:, :3] * [1.0, 2.0, 3.0]  # noqa: E731
    x = RNG.uniform(size=(1, 4, 4, 1)).astype("float32")
    outcomes = [
        ATTACKS[attack](logits_fn, x, np.zeros(1, dtype), eps=0.1, bounds=(0.0, 1.0)).numpy()
        for dtype in ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")
    ]
    for other in outcomes[1:]:
        np.testing.assert_array_equal(outcomes[0], other)


@pytest.mark.parametrize("module", ["kinds", "pgd", "apgd", "fab", "square"])
def test_examples(module):
    result = doctest.testmod(sys.modules[f"igam_tf.attacks.{module}"])
    assert result.attempted > 0
    assert result.failed == 0
