"""bench/: operations counted by hand, what is printed last, and refusals before any work.

Times themselves are not tested, but what is computed from them.
"""

import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from conftest import run_here

from igam_tf.common.errors import UserError
from igam_tf.datasets import builtin
from madry_models import WideResNet

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import attack  # noqa: E402
import pipeline  # noqa: E402
import release_step  # noqa: E402
import rivals  # noqa: E402
import scale  # noqa: E402
import step  # noqa: E402

SMALL = ("--student=wrn-8-1", "--batch_size=4", "--repeats=1", "--nomemory", "--precision=float32")


# --- operations ------------------------------------------------------------------------------------

X, KERNEL = tf.ones([2, 8, 8, 3]), tf.ones([3, 3, 3, 5])
CONVOLUTION = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)  # two for each multiply-add


def _convolved():
    return tf.nn.conv2d(X, KERNEL, 2, "SAME")  # [2,4,4,5]


def _gradient(value, of):
    with tf.GradientTape() as tape:
        tape.watch(of)
        loss = value()
    return tape.gradient(loss, of)


def test_operations_of_a_convolution_and_of_its_gradients():
    """Each costs what the convolution does; only what is asked for is counted."""

    def square():
        return tf.reduce_sum(_convolved() ** 2)  # its gradient needs the convolution itself

    def linear():
        return tf.reduce_sum(_convolved())  # this one's does not

    def operations(value, of):
        return step.flops_of(lambda: _gradient(value, of))

    assert step.flops_of(lambda: _convolved() + _convolved() * 3) == 2 * CONVOLUTION
    assert step.flops_of(lambda: tf.nn.relu(X) * 2 + tf.reduce_sum(X)) == 0
    for one in (X, KERNEL):
        assert operations(linear, one) == CONVOLUTION
        assert operations(square, one) == 2 * CONVOLUTION
    assert operations(square, [X, KERNEL]) == 3 * CONVOLUTION


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_operations_of_a_matrix_product(transpose_a, transpose_b):
    """[4,6] x [6,3], and both gradients; also behind an assignment."""
    a = tf.ones([6, 4] if transpose_a else [4, 6])
    b = tf.ones([3, 6] if transpose_b else [6, 3])
    variable = tf.Variable(tf.zeros([4, 3]))

    def product():
        return tf.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)

    def update():
        variable.assign(product())

    once = 2 * 4 * 6 * 3
    assert step.flops_of(update) == step.flops_of(product) == once
    assert step.flops_of(lambda: _gradient(lambda: product() ** 2, [a, b])) == 3 * once


# Multiply-adds of wrn-8-1 for one 32x32x3 image: the first convolution, then of each group both.
FIRST = 32 * 32 * 16 * 9 * 3
FORWARD = (
    FIRST
    + 2 * 32 * 32 * 16 * 9 * 16
    + 16 * 16 * 32 * 9 * (16 + 32)
    + 8 * 8 * 64 * 9 * (32 + 64)
    + 64 * 10
)
PLAIN = 3 * FORWARD - FIRST  # forward, kernels, inputs; the images' own gradient is not needed
PGD7 = PLAIN + 7 * 2 * FORWARD  # each step forward, and back to the images


# --- the commands ----------------------------------------------------------------------------------


@pytest.fixture
def printed(command_of, capsys, monkeypatch):
    """Runs a program with its flags; returns (lines before the last, the last as JSON)."""
    monkeypatch.setattr(step, "SIDE", 64)
    monkeypatch.setitem(builtin.SIZES, "train", 64)

    def of(module, *arguments):
        command_of(module)(*SMALL, *arguments)
        *lines, last = capsys.readouterr().out.strip().splitlines()
        return lines, json.loads(last)

    level = tf.get_logger().level
    yield of
    tf.get_logger().setLevel(level)


def test_step(printed, tmp_path):
    lines, result = printed(step, "--kinds=pgd7", f"--json={tmp_path / 'step.json'}")
    assert json.loads((tmp_path / "step.json").read_text()) == result
    assert lines[0] == "weights and images: random; the teacher's too"
    assert [re.split(" +", line)[:2] for line in lines[1:]] == [
        ["wrn-8-1", "plain"], ["wrn-8-1", "pgd7"],
    ]  # fmt: skip
    assert {k: v for k, v in result.items() if k != "networks"} == {
        "teacher": "mnist", "precision": "float32", "disc_every": 5, "repeats": 1
    }  # fmt: skip
    row = result["networks"]["wrn-8-1"]
    assert row["batch_size"] == 4
    assert row["gflops_per_step"] == {
        "plain": round(2 * 4 * PLAIN / 1e9, 3), "pgd7": round(2 * 4 * PGD7 / 1e9, 3)
    }  # fmt: skip
    assert row["flops_over_plain"] == {"plain": 1.0, "pgd7": round(PGD7 / PLAIN, 3)}
    for kind, seconds in row["seconds"].items():
        assert row["images_per_second"][kind] == pytest.approx(4 / seconds, rel=0.01)


@pytest.mark.slow
def test_step_of_igam_and_memory(printed):
    """Both ways of IGAM beside plain training, and each kind's memory in a process of its own."""
    lines, result = printed(step, "--memory", "--disc_every=2")
    row = result["networks"]["wrn-8-1"]
    kinds = {"plain", "igam", "igam_finite_difference", "igam_every_4th", "pgd7"}
    assert row["seconds"].keys() == row["peak_memory_gib"].keys() == kinds
    assert len(lines) == 1 + len(kinds)
    dense, seldom = (
        row["flops_over_plain"][kind] for kind in ("igam_finite_difference", "igam_every_4th")
    )
    assert seldom == pytest.approx((3 + dense) / 4, abs=1e-3)
    assert all(0.1 < gib < 16 for gib in row["peak_memory_gib"].values())


# --- other libraries -------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch, capsys):
    """Runs `rivals.main` on trainers of a small student; returns (lines before the last, the last)."""
    monkeypatch.setattr(rivals, "STUDENTS", {"wrn-8-1": 4})
    monkeypatch.setattr(rivals, "SIDE", 64)

    def of(trainers_of, *arguments):
        monkeypatch.setattr(sys, "argv", ["x", "--repeats=1", *arguments])
        rivals.main({"library": "1.0"}, "What it is.", trainers_of)
        *lines, last = capsys.readouterr().out.strip().splitlines()
        result = json.loads(last)
        assert [re.split(" +", line)[:2] for line in lines] == [
            ["wrn-8-1", kind] for kind in ("plain", "igam", "pgd7")
        ]
        assert min(result["networks"]["wrn-8-1"]["images_per_second"].values()) > 0
        return lines, result

    return of


def test_the_faster_trainer_counts(measured, monkeypatch):
    def trainer(*seconds):
        kinds = zip(("plain", "igam", "pgd7"), seconds, strict=True)
        return SimpleNamespace(**{kind: lambda s=s: s for kind, s in kinds})

    monkeypatch.setattr(rivals, "seconds", lambda step, turns=1: step())
    trainers = {"one": trainer(0.2, 1.0, 0.8), "other": trainer(0.4, 0.5, 1.0)}
    lines, result = measured(lambda *_: (trainers, lambda: 0.001), "--disc_every=3")
    assert lines == [
        "wrn-8-1    plain      20.00 images/s,  1.00 x plain, one",
        "wrn-8-1    igam        8.00 images/s,  2.50 x plain, other",
        "wrn-8-1    pgd7        5.00 images/s,  4.00 x plain, one",
    ]
    assert result == {
        "library": "1.0",
        "disc_every": 3,
        "networks": {
            "wrn-8-1": {
                "batch_size": 4,
                "peak_gflops_per_second": round(2 * 64**3 / 0.001 / 1e9, 1),
                "images_per_second": {"plain": 20.0, "igam": 8.0, "pgd7": 5.0},
            }
        },
    }


def parameters_of(depth, width):
    """Of our own network."""
    network = WideResNet(depth, width)
    network.build((None, 32, 32, 3))
    return sum(math.prod(v.shape) for v in network.trainable_variables)


def test_steps_in_pytorch(measured):
    """The network of the comparison is ours in another library."""
    pytest.importorskip("torch", reason="torch is not installed")
    import torch_step

    for depth, width in ((8, 1), (8, 2), (14, 1)):
        theirs = torch_step.WideResNet(depth, width)
        assert sum(p.numel() for p in theirs.parameters()) == parameters_of(depth, width)
    measured(torch_step.trainers_of)


@pytest.mark.filterwarnings("ignore:CUDA initialization")  # of a PyTorch without a driver
def test_gradients_over_the_bridge(capsys):
    """Both ways compute the same."""
    pytest.importorskip("torch", reason="torch is not installed")
    import bridge

    alone, over = (call() for call in bridge.gradients_of(8, 1, 2).values())
    np.testing.assert_allclose(over, alone, rtol=1e-4, atol=1e-5 * np.abs(alone).max())
    figures = bridge.measure(8, 1, 2, repeats=1)
    assert figures.keys() == {"wall", "processor"}
    assert capsys.readouterr().out.count("over the bridge") == 2


@pytest.mark.slow
def test_steps_of_the_release(measured):
    """A network of ours; IGAM moves the student, f_disc in its turn alone, the teacher never."""
    trainer = release_step.Trainer("wrn-8-1", 4, disc_every=2)
    with trainer.session.graph.as_default():
        variables = {n: tf.compat.v1.trainable_variables(n) for n in ("student", "teacher", "disc")}
    for name in ("student", "teacher"):
        assert sum(math.prod(v.shape) for v in variables[name]) == parameters_of(8, 1)

    def moved(step):
        before = trainer.session.run(variables)
        step()
        after = trainer.session.run(variables)
        return {
            name for name in after if any(map(np.any, map(np.subtract, before[name], after[name])))
        }

    assert moved(trainer.igam) == {"student", "disc"}
    assert moved(trainer.igam) == {"student"}
    assert moved(trainer.plain) == moved(trainer.pgd7) == {"student"}
    measured(release_step.trainers_of)


def test_pipeline(printed):
    lines, result = printed(pipeline, "--batches=3", "--disc_every=2")
    assert {k: v for k, v in result.items() if k != "networks"} == {
        "data": "builtin", "precision": "float32", "repeats": 1
    }  # fmt: skip
    row = result["networks"]["wrn-8-1"]
    rates = row["images_per_second"]
    assert rates.keys() == {"pipeline", "step", "fed"}
    assert min(rates.values()) > 0
    assert row["batch_size"] == 4
    assert row["pipeline_over_step"] == pytest.approx(rates["pipeline"] / rates["step"], rel=0.05)
    assert row["fed_over_step"] == pytest.approx(rates["step"] / rates["fed"], rel=0.05)
    assert len(lines) == 1
    assert lines[0].startswith("wrn-8-1    pipeline ")


@pytest.mark.slow
def test_scale(printed):
    _, result = printed(scale, "--counts=1,2", "--kinds=plain,igam", "--disc_every=2")
    row = result["networks"]["wrn-8-1"]
    rates = row["images_per_second"]
    assert rates.keys() == row["over_1"].keys() == {"1", "2"}
    assert row["over_1"]["1"] == 1
    assert row["over_1"]["2"] == pytest.approx(rates["2"] / rates["1"], rel=0.05, abs=0.001)


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [step, pipeline, scale], ids=lambda module: module.__name__)
def test_wrong_flags_end_before_any_work(monkeypatch, capsys, module):
    def work(student, *_):
        pytest.fail(f"work on {student}")

    monkeypatch.setattr(module, "measure", work)
    wrong = [
        ("--student=wrn-8-2,wrn-9-1 --batch_size=4", "wrn-9-1"),
        ("--student=wrn-8-2,wrn-8-1", "--batch_size"),
        ("--kinds=igam,trades", "received trades"),
        ("--json=/no/such/folder/x", "/no/such/folder/x"),
        ("more", "flags"),
    ]
    if module is scale:
        wrong += [(f"{' '.join(SMALL)} --counts={n}", "--counts") for n in ("1,two", "0", "")]
        wrong += [(f"{' '.join(SMALL)} --kinds=pgd7", "received 'pgd7'")]
    for arguments, message in wrong:
        with pytest.raises(UserError, match=message):
            run_here(module, *arguments.split())
    assert not capsys.readouterr().out


def test_synthetic_images_of_two_data_sets_alone():
    with pytest.raises(UserError, match="received 'cifar100'"):
        run_here(pipeline, *SMALL, "--teacher=cifar10")


def test_the_model_of_the_attacks_is_found_as_by_the_programs(tmp_path):
    with pytest.raises(UserError, match="expected --model as"):
        run_here(attack, f"--model={tmp_path / 'none'}")
