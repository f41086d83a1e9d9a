"""AutoAttack's versions: what they are made of, untargeted FAB, and averaged gradients."""

import math
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

import igam_tf
from igam_tf.attacks import apgd, attack_names, attack_specs, fab, kinds
from igam_tf.attacks.direction import mean_direction
from igam_tf.evaluation.robust import robust_flags

RNG = np.random.default_rng(0)
CLASSES, N = 5, 30
W = RNG.normal(size=(12, CLASSES))
X = RNG.uniform(0.2, 0.8, size=(N, 2, 2, 3))


def linear(x):
    """Five classes, for which the distance of each x to each boundary is known."""
    return tf.reshape(x - 0.5, [-1, 12]) @ tf.constant(W, x.dtype)


LOGITS = linear(tf.constant(X)).numpy()
Y = LOGITS.argmax(1)


def nearest(norm: str) -> np.ndarray:
    """Distance of each x to the nearest boundary, [N]."""
    gap = LOGITS[np.arange(N), Y][:, None] - LOGITS
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    normal = np.linalg.norm(W[:, Y].T[:, :, None] - W[None], dual, axis=1)
    return np.where(np.arange(CLASSES) == Y[:, None], np.inf, gap / np.maximum(normal, 1e-9)).min(1)


def specs_of(name: str, **changed) -> list:
    settings = dict(eps=0.1, step_size=0.1, restarts=1, loss="xent", num_classes=10) | changed
    return attack_specs(attack_names(name), **settings)


def test_versions_as_published():
    """Parts, starts, targets and averaged gradients of each; set_version of the authors' code."""
    made = {
        name: [
            (s.name.split("/")[-1], s.kind, s.steps, s.restarts, s.targets, s.eot)
            for s in specs_of(name)
        ]
        for name in ("autoattack", "autoattack-plus", "autoattack-rand", "autoattack:fab+apgd-ce")
    }
    ce, dlr = ("apgd-ce", "apgd", 100), ("apgd-dlr", "apgd", 100)
    apgd_t, fab_t = ("apgd-t", "apgd", 100, 1, 9, 1), ("fab-t", "fab", 100, 1, 9, 1)
    square, untargeted = ("square", "square", 5000, 1, 0, 1), ("fab", "fab", 100, 5, 0, 1)
    assert made == {
        "autoattack": [(*ce, 1, 0, 1), apgd_t, fab_t, ("autoattack", *square[1:])],
        "autoattack-plus": [
            (*ce, 5, 0, 1), (*dlr, 5, 0, 1), untargeted, square, apgd_t,
            ("autoattack-plus", *fab_t[1:]),
        ],
        "autoattack-rand": [(*ce, 1, 0, 20), ("autoattack-rand", *dlr[1:], 1, 0, 20)],
        "autoattack:fab+apgd-ce": [untargeted, ("autoattack:fab+apgd-ce", *ce[1:], 5, 0, 1)],
    }  # fmt: skip
    plus = specs_of("autoattack-plus")
    assert [s.after for s in plus] == [None, *(s.name for s in plus[:-1])]
    alone = specs_of("autoattack", individual=True)
    assert [s.name for s in alone] == [
        f"autoattack/{s}" for s in ("apgd-ce", "apgd-t", "fab-t", "square")
    ]
    assert not any(s.after for s in alone)


def test_older_journals_remain_in_use():
    (old,), (_, new) = specs_of("apgd-dlr"), specs_of("autoattack-rand")
    assert "eot" not in old.settings()
    assert new.settings() == old.settings() | {"eot": 20}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_untargeted_fab_finds_the_nearest_boundary(norm):
    """From the image and from a point beside it, which may be behind a boundary."""
    beside = X + RNG.normal(scale=0.02, size=X.shape)
    attack = tf.function(fab, autograph=False)
    for start in (None, tf.constant(beside)):
        x_adv = attack(
            linear, tf.constant(X), tf.constant(Y), steps=40, bounds=(-9.0, 9.0), norm=norm,
            start=start,
        ).numpy()  # fmt: skip
        assert (linear(tf.constant(x_adv)).numpy().argmax(1) != Y).all()
        size = np.linalg.norm((x_adv - X).reshape(N, -1), {"linf": np.inf}.get(norm, 2), axis=1)
        assert (size >= nearest(norm)).all()
        assert (size <= 1.02 * nearest(norm)).mean() > 0.9  # it may end at the second nearest


TRACED: dict = {}  # of `linear`, once for all calls


def _robust(name: str, eps: float, **changed) -> dict[str, np.ndarray]:
    specs = specs_of(name, eps=eps, num_classes=CLASSES, **changed)
    return robust_flags(
        linear, X.astype("float32"), Y, attacks=specs, pixel_max=1.0, seed=0, batch_size=N,
        batch_norm="inference", progress=False, compiled=TRACED,
    )  # fmt: skip


def test_an_ensemble_one_by_one_and_in_a_row():
    """Alone, each attack breaks what it breaks under its own name; in a row they break as many."""
    eps = float(np.median(nearest("linf")))
    custom, parts = "autoattack:apgd-dlr+fab+square", ("apgd-dlr", "fab", "square")
    alone = _robust(custom, eps, individual=True)
    by_name = _robust("fab,square", eps)
    for part in by_name:
        np.testing.assert_array_equal(alone[f"{custom}/{part}"], by_name[part])
    worst = np.logical_and.reduce([alone[f"{custom}/{part}"] for part in parts])
    in_a_row = _robust(custom, eps)
    np.testing.assert_array_equal(in_a_row[custom], worst)
    np.testing.assert_array_equal(worst, nearest("linf") > eps * 1.0001)


class Cycle:
    """A network whose logits of an x [B,1] are (0, slope x), the slope another in each call."""

    def __init__(self, *slopes: float):
        self.slopes, self.calls = tf.constant(slopes, tf.float64), tf.Variable(0)

    def __call__(self, x):
        slope = self.slopes[(self.calls.assign_add(1) - 1) % len(self.slopes)]
        z = slope * x[:, 0]
        return tf.stack([tf.zeros_like(z), z], 1)


def test_gradients_are_averaged_in_their_size():
    """Of three draws two point down; the third is steeper than both together."""
    x, y = tf.constant([[2.0], [3.0]], tf.float64), tf.constant([0, 0])
    loss = lambda z, y: z[:, 1]  # noqa: E731
    gradient, value, logits = mean_direction(Cycle(-1.0, 5.0, -2.0), x, y, loss, eot=3)
    assert gradient.numpy().ravel().tolist() == [1.0, 1.0]
    assert value.numpy().tolist() == [-4.0, -6.0]  # of the last draw
    assert logits.numpy().tolist() == [[0.0, -4.0], [0.0, -6.0]]
    gradient, *_ = mean_direction(Cycle(-1.0, 5.0, -5.0), x, y, loss, eot=3)
    assert gradient.numpy().ravel().tolist() == [-1.0, -1.0]


def test_a_random_network_is_searched_to_the_end():
    """The last point that was misclassified in the last of its draws comes back, else the image."""
    how = dict(eps=0.5, bounds=(-9.0, 9.0), steps=3, eot=2, noise=tf.constant([[-1.0]], tf.float64))
    x, y = tf.zeros((1, 1), tf.float64), [0]
    network = Cycle(5.0, 1.0)  # right below 0, in each draw
    x_adv = apgd(network, x, y, loss=lambda z, y: z[:, 1], **how)
    assert int(network.calls) == 2 * (1 + 3)
    assert float(x_adv[0, 0]) == 0.5
    never = Cycle(5.0, 0.0)  # its last draw is right everywhere
    assert float(apgd(never, x, y, loss=lambda z, y: z[:, 1], **how)[0, 0]) == 0.0


def test_the_version_for_random_networks_in_closed_form():
    """Normal noise of known size on the margin of a linear network: each look is a draw of its own.

    Its first attack goes to the corner of the ball, where the margin is eps |w|_1 lower, and looks
    there in each step. If no draw is misclassified, it returns the image.
    """
    rng, n, eps, noise = np.random.default_rng(3), 1500, 0.05, 0.3
    w = 2 * rng.normal(size=8)
    x = rng.uniform(0.3, 0.7, size=(n, 2, 2, 2)).astype("float32")
    margin = (x.reshape(n, 8) - 0.5) @ w
    y = (margin < 0).astype(int)
    margin = np.abs(margin)

    def noisy(x):
        z = tf.reshape(x - 0.5, [-1, 8]) @ tf.constant(w[:, None], x.dtype)
        z += noise * tf.random.normal(tf.shape(z), seed=1)
        return tf.concat([z, 0 * z, 0 * z - 9], 1)

    tf.random.set_seed(0)
    no_attack, first, _ = specs_of("clean,autoattack-rand", eps=eps, num_classes=3)
    steps = 8
    found = robust_flags(
        noisy, x, y, attacks=[no_attack, replace(first, steps=steps)],
        pixel_max=1.0, seed=0, batch_size=n, batch_norm="inference", progress=False, scale=1.0,
    )  # fmt: skip
    clean, corner = (
        np.array([0.5 + 0.5 * math.erf(m / noise / 2**0.5) for m in margins])
        for margins in (margin, margin - eps * np.abs(w).sum())
    )
    missed = corner**steps
    expected = (clean, clean * ((1 - missed) * corner + missed * clean))
    for right, share in zip(found.values(), expected, strict=True):
        deviation = np.sqrt((share * (1 - share)).sum()) / n
        assert abs(right.mean() - share.mean()) < 3.5 * deviation
    assert expected[0].mean() - expected[1].mean() > 0.05


class Noisy(keras.layers.Layer):
    """Adds noise to its input in each call."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + 0.4 * keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def test_the_remedy_for_a_random_network(monkeypatch):
    """The doubt names autoattack-rand; with it the doubt is gone, and rows and table say eot=20.

    The smallest eps is of single draws all the same.
    """
    flat = keras.layers.Flatten()
    model = keras.Sequential([keras.Input((2, 2, 3)), Noisy(), flat, keras.layers.Dense(CLASSES)])
    model.layers[-1].set_weights([W, -0.5 * W.sum(0)])
    x = X.astype("float32")
    report = igam_tf.evaluate(model, x, Y, "clean,pgd2", eps=0.05, pixel_max=1.0)
    (doubt,) = (d for d in report["doubts"] if d["code"] == "random")
    assert "--attacks=autoattack-rand" in doubt["remedy"]
    half = kinds.Ensemble(("apgd-ce",), eot=20)
    monkeypatch.setitem(kinds.ENSEMBLES, "autoattack-rand", half)
    report = igam_tf.evaluate(model, x, Y, "clean,autoattack-rand", eps=0.05, pixel_max=1.0)
    assert "random" not in {d["code"] for d in report["doubts"]}
    results = report["results"]
    assert results["autoattack-rand"]["eot"] == 20
    assert results["autoattack-rand"]["accuracy"] < results["clean"]["accuracy"]
    assert "eot=20" in igam_tf.evaluation.evaluate.table(report)
    monkeypatch.setattr(igam_tf.evaluation.evaluate, "smallest_eps", lambda *_, **__: {})
    report = igam_tf.evaluate(
        model, x[:2], Y[:2], "autoattack-rand", eps=0.05, pixel_max=1.0, smallest_eps=True
    )
    assert "random" in {d["code"] for d in report["doubts"]}
