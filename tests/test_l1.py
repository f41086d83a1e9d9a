"""The attacks in l1: projections and steps by hand, and the exact distances of linear models."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import igam_tf
from igam_tf.attacks import apgd, attack_names, attack_specs, fab, pgd, square
from igam_tf.attacks.fab import project_to_plane
from igam_tf.attacks.norms import dual_length, length, project, unit
from igam_tf.attacks.sparse import schedule, sparse_step
from igam_tf.attacks.square import bumps, exchange
from igam_tf.common.errors import UserError
from igam_tf.evaluation.robust import robust_flags

RNG = np.random.default_rng(0)
CLASSES, N, D = 4, 40, 48
W = RNG.normal(size=(D, CLASSES))
X = RNG.integers(40, 216, size=(N, 4, 4, 3)).astype(np.uint8)


def linear(x):
    """Four classes, for which the distance of each x in 0..1 to each boundary is known."""
    return tf.reshape(x - 0.5, [-1, D]) @ tf.constant(W, x.dtype)


LOGITS = linear(tf.constant(X / 255)).numpy()
Y = LOGITS.argmax(1)


def cheapest(x: np.ndarray, w: np.ndarray, gap: float) -> np.ndarray:
    """The shortest d in l1 with <w, d> = gap and x + d in 0..1: the largest weights first."""
    d = np.zeros_like(x)
    for i in np.argsort(-np.abs(w)):
        if gap <= 1e-12:
            return d
        room = 1 - x[i] if w[i] > 0 else x[i]
        d[i] = np.sign(w[i]) * min(room, gap / abs(w[i]))
        gap -= w[i] * d[i]
    return np.full_like(x, np.inf)


def nearest() -> np.ndarray:
    """Distance of each x to the nearest boundary within 0..1, [N]."""
    each = [
        min(
            np.abs(cheapest(x.ravel() / 255, W[:, k] - W[:, y], z[y] - z[k])).sum()
            for k in range(CLASSES) if k != y
        )
        for x, y, z in zip(X, Y, LOGITS, strict=True)
    ]  # fmt: skip
    return np.array(each)


def test_lengths_by_hand():
    v = tf.constant([[3.0, -4.0], [0.0, 0.0]])
    assert length(v, "l1").numpy().tolist() == [7.0, 0.0]
    assert dual_length(v, "l1").numpy().tolist() == [4.0, 0.0]
    assert dual_length(v, "linf").numpy().tolist() == [7.0, 0.0]
    np.testing.assert_allclose(unit(v, "l1"), [[3 / 7, -4 / 7], [0, 0]], rtol=1e-6)


def test_projection_to_ball_and_box():
    """By hand, and the nearest point: no feasible point on the way to another one is nearer."""
    x, far = tf.constant([[0.5, 0.5, 0.9]], tf.float64), tf.constant([[1.1, 0.3, 1.4]], tf.float64)
    by_hand = [[0.95, 0.45, 1.0]]  # the threshold is 0.15: 0.45 + 0.05 + 0.1 of 0.6 + 0.2 + 0.5
    found = project(far, x, eps=0.6, bounds=(0.0, 1.0), norm="l1")
    np.testing.assert_allclose(found, by_hand, atol=1e-12)
    x, far = RNG.uniform(size=(60, 30)), RNG.normal(scale=2, size=(60, 30))
    eps = RNG.uniform(0.1, 20)
    d = project(tf.constant(far), tf.constant(x), eps=eps, bounds=(0.0, 1.0), norm="l1").numpy() - x
    assert (np.abs(d).sum(1) <= eps * (1 + 1e-9)).all()
    assert (np.abs(x + d - 0.5) <= 0.5 + 1e-9).all()
    for _ in range(20):  # <far - p, q - p> <= 0 for every q of a convex set, at its nearest point p
        q = np.clip(x + unit(tf.constant(RNG.laplace(size=x.shape)), "l1").numpy() * eps, 0, 1)
        assert (((far - x - d) * (q - x - d)).sum(1) <= 1e-9).all()
    near = tf.constant(x + 0.001 * np.sign(0.5 - x))
    inside = project(near, tf.constant(x), eps=eps, bounds=(0.0, 1.0), norm="l1")
    np.testing.assert_allclose(inside, near, atol=1e-12)


def test_projection_to_a_plane_takes_the_largest_weights_first():
    x, w = RNG.uniform(size=(30, 12)), RNG.normal(size=(30, 12))
    w[:, 3] = 0
    gap = (np.abs(w) * np.where(w > 0, 1 - x, x)).sum(1) * RNG.uniform(0.05, 0.95, 30)
    d = project_to_plane(*map(tf.constant, (x, w, gap)), bounds=(0.0, 1.0), norm="l1").numpy()
    exact = [cheapest(*each) for each in zip(x, w, gap, strict=True)]
    np.testing.assert_allclose(d, exact, atol=1e-9)
    d = project_to_plane(
        tf.constant([[0.25, 0.5]]), tf.constant([[1.0, -2.0]]), tf.constant([99.0]),
        bounds=(0.0, 1.0), norm="l1",
    )  # fmt: skip
    assert d.numpy().tolist() == [[0.75, -0.5]]


def test_one_sparse_step_by_hand():
    """From the image, in one ball: a fifth of ten pixels, each by half of eps, along the gradient."""
    assert schedule(100) == [30, 30, 40]
    w = tf.constant([0.1, -0.2, 5.0, 0.3, 0.0, -7.0, 0.4, 0.1, 1.0, 0.2], tf.float64)
    step = sparse_step(w[None], tf.constant([0.25], tf.float64))  # rank 7 of 10: three pixels
    np.testing.assert_allclose(step[0], [0, 0, 1 / 3, 0, 0, -1 / 3, 0, 0, 1 / 3, 0])

    def logits_fn(x):
        z = tf.linalg.matvec(x, w)
        return tf.stack([0 * z + 99, z], 1)

    x = tf.fill((1, 10), tf.constant(0.5, tf.float64))
    x_adv = apgd(
        logits_fn, x, [0], eps=0.4, bounds=(0.0, 1.0), steps=1, noise=0 * x, norm="l1", radii=(1.0,)
    )
    np.testing.assert_allclose((x_adv - x)[0], [0, 0, 0.2, 0, 0, -0.2, 0, 0, 0, 0], atol=1e-12)


def test_apgd_finds_the_one_pixel_that_counts_most():
    """A linear loss is largest where the pixels of the largest weights are at their ends."""
    w, x = RNG.normal(size=20), RNG.uniform(0.3, 0.7, size=(6, 20))

    def logits_fn(x):
        z = tf.linalg.matvec(x, tf.constant(w))
        return tf.stack([0 * z + 99, z], 1)

    eps = 1.2
    x_adv = tf.function(apgd, autograph=False)(
        logits_fn, tf.constant(x), tf.zeros(6, tf.int64), eps=eps, bounds=(0.0, 1.0), norm="l1",
        loss="cw",
    ).numpy()  # fmt: skip
    assert (np.abs(x_adv - x).sum(1) <= eps * (1 + 1e-9)).all()
    for before, after in zip(x, x_adv, strict=True):
        most, left = 0.0, eps  # the best of all points of the ball: greedy
        for i in np.argsort(-np.abs(w)):
            move = min(left, 1 - before[i] if w[i] > 0 else before[i])
            most, left = most + abs(w[i]) * move, left - move
        assert ((after - before) * w).sum() > 0.98 * most


def _robust(names: str, eps: float, pixel_max: float = 1.0) -> dict[str, np.ndarray]:
    specs = attack_specs(
        attack_names(names), eps=eps, step_size=eps, restarts=1, loss="xent", num_classes=CLASSES,
        norm="l1",
    )  # fmt: skip
    return robust_flags(
        lambda x: linear(x / pixel_max), X, Y, attacks=specs, pixel_max=pixel_max, seed=0,
        batch_size=N, batch_norm="inference", progress=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("names", "pixel_max"),
    [
        ("apgd-ce,fab-t", 255.0),
        pytest.param("apgd-t,fab", 255.0, marks=pytest.mark.slow),
        pytest.param("apgd-ce,fab,square,autoattack", 1.0, marks=pytest.mark.slow),
    ],
)
def test_each_attack_against_the_closed_form(names, pixel_max):
    """In pixels of 0..255 and of 0..1: eps and the starts are fractions of the pixel range."""
    eps = float(np.median(nearest()))
    ratio = nearest() / eps
    for name, robust in _robust(names, eps, pixel_max).items():
        assert not (~robust & (ratio > 1.0001)).any(), name
        if name != "square":  # it leaves out the last row and column
            most = 3 if name.endswith(("-ce", "fab")) else 0
            assert (robust & (ratio < 0.98)).sum() <= most, name


def test_fab_finds_the_known_distance():
    """The smallest distance of a two-class model, where the box cuts most pixels."""
    two = lambda x: linear(x)[:, :2]  # noqa: E731
    x = X / 255
    y = LOGITS[:, :2].argmax(1)
    known = [
        np.abs(cheapest(i.ravel(), W[:, 1 - k] - W[:, k], z[k] - z[1 - k])).sum()
        for i, k, z in zip(x, y, LOGITS, strict=True)
    ]
    x_adv = tf.function(fab, autograph=False)(
        two, tf.constant(x), tf.constant(y), target=tf.constant(1 - y), steps=40, bounds=(0.0, 1.0),
        norm="l1",
    ).numpy()  # fmt: skip
    assert (two(tf.constant(x_adv)).numpy().argmax(1) != y).all()
    ratio = np.abs(x_adv - x).reshape(N, -1).sum(1) / known
    assert (ratio >= 1).all()
    assert (ratio <= 1.02).all()


def test_square_moves_what_the_l1_ball_allows():
    """Bumps fall with the fourth power; a query fills eps; all points stay in ball and box."""
    above, below = np.array([[1.0, 17.0, 1.0]]), np.array([[1.0] * 3, [1.0, 17.0, 1.0]])
    by_hand = np.concatenate([above / 19 / 2, -below / 22 / 2])  # 1/16 and 1 + 1/16, halves of 1/2
    np.testing.assert_allclose(bumps(3, "l1"), by_hand, rtol=1e-12)
    eps, side, rng = 3.0, 3, np.random.default_rng(0)
    delta = rng.normal(size=(6, 8, 8, 2))
    delta *= 0.9 * eps / np.abs(delta).sum((1, 2, 3), keepdims=True)
    moves = rng.uniform(size=(6, 7)).astype("float32")
    shapes = tf.constant(np.stack([bumps(side, "l1"), bumps(side, "l1").T]))
    new = exchange(
        *map(tf.constant, (delta, moves)), side, shapes, tf.constant(eps, tf.float64), "l1"
    ).numpy()
    corners = (moves[:, [0, 1, 4, 5]] * (8 - side)).astype(int)
    for old, now, (row, column, row_2, column_2) in zip(delta, new, corners, strict=True):
        either = np.zeros((8, 8, 1), bool)
        either[row_2 : row_2 + side, column_2 : column_2 + side] = True
        either[row : row + side, column : column + side] = True
        outside, inside = np.abs(now * ~either).sum(), np.abs(now * either).sum((0, 1))
        assert outside == pytest.approx(np.abs(old * ~either).sum())
        there = np.abs(old * either).sum((0, 1))
        np.testing.assert_allclose(
            inside, 2 * there + 0.1 * eps, rtol=1e-6
        )  # before it is projected
    w = np.ones((4, 4, 3))
    w[-1] = w[:, -1] = 0
    x_adv = tf.function(square, autograph=False)(
        lambda x: tf.stack([99 + 0 * x[:, 0, 0, 0], tf.reduce_sum(x * w, (1, 2, 3))], 1),
        tf.constant(X / 255), tf.zeros(N, tf.int64), eps=2.0, bounds=(0.0, 1.0), norm="l1", queries=200,
    ).numpy()  # fmt: skip
    d = x_adv - X / 255
    assert (np.abs(d).sum((1, 2, 3)) <= 2 * (1 + 1e-9)).all()
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert (d * w).sum((1, 2, 3)).mean() > 1.2  # of 2; squares of 3 x 3 are coarse here


def test_the_report_and_the_look_know_l1():
    """Five starts and five targets, as in the standard version; eps may exceed 1."""
    specs = attack_specs(
        ["autoattack"], eps=12, step_size=1, restarts=1, loss="xent", norm="l1", num_classes=10
    )
    assert [(s.restarts, s.targets) for s in specs] == [(5, 0), (1, 5), (1, 9), (1, 0)]
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
    model.build((None, 4, 4, 3))
    model.set_weights([W[:, :2], -0.5 * W[:, :2].sum(0)])
    y = LOGITS[:, :2].argmax(1)
    report = igam_tf.evaluate(model, X, y, "clean,apgd-ce", eps=2.0, pixel_max=1.0, norm="l1")
    row = report["results"]["apgd-ce"]
    assert row["eps_unit"] == "l1, fraction of the pixel range"
    assert row["accuracy"] < 100
    assert not report["doubts"]


@pytest.mark.parametrize("name", ["pgd20", "fgsm", "autoattack-plus"])
def test_what_l1_does_not_have(name):
    with pytest.raises(UserError, match=f"expected {name} with norm linf or l2; received l1"):
        attack_specs([name], eps=1, step_size=1, restarts=1, loss="xent", norm="l1")


def test_pgd_itself_refuses_l1():
    x = tf.zeros((1, 2))
    with pytest.raises(UserError, match="expected pgd with norm linf or l2; received l1"):
        pgd(lambda x: x, x, [0], eps=1.0, step_size=1.0, steps=1, bounds=(0.0, 1.0), norm="l1")
