"""Attacks towards a given class: closed forms, success and its interval, and wrong uses."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import igam_tf
from igam_tf.attacks import attack_names, attack_specs, pgd
from igam_tf.attacks.attack_losses import aimed_at, aimed_loss, reached
from igam_tf.common.errors import UserError
from igam_tf.evaluation.evaluate import evaluate, table
from igam_tf.evaluation.robust import robust_flags
from igam_tf.formulas.statistics import wilson_interval
from igam_tf.storage.journal import Journal, mask_of_text

RNG = np.random.default_rng(3)
CLASSES, N, D = 5, 40, 27
W = RNG.normal(size=(D, CLASSES))
X = RNG.uniform(0.3, 0.7, size=(N, 3, 3, 3)).astype("float32")  # eps below meets no bound


def linear(x):
    """Five classes, for which the loss of a target is known."""
    return tf.reshape(x - 0.5, [-1, D]) @ tf.constant(W, x.dtype)


LOGITS = linear(tf.constant(X)).numpy()
Y = LOGITS.argmax(1)


def specs_of(names: str, eps: float, **changed) -> list:
    settings = dict(step_size=eps / 4, restarts=1, loss="xent", num_classes=CLASSES) | changed
    return attack_specs(attack_names(names), eps=eps, **settings)


TRACED: dict = {}  # of `linear`, once for all tests


def found(names: str, eps: float, journal=None, batch_size=N, **changed) -> tuple[dict, dict]:
    """(robust masks, successes) of attacks on the linear model."""
    successes: dict = {}
    masks = robust_flags(
        linear, X, Y, attacks=specs_of(names, eps, **changed), pixel_max=1.0, seed=0,
        batch_size=batch_size, batch_norm="inference", progress=False, journal=journal,
        successes=successes, compiled=TRACED,
    )  # fmt: skip
    return masks, successes


def test_losses_and_targets_by_hand():
    z, y = tf.constant([[3.0, 1.0, 2.0, 0.0]] * 2), tf.constant([0, 1])
    t = tf.constant([2, 0])
    p = np.exp([3.0, 1, 2, 0]) / np.exp([3.0, 1, 2, 0]).sum()
    np.testing.assert_allclose(
        aimed_loss("xent")(z, y, t), np.log([p[2] / (1 - p[2]), p[0] / (1 - p[0])]), rtol=1e-5
    )
    np.testing.assert_allclose(aimed_loss("cw")(z, y, t), [-1.0, 1.0])
    np.testing.assert_allclose(aimed_loss("dlr")(z, y, t), [-1 / 2.5, 2 / 2.5], rtol=1e-6)
    assert reached(z, t).numpy().tolist() == [False, True]
    assert aimed_at("least_likely", z, y, None).numpy().tolist() == [3, 3]
    assert aimed_at("1", z, y, None).numpy().tolist() == [1, 1]
    share = tf.constant(np.linspace(0, 1, 3001)[:-1], tf.float32)
    at = aimed_at("random", tf.repeat(z[:1], 3000, 0), tf.ones(3000, tf.int64), share).numpy()
    assert np.bincount(at).tolist() == [1000, 0, 1000, 1000]


def test_a_step_towards_a_class_goes_along_its_weights():
    """In l2 one step from x along the gradient of -log odds of the target."""
    x, y, t = tf.constant(X[:4], tf.float64), tf.constant(Y[:4]), tf.constant((Y[:4] + 2) % CLASSES)
    x_adv = pgd(
        linear, x, y, eps=0.1, step_size=0.1, steps=1, bounds=(0.0, 1.0), norm="l2", target=t,
        loss=aimed_loss("cw"),
    ).numpy()  # fmt: skip
    z = LOGITS[:4].copy()
    z[np.arange(4), t] = -np.inf
    w = W[:, t].T - W[:, z.argmax(1)].T
    expected = 0.1 * w / np.linalg.norm(w, axis=1, keepdims=True)
    np.testing.assert_allclose((x_adv - X[:4]).reshape(4, -1), expected, atol=1e-6)


def nearest(target: np.ndarray) -> np.ndarray:
    """A lower bound of the l-inf distance to the region of each image's target, [N]."""
    gap = LOGITS - LOGITS[np.arange(N), target][:, None]
    normal = np.abs(W[:, :, None] - W[:, None]).sum(0)[:, target].T  # [N,K]
    return (gap / np.maximum(normal, 1e-9)).max(1)


@pytest.mark.parametrize("targets", ["random", "least_likely", 2])
def test_success_against_the_closed_form(targets):
    """None is reached below the distance of its region; with twice as much PGD reaches nearly all."""
    names = {"random": "pgd40,square"}.get(targets, "pgd40,apgd-ce,apgd-dlr")
    masks, far = found(names, 0.12, targets=targets)
    _, near = found(names, 0.02, targets=targets)
    at = {2: np.full(N, 2), "least_likely": LOGITS.argmin(1)}.get(targets)
    for name, (attacked, got) in far.items():
        assert not (got & ~attacked).any()
        assert not (got & masks[name]).any()  # another class is no longer right
        assert got.sum() >= near[name].reached.sum(), name
        if at is None:
            assert attacked.all()
            continue
        np.testing.assert_array_equal(attacked, at != Y)
        assert not (got & (nearest(at) > 0.12)).any()
        assert not (near[name].reached & (nearest(at) > 0.02)).any()
        easy = attacked & (nearest(at) < 0.05)
        assert (got & easy).sum() >= 0.9 * easy.sum()


def test_random_targets_are_of_the_image_not_of_batch_or_attack(tmp_path):
    """And a journal answers for its own targets alone."""
    journal = Journal(tmp_path / "j", "model")
    names = "pgd5,pgd40"
    masks, whole = found(names, 0.1, targets="random", journal=journal)
    lines = (tmp_path / "j").read_text().count("\n")
    again, parts = found(names, 0.1, targets="random", journal=journal)
    assert (tmp_path / "j").read_text().count("\n") == lines == 5  # clean, and two masks of each
    _, small = found(names, 0.1, targets="random", batch_size=7)
    for name in whole:
        np.testing.assert_array_equal(whole[name].reached, parts[name].reached)
        np.testing.assert_array_equal(whole[name].reached, small[name].reached)
        np.testing.assert_array_equal(masks[name], again[name])
    assert not (whole["pgd5"].reached & ~whole["pgd40"].reached).any()
    plain, none = found(names, 0.1, journal=journal)
    assert not none
    assert plain["pgd40"].sum() <= masks["pgd40"].sum()


def test_restarts_go_on_until_the_target_is_reached():
    """A second start attacks what did not reach it, though it is wrong already."""
    _, one = found("pgd2", 0.08, targets="least_likely")
    _, three = found("pgd2", 0.08, targets="least_likely", restarts=3)
    assert not (one["pgd2"].reached & ~three["pgd2"].reached).any()
    assert three["pgd2"].attacked.all()


def test_success_is_reported_beside_the_accuracy():
    """Share, interval and mask by hand; the table has its own columns; no doubt about weak attacks."""
    report = {"results": evaluate(
        linear, X, Y, attacks=specs_of("clean,pgd20", 0.1, targets=1), pixel_max=1.0, seed=0,
        batch_size=N, progress=False,
    )}  # fmt: skip
    row = report["results"]["pgd20"]
    got = mask_of_text(row["reached_mask"])
    m = int((Y != 1).sum())
    assert (row["aim"], row["attacked"]) == ("1", m)
    assert row["success"] == pytest.approx(100 * got.sum() / m)
    interval = [round(100 * end, 4) for end in wilson_interval(int(got.sum()), m)]
    assert row["success_ci95"] == interval
    assert "success" not in report["results"]["clean"]
    report |= {"dataset": "d", "split": "test", "data": "tfds", "pixel_max": 1.0, "doubts": []}
    shown = table(report)
    assert "success %" in shown
    assert f"{row['success']:.2f}" in shown
    several = table(report | {"radii": [{"eps": 0.1, "results": report["results"]}] * 2})
    (line,) = (line for line in several.splitlines() if line.startswith("pgd20, success"))
    assert line.count(f" {row['success']:.2f} (") == 2
    same = Y == 1
    nothing = evaluate(
        linear, X[same], Y[same], attacks=specs_of("pgd5", 0.1, targets=1), pixel_max=1.0, seed=0,
        batch_size=N, progress=False,
    )  # fmt: skip
    assert (nothing["pgd5"]["success"], nothing["pgd5"]["attacked"]) == (None, 0)
    json.dumps(nothing)


# --- wrong uses --------------------------------------------------------------------------------------

WRONG = {
    "a class that the network lacks": ({"targets": 5}, "a class of 0..4; received 5"),
    "a negative class": ({"targets": -1}, "a class of 0..4; received -1"),
    "no class": ({"targets": "likely"}, "targets as random, least_likely or a class"),
    "fab has no target": ({"attacks": "fab", "targets": 1}, "alone with targets=1; received fab"),
    "fab-t has its own": ({"attacks": "fab-t", "targets": 1}, "received fab-t"),
    "apgd-t has its own": ({"attacks": "apgd-t", "targets": 1}, "received apgd-t"),
    "an ensemble": ({"attacks": "clean,autoattack", "targets": "random"}, "received autoattack"),
    "a custom ensemble": ({"attacks": "autoattack:square", "targets": 1}, "received autoattack:sq"),
    "pgd in l1": ({"attacks": "pgd5", "norm": "l1"}, "pgd5 with norm linf or l2; received l1"),
    "fgsm in l1": ({"attacks": "fgsm", "norm": "l1"}, "fgsm with norm linf or l2; received l1"),
    "plus in l1": ({"attacks": "autoattack-plus", "norm": "l1"}, "autoattack-plus with norm linf"),
    "more than all pixels": ({"norm": "l1", "attacks": "apgd-ce", "eps": 28}, "at most 27 in l1"),
    "a part that is none": ({"attacks": "autoattack:pgd5"}, "different ones of apgd-ce"),
    "a part twice": ({"attacks": "autoattack:fab+fab"}, "different ones of apgd-ce"),
    "no part": ({"attacks": "autoattack:"}, "different ones of apgd-ce"),
    "another version": ({"attacks": "autoattack-fast"}, "expected attacks separated by commas"),
    "another library": ({"attacks": "pgd20:cleverhans"}, "expected attacks separated by commas"),
    "no radius": ({"eps": []}, "eps, one or several; received none"),
    "no steps": ({"attacks": "pgd:art"}, "expected attacks separated by commas"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> keras.Model:
    model = keras.Sequential(
        [keras.Input((3, 3, 3)), keras.layers.Flatten(), keras.layers.Dense(CLASSES)]
    )
    model.layers[-1].set_weights([W, -0.5 * W.sum(0)])
    return model


@pytest.mark.parametrize("case", WRONG)
def test_wrong_uses_end_in_one_sentence(case, model):
    changed, text = WRONG[case]
    settings = {"attacks": "pgd5", "eps": 0.1, "pixel_max": 1.0} | changed
    with pytest.raises(UserError, match=text) as error:
        igam_tf.evaluate(model, X, Y, **settings)
    assert "\n" not in str(error.value)
