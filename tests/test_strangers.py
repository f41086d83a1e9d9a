"""Somebody else's network: its figure is true, or it is marked; a right one is not marked.

The truth is an attack in float64 that shares no code with ours: bench/strangers.py.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import strangers  # noqa: E402
from strangers import STRANGERS, printed, small, still_right, truth, wong2018  # noqa: E402

NEAR = 2.0  # points
RNG = np.random.default_rng(0)


# --- the truth -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "order"), [("linf", 1), ("l2", 2)])
def test_the_truth_of_a_linear_model(norm, order):
    """Right where the margin is above eps |w|, in the dual norm."""
    w, x = RNG.normal(size=12), RNG.uniform(0.4, 0.6, size=(40, 2, 2, 3))
    y = (x.reshape(40, -1) @ w > 0).astype(np.int64)
    eps = 0.03

    def logits(x):
        z = tf.reshape(x, [-1, 12]) @ tf.constant(w[:, None])
        return tf.concat([tf.zeros_like(z), z], 1)

    expected = np.abs(x.reshape(40, -1) @ w) > eps * np.linalg.norm(w, order)
    assert 5 < expected.sum() < 35
    right = still_right(logits, x, y, eps=eps, norm=norm, steps=20, starts=1)
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
    left = np.load(strangers.SHARED / "models" / "wong2018" / "autoattack_first500.npz")[file]
    network = wong2018(colour, 500, file=file, linf=linf)
    logits, x = strangers.logits_float64(network), network.images / 255
    right = still_right(logits, x, network.labels, eps=linf, norm="linf", steps=30)
    assert (right & ~left).sum() <= 2
    assert (~right & left).sum() <= 2


# --- the matrix ----------------------------------------------------------------------------------


def check(network, name: str, norm: str, attacks: str, flags: dict, *, right: bool) -> None:
    """Right flags: a true figure and no doubt; wrong ones: a true figure or a doubt."""
    figures, doubts = printed(network, STRANGERS[name], norm, attacks, flags)
    true = truth(network, norm, steps=30, starts=1)
    off = {a: v for a, v in figures.items() if a != "clean" and abs(v - true) > NEAR + 1e-9}
    told = f"{name} {flags} {norm}: true {true}, printed {figures}, doubts {doubts}"
    assert (not off and not doubts and figures) if right else (doubts or not off), told


FAST = [
    "0..255", "-1..1", "mnist mean/std", "softmax activation", "sigmoid", "logits / 1000",
    "logits x 100", "mixed_float16, x 8", "mixed_bfloat16", "uint8", "rounding", "noise",
    "NaN in part of the gradient",
]  # fmt: skip
CASES = [
    pytest.param(name, right, i, id=f"{name}, {'right' if right else 'wrong'} {i}")
    for name, stranger in STRANGERS.items()
    for right, flags in ((True, stranger.right), (False, stranger.wrong))
    for i in range(len(flags))
]


@pytest.mark.parametrize("name", FAST)
def test_a_stranger(name):
    """The first right flags and the first wrong ones, in one of both norms."""
    stranger = STRANGERS[name]
    norm = ("linf", "l2")[FAST.index(name) % 2]
    for right, flags in ((True, stranger.right), (False, stranger.wrong)):
        if flags:
            check(small(stranger.colour), name, norm, "clean,pgd20", flags[0], right=right)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("name", "right", "i"), CASES)
def test_every_stranger(name, right, i, norm):
    stranger = STRANGERS[name]
    flags = (stranger.right if right else stranger.wrong)[i]
    check(small(stranger.colour), name, norm, "clean,pgd20,apgd", flags, right=right)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("name", "right", "i"), CASES)
def test_every_stranger_with_weights_of_others(data_dir, name, right, i, norm):
    stranger = STRANGERS[name]
    flags = (stranger.right if right else stranger.wrong)[i]
    check(wong2018(stranger.colour), name, norm, "clean,pgd20,apgd", flags, right=right)
