"""APGD, FAB, Square and their ensemble: closed forms, brute force, published schedules, resuming."""

import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import igam_tf.evaluation.robust as evaluation
from igam_tf.attacks import (
    AttackSpec,
    apgd,
    attack_names,
    attack_specs,
    dlr_targeted,
    fab,
    random_inputs,
    square,
)
from igam_tf.attacks.apgd import checkpoints
from igam_tf.attacks.attack_losses import cw_margin, dlr, xent
from igam_tf.attacks.fab import project_to_plane
from igam_tf.attacks.shrinking import shrinking_loop
from igam_tf.attacks.square import bumps, exchange, square_side
from igam_tf.common.errors import UserError
from igam_tf.evaluation.evaluate import evaluate, table
from igam_tf.evaluation.robust import robust_flags
from igam_tf.storage.journal import Journal, model_identity
from madry_models import MnistCNN

RNG = np.random.default_rng(0)
CLASSES = 5
W = RNG.normal(size=(27, CLASSES))
X = RNG.uniform(0.2, 0.8, size=(40, 3, 3, 3))  # eps below meets no bound
COMPILED = {attack: tf.function(attack, autograph=False) for attack in (apgd, fab)}
TRACED: dict = {}  # of `linear`, once for all tests
NORM_ORDER = {"linf": 1, "l2": 2}  # of the dual norm


def linear(x):
    """Five classes, for which the distance of each x to each boundary is known."""
    return tf.reshape(x - 0.5, [-1, 27]) @ tf.constant(W, x.dtype)


LOGITS = linear(tf.constant(X)).numpy()
Y = LOGITS.argmax(1)


def distances(norm: str) -> np.ndarray:
    """Distance of each x to the boundary with each class, [40,5]; inf to its own."""
    gap = LOGITS[np.arange(40), Y][:, None] - LOGITS
    normal = np.linalg.norm(W[:, Y].T[:, :, None] - W[None], NORM_ORDER[norm], axis=1)
    return np.where(np.arange(CLASSES) == Y[:, None], np.inf, gap / np.maximum(normal, 1e-9))


def _broken(x_adv) -> np.ndarray:
    return linear(tf.convert_to_tensor(x_adv)).numpy().argmax(1) != Y


def _size(x_adv, norm: str) -> np.ndarray:
    delta = (np.asarray(x_adv) - X).reshape(40, -1)
    return np.linalg.norm(delta, np.inf if norm == "linf" else 2, axis=1)


# --- losses --------------------------------------------------------------------------------------


def test_dlr_by_hand():
    logits = tf.constant([[4.0, 1.0, 2.0, 0.0], [1.0, 3.0, 2.0, 0.0]])
    # (2 - 4) / (4 - 1) and (3 - 1) / (3 - 1)
    np.testing.assert_allclose(dlr(logits, tf.constant([0, 0])), [-2 / 3, 1.0], rtol=1e-6)
    # (1 - 4) / (4 - (1 + 0) / 2) and (0 - 1) / (3 - (1 + 0) / 2)
    targeted = dlr_targeted(logits, tf.constant([0, 0]), tf.constant([1, 3]))
    np.testing.assert_allclose(targeted, [-3 / 3.5, -1 / 2.5], rtol=1e-6)


def test_dlr_does_not_see_the_scale_of_the_logits():
    logits, y = tf.constant(RNG.normal(size=(6, 5))), tf.constant([0, 1, 2, 3, 4, 0])
    np.testing.assert_allclose(dlr(logits, y), dlr(1e6 * logits, y), rtol=1e-9)


@pytest.mark.parametrize(("name", "classes"), [("apgd-dlr", 2), ("apgd-t", 3), ("autoattack", 3)])
def test_too_few_classes(name, classes):
    with pytest.raises(UserError, match=f"classes for .*{name}, .*; received {classes}"):
        attack_specs([name], eps=0.1, step_size=0.1, restarts=1, loss="xent", num_classes=classes)


def test_dlr_refuses_too_few_classes():
    with pytest.raises(UserError, match="expected at least 3 classes for the dlr loss"):
        dlr(tf.zeros((1, 2)), tf.constant([0]))
    with pytest.raises(UserError, match="at least 4 classes for the targeted dlr loss"):
        dlr_targeted(tf.zeros((1, 3)), tf.constant([0]), tf.constant([1]))


# --- apgd ----------------------------------------------------------------------------------------


def test_checkpoints_as_published():
    """p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), times 100."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(3) == [1, 2, 3]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", [xent, dlr])
def test_apgd_on_a_linear_model(norm, loss):
    """It reaches the closed form's decision: broken where the nearest boundary is within eps."""
    nearest = distances(norm).min(1)
    eps = np.median(nearest)
    noise = tf.constant(RNG.normal(size=X.shape))
    targets = np.argsort(distances(norm), 1)
    broken = np.zeros(40, bool)
    for rank in range(CLASSES - 1):
        x_adv = COMPILED[apgd](
            linear, tf.constant(X), tf.constant(Y), eps=eps, steps=60, bounds=(0.0, 1.0), norm=norm,
            noise=noise, loss=dlr_targeted, target=tf.constant(targets[:, rank]),
        )  # fmt: skip
        broken |= _broken(x_adv)
        assert (_size(x_adv, norm) <= eps * (1 + 1e-9)).all()
    clear = np.abs(nearest - eps) > 1e-6 * eps
    np.testing.assert_array_equal(broken[clear], nearest[clear] < eps)
    untargeted = COMPILED[apgd](
        linear, tf.constant(X), tf.constant(Y), eps=eps, steps=60, bounds=(0.0, 1.0), norm=norm,
        noise=noise, loss=loss,
    )  # fmt: skip
    assert not (_broken(untargeted) & (nearest > eps)).any()
    assert _broken(untargeted).sum() >= 0.8 * (nearest < eps).sum()


def test_apgd_halves_its_step_to_reach_a_narrow_peak():
    """-|x - peak|: signed steps of 2 eps can only oscillate; the halvings converge on the peak."""
    peak = np.array([[0.013], [-0.057], [0.091]])
    x, y = tf.zeros((3, 1), tf.float64), tf.zeros(3, tf.int64)
    x_adv = COMPILED[apgd](
        lambda x: tf.concat([x, x - 1], 1), x, y, eps=0.1, steps=100, bounds=(-1.0, 1.0),
        noise=tf.ones((3, 1), tf.float64), target=tf.constant(peak[:, 0]),
        loss=lambda logits, y, target: -tf.abs(logits[:, 0] - target),
    )  # fmt: skip
    np.testing.assert_allclose(x_adv, peak, atol=0.2 / 2**7)


def test_apgd_leaves_at_the_first_misclassified_point():
    """A narrow band inside the ball is passed through, not ended in: a final point would be right."""
    calls = []

    def logits_fn(x):
        tf.py_function(lambda n: calls.append(int(n)), [tf.shape(x)[0]], [])
        z = x[:, 0]
        wrong = tf.where((z > 0.03) & (z < 0.3), 10 * z, -5 * tf.abs(z))
        return tf.stack([tf.zeros_like(z), wrong], 1)

    x = tf.constant([[0.0], [-3.0]], tf.float64)
    x_adv = COMPILED[apgd](
        logits_fn, x, tf.zeros(2, tf.int64), eps=0.1, steps=10, loss=cw_margin, bounds=(-9.0, 9.0),
        noise=tf.ones((2, 1), tf.float64),
    )  # fmt: skip
    assert float(x_adv[0, 0]) == pytest.approx(0.1)
    assert calls == [2] + [1] * 10  # the first start is broken; the other example goes on alone


# --- fab -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_to_a_plane_in_a_box(norm):
    """On the plane, in the box, and no longer than what bisection on the multiplier finds."""
    x, w = RNG.uniform(size=(50, 12)), RNG.normal(size=(50, 12))
    w[:, 3] = 0
    most = (np.abs(w) * np.where(w > 0, 1 - x, x)).sum(1)
    gap = most * RNG.uniform(0.05, 0.95, 50)
    d = project_to_plane(*map(tf.constant, (x, w, gap)), bounds=(0.0, 1.0), norm=norm).numpy()
    np.testing.assert_allclose((w * d).sum(1), gap, rtol=1e-9)
    assert (x + d >= -1e-12).all()
    assert (x + d <= 1 + 1e-12).all()
    low, high = np.zeros(50), np.full(50, 1e3)
    for _ in range(100):
        middle = (low + high) / 2
        step = middle[:, None] * (np.sign(w) if norm == "linf" else w)
        reached = (w * (np.clip(x + step, 0, 1) - x)).sum(1) >= gap
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    exact = np.clip(x + high[:, None] * (np.sign(w) if norm == "linf" else w), 0, 1) - x
    np.testing.assert_allclose(d, exact, atol=1e-9)


def test_projection_where_the_plane_misses_the_box():
    d = project_to_plane(
        tf.constant([[0.25, 0.5]]), tf.constant([[1.0, -2.0]]), tf.constant([99.0]),
        bounds=(0.0, 1.0), norm="linf",
    )  # fmt: skip
    assert d.numpy().tolist() == [[0.75, -0.5]]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_finds_the_known_distance(norm):
    known = distances(norm)
    for target in range(CLASSES):
        aim = np.where(target == Y, (target + 1) % CLASSES, target)
        x_adv = COMPILED[fab](
            linear, tf.constant(X), tf.constant(Y), target=tf.constant(aim), steps=40,
            bounds=(-9.0, 9.0), norm=norm,
        )  # fmt: skip
        assert _broken(x_adv).all()
        ratio = _size(x_adv, norm) / known[np.arange(40), aim]
        # another boundary may be crossed on the way, never one nearer than the nearest
        assert (_size(x_adv, norm) >= known.min(1)).all()
        assert (ratio <= 1.02).all()


def test_fab_stops_within_eps():
    near = distances("linf").min(1)
    eps = float(np.median(near))
    aim = distances("linf").argmin(1)
    x_adv = COMPILED[fab](
        linear, tf.constant(X), tf.constant(Y), target=tf.constant(aim), steps=40, eps=eps,
        bounds=(0.0, 1.0),
    )  # fmt: skip
    np.testing.assert_array_equal(_size(x_adv, "linf") <= eps, near * 1.02 < eps)


# --- square --------------------------------------------------------------------------------------


def test_square_sides_shrink_as_published():
    """p = 0.8, halved after 10, 50, 200, 500, ... queries, of how many ever; side sqrt(p H W)."""
    sides = [square_side(q, 28, 28) for q in (0, 10, 11, 51, 201, 501, 1001, 2001, 8001)]
    by_hand = [0.8, 0.8, 0.4, 0.2, 0.1, 0.05, 0.025, 0.0125, 0.8 / 512]
    assert sides == [max(round(28 * p**0.5), 1) for p in by_hand]


def test_square_looks_at_its_start_and_at_every_query():
    """So does the authors' code, in squares whose sides do not depend on the number of queries."""
    x = np.full((1, 28, 28, 1), 0.5, "float32")
    seen = []

    def logits_fn(x):
        tf.py_function(lambda x: seen.append(x.numpy()[0, :, :, 0]), [x], [])
        z = 0 * x[:, 0, 0, 0]  # the same everywhere: no square is kept
        return tf.stack([z + 1, z], 1)

    square(logits_fn, x, [0], eps=0.1, bounds=(0.0, 1.0), queries=60)
    assert len(seen) == 1 + 60
    for query in (0, 5, 11, 30, 55):
        changed = np.flatnonzero((seen[query + 1] != seen[0]).any(0))
        assert np.ptp(changed) < square_side(query, 28, 28)


def test_each_target_of_apgd_t_draws_its_own_start(monkeypatch):
    drawn = []

    def watched(*args, **kwargs):
        drawn.append(random_inputs(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(evaluation, "random_inputs", watched)
    _robust("apgd-t", 1e-6, batch_size=40)  # none is broken: every target is tried
    starts = [d["noise"] for d in drawn if d["noise"].any()]  # the clean images have none
    assert len(starts) == CLASSES - 1
    for a, b in itertools.combinations(starts, 2):
        assert (a != b).all(axis=(1, 2, 3)).all()


def test_square_needs_no_gradient():
    """On a linear model every pixel ends at the sign of its weight, seen through rounded logits."""
    w = RNG.normal(size=(3, 3, 3))
    w = np.pad(w, ((0, 1), (0, 1), (0, 0)))  # the last row and column are left out
    x = tf.constant(np.pad(X, ((0, 0), (0, 1), (0, 1), (0, 0))))

    def logits_fn(x):
        z = tf.round(1000 * tf.reduce_sum(x * w, (1, 2, 3))) / 1000
        return tf.stack([tf.zeros_like(z) + 99, z], 1)  # never misclassified: all queries are used

    x_adv = tf.function(square, autograph=False)(
        logits_fn, x, tf.zeros(40, tf.int64), eps=0.1, bounds=(0.0, 1.0), queries=600
    )
    reached = ((x_adv - x).numpy() * w).sum((1, 2, 3)) / (0.1 * np.abs(w).sum())
    assert reached.min() > 0.9
    assert np.abs(x_adv - x).max() <= 0.1 + 1e-12


def test_bumps_by_hand():
    """Rows 1/4 5/4 1/4 above; below minus 1/4 1/4 1/4 and 1/4 5/4 1/4; each half of length 1/sqrt 2."""
    above, below = np.array([[0.25, 1.25, 0.25]]), np.array([[0.25] * 3, [0.25, 1.25, 0.25]])
    by_hand = np.concatenate([above / np.sqrt(1.6875), -below / np.sqrt(1.875)]) / np.sqrt(2)
    np.testing.assert_allclose(bumps(3), by_hand, rtol=1e-12)
    for side in (1, 2, 5, 12):
        assert np.linalg.norm(bumps(side)) == pytest.approx(1)


def test_exchange_moves_the_norm_between_squares():
    """Algorithm 3: all of eps is used, the giving square is empty, the rest is as it was."""
    eps, side, rng = 0.7, 3, np.random.default_rng(0)
    delta = rng.normal(size=(6, 8, 8, 2))
    delta *= 0.9 * eps / np.linalg.norm(delta.reshape(6, -1), axis=1)[:, None, None, None]
    moves = rng.uniform(size=(6, 7)).astype("float32")
    shapes = tf.constant(np.stack([bumps(side), bumps(side).T]))
    new = exchange(*map(tf.constant, (delta, moves)), side, shapes, tf.constant(eps, tf.float64))
    new = new.numpy()
    np.testing.assert_allclose(np.linalg.norm(new.reshape(6, -1), axis=1), eps, rtol=1e-9)
    corners = (moves[:, [0, 1, 4, 5]] * (8 - side)).astype(int)
    for i, (row, column, row_2, column_2) in enumerate(corners):
        mask = np.zeros((8, 8), int)
        mask[row_2 : row_2 + side, column_2 : column_2 + side] = 2
        mask[row : row + side, column : column + side] = 1
        np.testing.assert_array_equal(new[i][mask == 0], delta[i][mask == 0])
        assert not new[i][mask == 2].any()
        # Where nothing was before, the bumps appear as they are, turned by the last number.
        empty = exchange(tf.zeros((1, 8, 8, 2), tf.float64), moves[i : i + 1], side, shapes, eps)
        bump = bumps(side).T if moves[i, -1] < 0.5 else bumps(side)
        for channel in range(2):
            sign = -1 if moves[i, 2 + channel] < 0.5 else 1
            there = empty[0, row : row + side, column : column + side, channel]
            np.testing.assert_allclose(there, sign * bump * eps / np.sqrt(2), rtol=1e-6, atol=1e-9)


def _random_start(shape, n: int, *, eps: float, seed: int, restart: int) -> np.ndarray:
    """PGD's random starts in the l2 ball, [n, *shape]."""
    spec = AttackSpec(name="pgd", norm="l2", random_start=True)
    return random_inputs(
        spec, shape, range(n), eps=eps, seed=seed, restart=restart, dtype=np.float64
    )["noise"]


def test_square_in_l2_on_a_linear_model():
    """It stays in ball and box, and gets much further than as many random points."""
    n, queries, eps, shape = 20, 900, 0.5, (12, 12, 1)
    rng = np.random.default_rng(0)
    x, w = rng.uniform(size=(n, *shape)), rng.normal(size=shape)
    w = w + np.roll(w, 1, 0) + np.roll(w, 1, 1)  # neighbours alike, as in images
    w[-1] = w[:, -1] = 0  # which are left out

    def logits_fn(x):
        z = tf.reduce_sum(x * w, (1, 2, 3))
        return tf.stack([tf.zeros_like(z) + 99, z], 1)

    def reached(x_adv):
        return ((x_adv - x) * w).sum((1, 2, 3)) / (eps * np.linalg.norm(w))

    x_adv = tf.function(square, autograph=False)(
        logits_fn, tf.constant(x), tf.zeros(n, tf.int64), eps=eps, bounds=(0.0, 1.0), norm="l2",
        queries=queries,
    ).numpy()  # fmt: skip
    points = (_random_start(shape, n, eps=eps, seed=0, restart=k) for k in range(queries))
    by_chance = np.max([reached(np.clip(x + d, 0, 1)) for d in points], 0)
    assert (np.linalg.norm((x_adv - x).reshape(n, -1), axis=1) <= eps * (1 + 1e-9)).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (reached(x_adv) > 1.5 * by_chance).all()
    assert reached(x_adv).min() > 0.5


def test_random_start_is_uniform_in_the_l2_ball():
    """The share of the volume within the radius r is (r / eps)^D: uniform in 0..1."""
    noise = _random_start((2, 3, 1), 2000, eps=3.0, seed=1, restart=0).reshape(2000, 6)
    volume = (np.linalg.norm(noise, axis=1) / 3) ** 6
    assert 0 <= volume.min() < volume.max() <= 1
    np.testing.assert_allclose(np.quantile(volume, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.04)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.1)


# --- the loop, the ensemble, its figures -----------------------------------------------------------


def test_shrinking_loop_hands_in_each_answer_once():
    sizes = []

    def step(t, s):
        tf.py_function(lambda n: sizes.append(int(n)), [tf.shape(s["value"])[0]], [])
        value = s["value"] + 1
        return s | {"value": value, "answer": value, "done": value >= 3}

    value = tf.constant([0.0, 2.0, 1.0, 3.0, -9.0])
    state = {"value": value, "answer": value, "done": value >= 3}
    answers = tf.function(lambda s: shrinking_loop(step, s, steps=5), autograph=False)(state)
    assert answers.numpy().tolist() == [3.0, 3.0, 3.0, 3.0, -4.0]
    assert sizes == [4, 3, 2, 1, 1]


def _robust(names: str, eps: float, norm: str = "linf", **changed) -> dict[str, np.ndarray]:
    settings = {"eps": eps, "step_size": eps / 4, "restarts": 1, "loss": "xent", "norm": norm}
    specs = attack_specs(attack_names(names), num_classes=CLASSES, **settings)
    how = dict(pixel_max=1.0, seed=0, batch_size=16, batch_norm="inference", progress=False)
    how |= {"compiled": TRACED}
    return robust_flags(linear, X.astype("float32"), Y, attacks=specs, **(how | changed))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_each_attack_against_the_closed_form(norm):
    """Targeted ones decide every example rightly, and Square in l-inf; cross-entropy need not."""
    eps = float(np.median(distances(norm).min(1)))
    true = distances(norm).min(1) > eps
    found = _robust("pgd20,apgd-ce,apgd-dlr,apgd-t,fab-t,square,autoattack,apgd", eps, norm=norm)
    for name, robust in found.items():
        assert not (true & ~robust).any(), name
        if name == "square":  # it leaves out the last row and column, a large part of these images
            continue
        wrong = (robust & ~true).sum()
        assert wrong <= (4 if name.endswith(("20", "-ce", "-dlr")) else 0), name
    rows = ["autoattack/apgd-ce", "autoattack/apgd-t", "autoattack/fab-t", "autoattack"]
    for earlier, later in itertools.pairwise(rows):
        assert not (found[later] & ~found[earlier]).any()
    for half, whole in zip(("apgd/apgd-ce", "apgd"), rows, strict=False):
        np.testing.assert_array_equal(found[half], found[whole])


def test_brute_force_in_two_dimensions():
    """A curved boundary between four classes: AutoAttack breaks exactly what a fine grid breaks."""

    def logits_fn(x):
        a, b = x[:, 0, 0, 0], x[:, 0, 1, 0]
        z = [(a - 0.5) ** 2 + (b - 0.4) ** 2 - 0.05, a * b - 0.3, 0 * a, 0.3 - a - b**2]
        return tf.stack(z, 1)

    x = RNG.uniform(size=(150, 1, 2, 1)).astype("float32")
    y = tf.argmax(logits_fn(tf.constant(x)), 1).numpy()
    eps = 0.05
    offsets = np.stack(np.meshgrid(*[np.linspace(-eps, eps, 41)] * 2), -1).reshape(-1, 1, 2, 1)
    grid = np.clip(x[:, None] + offsets, 0, 1).astype("float32").reshape(-1, 1, 2, 1)
    labels = tf.argmax(logits_fn(tf.constant(grid)), 1).numpy().reshape(150, -1)
    by_grid = (labels != y[:, None]).any(1)
    assert 0.1 < by_grid.mean() < 0.9
    specs = attack_specs(
        ["autoattack"], eps=eps, step_size=eps, restarts=1, loss="xent", num_classes=4
    )
    found = robust_flags(
        logits_fn, x, y, attacks=specs, pixel_max=1.0, seed=0, batch_size=150,
        batch_norm="inference", progress=False,
    )  # fmt: skip
    broken = ~found["autoattack"]
    assert (broken | ~by_grid).all()
    assert (broken != by_grid).sum() <= 2  # points nearer to the boundary than the grid is fine


def test_neither_batch_size_nor_neighbours_matter():
    eps = float(np.median(distances("linf").min(1)))
    names = "apgd-ce,fab-t,square"
    together, apart = _robust(names, eps, batch_size=40), _robust(names, eps, batch_size=7)
    for name in together:
        np.testing.assert_array_equal(together[name], apart[name])


def test_batch_statistics_are_refused():
    with pytest.raises(UserError, match="alone on batch statistics; received apgd-ce"):
        _robust("clean,apgd-ce", 0.1, batch_norm="batch")


def test_every_setting_is_in_the_results():
    specs = attack_specs(
        ["autoattack"], eps=0.01, step_size=0.1, restarts=3, loss="xent", num_classes=CLASSES
    )
    results = evaluate(
        linear, X.astype("float32")[:8], Y[:8], attacks=specs, pixel_max=1.0, seed=4, batch_size=8,
        progress=False,
    )  # fmt: skip
    row = results["autoattack/apgd-t"]
    assert (row["kind"], row["steps"], row["targets"], row["loss"]) == (
        "apgd",
        100,
        4,
        "dlr_targeted",
    )
    assert (row["after"], row["restarts"], row["seed"]) == ("autoattack/apgd-ce", 1, 4)
    assert (results["autoattack"]["kind"], results["autoattack"]["steps"]) == ("square", 5000)
    shown = table(
        {
            "dataset": "d",
            "split": "test",
            "data": "tfds",
            "pixel_max": 1.0,
            "doubts": [],
            "results": results,
        }
    )
    assert "1 x 4 targets" in shown


# --- resuming ------------------------------------------------------------------------------------


class _Killed(Exception):
    pass


def test_killed_evaluation_resumes_where_it_was(tmp_path, monkeypatch):
    eps = float(np.median(distances("linf").min(1)))
    whole = _robust("pgd5,autoattack", eps)
    put, lines = Journal.put, []

    def dies(self, key, robust):
        put(self, key, robust)
        lines.append(key)
        if len(lines) == 9:
            raise _Killed

    monkeypatch.setattr(Journal, "put", dies)
    with pytest.raises(_Killed):
        _robust("pgd5,autoattack", eps, journal=Journal(tmp_path / "j", "model"))
    with open(tmp_path / "j", "a") as file:
        file.write('{"key": "half a li')
    before = list(lines)
    monkeypatch.setattr(Journal, "put", lambda self, *a: (put(self, *a), lines.append(a[0])))
    again = _robust("pgd5,autoattack", eps, journal=Journal(tmp_path / "j", "model"))
    for name in whole:
        np.testing.assert_array_equal(again[name], whole[name])
    assert len(set(lines)) == len(lines) > len(before)  # nothing was done twice
    done = list(lines)
    _robust("pgd5,autoattack", eps, journal=Journal(tmp_path / "j", "model"))
    assert lines == done  # nothing was attacked again


@pytest.mark.parametrize("change", [{"seed": 1}, {"identity": "other"}, {"eps": 0.001}])
def test_a_journal_answers_for_its_own_settings_alone(tmp_path, change):
    _robust("apgd-ce", 0.01, journal=Journal(tmp_path / "j", "model"))
    size = (tmp_path / "j").stat().st_size
    _robust("apgd-ce", 0.01, journal=Journal(tmp_path / "j", "model"))
    assert (tmp_path / "j").stat().st_size == size
    settings = {"seed": 0, "identity": "model", "eps": 0.01} | change
    journal = Journal(tmp_path / "j", settings.pop("identity"))
    _robust("apgd-ce", settings.pop("eps"), journal=journal, **settings)
    assert (tmp_path / "j").stat().st_size > size


def test_a_file_that_is_no_journal(tmp_path):
    (tmp_path / "j").write_text(json.dumps({"accuracy": 1}) + "\n")
    with pytest.raises(UserError, match=r"expected a journal of an evaluation in .*j"):
        Journal(tmp_path / "j", "model")
    with pytest.raises(UserError, match="expected to read and write"):
        Journal(tmp_path / "no" / "j", "model")


def test_identity_of_a_model():
    a, b = MnistCNN(), MnistCNN()
    for model in (a, b):
        model.build((None, 28, 28, 1))
    assert model_identity(a) != model_identity(b)
    b.set_weights(a.get_weights())
    assert model_identity(a) == model_identity(b)
    assert model_identity(a) != model_identity(keras.Sequential([keras.layers.Dense(3)]))


def test_attributes_of_ones_own_class_belong_to_its_identity():
    class Tempered(keras.Model):
        temperature = 1.0

        def call(self, x, training=False):
            return x / self.temperature

    a, b = Tempered(), Tempered()
    assert model_identity(a) == model_identity(b)
    b.temperature = 2.0
    assert model_identity(a) != model_identity(b)
