"""Every transfer of flags/, through the real command line, for two steps of each stage.

The images are generated (random pixels of each data set's shape and number of classes), and every
teacher is trained on the spot: nothing is learnt here, every stage and every map runs.
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf import datasets, train
from igam_tf.common.flagfiles import FOLDER
from igam_tf.experiments.recipes import transfers
from igam_tf.method.adversarial import PGDTraining
from igam_tf.method.objectives import METHODS
from igam_tf.method.transforms import RandomPad
from igam_tf.training.loop import Log

# Name of a transfer in flags/transfers/ -> the flags that name it.
TRANSFERS = {
    name: [f"--{k}={v}" for k, v in zip(("source", "target", "transform"), key, strict=True)]
    for key, name in transfers().items()
}

SMALL = {
    "student": "conftest:small_student",
    "teacher": "train",
    "teacher_steps": 2,
    "teacher_batch_size": 4,
    "teacher_attack_steps": 1,
    "teacher_eval_examples": 4,
    "teacher_eval_attacks": "clean",
    "finetune_steps": 2,
    "train_steps": 2,
    "igam_start": 0,
    "disc_every": 1,
    "batch_size": 4,
    "num_validation": 4,
    "eval_examples": 4,
    "eval_attacks": "clean",
    "log_every": 1,
    "validate_every": 2,
    "checkpoint_every": 1,
}

# Of the cpu preset, everything else: classes, the teacher's attack, the objective.
CPU = {"disc_channels": "4,8", "match_every": 1}


@pytest.fixture(autouse=True)
def generated(monkeypatch) -> None:
    """Random images instead of every data set."""

    def load(spec, split, *, source, data_dir, seed, num):
        rng = np.random.default_rng([len(split), *spec.image_shape, spec.num_classes])
        images = rng.integers(0, 256, (12, *spec.image_shape), np.uint8)
        labels = rng.integers(0, spec.num_classes, 12)
        return datasets.Split(images, labels, spec, source, split)

    monkeypatch.setattr(datasets, "load", load)
    monkeypatch.setattr(datasets, "check_available", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "stored_as", lambda *_, **__: "")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> Path:
    """The teachers that the runs of this module share."""
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture
def command(command_of, teachers):
    """Runs `main` on a row, small, in a folder."""
    run = command_of(train)

    def command(row: list[str], folder: Path, *more: str, preset: str = "smoke") -> Path:
        small = SMALL | (CPU if preset == "cpu" else {}) | {"preset": preset}
        arguments = [f"--{name}={value}" for name, value in small.items()]
        places = (f"--workdir={folder}", f"--teachers={teachers}", "--replicas=1")
        run(*row, *arguments, *places, *more)
        return folder

    return command


@pytest.fixture(scope="module")
def finished() -> dict[str, Path]:
    """The runs of this module that came to their end, by row."""
    return {}


def weights(path: Path) -> list[np.ndarray]:
    return [v.numpy() for v in keras.saving.load_model(path, compile=False).variables]


# By default a map without weights or draws, one that draws, one with weights, one at the cpu preset.
QUICK = {
    "mnist_to_cifar10": "smoke",
    "tiny_imagenet_to_cifar10_random_pad": "smoke",
    "tiny_imagenet_to_cifar10_transpose_conv": "smoke",
    "cifar10_to_tiny_imagenet_crop": "cpu",
}
ROWS = [
    pytest.param(name, preset, marks=() if QUICK.get(name) == preset else pytest.mark.slow)
    for preset in ("smoke", "cpu")
    for name in TRANSFERS
]


@pytest.mark.parametrize(("name", "preset"), ROWS)
def test_two_steps_of_every_row(name, preset, command, finished, tmp_path, monkeypatch):
    drawn, offsets = [], RandomPad.offsets

    def counted(*arguments):
        drawn.append(arguments)
        return offsets(*arguments)

    monkeypatch.setattr(RandomPad, "offsets", staticmethod(counted))
    # Without looks at the student, but for the map that draws.
    more = [] if name.endswith("random_pad") else ["--num_validation=0"]
    if name == "mnist_to_cifar10" or QUICK.get(name) != preset:
        more += ["--student=wrn-8-1"]
    folder = command(TRANSFERS[name], tmp_path / "run", *more, preset=preset)
    config = json.loads((folder / "config.json").read_text())
    key = (config["source"], config["target"], config["transform"])
    assert transfers()[key] == name
    results = json.loads((folder / "results.json").read_text())
    assert results.keys() == {"igam", "teacher"}
    if preset == "cpu":
        part = " (first 20 classes)"
        expected = [name + part * (name == "tiny_imagenet") for name in key[:2]]
        record = json.loads((folder / "teacher_source.json").read_text())
        assert [record["data"], results["igam"]["dataset"]] == expected
        assert record["settings"]["attack_steps"] == 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if line["stage"] == "student" and "L_diff" in line]
    assert [line["step"] for line in losses] == [1, 2]
    assert all(line["L_diff"] > 0 and line["norm_ratio"] > 0 for line in losses)
    teacher = keras.saving.load_model(folder / "teacher.keras", compile=False)
    assert len(teacher.transform.variables) == (2 if key[2] == "transpose_conv" else 0)
    assert bool(drawn) == (key[2] == "random_pad")
    # In the graphs of steps alone: the monitor's picture and the evaluation are centred.
    assert all(tf.is_symbolic_tensor(key) for key, *_ in drawn)
    if preset == "smoke":
        finished[name] = folder


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("tiny_imagenet_to_cifar10_random_pad", [("teacher", 2), ("student", 2)]),
        pytest.param(
            "tiny_imagenet_to_cifar10_transpose_conv", [("teacher", 2)], marks=pytest.mark.slow
        ),
    ],
)
def test_interrupted_and_resumed_ends_in_the_same_weights(
    name, moments, command, finished, tmp_path, monkeypatch
):
    """Ended at each moment, before that step is saved, it goes on from the first step."""
    row = TRANSFERS[name]
    whole = finished.get(name) or command(row, tmp_path / "whole")
    log = Log.__call__
    for moment in moments:

        def stop(self, step, scalars, moment=moment):
            if (self._stage, step) == moment:
                raise KeyboardInterrupt
            log(self, step, scalars)

        monkeypatch.setattr(Log, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            command(row, tmp_path / "run")
    monkeypatch.setattr(Log, "__call__", log)
    command(row, tmp_path / "run")
    for file in ("teacher.keras", "student.keras"):
        for ours, expected in zip(
            weights(tmp_path / "run" / file), weights(whole / file), strict=True
        ):
            np.testing.assert_array_equal(ours, expected)


MNIST = TRANSFERS["mnist_to_cifar10"]


def test_two_steps_of_the_best_recipe(command, tmp_path):
    folder = command([f"--flagfile={FOLDER / 'cifar10_best_cpu.flags'}"], tmp_path / "run")
    assert json.loads((folder / "results.json").read_text()).keys() == {"gradient_penalty"}
    assert not (folder / "teacher.keras").exists()
    config = json.loads((folder / "config.json").read_text())
    assert (config["diff_norm"], config["lambda_diff"]) == ("l1", pytest.approx(8 / 255))


# By default those that no other test runs through the program: gradient_penalty above, l2 in
# test_teachers, fast in test_train, pgd and standard in test_any_images. cosine is l2 and n_fgsm is fast
# but for a formula. In Python test_new_trainer trains all.
ELSEWHERE = ("gradient_penalty", "l2", "cosine", "fast", "n_fgsm", "pgd", "standard")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ELSEWHERE else [])
        for name in sorted(METHODS.keys() - {"igam"})
    ],
)
def test_two_steps_of_every_method(method, command, tmp_path):
    folder = command(MNIST, tmp_path / "run", f"--method={method}")
    models = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["stage"] == "student" and "L_xent" in line]
    if method == "finetune":
        assert models.keys() == {"finetune"}
        assert not steps
        for a, b in zip(
            *(weights(folder / f"{m}.keras") for m in ("student", "teacher")), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        return
    with_teacher = METHODS[method].teacher
    assert models.keys() == {method} | ({"teacher"} if with_teacher else set())
    assert ("alignment" in models[method]) == with_teacher
    assert (folder / "teacher.keras").exists() == with_teacher
    assert [line["step"] for line in steps] == [1, 2]
    assert all(set(METHODS[method].terms) <= line.keys() for line in steps)
    validation = next(line for line in lines if "validation/clean_percent" in line)
    watched = "validation/catastrophic_overfitting" in validation
    assert watched == (METHODS[method].adversarial is not None)


@pytest.mark.parametrize(
    "kind", ["shuffled", "plain", pytest.param("zero", marks=pytest.mark.slow)]
)
def test_two_steps_of_every_control(kind, command, tmp_path, monkeypatch):
    attacked, attack = [], PGDTraining.attack
    monkeypatch.setattr(
        PGDTraining, "attack", lambda self, *batch: (attacked.append(self), attack(self, *batch))[1]
    )
    own = (f"--teachers={tmp_path}", "--num_validation=0")  # the teacher is trained here
    folder = command(MNIST, tmp_path / "run", f"--teacher_gradient={kind}", *own)
    assert bool(attacked) == (
        kind != "plain"
    )  # of all stages the teacher's training alone may attack
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    assert stages == ["teacher", "student"]
    attacks = json.loads((folder / "teacher_source.json").read_text())["settings"]["attack_steps"]
    assert attacks == (0 if kind == "plain" else 1)
    assert "alignment" in json.loads((folder / "results.json").read_text())["igam"]
