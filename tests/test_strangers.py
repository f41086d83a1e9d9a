"""Somebody else's network: its figure is true, or it is marked; a right one is not marked.

The truth is a closed form, or an attack in float64 that shares no code with ours: bench/strangers.py.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

import igam_tf

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import strangers  # noqa: E402
from strangers import (  # noqa: E402
    STRANGERS,
    Network,
    linear,
    printed,
    radii,
    small,
    still_right,
    truth,
    wong2018,
)

NEAR = 2.0  # points


# --- the truth -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_truth_of_a_linear_model(norm):
    """Right where the margin is above eps |w|, in the dual norm."""
    network = linear()
    expected = radii(network, norm) > network.eps[norm]
    assert 20 <= expected.sum() <= 30
    logits, x = strangers.logits_float64(network), network.images / 255
    right = still_right(
        logits, x, network.labels, eps=network.eps[norm], norm=norm, steps=20, starts=1
    )
    assert right.tolist() == expected.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "colour", "linf"),
    [
        ("mnist_eps0.1", False, 0.1),
        ("mnist_small_eps0.3", False, 0.3),
        ("cifar_small_8px", True, 8 / 255),
    ],
)
def test_the_truth_is_that_of_the_original_autoattack(data_dir, file, colour, linf):
    """Never far above it, and an image that the original leaves falls seldom."""
    left = np.load(strangers.SHARED / "models" / "wong2018" / "autoattack_first500.npz")[file][:200]
    network = wong2018(colour, 200, file=file, linf=linf)
    logits, x = strangers.logits_float64(network), network.images / 255
    right = still_right(logits, x, network.labels, eps=linf, norm="linf", steps=30)
    assert (right & ~left).sum() <= 2
    assert (~right & left).sum() <= 2


# --- the matrix ----------------------------------------------------------------------------------


def check(
    network: Network, name: str, i: int, norm: str, attacks: str, true: float, *, right: bool
) -> None:
    """Right flags: a true figure and no doubt, or the doubt that PGD alone leaves too much, if it does.

    Wrong ones: a true figure or a doubt.
    """
    stranger = STRANGERS[name]
    flags, right = (stranger.right if right else stranger.wrong)[i], right and not stranger.weak
    figures, doubts = printed(network, stranger, norm, attacks, flags)
    off = {a: v for a, v in figures.items() if a != "clean" and abs(v - true) > NEAR + 1e-9}
    told = f"{name} {flags} {norm}: true {true}, printed {figures}, doubts {doubts}"
    if right:
        assert figures, told
        assert doubts == ["weak_loss"] * bool(off), told
    else:
        assert doubts or not off, told


MECHANISMS = [  # each once: the first right flags, or the first wrong ones
    ("logits / 1000", True), ("logits x 100", True), ("mixed_float16, x 8", True),
    ("softmax activation", True), ("softmax activation", False), ("sigmoid", True),
    ("mnist mean/std", True), ("bgr", True), ("bgr", False), ("0..255", False),
    ("rounding", False), ("noise", False), ("classes in another order", False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "right"), MECHANISMS)
def test_a_stranger(name, right):
    """In one of both norms, of a linear network, whose truth is known."""
    norm = ("linf", "l2")[MECHANISMS.index((name, right)) % 2]
    network = linear()
    true = 100 * float((radii(network, norm) > network.eps[norm]).mean())
    assert 40 <= true <= 60
    check(network, name, 0, norm, "clean,pgd20", true, right=right)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logits x 8", "mixed_float16, x 8"])
def test_a_look_while_training_and_the_audit(name):
    """`RobustAccuracy` and the headline of `igam_tf.audit_model`."""
    network = linear()
    model = STRANGERS[name].make(network)
    true = 100 * float((radii(network, "linf") > network.eps["linf"]).mean())
    given = network.images, network.labels
    threat = {"eps": network.eps["linf"], "pixel_max": 1.0}
    looked = igam_tf.RobustAccuracy(*given, **threat)
    model.compile("sgd")
    looked.set_model(model)
    logs = {}
    looked.on_train_begin()
    looked.on_epoch_end(0, logs)
    assert abs(100 * logs["val_pgd20"] - true) <= NEAR
    report = igam_tf.audit_model(model, *given, **threat, checks="deterministic")
    assert abs(report["headline"]["accuracy"] - true) <= NEAR
    assert report["doubts"] == []


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("name", "right", "i"),
    [
        pytest.param(name, right, i, id=f"{name}, {'right' if right else 'wrong'} {i}")
        for name, stranger in STRANGERS.items()
        for right, flags in ((True, stranger.right), (False, stranger.wrong))
        for i in range(len(flags))
    ],
)
def test_every_stranger(name, right, i, norm):
    network = small(STRANGERS[name].colour)
    check(network, name, i, norm, "clean,pgd20", truth(network, norm), right=right)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "right"), [case for case in MECHANISMS if case[1]])
def test_strangers_under_apgd(name, right):
    norm = ("l2", "linf")[MECHANISMS.index((name, right)) % 2]
    network = small(STRANGERS[name].colour)
    check(network, name, 0, norm, "clean,apgd", truth(network, norm), right=right)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("name", "right"), MECHANISMS)
def test_strangers_with_weights_of_others(data_dir, name, right, norm):
    network = wong2018(STRANGERS[name].colour, 60)
    check(network, name, 0, norm, "clean,pgd20", truth(network, norm), right=right)
