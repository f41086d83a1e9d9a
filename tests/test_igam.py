"""IGAM's step: its gradients, its schedule, its drivers, and replicas that agree."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf.common.devices import local_strategy, mirrored, sharded
from igam_tf.common.errors import UserError
from igam_tf.experiments.recipes import recipe
from igam_tf.formulas import gradients, losses
from igam_tf.method.discriminator import Discriminator, normalize
from igam_tf.method.igam import IGAM
from igam_tf.method.objectives import METHODS
from igam_tf.method.optimizers import Momentum
from igam_tf.method.settings import Settings
from igam_tf.method.teacher import FineTune, Teacher
from igam_tf.method.transforms import CenterCrop, ChannelMean, Compose, Scale
from madry_models import MnistCNN, WideResNet

SHAPE = (12, 12, 3)
PAPER = Settings(lambda_adv=0.5, lambda_diff=0.3, disc_every=2)
RELEASE_SETTINGS = Settings(
    **{
        name: value
        for name, (value, _) in recipe("fidelity/release").items()
        if name in Settings.__dataclass_fields__ and name != "igam_start"
    }
    | {"lambda_adv": 0.5, "lambda_diff": 0.3, "disc_every": 2}
)
DIFFERENCE = dataclasses.replace(PAPER, second_order="finite_difference")
JARN = dataclasses.replace(DIFFERENCE, method="jarn")
MATCHING = [name for name, method in METHODS.items() if method.matched_to]
BOTH = pytest.mark.parametrize("settings", [PAPER, RELEASE_SETTINGS], ids=["paper", "release"])


def make(
    settings: Settings = PAPER,
    *,
    synchronized=False,
    dtype="float32",
    student=None,
) -> IGAM:
    """A small IGAM that is the same at every call."""
    keras.utils.set_random_seed(3)
    release, method = settings.disc_view == "all", METHODS[settings.method]
    student = WideResNet(
        8, 1, input_layer="unit_norm" if release else "standardize",
        synchronized=synchronized, dtype=student or dtype,
    )  # fmt: skip
    student.build((None, *SHAPE))
    adaptor = keras.layers.Conv2D(3, 1, activation="tanh", dtype=dtype)
    adaptor.build((None, *SHAPE))
    source = MnistCNN(dtype=dtype)
    source.build((None, 8, 8, 1))
    teacher = Teacher(
        source, Compose([ChannelMean(), CenterCrop(8), Scale(1 / 255)]), num_classes=10
    )
    teacher.build((None, *SHAPE))
    disc = Discriminator(
        (4, 8), outputs=2 if release else 1, synchronized=synchronized, dtype=dtype
    )
    disc.build((None, *(SHAPE if release or not method.teacher else (8, 8, 1))))
    igam = IGAM(
        student,
        teacher if method.teacher else None,
        disc if method.discriminator else None,
        adaptor=adaptor if method.adaptor else None,
        settings=settings,
        weight_decay=2e-4,
    )
    igam.compile(Momentum(0.01, momentum=0.9), Momentum(0.01, momentum=0.9))
    return igam


def batch(n: int = 8, step: int = 0, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([n, step])
    return rng.uniform(0, 255, (n, *SHAPE)).astype(dtype), rng.integers(0, 10, n)


def weights(igam: IGAM) -> list[np.ndarray]:
    return [v.numpy() for v in igam.state_variables]


def total(igam: IGAM, x, y) -> float:
    """Eq. 14, put together from the terms that a step reports."""
    _, terms, _, _ = igam.student_gradients(x, y)
    s, value = igam.settings, igam.mean(terms["L_xent"])
    if "L_adv" in terms:
        value += s.lambda_adv * igam.reduce_adv(terms["L_adv"])
    if "L_diff" in terms:
        value += s.lambda_diff * igam.reduce_diff(terms["L_diff"])
    return float(value + igam.decay(igam.network.kernels))


def slopes(grads, variables, value, h: float) -> tuple[float, float]:
    """Along a random direction of the variables: by their gradients, by central differences of value().

    Leaves the variables h below where they were.
    """
    rng = np.random.default_rng(0)
    direction = [rng.normal(size=v.shape) for v in variables]
    slope = sum(float(np.sum(g.numpy() * d)) for g, d in zip(grads, direction, strict=True))
    values = []
    for sign in (1, -2):
        for v, d in zip(variables, direction, strict=True):
            v.assign_add(sign * h * d)
        values.append(value())
    return slope, (values[0] - values[1]) / (2 * h)


def check_gradient(igam: IGAM, x, y) -> None:
    """Of all that the student's step trains.

    A step of 1e-8, for J_s jumps where a leaky ReLU flips.
    """
    grads, *_ = igam.student_gradients(x, y)
    slope, expected = slopes(grads, igam.trained_variables, lambda: total(igam, x, y), 1e-8)
    assert slope == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        RELEASE_SETTINGS,
        dataclasses.replace(PAPER, diff_norm="l1"),
        dataclasses.replace(PAPER, diff_norm="l2"),
        *(dataclasses.replace(PAPER, method=name) for name in MATCHING),
    ],
    ids=["release", "l1", "l2", *MATCHING],
)
def test_student_gradient_is_that_of_equation_14(settings):
    """In float64, on batch statistics."""
    igam = make(settings, dtype="float64")
    check_gradient(igam, *map(tf.constant, batch(4, dtype=np.float64)))


@pytest.mark.parametrize(("method", "n"), [(name, 7 if name == "igam" else 4) for name in MATCHING])
def test_finite_difference_is_the_gradient_of_equation_14(method, n):
    """In float64, on batch statistics."""
    settings = dataclasses.replace(DIFFERENCE, method=method, difference_length=1e-6)
    igam = make(settings, dtype="float64")
    x, y = map(tf.constant, batch(n, dtype=np.float64))
    before = [v.numpy() for v in igam.network.non_trainable_variables]
    check_gradient(igam, x, y)
    # The moving averages have seen x, and x alone.
    for v, old in zip(igam.network.non_trainable_variables, before, strict=True):
        v.assign(old)
    igam.network(x, training=True)
    once = [v.numpy() for v in igam.network.non_trainable_variables]
    for v, old in zip(igam.network.non_trainable_variables, before, strict=True):
        v.assign(old)
    igam.student_gradients(x, y)
    for v, expected in zip(igam.network.non_trainable_variables, once, strict=True):
        np.testing.assert_allclose(v, expected, rtol=1e-6)


# --- methods and controls --------------------------------------------------------------------------


@pytest.mark.parametrize("method", MATCHING)
def test_a_method_has_the_parts_it_needs_and_reports_its_terms(method):
    igam = make(dataclasses.replace(PAPER, method=method))
    data = tuple(map(tf.constant, batch(4)))
    assert igam.step_of_kind(data, igam.phase(0)).keys() == {"loss", *METHODS[method].terms}
    teachers = {"igam", "l2", "cosine"}
    assert (igam.teacher is None) == (method not in teachers)
    assert ("cosine" in METHODS[method].terms) == (method in teachers)
    assert (igam.discriminator is None) == (method not in {"igam", "jarn"})
    phases = [igam.phase(step) for step in range(3)]
    assert phases == (
        ["student"] * 3
        if igam.discriminator is None
        else ["discriminator", "student", "discriminator"]
    )


def gradients_of(x, y, **settings) -> list[np.ndarray]:
    igam = make(dataclasses.replace(PAPER, **settings), dtype="float64")
    return [g.numpy() for g in igam.student_gradients(x, y)[0]]


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("kind", ["teacher", "zero"])
def test_the_norm_of_the_difference_is_that_of_the_settings(norm, kind):
    settings = dataclasses.replace(PAPER, method="l2", diff_norm=norm, teacher_gradient=kind)
    igam = make(settings, dtype="float64")
    _, terms, _, (j_s, j_t) = igam.student_gradients(*map(tf.constant, batch(4, dtype=np.float64)))
    flat, order = np.reshape(j_s - j_t, (4, -1)), {"l1": 1, "l2": 2}[norm]
    np.testing.assert_allclose(terms["L_diff"], np.linalg.norm(flat, order, axis=1))


def test_l2_matching_to_zero_is_the_gradient_penalty():
    data = tuple(map(tf.constant, batch(4, dtype=np.float64)))
    penalty = gradients_of(*data, method="gradient_penalty")
    for a, b in zip(
        gradients_of(*data, method="l2", teacher_gradient="zero"), penalty, strict=True
    ):
        np.testing.assert_array_equal(a, b)
    igam = make(dataclasses.replace(PAPER, method="gradient_penalty"), dtype="float64")
    _, terms, _, (j_s, _) = igam.student_gradients(*data)
    np.testing.assert_allclose(terms["L_diff"], np.sum(np.square(j_s), axis=(1, 2, 3)))


def test_the_cosine_to_zero_moves_nothing():
    """Not a number is what a finite difference along a vector of length 0 could have become."""
    data = tuple(map(tf.constant, batch(4, dtype=np.float64)))
    settings = {"method": "cosine", "teacher_gradient": "zero"}
    exact = gradients_of(*data, **settings)
    difference = gradients_of(*data, second_order="finite_difference", **settings)
    for a, b in zip(exact, difference, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_teacher_gradients():
    igam = make()
    x, y = map(tf.constant, batch(5))
    j_t, _, _ = igam.input_gradient(igam.teacher, x, y, training=False)
    js = {}
    for kind in ("teacher", "plain", "zero", "shuffled"):
        igam.settings = dataclasses.replace(PAPER, teacher_gradient=kind)
        js[kind] = igam.target_gradient(x, y).numpy()
    np.testing.assert_array_equal(js["teacher"], j_t)
    np.testing.assert_array_equal(js["plain"], j_t)  # its teacher is another one
    np.testing.assert_array_equal(js["zero"], 0 * x)
    np.testing.assert_array_equal(js["shuffled"], np.concatenate([j_t[-1:], j_t[:-1]]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="two images on each replica"):
        igam.target_gradient(x[:1], y[:1])


def test_jarns_adaptor_rests_in_plain_steps_and_moves_with_the_student():
    igam = make(dataclasses.replace(JARN, igam_start=1))
    data = tuple(map(tf.constant, batch(4)))
    adaptor = lambda: [v.numpy() for v in igam.adaptor.variables]  # noqa: E731
    before = adaptor()
    igam.train_step(data)
    assert all(map(np.array_equal, before, adaptor()))
    igam.train_step(data)
    assert not any(map(np.array_equal, before, adaptor()))


def test_the_discriminator_descends_on_a_cross_entropy():
    """Eq. 12 with labels 1 for J_t and 0 for J_s, by Keras."""
    igam = make(dtype="float64")
    igam.weight_decay = 0.0
    j_s, j_t = (tf.random.stateless_normal((4, *SHAPE), (0, s), dtype=tf.float64) for s in range(2))
    grads, _ = igam.discriminator_gradients(j_s, j_t)
    with tf.GradientTape() as tape:
        d_s, d_t = igam.discriminator_logits(j_s, j_t)
        bce = keras.losses.BinaryCrossentropy(from_logits=True, dtype="float64")
        loss = bce(tf.ones([4, 1]), d_t[:, None]) + bce(tf.zeros([4, 1]), d_s[:, None])
    expected = tape.gradient(loss, igam.discriminator.trainable_variables)
    for a, b in zip(grads, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_gradient_of_the_discriminator():
    """Against central differences along a random direction of phi."""
    igam = make(dtype="float64")
    j_s, j_t = (tf.random.stateless_normal((4, *SHAPE), (0, s), dtype=tf.float64) for s in range(2))
    grads, phi = igam.discriminator_gradients(j_s, j_t)[0], igam.discriminator.trainable_variables

    def value() -> float:
        l_adv = igam.reduce_adv(igam.discriminator_gradients(j_s, j_t)[1])
        return float(igam.decay(igam.discriminator.kernels) - l_adv)

    slope, expected = slopes(grads, phi, value, 1e-7)
    assert slope == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("view", ["teacher", "all"])
def test_what_f_disc_sees_of_j(view):
    """The central 8x8 pixels, the channels' sum: what the teacher can see; or all of J."""
    igam = make(dataclasses.replace(PAPER, disc_view=view), dtype="float64")
    j = np.random.default_rng(0).normal(size=(4, *SHAPE))
    (seen,) = igam.apply_view(tf.constant(j))
    expected = j if view == "all" else j[:, 2:10, 2:10].sum(-1, keepdims=True)
    np.testing.assert_allclose(seen, expected, rtol=1e-12)


def test_the_objective_is_smaller_after_a_step():
    igam = make(dataclasses.replace(PAPER, disc_every=1000))
    data = batch()
    before = total(igam, *map(tf.constant, data))
    for _ in range(3):
        igam.step_of_kind(tuple(map(tf.constant, data)), "student")
    assert total(igam, *map(tf.constant, data)) < before


def test_discriminator_maximises_l_adv():
    igam = make()
    x, y = map(tf.constant, batch(16))
    _, _, _, (j_s, j_t) = igam.student_gradients(x, y)
    values = []
    for _ in range(10):
        grads, l_adv = igam.discriminator_gradients(j_s, j_t)
        igam.discriminator_optimizer.apply(grads, igam.discriminator.trainable_variables)
        values.append(float(tf.reduce_mean(l_adv)))
    assert values[-1] > values[0]
    assert values[-1] < 0


@BOTH
def test_each_player_moves_its_own_weights_alone(settings):
    igam = make(settings)
    data = tuple(map(tf.constant, batch()))
    frozen = [v.numpy() for v in igam.teacher.trainable_variables]
    disc = lambda: [v.numpy() for v in igam.discriminator.trainable_variables]  # noqa: E731
    before, students = disc(), [v.numpy() for v in igam.trained_variables]
    igam.step_of_kind(data, "student")
    assert all(map(np.array_equal, before, disc()))
    assert not any(
        np.array_equal(a, v.numpy()) for a, v in zip(students, igam.trained_variables, strict=True)
    )
    igam.step_of_kind(data, "discriminator")
    assert not all(map(np.array_equal, before, disc()))
    assert all(map(np.array_equal, frozen, [v.numpy() for v in igam.teacher.trainable_variables]))


def test_schedule():
    igam = make(dataclasses.replace(PAPER, igam_start=3, disc_every=2))
    phases = [igam.phase(step) for step in range(7)]
    assert phases == ["plain"] * 3 + ["discriminator", "student", "discriminator", "student"]
    igam = make(dataclasses.replace(PAPER, igam_start=1, match_every=3, disc_every=2))
    phases = [igam.phase(step) for step in range(10)]
    assert phases[1::3] == ["discriminator", "student", "discriminator"]
    assert phases[::3] + phases[2::3] == ["plain"] * 7


@pytest.mark.parametrize(
    ("settings", "precision", "closest"),
    [
        (PAPER, "mixed_bfloat16", 0.95),
        (PAPER, "mixed_float16", 0.99),
        (DIFFERENCE, "mixed_bfloat16", 0.6),  # a difference of two rounded gradients
        (DIFFERENCE, "mixed_float16", 0.8),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_narrow_layers_give_the_update_of_wide_ones(settings, precision, closest):
    """J in float32, and the whole update in the direction of float32's."""
    x, y = map(tf.constant, batch())
    wide, narrow = make(settings), make(settings, student=precision)
    narrow.teacher.set_precision(precision)
    (a, _, _, (j_s, _)), (b, _, _, (k_s, k_t)) = (m.student_gradients(x, y) for m in (wide, narrow))
    assert k_s.dtype == k_t.dtype == tf.float32
    assert {g.dtype for g in b} == {tf.float32}
    assert float(tf.reduce_min(gradients.cosine(j_s, k_s))) > max(closest, 0.95)
    a, b = (tf.concat([tf.reshape(g, [1, -1]) for g in grads], 1) for grads in (a, b))
    assert float(gradients.cosine(a, b)[0]) > closest


def test_seldom_matching_weighs_more():
    x, y = map(tf.constant, batch())
    seldom = dataclasses.replace(PAPER, match_every=3)
    heavy = dataclasses.replace(PAPER, lambda_adv=1.5, lambda_diff=0.9)
    (a, *_), (b, *_) = (make(settings).student_gradients(x, y) for settings in (seldom, heavy))
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["match_every", "disc_every"])
def test_steps_between_are_at_least_one(name):
    with pytest.raises(UserError, match=f"{name} of at least 1; received 0"):
        dataclasses.replace(PAPER, **{name: 0})


def _run_fit(igam, batches):
    x, y = map(np.concatenate, zip(*batches, strict=True))
    igam.fit(x, y, batch_size=len(batches[0][0]), shuffle=False, verbose=0)


def _run_eager(igam, batches):
    for data in batches:
        igam.train_step(tuple(map(tf.constant, data)))


def _run_function(igam, batches):
    """As the training loop drives it."""
    step = igam.make_train_function()
    batches = iter([tuple(map(tf.constant, data)) for data in batches])
    for _ in range(4):
        step(batches)


@pytest.mark.parametrize(
    ("settings", "turns"),
    [
        pytest.param(PAPER, 2, marks=pytest.mark.slow),
        (dataclasses.replace(DIFFERENCE, match_every=2), 1),
        pytest.param(RELEASE_SETTINGS, 2, marks=pytest.mark.slow),
        pytest.param(JARN, 2, marks=pytest.mark.slow),
    ],
    ids=["paper", "every second", "release", "jarn"],
)
def test_fit_eager_and_tf_function_agree_on_any_batch_size(settings, turns, float64):
    """Plain steps, both kinds of IGAM step and a last, smaller batch."""
    settings = dataclasses.replace(settings, igam_start=1)
    batches = [batch(n, step, np.float64) for step, n in enumerate((6, 6, 6, 5))]
    results = []
    for run in (_run_fit, _run_eager, _run_function):
        igam = make(settings, dtype="float64")
        run(igam, batches)
        assert int(igam.optimizer.iterations) == 4
        assert int(igam.discriminator_optimizer.iterations) == turns
        results.append(weights(igam))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * max(1, np.abs(a).max()))


def test_several_steps_per_execution_are_refused():
    with pytest.raises(
        UserError, match=r"steps_per_execution=1, .*; received 2: match_every=4 saves"
    ):
        make().compile(steps_per_execution=2)


SLOW = {"marks": pytest.mark.slow}


@pytest.mark.parametrize(
    ("settings", "count", "compiled"),
    [
        pytest.param(PAPER, 2, False, id="paper"),
        pytest.param(RELEASE_SETTINGS, 2, False, id="release"),
        pytest.param(DIFFERENCE, 2, True, id="difference", **SLOW),
        pytest.param(JARN, 2, True, id="jarn", **SLOW),
        pytest.param(PAPER, 4, True, id="paper in graphs", **SLOW),
        pytest.param(RELEASE_SETTINGS, 4, True, id="release in graphs", **SLOW),
    ],
)
def test_replicas_give_the_weights_of_one(settings, count, compiled, float64):
    """Student, discriminator and both optimizers, batch norm synchronised, in float64.

    Of the last batch one of 4 replicas has no image. By default step by step, without graphs;
    compiled ones also: `test_any_model`.
    """
    batches = [batch(n, step, np.float64) for step, n in enumerate((8, 7, 3))]
    tf.config.run_functions_eagerly(not compiled)
    try:
        one, several = (_train_on(replicas, settings, batches) for replicas in (1, count))
    finally:
        tf.config.run_functions_eagerly(False)
    for a, b in zip(one, several, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * max(1, np.abs(a).max()))


def _train_on(replicas: int, settings: Settings, batches) -> list[np.ndarray]:
    strategy = local_strategy(replicas)
    assert strategy.num_replicas_in_sync == replicas
    # Not from_generator: an array at an address that suits is not copied, and kernels write to it.
    sets = [tf.data.Dataset.from_tensors(data) for data in batches]
    with strategy.scope():
        igam = make(settings, synchronized=True, dtype="float64")
        steps = igam.make_train_function()
        data = sharded(functools.reduce(tf.data.Dataset.concatenate, sets))
        for _ in batches:
            steps(data)
    return weights(igam)


def test_a_step_in_a_graph_of_the_callers_own_is_refused():
    strategy = mirrored(["CPU:0", "CPU:1"])
    with strategy.scope():
        igam = make(synchronized=True)
    data = tuple(map(tf.constant, batch()))
    with pytest.raises(UserError, match="step_of_kind"):
        tf.function(lambda: strategy.run(igam.train_step, args=(data,)))()


def test_a_loss_that_is_not_finite_stops_the_step():
    igam = make()
    igam.trained_variables[0].assign(igam.trained_variables[0] * np.nan)
    with pytest.raises(tf.errors.InvalidArgumentError, match="L_xent"):
        igam.train_step(tuple(map(tf.constant, batch())))


def test_l_adv_of_a_student_that_is_the_teacher():
    """J_s = J_t: whatever f_disc, d_s = d_t, and the best f_disc has L_adv = -log 4 (Theorem 6.1)."""
    igam = make()
    _, j_t = (tf.random.stateless_normal((8, *SHAPE), (0, s)) for s in range(2))
    d_s, d_t = igam.discriminator_logits(j_t, j_t)
    np.testing.assert_allclose(d_s, d_t, atol=1e-5)
    assert np.all(losses.l_adv(d_s, d_t) <= -losses.LOG_4 + 1e-5)


def test_discriminator_does_not_see_size_and_survives_a_gradient_of_zeros():
    j = tf.random.stateless_normal((4, 8, 8, 1), (0, 1))
    np.testing.assert_allclose(normalize(j), normalize(1e-4 * j + 3e-5), atol=1e-4)
    zeros = tf.zeros((2, 8, 8, 1))
    with tf.GradientTape() as tape:
        tape.watch(zeros)
        value = tf.reduce_sum(normalize(zeros) ** 2)
    assert np.isfinite(tape.gradient(value, zeros)).all()


def test_fine_tuning_moves_the_new_logits_alone_and_learns():
    igam = make()
    teacher = igam.teacher
    tuner = FineTune(teacher, weight_decay=2e-4)
    tuner.compile(optimizer=keras.optimizers.Adam(1e-2))
    x, y = batch(32)
    before = [v.numpy() for v in teacher.network.variables]
    loss = lambda: float(tf.reduce_mean(losses.xent(teacher(x, training=False), y)))  # noqa: E731
    first = loss()
    tuner.fit(x, y, batch_size=16, epochs=10, verbose=0)
    assert loss() < 0.7 * first
    assert all(map(np.array_equal, before, [v.numpy() for v in teacher.network.variables]))


def test_teacher_round_trip(tmp_path):
    teacher = make().teacher
    teacher.save(tmp_path / "teacher.keras")
    again = keras.saving.load_model(tmp_path / "teacher.keras", compile=False)
    x, _ = batch(3)
    np.testing.assert_array_equal(teacher(x, training=False), again(x, training=False))
