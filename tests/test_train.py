"""The command line, end to end on built-in data: stages, refusals, and killing it at any moment."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import run_here

from igam_tf import report
from igam_tf import train as program
from igam_tf.common.errors import UserError
from igam_tf.storage.run_folder import read_metrics

SMOKE = ["--preset=smoke", "--data=builtin", "--teacher=train"]
RUN = [*SMOKE, "--student=conftest:small_student"]
# One thread for each operation, as in this process: the same bits.
ENVIRONMENT = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_NUM_INTRAOP_THREADS": "1"}
PATHS = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT |= {"PYTHONPATH": os.pathsep.join(PATHS)}  # where the student is
# As on a user's screen, who asks for no silence.
SCREEN = {name: value for name, value in ENVIRONMENT.items() if name != "TF_CPP_MIN_LOG_LEVEL"}


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "igam_tf.train", *flags]


def train(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*flags), capture_output=True, text=True, env=ENVIRONMENT, check=False
    )


def weights(path: Path) -> dict[str, np.ndarray]:
    """Every array of a .keras file."""
    arrays = {}
    with (
        zipfile.ZipFile(path) as archive,
        h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file,
    ):
        file.visititems(
            lambda name, d: arrays.update({name: d[()]}) if hasattr(d, "shape") else None
        )
    return arrays


def logged(folder: Path) -> list[tuple[str, int]]:
    """(stage, step) of each line that a run logged, those of its teacher's own folder with them."""
    paths = [*folder.parent.glob("teachers/*/metrics.jsonl"), folder / "metrics.jsonl"]
    return [(row["stage"], row["step"]) for path in paths for row in read_metrics(path)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_here(program, *RUN, f"--workdir={folder}")
    return folder


def test_run_folder_holds_everything(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["lambda_diff"] == pytest.approx(100 * 32 / 65025)
    assert config["data"] == "builtin"
    assert {"tensorflow", "keras", "numpy", "python", "git_commit"} <= config["environment"].keys()
    for name in ("teacher_source.keras", "teacher.keras", "student.keras", "results.json"):
        assert (finished / name).exists()
    images = json.loads((finished / "data.json").read_text())
    assert (images["train_images"], images["validation_images"]) == (568, 32)
    results = json.loads((finished / "results.json").read_text())
    assert results.keys() == {"igam", "teacher"}
    for r in results.values():
        assert r["data"] == "builtin"
        assert {"clean", "fgsm", "pgd2", "worst_case"} == r["results"].keys()


def test_metrics_are_logged_one_by_one(finished):
    rows = read_metrics(finished / "metrics.jsonl")
    students = [row for row in rows if row["stage"] == "student"]
    assert [row["step"] for row in students if "L_xent" in row] == [2, 4, 6, 8]
    always = {"L_xent", "accuracy", "learning_rate"}
    matched = {"L_adv", "L_diff", "disc_accuracy", "cosine", "norm_ratio"}
    start = json.loads((finished / "config.json").read_text())["igam_start"]
    assert 2 <= start < 8
    for row in students:
        if "L_xent" in row:  # what was not looked at in a window is left out
            assert row.keys() & (always | matched) == always | (
                matched if row["step"] > start else set()
            )
    validations = [row for row in students if "validation/clean_percent" in row]
    assert [row["step"] for row in validations] == [4, 8]
    events = list((finished / "tensorboard" / "student").glob("events.*"))
    content = b"".join(path.read_bytes() for path in events)
    tags = (b"match/L_diff", b"match/cosine", b"train/L_xent", b"train/learning_rate")
    for name in (
        *tags,
        b"x, J_s, J_t",
        b"validation/pgd20_percent",
        b"test/worst_case_percent",
        b"hparams",
    ):
        assert name in content


def test_finished_stages_are_not_done_again(finished, capsys):
    before = {p.name: p.stat().st_mtime_ns for p in finished.glob("*.keras")}
    log = (finished / "metrics.jsonl").read_bytes()
    run_here(program, *RUN, f"--workdir={finished}")
    assert {p.name: p.stat().st_mtime_ns for p in finished.glob("*.keras")} == before
    assert (finished / "metrics.jsonl").read_bytes() == log
    printed = capsys.readouterr().out
    assert "builtin (synthetic)" in printed
    assert printed.count("worst_case") == 3  # of student, teacher, and teacher of the source


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(("teacher_source", 2), marks=pytest.mark.slow),
        pytest.param(("teacher", 4), marks=pytest.mark.slow),
        pytest.param(("student", 2), marks=pytest.mark.slow),
        ("student", 6),
    ],
)
def test_killed_and_resumed_ends_in_the_same_weights(finished, tmp_path, moment):
    """SIGKILL as soon as the moment is logged; the discriminator's turn comes on steps 2, 4, 6."""
    folder = tmp_path / "killed[1]"  # which is no pattern here
    process = subprocess.Popen(
        command(*RUN, f"--workdir={folder}"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while moment not in logged(folder) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before the moment came"
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (folder / "results.json").exists()
    run_here(program, *RUN, f"--workdir={folder}")
    for name in ("teacher_source.keras", "teacher.keras", "student.keras"):
        ours, whole = weights(folder / name), weights(finished / name)
        assert ours.keys() == whole.keys()
        for key, value in whole.items():
            np.testing.assert_array_equal(ours[key], value, err_msg=f"{name} {key}")
    assert sorted(logged(folder)) == sorted(logged(finished))


def stopped(folder: Path, number: int, *flags: str) -> str:
    """What a run says that gets a signal as soon as the student's first row is logged."""
    process = subprocess.Popen(
        command(*SMOKE, *flags, f"--workdir={folder}"),
        stderr=subprocess.PIPE,
        text=True,
        env=SCREEN,
    )
    while not any(stage == "student" for stage, _ in logged(folder)):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate()
    assert process.returncode == 128 + number
    return stderr


def test_ctrl_c_saves_and_exits_cleanly(tmp_path):
    """Nor does TensorFlow say a word. The rest of the run: test_reliability.py."""
    stderr = stopped(tmp_path / "run", signal.SIGINT, "--method=standard", "--train_steps=400")
    first, *others = [line for line in stderr.splitlines() if line.strip() and "/400 [" not in line]
    assert first == "warning: data: builtin (synthetic), seed 0: no real images"
    assert re.fullmatch(r"stage student: 400 steps of \d+ images of cifar10 .*", others[0])
    saved = r"warning: Stopped by Ctrl-C. student is saved at step \d+ of 400: run the same command"
    assert re.match(saved, others[1])
    assert len(others) == 2
    assert list((tmp_path / "run" / "checkpoints" / "student").glob("ckpt-*/state.index"))


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly(finished, tmp_path):
    folder = tmp_path / "terminated"
    assert "warning: Stopped by SIGTERM. student is saved at step" in stopped(
        folder, signal.SIGTERM, RUN[-1]
    )
    assert train(*RUN, f"--workdir={folder}").returncode == 0
    for key, value in weights(finished / "student.keras").items():
        np.testing.assert_array_equal(weights(folder / "student.keras")[key], value)


def test_other_settings_are_refused_and_named(finished):
    with pytest.raises(UserError, match=r"--lambda_diff was 0\.049.*--seed was 0, is 1"):
        run_here(program, *RUN, f"--workdir={finished}", "--lambda_diff=3", "--seed=1")


def test_all_images_to_train_on(tmp_path):
    flags = ("--method=fast", "--num_validation=0", "--eval_attacks=clean")
    run_here(program, *SMOKE, *flags, f"--workdir={tmp_path}")
    assert json.loads((tmp_path / "data.json").read_text())["train_images"] == 600
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert not any("validation" in name for row in rows for name in row)


def test_two_runs_make_one_table(finished):
    text = report.report([finished, finished])
    rows = [line for line in text.splitlines() if "DOUBTFUL" not in line]
    assert sum(line.startswith("igam (") for line in rows) == 2
    assert "builtin (synthetic)" in text
    assert "eps 8/255" in text


def test_a_table_tells_a_control_from_its_method(finished, tmp_path):
    for name in ("config.json", "results.json"):
        shutil.copy(finished / name, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"teacher_gradient": "zero"}))
    rows = report.report([finished, tmp_path]).splitlines()
    assert sum(row.startswith(f"igam --teacher_gradient=zero ({tmp_path})  ") for row in rows) == 1
    assert sum(row.startswith(f"teacher ({tmp_path})  ") for row in rows) == 1
    assert sum("--teacher_gradient" in row for row in rows if "DOUBTFUL" not in row) == 1


def test_a_mistake_is_one_sentence_and_status_1(tmp_path):
    done = train(*SMOKE, f"--workdir={tmp_path / 'run'}", "--student=wrn-9-1")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "expected wrn-<depth>-<width> with depth 6n + 2" in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["cpu"], "expected flags alone; received 'cpu' as well"),
        (["--validate_every=0"], "expected --validate_every of at least 1; received 0"),
        (["--disc_channels=4,x"], "expected --disc_channels as whole numbers"),
        (["--teacher=load", "--teacher_checkpoint=/nowhere"], "/nowhere"),
        (
            ["--source=cifar10", "--target=mnist"],
            "expected --pixel_max=255, of the pixels that wrn-8-1",
        ),
        (["--data=tfds", "--data_dir=/nowhere"], "--data=builtin"),
        (["--workdir=/proc/none"], "expected a folder to write to in --workdir=/proc/none"),
    ],
)
def test_mistakes_come_before_any_work(command_of, tmp_path, flags, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        command_of(program)(*SMOKE, f"--workdir={tmp_path / 'run'}", *flags)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "config.json").exists()
