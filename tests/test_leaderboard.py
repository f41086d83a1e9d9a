"""A report as RobustBench's entry: measured figures alone, and what keeps them out."""

import copy
import json

import keras
import numpy as np
import pytest

import igam_tf
from igam_tf import report as report_program
from igam_tf.common.errors import UserError
from igam_tf.evaluation.leaderboard import robustbench

# The keys of RobustBench's files, and their form where they hold a figure.
KEYS = (
    "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue",
    "architecture", "eps", "clean_acc", "reported", "autoattack_acc", "footnote", "unreliable",
)  # fmt: skip


@pytest.fixture(scope="module")
def report() -> dict:
    """AutoAttack on a linear network of ten classes, as if on CIFAR-10; all images are right."""
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((3, 3, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    model.set_weights([40 * rng.normal(size=(9, 10)), np.zeros(10)])
    x = rng.uniform(0, 1, (12, 3, 3, 1)).astype("float32")
    y = model(x).numpy().argmax(1)
    found = igam_tf.evaluate(model, x, y, "clean,fgsm,autoattack", eps=8 / 255, pixel_max=1.0)
    return found | {"dataset": "cifar10", "data": "tfds", "doubts": []}


def test_measured_figures_alone(report):
    entry, todo = robustbench(report)
    assert tuple(entry) == KEYS
    rows = report["results"]
    assert entry["clean_acc"] == "100.00"
    assert entry["autoattack_acc"] == f"{rows['autoattack']['accuracy']:.2f}"
    assert 0 < float(entry["autoattack_acc"]) < 100
    assert (entry["dataset"], entry["eps"]) == ("cifar10", "8/255")
    assert "n = 12" in entry["footnote"]
    low, high = rows["autoattack"]["ci95"]
    assert f"{low:.2f}" in entry["footnote"]
    assert f"{high:.2f}" in entry["footnote"]
    filled = {"dataset", "eps", "clean_acc", "autoattack_acc", "footnote"}
    assert {key for key, value in entry.items() if value not in ("", None)} == filled
    assert todo == [f"to fill in: {', '.join(key for key in KEYS if key not in filled)}"]


def changed(report: dict, **rows: dict) -> dict:
    """The report with these rows changed; None takes one out."""
    found = copy.deepcopy(report)
    for name, change in rows.items():
        name = name.replace("__", "/").replace("_ce", "-ce")
        if change is None:
            del found["results"][name]
        else:
            found["results"][name] |= change
    return found


def test_what_keeps_a_figure_out(report):
    doubt = {"code": "random", "sentence": "", "remedy": ""}
    for other, said in (
        (report | {"doubts": [doubt]}, "doubtful (random)"),
        (changed(report, autoattack=None), "--attacks=clean,autoattack"),
        (changed(report, autoattack={"steps": 100}), "--attacks=clean,autoattack"),  # of Square
        (changed(report, autoattack__apgd_ce=None), "--attacks=clean,autoattack"),
    ):
        entry, todo = robustbench(other)
        assert entry["autoattack_acc"] == ""
        assert todo[0].startswith("autoattack_acc: ")
        assert said in todo[0]
        assert "AutoAttack" not in entry["footnote"]
    entry, todo = robustbench(changed(report, clean=None))
    assert entry["clean_acc"] == ""
    assert todo[0].startswith("clean_acc: ")
    entry, _ = robustbench(report | {"dataset": "arrays"})
    assert entry["dataset"] == ""
    lower = changed(report, worst_case={"accuracy": 1.0})
    assert "together with clean, fgsm 1.00" in robustbench(lower)[0]["footnote"]
    for wrong in ({"split": "train"}, {"data": "builtin"}):
        with pytest.raises(UserError, match="expected a report on"):
            robustbench(report | wrong)


def test_the_command(report, command_of, tmp_path, capsys):
    command, file = command_of(report_program), tmp_path / "eval.json"
    file.write_text(json.dumps(report))
    (tmp_path / "results.json").write_text(json.dumps({"igam": report}))
    for path in (file, tmp_path):
        command("--format=robustbench", str(path))
        printed = capsys.readouterr()
        assert json.loads(printed.out) == robustbench(report)[0]
        assert printed.err.startswith("to fill in: link")
    for given, message in (
        ((str(file), str(file)), "one run folder, .*; received 2"),
        ((str(tmp_path / "none.json"),), r"a file of igam-eval --json; received .*none\.json"),
    ):
        with pytest.raises(UserError, match=message):
            command("--format=robustbench", *given)
    for other, message in (
        ({"radii": [{"eps": 0.1, "results": report["results"]}]}, "of several eps"),
        ({"adversarial": "attack.npy", "accuracy": 1.0}, "of the images of --adversarial"),
    ):
        file.write_text(json.dumps(other))
        with pytest.raises(UserError, match=f"of attacks of one eps; received .*json {message}"):
            command("--format=robustbench", str(file))
    damaged = changed(report, clean={"accuracy": 50.0})
    file.write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=r"clean says 50\.0 %"):
        command("--format=robustbench", str(file))
