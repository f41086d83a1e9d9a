"""Export: both files give the run's logits, the documented lines run, and nothing is overwritten."""

import dataclasses
import json
import re
import shlex

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf import eval_pgd, export
from igam_tf.attacks import loss_named, pgd
from igam_tf.common.errors import UserError
from igam_tf.common.files import write_json
from igam_tf.datasets import load
from igam_tf.evaluation.evaluate import model_report
from igam_tf.formulas.losses import xent
from igam_tf.method.teacher import Teacher
from igam_tf.method.transforms import CenterCrop, ChannelMean, Compose, Scale
from igam_tf.storage.run_folder import load_model
from madry_models import MnistCNN, WideResNet

RNG = np.random.default_rng(0)
SHAPE = (32, 32, 3)
X = RNG.uniform(0, 255, (6, *SHAPE)).astype("float32")
Y = np.arange(6)


def _student() -> WideResNet:
    """Untrained, with moving averages that are not those of a fresh network."""
    model = WideResNet(8, 1)
    model.build((None, *SHAPE))
    model.set_weights([w + RNG.normal(0, 0.1, w.shape) for w in model.get_weights()])
    return model


def _finetuned() -> Teacher:
    network = MnistCNN()
    network.build((None, 28, 28, 1))
    maps = Compose([ChannelMean(), CenterCrop(28), Scale(1 / 255)])
    teacher = Teacher(network, maps, num_classes=10)
    teacher.build((None, *SHAPE))
    return teacher


@pytest.fixture(scope="module")
def test_images():
    split = load("cifar10", "test", source="builtin", seed=3)
    return dataclasses.replace(split, images=split.images[:8], labels=split.labels[:8])


def _run(folder, model, images, method):
    folder.mkdir()
    settings = {"method": method, "source": "mnist", "target": "cifar10", "data": "builtin"}
    settings |= {"data_dir": "", "data_seed": 3}
    environment = {"git_commit": "0123abc", "keras": "3", "python": "3"}
    write_json(folder / "config.json", settings | {"environment": environment})
    model.save(folder / "student.keras")
    report = model_report(model, images, attacks=["clean", "pgd2"], progress=False)
    write_json(folder / "results.json", {method: report})
    return folder


@pytest.fixture(scope="module")
def student():
    return _student()


@pytest.fixture(scope="module")
def run(tmp_path_factory, student, test_images):
    return _run(tmp_path_factory.mktemp("runs") / "run", student, test_images, "igam")


@pytest.fixture
def command(command_of):
    return command_of(export)


@pytest.fixture
def exported(command, run, tmp_path):
    command(f"--run={run}", f"--output={tmp_path / 'out'}")
    return tmp_path / "out"


def test_both_files_give_the_students_logits(exported, student):
    expected = student(X, training=False).numpy()
    copy = load_model(exported / "student.keras")
    np.testing.assert_array_equal(copy(X), expected)
    assert np.abs(expected - copy(X, training=True)).max() > 0.1  # batch statistics would show
    loaded = tf.saved_model.load(str(exported / "saved_model"))
    np.testing.assert_allclose(loaded.serve(tf.constant(X)), expected, atol=1e-5)
    one_by_one = [loaded.serve(tf.constant(X[i : i + 1])) for i in range(len(X))]
    np.testing.assert_allclose(np.concatenate(one_by_one), expected, atol=1e-5)
    signature = loaded.signatures["serving_default"]
    (given,) = signature.structured_input_signature[1].values()
    assert (given.shape.as_list(), given.dtype) == ([None, *SHAPE], tf.float32)
    (logits,) = signature(tf.constant(X)).values()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_documented_lines_run(exported, student, monkeypatch, command_of, capsys):
    monkeypatch.chdir(exported)
    text = (exported / "README.md").read_text()
    place = {"x": tf.constant(X), "y": tf.constant(Y)}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], place)
    expected = pgd(
        lambda x: student(x, training=False), place["x"], place["y"],
        eps=8.0, step_size=2.0, steps=20, loss=loss_named("xent"), bounds=(0.0, 255.0),
    )  # fmt: skip
    # Compared by what they do: rounding turns a sign here and there.
    clean, theirs, ours = (xent(student(x), Y) for x in (X, place["x_adv"], expected))
    assert np.mean(ours) > np.mean(clean) + 0.1
    np.testing.assert_allclose(theirs, ours, rtol=0.02)
    assert np.abs(place["x_adv"] - X).max() == pytest.approx(8)
    line = re.search(r"```\npython -m igam_tf.eval_pgd (.*?)```", text, re.S)[1]
    command_of(eval_pgd)(*shlex.split(line.replace("\\\n", "")))
    printed = capsys.readouterr().out
    assert "data builtin (synthetic): first n = 8 images" in printed
    clean = json.loads((exported / "card.json").read_text())["results"]["results"]["clean"]
    assert re.search(rf"^clean +{clean['accuracy']:.2f} ", printed, re.M)


def test_card(exported, run):
    card = json.loads((exported / "card.json").read_text())
    assert card["input"] == {
        "shape": ["batch", 32, 32, 3], "dtype": "float32", "pixel_range": [0, 255.0]
    }  # fmt: skip
    assert card["class_names"] == [str(k) for k in range(10)]  # synthetic shapes are no airplanes
    assert card["data"] == "builtin (synthetic)"
    assert card["settings"]["data_seed"] == 3
    assert card["trained_with"]["git_commit"] == "0123abc"
    assert card["exported_with"]["tensorflow"] == tf.__version__
    assert 0 <= card["logits_difference"] < 1e-4
    report = json.loads((run / "results.json").read_text())["igam"]
    row = card["results"]["results"]["pgd2"]
    assert row == {k: v for k, v in report["results"]["pgd2"].items() if k != "robust_mask"}
    assert {"n", "eps", "eps_unit", "ci95", "step_size", "restarts", "seed"} <= row.keys()
    text = (exported / "README.md").read_text()
    assert "synthetic" in text.splitlines()[0]
    low, high = row["ci95"]
    assert f"| pgd2 | {row['accuracy']:.1f} | {low:.1f} to {high:.1f} |" in text
    assert "n = 8, l-inf eps 8/255" in text


def test_finetuned_teacher(command, tmp_path, test_images):
    """FT-*: the student is the teacher, its map to MNIST's pixels included."""
    teacher = _finetuned()
    run = _run(tmp_path / "run", teacher, test_images, "finetune")
    command(f"--run={run}", f"--output={tmp_path / 'out'}")
    loaded = tf.saved_model.load(str(tmp_path / "out" / "saved_model"))
    np.testing.assert_allclose(loaded.serve(tf.constant(X)), teacher(X), atol=1e-4)


def test_unfinished_runs(command, run, tmp_path):
    for missing in ("student.keras", "results.json"):
        folder = tmp_path / missing
        folder.mkdir()
        for file in {"config.json", "student.keras", "results.json"} - {missing}:
            (folder / file).write_bytes((run / file).read_bytes())
        with pytest.raises(UserError, match=rf"finished.*{missing}"):
            command(f"--run={folder}", f"--output={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected --run=<folder>"),
        (["--run={run}"], "expected --output=<folder>"),
        (["--run={run}", "--output={run}"], "to be new or empty; it holds files"),
        (["--run={run}", "--output={run}/config.json"], "a folder to write to.*it is a file"),
        (["--run={run}/student.keras", "--output={out}"], "expected a run folder"),
        (["--run={out}", "--output={out}"], "received '.*', not there"),
        (["--run={run}", "--output={out}", "more"], "expected flags alone"),
    ],
)
def test_wrong_input(command, run, tmp_path, flags, message):
    before = sorted(run.rglob("*"))
    with pytest.raises(UserError, match=message):
        command(*(flag.format(run=run, out=tmp_path / "out") for flag in flags))
    assert sorted(run.rglob("*")) == before
    assert not list(tmp_path.iterdir())


def test_whole_or_not_at_all(command, run, tmp_path, monkeypatch):
    def another(model, path, **how):
        network = keras.Sequential(
            [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(10)]
        )
        original(network, path, **how)

    original = keras.Model.export
    monkeypatch.setattr(keras.Model, "export", another)
    with pytest.raises(UserError, match="SavedModel's logits within"):
        command(f"--run={run}", f"--output={tmp_path / 'out'}")
    assert not list(tmp_path.iterdir())


def test_the_card_names_no_folder_of_this_machine():
    assert export._without_folder("/home/me/data/tfds") == "tfds"
    assert [export._without_folder(v) for v in ("builtin", 3, None, "runs/a")] == [
        "builtin", 3, None, "runs/a"
    ]  # fmt: skip
