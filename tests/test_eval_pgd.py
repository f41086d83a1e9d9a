"""The command: every way of naming a model, every wrong input, its JSON, and the golden figures."""

import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from absl import flags

from igam_tf import datasets, eval_pgd
from igam_tf.common.errors import UserError
from igam_tf.datasets import Split
from igam_tf.evaluation import loading as inputs
from madry_models import MnistCNN, WideResNet

RNG = np.random.default_rng(0)
ROW = {"accuracy", "n", "ci95", "eps", "eps_unit", "step_size", "steps", "restarts", "loss"}
ROW |= {"batch_norm", "batch_size", "seed", "kind", "targets", "after", "robust_mask"}


@pytest.fixture
def command(command_of):
    return command_of(eval_pgd)


@pytest.fixture
def loaded(monkeypatch) -> list:
    """Twelve random images instead of every data set; what was asked for."""
    calls = []

    def load(spec, split, *, source, data_dir, seed):
        calls.append({"name": spec.name, "split": split, "source": source, "data_dir": data_dir})
        calls[-1]["seed"] = seed
        images = RNG.integers(0, 256, (12, *spec.image_shape), np.uint8)
        return Split(images, np.arange(12) % spec.num_classes, spec, source, split)

    monkeypatch.setattr(datasets, "load", load)
    monkeypatch.setattr(datasets, "check_available", lambda *_, **__: None)
    return calls


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One `.keras` file each of an MNIST, a CIFAR-10 and a foreign network."""
    folder = tmp_path_factory.mktemp("models")
    foreign = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    for name, model, shape in (
        ("mnist", MnistCNN(), (None, 28, 28, 1)),
        ("cifar10", WideResNet(8, 1), (None, 32, 32, 3)),
        ("cifar100", WideResNet(8, 1, num_classes=100), (None, 32, 32, 3)),
        ("foreign", foreign, (None, 28, 28, 1)),
    ):
        model.build(shape)
        model.save(folder / f"{name}.keras")
    return folder


def _run_folder(path, saved, **settings):
    path.mkdir()
    config = {"target": "cifar10", "data": "tfds", "data_dir": "", "data_seed": 0} | settings
    (path / "config.json").write_text(json.dumps(config))
    (path / "student.keras").write_bytes((saved / "cifar10.keras").read_bytes())
    return path


# --- what comes out ------------------------------------------------------------------------------


def test_table_and_json(command, loaded, saved, tmp_path, capsys):
    file = tmp_path / "pgd.json"
    command(
        f"--model={saved / 'mnist.keras'}", "--attacks=clean,fgsm,pgd2", f"--json={file}",
        "--loss=cw", "--restarts=2", "--seed=5", "--num_examples=9", "--batch_size=4",
    )  # fmt: skip
    assert loaded[0] == {
        "name": "mnist",
        "split": "test",
        "source": "tfds",
        "data_dir": None,
        "seed": 0,
    }
    report = json.loads(file.read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["pgd.json"]
    assert report["model"] == str(saved / "mnist.keras")
    assert (report["dataset"], report["data"], report["split"]) == ("mnist", "tfds", "test")
    assert "tensorflow" in report["versions"]
    results = report["results"]
    assert list(results) == ["clean", "fgsm", "pgd2", "worst_case"]
    for name in ("clean", "fgsm", "pgd2"):
        assert set(results[name]) == ROW
    pgd = results["pgd2"]
    assert (pgd["loss"], pgd["restarts"], pgd["seed"], pgd["n"]) == ("cw", 2, 5, 9)
    assert (pgd["eps"], pgd["step_size"], pgd["steps"]) == (0.3, 0.01, 2)
    printed = capsys.readouterr().out
    assert printed.startswith(
        f"{saved / 'mnist.keras'}\nmnist test, data tfds: first n = 9 images\n"
    )
    assert f"{results['clean']['accuracy']:.2f}" in printed


def test_only_results_of_the_same_settings_are_overwritten(command, loaded, saved, tmp_path):
    file = tmp_path / "pgd.json"
    same = (f"--model={saved / 'mnist.keras'}", "--attacks=clean,pgd1", f"--json={file}")
    command(*same)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"versions": "of before"}))
    command(*same)
    assert "of before" not in file.read_text()
    first = file.read_bytes()
    for change, said in (
        ("--seed=1", "seed of (clean|pgd1) was 0, is 1"),
        ("--num_examples=3", "n of (clean|pgd1) was 12, is 3"),
        ("--attacks=clean", "attacks was clean,pgd1, is clean"),
        ("--split=train", "split was test, is train"),
        ("--data=builtin", "data was tfds, is builtin"),
        (f"--model={saved / 'foreign.keras'}", "model was .*mnist.keras, is .*foreign.keras"),
    ):
        expected = (
            f"expected --json={file} to be a new file, or results of the same settings; {said}"
        )
        flags.FLAGS.unparse_flags()  # each change alone
        with pytest.raises(UserError, match=expected):
            command(*same, "--dataset=mnist", change)
        assert file.read_bytes() == first
    for content, said in (('{"results": 1}', "it is another JSON file"), ("x", "it is damaged")):
        flags.FLAGS.unparse_flags()
        file.write_text(content)
        with pytest.raises(UserError, match=said):
            command(*same)
        assert file.read_text() == content


def test_l2_from_the_command_line(command, loaded, saved, tmp_path, capsys):
    """A radius above the pixel range will do, and every figure says which norm it is of."""
    file = tmp_path / "l2.json"
    command(
        f"--model={saved / 'mnist.keras'}", "--attacks=clean,pgd2,apgd-ce", "--norm=l2", "--eps=1.5",
        f"--json={file}",
    )  # fmt: skip
    results = json.loads(file.read_text())["results"]
    assert {row["eps_unit"] for row in results.values()} == {"l2, fraction of the pixel range"}
    assert results["pgd2"]["step_size"] == pytest.approx(1.5 * 0.01 / 0.3)
    assert "l2 eps 1.5 of the pixel range (1.5 in 0..1), loss xent" in capsys.readouterr().out


def test_run_folder_brings_its_settings(command, loaded, saved, tmp_path, capsys):
    run = _run_folder(tmp_path / "run", saved, data="builtin", data_seed=4, data_dir="/data")
    file = tmp_path / "out.json"
    command(f"--model={run}", "--attacks=clean", "--batch_norm=batch", f"--json={file}")
    expected = {"name": "cifar10", "split": "test", "source": "builtin", "data_dir": "/data"}
    assert loaded == [expected | {"seed": 4}]
    report = json.loads(file.read_text())
    assert (report["data"], report["data_seed"], report["pixel_max"]) == ("builtin", 4, 255.0)
    assert report["results"]["clean"]["batch_norm"] == "batch"
    assert "data builtin (synthetic)" in capsys.readouterr().out


def test_flags_go_before_the_runs_settings(command, loaded, saved, tmp_path):
    run = _run_folder(tmp_path / "run", saved, data="builtin", data_seed=4)
    command(
        f"--model={run}", "--attacks=clean", "--data=tfds", "--data_dir=/other", "--data_seed=0",
        "--split=train",
    )  # fmt: skip
    expected = {"name": "cifar10", "split": "train", "source": "tfds", "data_dir": "/other"}
    assert loaded == [expected | {"seed": 0}]


@pytest.mark.parametrize(
    ("name", "given", "dataset"),
    [
        ("mnist", [], "mnist"),
        ("cifar10", [], "cifar10"),
        ("cifar100", ["--dataset=cifar100"], "cifar100"),
        ("foreign", ["--dataset=mnist"], "mnist"),
    ],
)
def test_data_set_of_a_model(command, loaded, saved, name, given, dataset):
    command(f"--model={saved / name}.keras", "--attacks=clean", *given)
    assert loaded[0]["name"] == dataset


def test_checkpoint_folder_or_prefix(command, loaded, golden_dir, capsys):
    folder = golden_dir / "cifar10_thin" / "models" / "adv_trained"
    for path in (folder, folder / "checkpoint-300"):
        command(f"--model={path}", "--attacks=clean,pgd1", "--num_examples=4", "--eps=4/255")
        assert "l-inf eps 4/255 of the pixel range (4 in 0..255)" in capsys.readouterr().out


# --- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model="], "expected --model=<run folder"),
        (["--model=nowhere"], "received 'nowhere', not there"),
        (["--model=/"], "received '/', a folder without them"),
        (["--model=/etc/hostname"], "received '/etc/hostname', a file"),
        (["--attacks=pgd5,apgd-x"], "received 'apgd-x' in 'pgd5,apgd-x'"),
        (["--attacks="], "fgsm, pgd<steps>, .*; received ''"),
        (["--attacks=clean", "fgsm"], "expected flags alone; received 'fgsm' as well"),
        (["--norm=l2"], "expected --eps with --norm=l2; received none"),
        (["--norm=l2", "--eps=inf"], "above 0, such as 8/255 or 0.3; received 'inf'"),
        (["--eps=8"], "--eps as a fraction .* at most 1, such as 8/255 or 0.3; received '8'"),
        (["--eps=8/0"], "received '8/0'"),
        (["--eps=0"], "received '0'"),
        (["--eps=-8/255"], "received '-8/255'"),
        (["--eps=nan"], "received 'nan'"),
        (["--step_size=2px"], "expected --step_size as a fraction .* received '2px'"),
        (["--preprocess=vgg"], r"preprocess as one of 0\.\.1, .*; received 'vgg'"),
        (["--json=/no/such/folder/x.json"], "expected --json=/no/such/folder/x.json to be writable; No"),
        (["--json=/"], "expected --json=/ to be writable; it is a folder"),
    ],
)  # fmt: skip
def test_wrong_flags_end_before_anything_is_loaded(command, loaded, saved, arguments, message):
    model = [] if arguments[0].startswith("--model") else [f"--model={saved / 'mnist.keras'}"]
    with pytest.raises(UserError, match=message):
        command(*model, *arguments)
    assert not loaded


@pytest.mark.parametrize(
    "argument",
    ["--loss=l2", "--norm=l0", "--restarts=0", "--num_examples=0", "--seed=-1", "--batch_norm=eval",
     "--batch_size=0", "--pixel_max=0", "--split=val", "--data=fake"],
)  # fmt: skip
def test_flags_out_of_range(command, argument):
    with pytest.raises(flags.IllegalFlagValueError):
        command(argument)


def test_data_set_that_is_none(command, saved):
    with pytest.raises(
        UserError, match=r"expected --dataset=mnist, .*; received 'svhn': tfds:svhn is its name"
    ):
        command(f"--model={saved / 'mnist.keras'}", "--dataset=svhn")


def _ten_colours(scale=1.0, softmax=False) -> keras.Model:
    """Classifies images of one of ten grey values by nearest value; wants pixels in 0..1."""
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), keras.layers.GlobalAveragePooling2D(),
         keras.layers.Dense(10, activation="softmax" if softmax else None)]
    )  # fmt: skip
    values = np.arange(10) / 9
    model.set_weights([scale * 2 * values[None], -scale * values**2])
    return model


@pytest.fixture
def greys(monkeypatch):
    def load(spec, split, *, source, data_dir, seed):
        labels = np.arange(40) % 10
        images = np.broadcast_to(np.uint8(labels * 255 / 9)[:, None, None, None], (40, 28, 28, 1))
        spec = dataclasses.replace(spec, pixel_max=255.0)
        return Split(np.ascontiguousarray(images), labels, spec, source, split)

    monkeypatch.setattr(datasets, "load", load)
    monkeypatch.setattr(datasets, "check_available", lambda *_, **__: None)


def test_a_pixel_range_that_is_wrong_is_remarked_on(command, greys, tmp_path, capsys):
    _ten_colours(scale=10).save(tmp_path / "m.keras")
    common = (f"--model={tmp_path / 'm.keras'}", "--dataset=mnist", "--attacks=clean")
    assert command(*common, f"--json={tmp_path / 'wrong.json'}") == 3
    assert "\nDOUBTFUL: The model takes another input: " in capsys.readouterr().out
    assert command(*common, "--allow_doubts") == 0
    wrong = json.loads((tmp_path / "wrong.json").read_text())
    assert wrong["results"]["clean"]["accuracy"] == 20
    assert [doubt["code"] for doubt in wrong["doubts"]] == ["input_convention"]
    assert "--preprocess=0..1, 20.0 % as it is called" in wrong["doubts"][0]["sentence"]
    common += (f"--json={tmp_path / 'right.json'}", "--noallow_doubts")
    assert command(*common, "--preprocess=0..1") == 0
    with pytest.raises(UserError, match=r"preprocess was 0\.\.1, is -1\.\.1"):
        command(*common, "--preprocess=-1..1")
    with pytest.raises(UserError, match="--preprocess or --pixel_max"):
        command(*common, "--pixel_max=1")
    right = json.loads((tmp_path / "right.json").read_text())
    assert (right["results"]["clean"]["accuracy"], right["pixel_max"]) == (100, 1.0)
    assert (right["preprocess"], right["doubts"]) == ("0..1", [])


def test_an_order_of_classes_is_a_flag(command, greys, tmp_path, capsys):
    _ten_colours(scale=100).save(tmp_path / "m.keras")
    common = (
        f"--model={tmp_path / 'm.keras'}",
        "--dataset=mnist",
        "--attacks=clean",
        "--pixel_max=1",
    )
    file = tmp_path / "eval.json"
    order = "--class_order=1,0,2,3,4,5,6,7,8,9"
    assert command(*common, order, "--allow_doubts", f"--json={file}") == 0
    assert "output class_order[k]: [1, 0, 2" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["results"]["clean"]["accuracy"] == 80
    assert found["class_order"][:3] == [1, 0, 2]
    for given, message in (
        ("--class_order=0,1,2,3,4,5,6,7,8,9", r"class_order was \[1, 0, .*, is \[0, 1, "),
        ("--class_order=0,1,1", "class_order as different outputs in 0..9"),
        ("--class_order=a,b", "--class_order as numbers separated by commas; received 'a,b'"),
    ):
        with pytest.raises(UserError, match=message):
            command(*common, given, f"--json={file}")


def test_probabilities_are_refused_or_undone(command, greys, tmp_path):
    _ten_colours(scale=100).save(tmp_path / "logits.keras")
    _ten_colours(scale=100, softmax=True).save(tmp_path / "p.keras")
    common = ("--dataset=mnist", "--pixel_max=1", "--attacks=clean,pgd3", "--eps=0.1")
    with pytest.raises(UserError, match=r"received probabilities, .* set from_probabilities"):
        command(f"--model={tmp_path / 'p.keras'}", *common)
    command(f"--model={tmp_path / 'logits.keras'}", *common, f"--json={tmp_path / 'a.json'}")
    command(
        f"--model={tmp_path / 'p.keras'}", *common, "--from_probabilities",
        f"--json={tmp_path / 'b.json'}",
    )  # fmt: skip
    a, b = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert a["results"] == b["results"]


def test_help_shows_the_data_flags(command):
    shown = flags.FLAGS.module_help(flags.FLAGS.find_module_defining_flag("model"))
    for name in ("dataset", "split", "data_dir", "data_seed", "pixel_max", "from_probabilities"):
        assert f"--{name}" in shown or f"--[no]{name}" in shown


@pytest.mark.parametrize("name", ["foreign", "cifar100"])
def test_data_set_unknown(command, loaded, saved, name):
    with pytest.raises(UserError, match=r"expected --dataset=mnist, cifar10, .*; received none"):
        command(f"--model={saved / name}.keras")


def test_model_and_data_set_that_do_not_go_together(command, loaded, saved):
    with pytest.raises(
        UserError,
        match=r"a model for images \[32, 32, 3\].*(28|32)",
    ):
        command(f"--model={saved / 'mnist.keras'}", "--dataset=cifar10")
    with pytest.raises(UserError, match=r"logits \[12,100\] .* \[12, 10\]"):
        command(f"--model={saved / 'cifar10.keras'}", "--dataset=cifar100")


def test_more_examples_than_there_are(command, loaded, saved):
    with pytest.raises(UserError, match=r"within 1\.\.12, the size of mnist test; received 13"):
        command(f"--model={saved / 'mnist.keras'}", "--num_examples=13")


def test_data_set_that_is_not_there(command, saved, monkeypatch):
    def missing(spec, *, source, data_dir):
        raise UserError(f"no {spec.name} in {data_dir}")

    monkeypatch.setattr(datasets, "check_available", missing)
    monkeypatch.setattr(inputs, "load_model", lambda _: pytest.fail("loaded before the check"))
    with pytest.raises(UserError, match="no mnist in /x"):
        command(f"--model={saved / 'foreign.keras'}", "--dataset=mnist", "--data_dir=/x")


def test_damaged_model(command, loaded, tmp_path):
    (tmp_path / "x.keras").write_text("<html>")
    with pytest.raises(UserError, match=r"expected a readable \.keras file"):
        command(f"--model={tmp_path / 'x.keras'}", "--dataset=mnist")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("student.keras", None, "a finished student in the run folder .* has no student.keras yet"),
        ("config.json", "{", "expected JSON in .*config.json; it is damaged"),
        ("config.json", "{}", "settings of a run in .*config.json; it does not name a target"),
        ("config.json", "[]", "expected a JSON object in .*; it holds a list"),
        ("config.json", None, "received '.*run', a folder without them"),
    ],
)
def test_incomplete_run_folder(command, saved, tmp_path, name, content, message):
    run = _run_folder(tmp_path / "run", saved)
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(UserError, match=message):
        command(f"--model={run}")


def test_an_error_is_one_line_and_status_1():
    ended = subprocess.run(
        [sys.executable, "-m", "igam_tf.eval_pgd", "--model=nowhere"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("error: expected --model as a run folder")


# --- the challenge loop's own figures, over all 10 000 test images ----------------------------------


def _mnist_figures(command, golden_dir, data_dir, tmp_path, attacks: str) -> dict:
    file = tmp_path / "mnist.json"
    command(
        f"--model={golden_dir / 'mnist' / 'models' / 'adv_trained'}", f"--attacks={attacks}",
        f"--data_dir={data_dir / 'tensorflow_datasets'}", f"--json={file}", "--batch_size=200",
    )  # fmt: skip
    results = json.loads(file.read_text())["results"]
    assert all(row["n"] == 10_000 for row in results.values())
    return {name: row["accuracy"] for name, row in results.items()}


def _recorded(golden_dir) -> dict:
    return json.loads(str(np.load(golden_dir / "mnist" / "golden.npz")["meta"]))


@pytest.mark.slow  # the attack and the network alone: test_attacks_golden and test_madry_models
def test_golden_mnist_clean_and_fgsm(command, golden_dir, data_dir, tmp_path):
    meta = _recorded(golden_dir)
    ours = _mnist_figures(command, golden_dir, data_dir, tmp_path, "clean,fgsm")
    assert ours["clean"] == pytest.approx(100 * meta["clean_accuracy_10000"], abs=1e-9)
    assert ours["fgsm"] == pytest.approx(100 * meta["fgsm_accuracy_10000"], abs=0.3)


@pytest.mark.slow
def test_golden_mnist_pgd40(command, golden_dir, data_dir, tmp_path):
    meta = _recorded(golden_dir)
    ours = _mnist_figures(command, golden_dir, data_dir, tmp_path, "pgd40")
    assert ours["pgd40"] == pytest.approx(100 * meta["pgd40_accuracy_10000"], abs=0.3)
