"""Teachers that are trained here: once for all runs, found by their settings, on the first classes."""

import dataclasses
import json
import shutil
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import run_here

from igam_tf import datasets, train
from igam_tf.common.errors import UserError
from igam_tf.evaluation.loading import data_spec, find_model
from igam_tf.experiments.recipes import recipe
from igam_tf.experiments.resolve import resolve, source_spec, target_spec
from igam_tf.storage.run_folder import RunFolder
from igam_tf.training.loop import Log
from igam_tf.training.teachers import TeacherSettings, teacher_settings, teacher_trainer

SMOKE = ("--preset=smoke", "--data=builtin", "--teacher=train", "--method=l2", "--replicas=1")
SMOKE += ("--student=conftest:small_student",)
QUICK = (
    "--num_validation=0",
    "--eval_attacks=clean",
    "--teacher_eval_examples=8",
    "--eval_examples=8",
)


@pytest.fixture
def run(tmp_path):
    def run(name: str, *more: str) -> Path:
        run_here(train, *SMOKE, *QUICK, f"--workdir={tmp_path / name}", *more)
        return tmp_path / name

    return run


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A run that has trained its teacher, in the folder of runs that share it."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    run_here(train, *SMOKE, *QUICK, f"--workdir={folder}")
    return folder


def weights(path: Path) -> list[np.ndarray]:
    return [v.numpy() for v in keras.saving.load_model(path, compile=False).variables]


def assert_alike(a: Path, b: Path) -> None:
    for ours, theirs in zip(weights(a), weights(b), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- the shared folder -----------------------------------------------------------------------------


def test_a_second_run_takes_the_teacher_and_ends_in_the_same_weights(first, run, tmp_path):
    second = run("second", f"--teachers={first.parent / 'teachers'}")
    (shared,) = (first.parent / "teachers").iterdir()
    log = (shared / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [2, 4]  # trained once
    records = [json.loads((p / "teacher_source.json").read_text()) for p in (first, second)]
    assert records[0] == records[1]
    assert records[0]["folder"] == shared.name
    assert records[0]["train_images"] == 600
    assert records[0]["minutes"] > 0
    assert records[0]["report"]["results"].keys() == {"clean", "pgd40", "worst_case"}
    assert records[0]["report"]["results"]["clean"]["n"] == 8
    assert_alike(first / "teacher_source.keras", shared / "teacher_source.keras")
    assert_alike(first / "student.keras", second / "student.keras")
    # Moved to where its teacher's folder is not, it measures its own copy.
    moved = tmp_path / "elsewhere" / "first"
    shutil.copytree(first, moved)
    (moved / "results.json").unlink()
    (moved / "teacher_source.json").write_text(
        json.dumps({k: v for k, v in records[0].items() if k != "report"})
    )
    run("elsewhere/first")
    assert json.loads((moved / "teacher_source.json").read_text()) == records[0]
    assert not (moved.parent / "teachers").exists()
    images = json.loads((first / "data.json").read_text())
    assert images == {
        "data": "cifar10", "stored_as": "", "train_images": 600, "validation_images": 0,
        "test_images": 2000, "published_train_images": 50_000,
    }  # fmt: skip


def test_a_teacher_of_another_network_and_the_first_classes(run, tmp_path):
    own = ("--source=cifar10", "--train_examples=100", "--teacher_network=wrn-8-1")
    classes = ("--source_classes=3", "--target_classes=2", "--eval_examples=16")
    steps = ("--teacher_steps=1", "--finetune_steps=2", "--train_steps=2")
    folder = run("own", *own, *classes, *steps)
    settings = json.loads((folder / "teacher_source.json").read_text())["settings"]
    assert (settings["network"], settings["classes"]) == ("wrn-8-1", 3)
    results = json.loads((folder / "results.json").read_text())
    assert results["l2"]["dataset"] == "cifar10 (first 2 classes)"
    teacher, student = (
        keras.saving.load_model(folder / f"{name}.keras", compile=False)
        for name in ("teacher_source", "student")
    )
    assert teacher.count_params() > 3 * student.count_params()
    assert student(np.zeros((1, 32, 32, 3), "float32")).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet", "expected a network wrn-<depth>-<width>, .*; received 'resnet'"),
        ("wrn-9-1", "depth 6n"),
        ("nowhere:net", "No module named 'nowhere'"),
        ("wrn-8-1", r"for mnist images in 0..1; wrn-8-1 takes pixels in 0..255"),
    ],
)
def test_networks_that_are_none_for_the_source(run, name, sentence):
    with pytest.raises(UserError, match=sentence):
        run("own", f"--teacher_network={name}")


def test_a_model_of_a_run_brings_the_module_of_its_teacher(tmp_path, monkeypatch):
    """Its classes are then known where the teacher's file is loaded."""
    (tmp_path / "own_teachers.py").write_text("def net(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"target": "cifar10", "student": "wrn-8-1", "teacher_network": "own_teachers:net"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "student.keras").touch()
    find_model(str(tmp_path))
    assert "own_teachers" in sys.modules


def test_a_half_trained_teacher_goes_on_in_another_run(first, run, tmp_path, monkeypatch):
    log = Log.__call__

    def stop(self, step, scalars):
        log(self, step, scalars)
        if (self._stage, step) == ("teacher_source", 4):  # the newest checkpoint is of step 2
            raise KeyboardInterrupt

    monkeypatch.setattr(Log, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    monkeypatch.setattr(Log, "__call__", log)
    (shared,) = (tmp_path / "teachers").iterdir()
    assert [p.name for p in (shared / "checkpoints" / "teacher_source").glob("ckpt-*")] == [
        "ckpt-2"
    ]
    assert not (shared / "teacher_source.keras").exists()
    other = run("other")
    assert_alike(other / "teacher_source.keras", first / "teacher_source.keras")


def test_whoever_comes_second_waits(tmp_path):
    settings, entered = TeacherSettings(**BY_HAND), threading.Event()
    first = RunFolder(tmp_path / "teacher", settings)
    with pytest.raises(UserError, match="another process is working"):
        RunFolder(tmp_path / "teacher", settings)

    def second():
        with RunFolder(tmp_path / "teacher", settings, wait=True):
            entered.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not entered.wait(0.3)
    first.close()
    assert entered.wait(10)
    thread.join()


# --- what names it ---------------------------------------------------------------------------------

BY_HAND = {
    "source": "mnist", "images": "", "classes": 10, "network": "mnist-cnn", "optimizer": "adam",
    "learning_rate": 1e-4, "lr_schedule": "constant", "momentum": 0.0, "weight_decay": 0.0,
    "steps": 100_000, "batch_size": 50, "seed": 0, "attack_steps": 40, "eps": 0.3, "step_size": 0.01,
    "eps_warmup": 0.0, "sync_batch_norm": True,
}  # fmt: skip


def settings_of(**chosen) -> TeacherSettings:
    config = resolve({"data": "builtin", "teacher": "train"} | chosen)
    spec = source_spec(config)
    one = np.zeros((1, *spec.image_shape), np.uint8)
    split = datasets.Split(one, np.zeros(1, np.int64), spec, "builtin", "train")
    return dataclasses.replace(teacher_settings(config, split, own_statistics=False), images="")


def test_the_challenges_recipes_by_hand():
    assert dataclasses.asdict(settings_of()) == BY_HAND
    cifar10 = settings_of(source="cifar10", target="cifar100")
    expected = BY_HAND | {
        "source": "cifar10", "network": "wrn-32-10", "optimizer": "momentum", "learning_rate": 0.1,
        "lr_schedule": "step", "momentum": 0.9, "weight_decay": 2e-4, "steps": 80_000,
        "batch_size": 128, "attack_steps": 7, "eps": 8.0, "step_size": 2.0,
    }  # fmt: skip
    assert dataclasses.asdict(cifar10) == expected


def test_what_a_teacher_depends_on_changes_its_folder():
    mine = TeacherSettings(**BY_HAND)
    assert mine.folder.startswith("mnist-")
    for name, value in BY_HAND.items():
        other = f"{value}x" if isinstance(value, str) else not value if value is True else value + 1
        changed = dataclasses.replace(mine, **{name: other})
        assert changed.folder != mine.folder, name
    # What comes after it does not.
    assert settings_of(method="l2", train_steps=3, igam_start=0, lambda_diff=7.0) == mine
    assert settings_of(target="cifar100") == mine
    assert settings_of(seed=1) != mine
    plain = settings_of(teacher_gradient="plain")
    assert (plain.attack_steps, plain.eps, plain.step_size) == (0, 0.0, 0.0)
    assert TeacherSettings(**BY_HAND | {"source": "folder:a b"}).folder.startswith("folder-a-b-")


def test_a_trainer_of_each_kind():
    network = keras.Sequential(
        [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    mine = TeacherSettings(**BY_HAND)
    for changed, kind in (
        ({}, "PGDTraining"),
        ({"attack_steps": 0}, "ClassifierTrainer"),
    ):
        trainer, optimizer = teacher_trainer(network, dataclasses.replace(mine, **changed), 1.0)
        assert (type(trainer).__name__, type(optimizer).__name__) == (kind, "Adam")
    warmed_up, _ = teacher_trainer(network, dataclasses.replace(mine, eps_warmup=0.5, steps=8), 1.0)
    assert warmed_up.ramp_steps == 4


# --- budgets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["mnist", "cifar10", "tiny_imagenet"])
def test_the_cpu_preset_trains_its_own_teachers(source):
    budget = recipe(f"cpu/teachers/{source}", "cpu/teachers/others")
    target = "cifar10" if source != "cifar10" else "tiny_imagenet"
    trained = resolve({"source": source, "target": target, "preset": "cpu", "teacher": "train"})
    for name, (value, _) in budget.items():
        assert getattr(trained, name) == value
    loaded = resolve({"source": source, "target": target, "preset": "cpu", "teacher": "load"})
    paper = resolve({"source": source, "target": target})
    for name in budget:
        assert getattr(loaded, name) == getattr(paper, name)
    given = resolve(
        {
            "source": source,
            "target": target,
            "preset": "cpu",
            "teacher": "train",
            "teacher_steps": 3,
        }
    )
    assert given.teacher_steps == 3


def test_a_plain_teacher_keeps_its_budget():
    plain = resolve({"preset": "cpu", "teacher_gradient": "plain"})
    assert (plain.teacher_steps, plain.teacher_lr_schedule, plain.teacher_eps_warmup) == (
        1500,
        "auto",
        0,
    )


# --- the first classes -----------------------------------------------------------------------------


def test_the_first_classes_in_the_order_of_the_labels():
    spec = datasets.spec_of("cifar10", classes=3)
    assert (spec.num_classes, spec.train_images, spec.title) == (
        3,
        15_000,
        "cifar10 (first 3 classes)",
    )
    whole = datasets.load("cifar10", "test", source="builtin")
    some = datasets.load(spec, "test", source="builtin", num=7)
    chosen = np.flatnonzero(whole.labels < 3)[:7]
    np.testing.assert_array_equal(some.labels, whole.labels[chosen])
    np.testing.assert_array_equal(some.images, whole.images[chosen])
    assert datasets.class_names(spec, source="builtin") == ["0", "1", "2"]


@pytest.mark.parametrize("n", [1, 11])
def test_classes_that_there_are_not(n):
    with pytest.raises(UserError, match=f"between 2 and 10 classes of cifar10; received {n}"):
        resolve({"target_classes": n})
    with pytest.raises(UserError, match=f"between 2 and 10 classes of mnist; received {n}"):
        resolve({"source_classes": n})


def test_source_and_target_have_classes_of_their_own():
    chosen = {"source": "cifar10", "source_classes": 4, "target_classes": 3}
    for target, classes in (("cifar10", 3), ("cifar100", 3)):
        config = resolve(chosen | {"target": target})
        assert (source_spec(config).num_classes, target_spec(config).num_classes) == (4, classes)


def test_a_model_is_judged_on_the_classes_of_its_run():
    run = {"target": "tiny_imagenet", "target_classes": 20}
    assert data_spec("tiny_imagenet", run).num_classes == 20
    assert data_spec("cifar10", run).num_classes == 10
    assert data_spec("tiny_imagenet", {"target": "tiny_imagenet"}).num_classes == 200


def test_too_few_images_of_the_classes_before_anything_is_trained(run, tmp_path):
    with pytest.raises(
        UserError, match=r"--eval_examples of at most \d+, the test images of cifar10"
    ):
        run("run", "--target_classes=2", "--eval_examples=9000")
    assert not (tmp_path / "teachers").exists()
