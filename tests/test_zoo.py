"""The zoo: each defence is found by a check that must find it; true figures against a closed form."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf import datasets
from igam_tf.audit import controls, zoo
from igam_tf.audit.audit import CHECKS
from igam_tf.audit.audited import AuditedModel
from igam_tf.audit.checks import FAIL, WARN
from igam_tf.pytorch.weights import load_port

_SPEC = importlib.util.spec_from_file_location(
    "bench_zoo", Path(__file__).parents[1] / "bench" / "zoo.py"
)
bench = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(bench)


@pytest.fixture(scope="module")
def digits() -> datasets.Split:
    return datasets.load("mnist", "test", source="builtin", num=24)


@pytest.fixture(scope="module")
def base() -> controls.SmallNetwork:
    return controls.trained(steps=120)


def test_every_specimen_names_its_source_and_checks_that_exist():
    masked = [s for s in zoo.ZOO.values() if s.checks]
    assert len(masked) >= 20 + 6
    assert len(zoo.ZOO) - len(masked) >= 8
    for name, specimen in zoo.ZOO.items():
        assert set(specimen.checks) <= CHECKS.keys(), name
        assert name.startswith("control_") or getattr(zoo, name) is specimen
        assert "20" in specimen.source or not specimen.checks  # a year


# The check that costs least among those that must find each.
FAST = {
    "bit_depth": "gradients", "jpeg": "gradients", "smoothing": "deterministic",
    "resize_and_pad": "deterministic", "anti_adversary": "finite_difference",
    "nearest_patch": "finite_difference",
}  # fmt: skip


@pytest.mark.parametrize(("name", "check"), FAST.items())
def test_a_defence_is_found(name, check, base, digits):
    specimen = zoo.ZOO[name]
    assert check in specimen.checks
    found = CHECKS[check].judge(AuditedModel(specimen(base), digits, eps=zoo.EPS, progress=False))
    assert found.status in (FAIL, WARN), found


@pytest.fixture(scope="module")
def every_case(data_dir, golden_dir) -> dict:
    return dict(bench.cases(data_dir.parent, 30))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*zoo.ZOO, "madry_mnist", *(f"wong2018_{w}" for w in bench.WONG)])
def test_every_row_is_right(name, every_case, tmp_path):
    row = bench.row_of(name, every_case[name](), tmp_path / "true.json")
    assert row["right"], row


# --- the true figure ---------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [False, True])
def test_true_figure_of_a_linear_network(hidden):
    """x is broken within eps where some other class gains more than the distance: eps |w_k - w_y|_1."""
    rng = np.random.default_rng(0)
    images = rng.integers(60, 196, (40, 6, 6, 1), np.uint8)  # the ball ends within the pixel range
    w = rng.normal(size=(36, 10)).astype(np.float32)
    z = images.reshape(40, 36) / 255 @ w
    y, eps = z.argmax(1), 0.01
    reach = eps * np.abs(w.T[:, None] - w.T[y]).sum(-1).T  # [40,10]
    gap = z[np.arange(40), y][:, None] - z
    safe = (gap - reach + 1e9 * np.eye(10)[y]).min(1)
    x = keras.Input((6, 6, 1))
    network = keras.Model(x, keras.layers.Dense(10, use_bias=False)(keras.layers.Flatten()(x)))
    network.set_weights([w])
    model = zoo.Defence(network, lambda x, _: tf.stop_gradient(x) if hidden else x)
    left = zoo.robust_mask(model, images, y, eps=eps, stand_in=zoo.undefended(model))
    sure = np.abs(safe) > 1e-3
    assert 5 < (safe > 0).sum() < 35
    np.testing.assert_array_equal(left[sure], safe[sure] > 0)


# --- the page ----------------------------------------------------------------------------------


def test_page_has_a_row_for_each_network():
    row = {
        "name": "a", "source": "Nobody 2020", "expected": ["gradients"], "n": 30, "eps": 0.15,
        "clean": 97.0, "headline": 80.0, "true": 3.0, "marked": {"gradients": "FAIL"},
        "verdict": "", "right": True,
    }  # fmt: skip
    honest = row | {"name": "b", "expected": [], "marked": {}, "eps": 0.3, "right": False}
    text = bench.page([row, honest])
    assert "| `a` | Nobody 2020 | 97 | 80 | 3 | gradients FAIL | gradients | yes |" in text
    assert "| `b` | Nobody 2020 | 97 | 80 | 3 | none | **no** |" in text
    assert text.count("\n| `") == 2


@pytest.mark.parametrize("name", bench.WONG)
def test_others_networks_have_their_clean_accuracy(name, data_dir):
    """On the first 500 test images; the figures of the folder's README."""
    data, _, architecture = bench.WONG[name]
    file = data_dir.parent / "models" / "wong2018" / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"{file} is absent")
    split = datasets.load(data, "test", data_dir=str(data_dir / "tensorflow_datasets"), num=500)
    model = load_port(file, architecture)
    z = model(split.images / np.float32(255), training=False).numpy()
    left = np.load(file.with_name("autoattack_first500.npz"))[name]
    right = z.argmax(1) == split.labels
    assert right[left].all()
    clean = {"mnist_eps0.1": 98.8, "mnist_small_eps0.3": 83.6, "cifar_small_8px": 26.2}
    assert 100 * right.mean() == pytest.approx(clean[name])
