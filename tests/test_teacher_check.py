"""What a teacher can give: closed forms, the verdicts, and the program on built-in images."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf import teacher_check
from igam_tf.common.errors import UserError
from igam_tf.datasets import load
from igam_tf.evaluation.teaching import LEAST_EXPLAINED, input_gradients, teaching, verdict
from igam_tf.formulas.statistics import excess

RNG = np.random.default_rng(0)
SHAPE = (4, 4, 3)


def _gradients(n: int = 64) -> np.ndarray:
    return RNG.normal(size=(n, *SHAPE)).astype("float32")


def test_a_teacher_of_the_same_gradients():
    j = _gradients()
    found = teaching(j, 7 * j)  # no measure looks at length
    for name in ("cosine", "explained", "attack_share"):
        assert found[name]["teacher"]["mean"] == pytest.approx(1, abs=1e-6)
        low, high = found[name]["difference"]["ci95"]
        assert 0.5 < low < high < 1.5
    assert abs(found["cosine"]["shuffled"]["mean"]) < 0.1


def test_explained_is_what_the_best_factor_leaves():
    j, j_t = _gradients(8), _gradients(8)
    found = teaching(j, j_t)["explained"]["teacher"]["mean"]
    flat, guide = j.reshape(8, -1), j_t.reshape(8, -1)
    factor = (flat * guide).sum(1) / (guide**2).sum(1)
    rest = ((flat - factor[:, None] * guide) ** 2).sum(1) / (flat**2).sum(1)
    assert found == pytest.approx(float(1 - rest.mean()), abs=1e-6)


def test_attack_share_is_the_first_order_gain_of_the_step():
    j, j_t = _gradients(8), _gradients(8)
    found = teaching(j, j_t)["attack_share"]["teacher"]["mean"]
    gain = (j * np.sign(j_t)).sum((1, 2, 3)) / np.abs(j).sum((1, 2, 3))
    assert found == pytest.approx(float(gain.mean()), abs=1e-6)
    assert teaching(j, -j)["attack_share"]["teacher"]["mean"] == pytest.approx(-1, abs=1e-6)


def test_input_gradients_of_a_linear_network_by_hand():
    split = load("cifar10", "test", source="builtin", seed=0).take(slice(5), "test")
    network = keras.Sequential([
        keras.Input((32, 32, 3)), keras.layers.Flatten(),
        keras.layers.Dense(10, kernel_initializer=keras.initializers.RandomNormal(0, 1e-4)),
    ])  # fmt: skip
    j = input_gradients(network, split, input_gradient="xent", batch_size=2)
    kernel = network.layers[-1].kernel.numpy()
    p = tf.nn.softmax(network(split.images.astype("float32"))).numpy()
    expected = (p - np.eye(10)[split.labels]) @ kernel.T
    np.testing.assert_allclose(j.reshape(5, -1), expected, rtol=1e-4, atol=1e-9)


def _mixed(share: float) -> tuple[np.ndarray, np.ndarray]:
    """(J, J_t) of which J_t explains about `share`."""
    j, other = _gradients(200), _gradients(200)
    return j, share**0.5 * j + (1 - share) ** 0.5 * other


STRONGER = excess(np.arange(200) < 120, np.arange(200) < 60)
WEAKER = excess(np.arange(200) < 60, np.arange(200) < 120)


@pytest.mark.parametrize(
    ("share", "over", "said"),
    [
        (0.0, STRONGER, "NOTHING TO GIVE"),
        (0.5, WEAKER, "DOUBTFUL"),
        (0.5, STRONGER, "WORTH A TRY"),
    ],
)
def test_verdict(share, over, said):
    assert verdict(teaching(*_mixed(share)), over).startswith(said + ":")


def test_verdict_on_a_small_share():
    part = {"teacher": {"ci95": [0.01, 0.02]}, "difference": {"ci95": [0.005, 0.01]}}
    said = verdict({"explained": part}, STRONGER)
    assert said.startswith("NEXT TO NOTHING TO GIVE: at most 2.0 %")
    assert f"below the {100 * LEAST_EXPLAINED:g} %" in said


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "own.keras"
    keras.Sequential([
        keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]).save(path)  # fmt: skip
    return path


SMOKE = ("--source=mnist", "--target=cifar10", "--preset=smoke", "--data=builtin")
FEW = ("--num_examples=8", "--attacks=clean,pgd2")


def test_the_program(command_of, reference, tmp_path, capsys):
    command, json_file = command_of(teacher_check), tmp_path / "check.json"
    arguments = (*SMOKE, *FEW, f"--workdir={tmp_path / 'run'}", f"--json={json_file}")
    command(*arguments, f"--reference={reference}")
    said = capsys.readouterr().out
    content = json.loads(json_file.read_text())
    assert content["verdict"] in said
    assert "Under pgd2 the teacher withstands" in said
    assert "data builtin (synthetic)" in said
    assert content["reports"]["teacher"]["results"]["pgd2"]["n"] == 8
    assert (tmp_path / "run" / "teacher.keras").exists()
    assert not list(tmp_path.glob("*.journal"))
    with pytest.raises(UserError, match="it is there already"):
        command(*arguments, f"--reference={reference}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), r"expected --reference=<run folder"),
        (("--method=fast",), "expected a --method with a teacher; received fast"),
        (("--num_examples=100000",), r"expected a number of examples within 1\.\."),
    ],
)
def test_mistakes(command_of, reference, tmp_path, arguments, said):
    known = () if not arguments else (f"--reference={reference}",)
    run = tmp_path / "run"
    with pytest.raises(UserError, match=said):
        command_of(teacher_check)(*SMOKE, f"--workdir={run}", *known, *arguments)
    assert not (run / "teacher.keras").exists()


def test_a_reference_of_other_images(command_of, tmp_path):
    path = tmp_path / "small.keras"
    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]).save(
        path
    )
    with pytest.raises(UserError, match="reference"):
        command_of(teacher_check)(
            *SMOKE, *FEW, f"--workdir={tmp_path / 'run'}", f"--reference={path}"
        )
    assert not (tmp_path / "run" / "teacher.keras").exists()
