"""Tables of the paper: their rows, what is collected from run folders, and the program itself."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf import reproduce
from igam_tf.common.errors import UserError
from igam_tf.datasets import load
from igam_tf.experiments.config import Config
from igam_tf.experiments.recipes import FIELDS
from igam_tf.experiments.resolve import resolve
from igam_tf.formulas.statistics import wilson_interval
from igam_tf.reproduce import __main__ as program
from igam_tf.reproduce.aligning import align
from igam_tf.reproduce.collecting import collect
from igam_tf.reproduce.running import run_all, shares_of_cores
from igam_tf.reproduce.seeds import mean_of_seeds
from igam_tf.reproduce.tables import TABLES, Table, TableRow
from igam_tf.reproduce.writing import COLUMNS, latex, markdown, write
from igam_tf.storage.run_folder import save_model
from madry_models import WideResNet

PGD, CLEAN = "pgd20", "clean"
SMALL = Table(
    title="Table 0",
    attacks=(CLEAN, PGD),
    rows=(
        TableRow(name="igam", label="IGAM-MNIST", flags={}, paper=(93.6, 43.5)),
        TableRow(name="pgd7", label="PGD7-trained", flags={"method": "pgd"}, paper=(87.3, 45.9)),
        TableRow(name="absent", label="Standard", flags={"method": "standard"}, paper=(95.0, 0.0)),
        TableRow(name="zero", label="J_t = 0", flags={}, part="Controls"),
    ),
    gains=(("igam", "pgd7"), ("igam", "absent")),
)


def finish(folder: Path, standing: str, *, method: str = "igam", seed: int = 0, **config) -> None:
    """A run folder: 10 test images, 100 steps of 6 seconds, 2 minutes of stage 1."""
    folder.mkdir(parents=True)
    settings = dataclasses.asdict(Config()) | {
        "method": method, "preset": "cpu", "student": "wrn-8-2", "data": "tfds", "igam_start": 0,
        "train_steps": 100, "batch_size": 128, "seed": seed, **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    images = {
        "data": settings["target"], "stored_as": "", "train_images": 40, "validation_images": 10,
        "test_images": 10, "published_train_images": 50,
    }  # fmt: skip
    (folder / "data.json").write_text(json.dumps(images))
    common = {
        "n": 10,
        "eps": 8 / 255,
        "eps_unit": "fraction",
        "batch_norm": "inference",
        "seed": seed,
    }
    kept = 10.0 * standing.count("1")
    steps = {"steps": 20, "step_size": 2 / 255, "restarts": 1, "loss": "xent"}
    results = {
        CLEAN: {"accuracy": 90.0, "ci95": [60, 98], "robust_mask": "1111111110"} | common,
        PGD: {"accuracy": kept, "ci95": [kept - 9, kept + 9], "robust_mask": standing}
        | common
        | steps,
        "worst_case": {"accuracy": kept, "ci95": [0, 1]} | common,
    }
    alignment = (
        {"alignment": {"cosine": 0.25, "cosine_ci95": [0.2, 0.3]}} if method == "igam" else {}
    )
    report = {"results": results, "dataset": "cifar10", "split": "test", "data": "tfds"}
    report |= alignment | {"doubts": []}
    (folder / "results.json").write_text(json.dumps({method: report}))
    lines = [{"stage": "teacher", "step": 50, "train_minutes": 2.0}] if method == "igam" else []
    lines += [{"stage": "student", "step": s, "train_minutes": s / 10} for s in (50, 100)]
    for s in (50, 100):
        looks = {"validation/clean_percent": 40.0 + s / 10, "validation/pgd20_percent": s / 10}
        lines.append({"stage": "student", "step": s, "train_minutes": s / 10} | looks)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def output(tmp_path) -> Path:
    finish(tmp_path / "igam", "1110000000")
    finish(tmp_path / "pgd7", "0111100000", method="pgd")
    finish(tmp_path / "zero", "1100000000")
    return tmp_path


def test_a_table_by_hand(output):
    content = collect(SMALL, output)
    assert content["title"] == "Table 0 (preset cpu: wrn-8-2, not the paper's budget)"
    for part in ("n = 10", "eps 8/255", "pgd20: 20 x 2/255", "batch norm inference", "seed 0"):
        assert part in content["settings"]
    cell = content["rows"][0]["cells"][PGD]
    assert (cell["paper"], cell["ours"], cell["difference"]) == (43.5, 30.0, -13.5)
    assert content["rows"][0]["run"]["minutes"] == {"teacher": 2.0, "student": 10.0}
    # One example IGAM alone keeps, two PGD7-trained alone.
    (gain,) = content["gains"]
    assert (gain["row"], gain["over"], gain["n"]) == ("IGAM-MNIST", "PGD7-trained", 10)
    assert gain["points"] == {CLEAN: 0.0, PGD: pytest.approx(-10.0)}
    # 50 steps in 5 minutes are 6 s a step, stage 1 adds 120 s / 100; 391 steps an epoch.
    assert content["epoch_seconds"] == pytest.approx({"igam": 391 * 7.2, "pgd": 391 * 6.0})


def test_rows_that_were_not_run_are_blank(output):
    text = markdown(collect(SMALL, output))
    assert "| Standard | 95 / /  | 0 / /  |  |  |  |" in text
    assert (
        "| IGAM-MNIST | 93.6 / 90.0 (60.0 to 98.0) / -3.6 | 43.5 / 30.0 (21.0 to 39.0) / -13.5 |"
        in text
    )
    assert "| 0.250 (0.200 to 0.300) | 100 | 12.0 |" in text
    assert "## Controls" in text
    assert "| J_t = 0 | 90.0 (60.0 to 98.0) |" in text
    assert "| ours | 2815 | 2346 | 1.20 |" in text
    assert "| paper | 347 | 815 | 0.43 |" in text
    # A quarter of 12 minutes is before the first look; IGAM's second comes with the last minute.
    assert "| IGAM-MNIST |  |  | 45.0 / 5.0 | 50.0 / 10.0 | 12.0 min |" in text
    assert "| PGD7-trained |  | 45.0 / 5.0 | 45.0 / 5.0 | 50.0 / 10.0 | 10.0 min |" in text
    nothing = collect(SMALL, output / "elsewhere")
    assert nothing["title"] == "Table 0 (nothing run)"
    assert (nothing["data"], nothing["teachers"]) == ([], [])
    assert "No row was run" in markdown(nothing)


def test_data_teacher_and_classes_are_said(tmp_path):
    classes = {"source": "tiny_imagenet", "source_classes": 20, "teacher": "train"}
    finish(tmp_path / "igam", "1110000000", **classes)
    finish(
        tmp_path / "zero", "1100000000", teacher="load", teacher_checkpoint="/a/b", source="mnist"
    )
    images = {
        "data": "cifar10", "stored_as": "JPEG", "train_images": 40, "validation_images": 10,
        "test_images": 20, "published_train_images": 50_000,
    }  # fmt: skip
    (tmp_path / "igam" / "data.json").write_text(json.dumps(images))
    found = {"clean": {"accuracy": 40.0, "ci95": [30.0, 50.04], "n": 200}, "worst_case": {}}
    settings = {
        "network": "wrn-8-2", "steps": 5, "batch_size": 32, "attack_steps": 1, "step_size": 10.0,
        "eps": 8.0,
    }  # fmt: skip
    record = {
        "data": "tiny_imagenet (first 20 classes)", "train_images": 1000, "minutes": 21.04,
        "settings": settings, "report": {"results": found},
    }  # fmt: skip
    (tmp_path / "igam" / "teacher_source.json").write_text(json.dumps(record))
    content = collect(SMALL, tmp_path)
    assert "; source tiny_imagenet: first 20 classes" in content["title"]
    text = markdown(content)
    assert (
        "Data, cifar10: 40 images to train on, 10 to validate, 20 to test; a subset, of 50000 to train "
        "on; stored as JPEG." in text
    )
    assert (
        "Teacher, tiny_imagenet (first 20 classes): wrn-8-2, 5 steps of 32 images of 1000, 1 attack "
        "step(s) of 1.25 eps, 21.0 minutes; on its own task clean 40.0 (30.0 to 50.0), n = 200."
        in text
    )
    assert "Teacher, mnist: b, loaded." in text


@pytest.mark.parametrize("lacking", ["data.json", "precision"])
def test_a_run_that_lacks_something_is_one_sentence(output, lacking):
    if lacking == "data.json":
        (output / "igam" / lacking).unlink()
    else:
        path = output / "igam" / "config.json"
        settings = json.loads(path.read_text())
        del settings[lacking]
        path.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"igam; it lacks .*{lacking}"):
        collect(SMALL, output)


def test_every_igam_row_has_its_controls():
    for name in ("2", "3", "4", "5", "figure5"):
        whole = TABLES[name]
        rows = {row.name: row for row in whole.rows}
        igam = [row for row in whole.rows if row.method == "igam" and not row.part]
        assert igam
        for row in igam:
            for kind in ("zero", "shuffled"):
                control = rows[f"{row.name}-{kind}"]
                assert control.flags == row.flags | {"teacher_gradient": kind}
                assert (row.name, control.name) in whole.gains
        assert len(whole.rows) == sum(row.method != "igam" for row in whole.rows) + 3 * len(igam)


def settings_of(row: TableRow, preset: str) -> Config:
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Config)}
    return resolve(
        {key: kinds[key](value) for key, value in row.flags.items()} | {"preset": preset}
    )


@pytest.mark.parametrize("name", TABLES)
def test_at_the_cpu_preset_one_row_stands_for_students_that_are_the_same(name):
    whole, cpu = TABLES[name], TABLES[name].at_preset("cpu")
    assert whole.at_preset("paper") is whole
    students = {}
    for row in whole.rows:
        c = settings_of(dataclasses.replace(row, flags=row.flags | row.cpu), "cpu")
        of_teacher = {
            f.name for f in dataclasses.fields(Config) if f.metadata["group"] == "teacher"
        }
        known = dataclasses.asdict(c)
        if c.teacher_gradient == "zero":
            for setting in of_teacher | {"source", "source_classes"}:
                del known[setting]
        students.setdefault(json.dumps(known), row.name)
    assert [row.name for row in cpu.rows] == list(students.values())
    assert {n for pair in cpu.gains for n in pair} <= set(students.values())
    if name in ("2", "3", "figure5"):
        assert [row.label for row in cpu.rows if "zero" in row.name] == ["J_t = 0, for each row"]


@pytest.mark.parametrize("name", ["4", "5"])
def test_the_ablation_at_the_cpu_preset_keeps_the_ratios_of_the_weights(name):
    cpu = TABLES[name].at_preset("cpu")
    assert "lambda_adv 0.02 and lambda_diff 1 are the row (2, 10)" in cpu.title
    own = resolve({"source": "cifar10", "target": "cifar100", "preset": "cpu"})
    for row in cpu.rows:
        adv, diff = (float(part[4 if i else 3 :]) for i, part in enumerate(row.name.split("-")[:2]))
        c = settings_of(row, "cpu")
        assert c.lambda_adv == pytest.approx(adv / 2 * own.lambda_adv)
        assert c.lambda_diff == pytest.approx(diff / 10 * own.lambda_diff)


def test_every_form_is_written(output):
    write(collect(SMALL, output), output, "table0")
    assert json.loads((output / "table0.json").read_text())["rows"][2]["run"] is None
    assert (output / "table0-minutes.png").read_bytes().startswith(b"\x89PNG")
    assert "IGAM-MNIST" in (output / "table0-minutes.svg").read_text()
    tex = latex(collect(SMALL, output))
    assert r"IGAM-MNIST & 93.6 / 90.0 (60.0 to 98.0) / -3.6 & 43.5" in tex
    assert r"J\_t = 0 & " in tex
    rows = [line for line in tex.splitlines() if "&" in line]
    assert {line.count("&") for line in rows} == {len(SMALL.attacks) + len(COLUMNS)}


def test_rows_that_were_evaluated_differently_are_no_table(output):
    finish(output / "absent", "0000000000", method="standard", seed=1)
    with pytest.raises(UserError, match="expected rows evaluated alike"):
        collect(SMALL, output)


def test_rows_without_a_teacher_are_compared_with_the_first_igam_rows(tmp_path):
    """PGD7-trained is the teacher here, so that its cosine is 1; Standard's by hand."""
    data = {"data": "builtin", "data_seed": 3, "eval_examples": 20, "input_gradient": "xent"}
    finish(tmp_path / "igam", "1110000000", **data)
    finish(tmp_path / "zero", "1110000000", **data)
    finish(tmp_path / "pgd7", "0111100000", method="pgd", **data)
    align(SMALL, tmp_path / "elsewhere")  # nothing is finished there
    j_t, j_s = networks = [WideResNet(8, 1) for _ in range(2)]
    for network in networks:
        network.build((None, 32, 32, 3))
    for name, model in (("igam/teacher", j_t), ("igam/student", j_s), ("pgd7/student", j_t)):
        save_model(model, tmp_path / f"{name}.keras")
    align(SMALL, tmp_path)
    written = sorted(path.parent.name for path in tmp_path.glob("*/alignment.json"))
    assert written == ["pgd7"]
    finish(tmp_path / "absent", "0000000000", method="standard", **data)
    save_model(j_s, tmp_path / "absent" / "student.keras")
    before = (tmp_path / "pgd7" / "alignment.json").stat().st_mtime_ns
    align(SMALL, tmp_path)
    assert (tmp_path / "pgd7" / "alignment.json").stat().st_mtime_ns == before

    test = load("cifar10", "test", source="builtin", seed=3)
    x, y = tf.constant(test.images[:20].astype("float32")), tf.constant(test.labels[:20])
    gradients = []
    for network in networks:
        with tf.GradientTape() as tape:
            tape.watch(x)
            l_xent = keras.losses.sparse_categorical_crossentropy(y, network(x), from_logits=True)
        j = tf.reshape(tape.gradient(l_xent, x), [20, -1]).numpy()
        gradients.append(j / np.linalg.norm(j, axis=1, keepdims=True))
    by_hand = (gradients[0] * gradients[1]).sum(1).mean()

    rows = {row["name"]: row["run"]["alignment"] for row in collect(SMALL, tmp_path)["rows"]}
    assert rows["pgd7"]["cosine"] == pytest.approx(1, abs=1e-5)
    assert rows["absent"]["cosine"] == pytest.approx(by_hand, abs=1e-4)
    assert abs(by_hand) < 0.9
    text = markdown(collect(SMALL, tmp_path))
    assert "| 1.000 (1.000 to 1.000) * |" in text
    assert "| 0.250 (0.200 to 0.300) |" in text
    assert "*: trained without a teacher, J_t is IGAM-MNIST's." in text


# --- the tables themselves -------------------------------------------------------------------------


@pytest.mark.parametrize("preset", FIELDS["preset"].metadata["choices"])
@pytest.mark.parametrize("name", TABLES)
def test_rows_are_settings_and_have_their_own_folders(name, preset):
    whole = TABLES[name]
    names = [row.name for row in whole.rows]
    assert len(set(names)) == len(names)
    assert {n for pair in whole.gains for n in pair} <= set(names)
    for row in whole.rows:
        assert len(row.paper) in (0, len(whole.attacks))
        assert settings_of(row, preset).method == row.flags.get("method", "igam")


def test_the_papers_figures_are_the_papers(golden_dir):
    """Each published accuracy stands in the paper's text, row by row."""
    paper = golden_dir.parent / "paper" / "igam-cvpr2020.md"
    if not paper.exists():
        pytest.skip(f"{paper} is absent")
    text = paper.read_text(encoding="utf-8")
    for name in ("1", "2", "3"):
        for row in TABLES[name].rows:
            if row.paper:
                numbers = [f"{value:g}" for value in row.paper]
                assert any(
                    all(number in line.replace(".0 ", " ") for number in numbers)
                    for line in text.splitlines()
                ), (name, row.label)


def test_means_of_seeds_by_hand(output, tmp_path_factory):
    second = tmp_path_factory.mktemp("second")
    finish(second / "igam", "1010100000", seed=1)
    finish(second / "pgd7", "1111110000", method="pgd", seed=1)
    contents = {0: collect(SMALL, output), 1: collect(SMALL, second)}
    content = mean_of_seeds(SMALL, contents)
    for said in ("title", "settings"):
        assert content[said].endswith(", mean of seeds 0, 1")
    igam, _, _, zero = content["rows"]
    assert igam["cells"][PGD]["ours"] == pytest.approx(30.0)
    # Images count 1, 1/2, 1, 0, 1/2: mean 0.3, variance 0.16, thus 10 * 0.21 / 0.16 trials.
    assert igam["cells"][PGD]["ci95"] == pytest.approx(
        [100 * end for end in wilson_interval(0.3 * 13.125, 13.125)]
    )
    assert igam["cells"][PGD]["difference"] == -13.5
    assert igam["run"]["alignment"]["cosine_ci95"] == pytest.approx([0.2, 0.3])
    assert (igam["run"]["minutes"], igam["run"]["steps"]) == (
        {"teacher": 2.0, "student": 10.0},
        100,
    )
    # Differences of the images 1/2, -1/2, 0, -1, 0, -1/2: with two half examples -1.5 / 12.
    (gain,) = content["gains"]
    assert gain["points"][PGD] == pytest.approx(-20.0)
    half = 1.959964 * ((0.25 + 0.25 + 1 + 0.25 + 0.25 + 1) / 12 - (2 / 12) ** 2) ** 0.5 / 12**0.5
    assert gain["ci95"][PGD] == pytest.approx([-200 / 12 - 100 * half, -200 / 12 + 100 * half])
    assert (zero["run"], zero["cells"][PGD]["ours"]) == (None, None)  # seed 1 has no such row
    text = markdown(content)
    assert "| IGAM-MNIST | 90.0, 90.0 | 30.0, 30.0 |" in text
    assert "| PGD7-trained | 90.0, 90.0 | 40.0, 60.0 |" in text
    assert "Each seed" not in markdown(contents[0])


def test_seeds_that_were_evaluated_differently_have_no_mean(output):
    content = collect(SMALL, output)
    other = json.loads(json.dumps(content))
    other["rows"][0]["run"]["alignment"] = None  # not measured yet
    (mean, *_) = mean_of_seeds(SMALL, {0: content, 1: other})["rows"]
    assert mean["run"]["alignment"] is None
    other["rows"][0]["run"]["settings"] = "n = 20"
    with pytest.raises(UserError, match=r"expected seeds evaluated alike; .*n = 20"):
        mean_of_seeds(SMALL, {0: content, 1: other})


# --- the program -----------------------------------------------------------------------------------


@pytest.fixture
def command(command_of):
    return command_of(program)


def recorded(ran: list, failing: int = 0):
    """`run_all` that keeps command lines; the first `failing` of them end with status 1."""

    def run_all(commands, *, jobs, output):
        for name, arguments in commands.items():
            ran.append(arguments)
            yield name, int(len(ran) <= failing)

    return run_all


def test_print_config_shows_every_row_and_runs_none(command, tmp_path, capfd):
    arguments = ("--table=1", "--preset=smoke", "--data=builtin", f"--output={tmp_path / 'new'}")
    assert command(*arguments, "--print_config", "--rows=standard") == 0
    out = capfd.readouterr().out
    assert out.splitlines()[1:3] == [str(tmp_path / "new" / "standard"), "experiment"]
    assert "  --method=standard " in out
    assert not (tmp_path / "new").exists()


def test_a_row_through_the_real_program_and_again(command, tmp_path, capsys):
    arguments = ("--table=1", "--preset=smoke", "--data=builtin", f"--output={tmp_path}")
    assert command(*arguments, "--rows=standard") == 0
    out = capsys.readouterr().out
    assert "# Table 1: CIFAR-10, upwards transfer (preset smoke" in out
    assert "data builtin (synthetic)" in out
    before = (tmp_path / "standard" / "results.json").stat().st_mtime_ns
    assert command(*arguments, "--rows=standard") == 0
    assert command(*arguments, "--collect", "--rows=") == 0
    assert (tmp_path / "standard" / "results.json").stat().st_mtime_ns == before
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["standard"]


def test_a_row_that_fails_is_named_and_the_others_run(command, tmp_path, monkeypatch, caplog):
    ran = []
    monkeypatch.setattr(program, "run_all", recorded(ran, failing=1))
    checkpoint = "--teacher_checkpoints=mnist=/there"
    status = command(
        "--table=1", "--preset=cpu", f"--output={tmp_path}", "--rows=standard,zero", checkpoint,
        "--data_dir=/data",
    )  # fmt: skip
    assert status == 1
    assert "rows failed (messages above): standard" in caplog.text
    standard, zero = ran
    assert standard[1:4] == ["-m", "igam_tf.train", "--wait"]
    assert {"--method=standard", "--data_dir=/data", f"--workdir={tmp_path / 'standard'}"} < set(
        standard
    )
    assert not any("teacher_checkpoint" in a for a in standard)
    assert {"--teacher_gradient=zero", "--teacher_checkpoint=/there", "--preset=cpu"} < set(zero)
    assert {"--eval_attacks=clean,fgsm,pgd5,pgd10,pgd20", "--seed=0"} < set(zero)


@pytest.mark.parametrize(
    ("preset", "given", "expected"),
    [
        ("cpu", (), "--teacher=train"),
        ("paper", (), None),
        ("paper", ("--teacher=train",), "--teacher=train"),
        ("cpu", ("--teacher_checkpoints=cifar10=/there",), "--teacher=load"),
    ],
)
def test_teachers_of_a_table(command, tmp_path, monkeypatch, preset, given, expected):
    ran = []
    monkeypatch.setattr(program, "run_all", recorded(ran))
    names = ("standard", "cifar10-resize")
    command(
        "--table=figure5", f"--preset={preset}", f"--output={tmp_path / 'table'}",
        f"--rows={','.join(names)}", *given,
    )  # fmt: skip
    standard, igam = ([a for a in arguments if "--teacher" in a] for arguments in ran)
    shared = f"--teachers={tmp_path / 'teachers'}"
    assert standard == [shared]
    assert igam[0] == shared
    assert igam[1:2] == ([expected] if expected else [])


def test_another_target_has_no_published_figures(command, tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(program, "run_all", recorded(ran))
    monkeypatch.chdir(tmp_path)
    command("--table=4", "--preset=cpu", "--target=tiny_imagenet", "--rows=adv2-diff10")
    assert "--target=tiny_imagenet" in ran[0]
    assert "--workdir=runs/table4-tiny_imagenet-cpu/adv2-diff10" in ran[0]
    out = capsys.readouterr().out
    assert "varying lambda_diff, target tiny_imagenet; the preset" in out
    assert "21.7" not in out


def test_other_attacks(command, tmp_path, monkeypatch, capsys):
    """The paper's figures stay with their attacks; a finished row must have each attack."""
    ran = []
    monkeypatch.setattr(program, "run_all", recorded(ran))
    whole = ("--table=1", "--preset=cpu", f"--output={tmp_path}")
    command(*whole, "--rows=zero,standard", "--attacks=pgd20,clean,autoattack")
    assert all("--eval_attacks=pgd20,clean,autoattack" in arguments for arguments in ran)
    out = capsys.readouterr().out
    assert "| row | PGD-20 | clean | AutoAttack | cos" in out
    assert "| IGAM-MNIST | 43.5 / /  | 93.6 / /  |  |" in out
    ran.clear()
    finish(tmp_path / "zero", "1100000000")
    lacking = r"zero under clean, pgd20, autoattack; it was not attacked by autoattack$"
    for given in ((), ("--collect",)):
        with pytest.raises(UserError, match=lacking):
            command(*whole, *given, "--attacks=clean,pgd20,autoattack")
    assert not ran
    assert command(*whole, "--attacks=clean,pgd20", "--collect") == 0


def test_another_seed_is_another_folder(command, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(program, "run_all", recorded(ran))
    monkeypatch.chdir(tmp_path)
    assert command("--table=1", "--preset=cpu", "--rows=zero", "--seed=3") == 0
    assert {"--seed=3", "--workdir=runs/table1-cpu-seed3/zero"} < set(ran[0])
    assert not any("--precision" in argument for argument in ran[0])
    command("--table=best", "--preset=cpu", "--rows=fast", "--precision=mixed_bfloat16")
    assert {"--precision=mixed_bfloat16", "--eval_attacks=clean,pgd20,apgd"} < set(ran[1])


def test_several_seeds_have_a_folder_each(command, tmp_path, monkeypatch, caplog):
    ran = []
    monkeypatch.setattr(program, "run_all", recorded(ran, failing=1))
    monkeypatch.chdir(tmp_path)
    whole = ("--table=1", "--preset=cpu", "--rows=zero,standard")
    assert command(*whole, "--seed=3", "--seeds=2") == 1
    folder = "runs/table1-cpu-seeds"
    assert "seed3/standard" in caplog.text
    assert [a for arguments in ran for a in arguments if "workdir" in a or "--seed=" in a] == [
        f"--{item}"
        for seed in (3, 4)
        for row in ("standard", "zero")
        for item in (f"seed={seed}", f"workdir={folder}/seed{seed}/{row}")
    ]
    assert all("--teachers=runs/teachers" in arguments for arguments in ran)
    assert {p.name for p in Path(folder).iterdir() if p.is_file()} == {
        ".lock",
        *(f"table1-seeds.{kind}" for kind in ("json", "md", "tex")),
    }
    assert Path(folder, "seed4", "table1.md").is_file()
    ran.clear()
    finish(Path(folder, "seed4", "zero"), "1100000000", seed=0)  # a wrong one, before any training
    with pytest.raises(UserError, match=r"rows of --seed=4 in .*zero has --seed=0"):
        command(*whole, "--seed=3", "--seeds=2")
    assert not ran
    with pytest.raises(UserError, match=r"absent: .*seed5, .*seed6$"):
        command(*whole, "--seed=5", "--seeds=2", "--collect", f"--output={folder}")


@pytest.mark.parametrize(
    "other", ["--preset=smoke", "--data=builtin", "--seed=1", "--precision=mixed_bfloat16"]
)
def test_finished_rows_of_another_kind_are_refused(command, tmp_path, monkeypatch, other):
    monkeypatch.setattr(program, "run_all", lambda *_, **__: pytest.fail("a row was run"))
    finish(tmp_path / "zero", "1100000000")
    with pytest.raises(UserError, match=f"expected finished rows of {other}.*zero has --"):
        command("--table=1", "--preset=cpu", f"--output={tmp_path}", other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--table=1", "--rows=other"), "expected --rows of standard, .*received other"),
        (("--table=1", "--teacher_checkpoints=there"), "<source>=<folder>.*received 'there'"),
        (("--table=1", "--collect", "--output=/nowhere"), "absent: /nowhere"),
        (("--table=1", "--attacks=clean,strong"), "received 'strong'"),
        ((), "expected --table, one of 1, 2"),
        (("--table=1", "2"), "expected flags alone"),
    ],
)
def test_mistakes(arguments, message, command):
    with pytest.raises(UserError, match=message):
        command(*arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_row_first(tmp_path, number):
    """The row is told to stop, and by which signal, and saves; this program ends in one line."""
    row = (
        "import signal, sys, time\n"
        "def save(number, _): print('saved', number); sys.exit(128 + number)\n"
        "for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, save)\n"
        "time.sleep(60)"
    )
    here = (
        "import os, signal, sys, threading; sys.argv[0] = 'igam-reproduce';"
        # A background job of a shell begins with Ctrl-C ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from pathlib import Path; from igam_tf.reproduce.__main__ import run_all, run_entry_point;"
        f"threading.Timer(2, os.kill, (os.getpid(), {int(number)})).start();"
        f"rows = {{'row': [sys.executable, '-c', {row!r}]}};"
        "run_entry_point(lambda _: list(run_all(rows, jobs=1, output=Path('.'))))"
    )
    process = subprocess.run(
        [sys.executable, "-c", here],
        timeout=50,
        check=False,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"},
    )
    assert process.returncode == 128 + number
    assert process.stdout == f"saved {int(number)}\n"
    end = "stopped by Ctrl-C\n" if number == signal.SIGINT else ""
    assert process.stderr == f"row 1 of 1: row\n{end}"


def test_rows_at_once(tmp_path):
    """Each waits for the other's file, so that neither would end alone; what they print is kept."""
    code = (
        "import pathlib, sys, time\n"
        "own, other, status = sys.argv[1:]\n"
        "pathlib.Path(own).touch()\n"
        "while not pathlib.Path(other).exists(): time.sleep(0.05)\n"
        "print('row', flush=True); sys.exit(int(status))"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    row = [sys.executable, "-c", code]
    commands = {"one": [*row, a, b, "0"], "two": [*row, b, a, "3"], "three": [*row, a, b, "0"]}
    assert dict(run_all(commands, jobs=2, output=tmp_path)) == {"one": 0, "two": 3, "three": 0}
    assert [(tmp_path / f"{name}.log").read_text() for name in commands] == ["row\n"] * 3


def test_rows_at_once_share_the_cores(tmp_path, monkeypatch):
    cores = sorted(os.sched_getaffinity(0))[:2]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))
    assert shares_of_cores(1) == [set()]
    assert shares_of_cores(3) == [set(), set(), set()]
    if len(cores) < 2:
        pytest.skip("expected two cores to share out")
    assert shares_of_cores(2) == [{cores[0]}, {cores[1]}]
    code = "import os, time; time.sleep(0.5); print(*os.sched_getaffinity(0))"
    rows = {name: [sys.executable, "-c", code] for name in ("one", "two", "three")}
    assert not any(dict(run_all(rows, jobs=2, output=tmp_path)).values())
    seen = [int((tmp_path / f"{name}.log").read_text()) for name in rows]
    assert sorted(seen[:2]) == cores
    assert seen[2] in cores


@pytest.mark.parametrize("status", [143, 130])
def test_a_row_that_is_stopped_stops_the_others(tmp_path, status):
    end = [sys.executable, "-c", f"import sys; sys.exit({status})"]
    # A background job of a shell begins with Ctrl-C ignored.
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); time.sleep(60)"
    long = [sys.executable, "-c", code]
    with pytest.raises(SystemExit if status == 143 else KeyboardInterrupt):
        list(run_all({"long": long, "end": end, "never": long}, jobs=2, output=tmp_path))


def test_the_package_says_where_what_is():
    for path in Path(reproduce.__file__).parent.glob("*.py"):
        assert path.name == "__init__.py" or path.name in reproduce.__doc__
