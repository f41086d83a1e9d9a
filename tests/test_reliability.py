"""What a killed process, a full disk, damaged files or a wrong clock do to a run: no harm."""

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf import datasets
from igam_tf.common import devices as strategies
from igam_tf.common.errors import UserError, disk_errors
from igam_tf.common.files import write_json
from igam_tf.common.program import run_entry_point
from igam_tf.evaluation.results import read_results
from igam_tf.experiments.config import Config
from igam_tf.method.optimizers import Momentum
from igam_tf.method.trainer import ClassifierTrainer
from igam_tf.report import report
from igam_tf.storage.checkpoints import Checkpoints
from igam_tf.storage.run_folder import RunFolder, load_model, read_metrics, save_model
from igam_tf.training.loop import train
from madry_models import MnistCNN

STEPS = 8
# As in this process: on some processors sums of several threads have another order.
ONE_THREAD = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_NUM_INTRAOP_THREADS": "1"}


def trainer() -> ClassifierTrainer:
    keras.utils.set_random_seed(0)
    network = MnistCNN(10)
    network.build((None, 8, 8, 1))
    ours = ClassifierTrainer(network)
    ours.compile(optimizer=Momentum(0.01, momentum=0.9))
    ours.optimizer.build(ours.trained_variables)
    return ours


def batches(done: int) -> tf.data.Dataset:
    steps = [np.random.default_rng(step).uniform(size=(4, 8, 8, 1)) for step in range(done, STEPS)]
    return tf.data.Dataset.from_tensor_slices(
        (np.array(steps, np.float32), np.zeros((len(steps), 4), np.int64))
    )


def run(path: Path, steps: int = STEPS) -> list[np.ndarray]:
    """Trains, or goes on, a checkpoint every second step; what is in the state at the end."""
    ours = trainer()
    with disk_errors(), RunFolder(path, Config()) as folder:
        train(ours, batches, folder=folder, stage="s", steps=steps, log_every=2, checkpoint_every=2)
    return [variable.numpy() for variable in ours.state_variables]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[np.ndarray]:
    """The state of a run that nothing happened to."""
    return run(tmp_path_factory.mktemp("whole") / "run")


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def flip(path: Path, position: float = 0.5) -> None:
    """Turns over one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 16
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def warnings(caplog):
    logging.getLogger("absl").propagate = True
    with caplog.at_level(logging.WARNING, logger="absl"):
        yield caplog


# --- killed ---------------------------------------------------------------------------------------

# Trains in a process that SIGKILLs itself at the third checkpoint: amid its data, or before it is
# renamed.
KILLED = """
import os, pathlib, signal, sys
import tensorflow as tf
sys.path.insert(0, sys.argv[3])
import test_reliability
place, path = sys.argv[1], pathlib.Path(sys.argv[2])
owner = {"write": tf.train.Checkpoint, "replace": os}[place]
original = getattr(owner, place)
def die(*arguments):
    third = (path / "checkpoints" / "s" / "ckpt-4").exists()
    if third and place == "write":
        prefix = pathlib.Path(arguments[1])
        (prefix.parent / (prefix.name + ".data-00000-of-00001")).write_bytes(b"half")
    if third and (place == "write" or ".partial" in str(arguments[0])):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
setattr(owner, place, die)
test_reliability.run(path)
"""


@pytest.mark.parametrize("place", ["write", pytest.param("replace", marks=pytest.mark.slow)])
def test_sigkill_while_a_checkpoint_is_written(whole, tmp_path, place):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, place, tmp_path / "run", Path(__file__).parent],
        capture_output=True, env=os.environ | ONE_THREAD, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    checkpoints = tmp_path / "run" / "checkpoints" / "s"
    assert {p.name for p in checkpoints.iterdir()} == {"ckpt-2", "ckpt-4", ".partial"}
    same(run(tmp_path / "run"), whole)
    assert {p.name for p in checkpoints.iterdir()} == {"ckpt-6", "ckpt-8"}
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("number", "name", "devices"), [(signal.SIGTERM, "SIGTERM", 1), (signal.SIGINT, "Ctrl-C", 2)]
)
def test_a_signal_saves_and_the_rest_is_as_without_it(tmp_path, warnings, number, name, devices):
    """It comes in the first step of a window of metrics, which goes on where it was."""

    def run(path: Path, stop_at: int = 0) -> str:
        ours = trainer()
        data = {"folder": RunFolder(path, Config()), "stage": "s", "steps": STEPS}

        def validate(step, log):
            if step == stop_at:
                os.kill(os.getpid(), number)
            return {}

        with data["folder"]:
            train(ours, batches, **data, log_every=2, checkpoint_every=8, validate=validate)
        rows = read_metrics(path / "metrics.jsonl")
        return [{k: v for k, v in row.items() if k != "train_minutes"} for row in rows]

    here = strategies.mirrored([f"CPU:{i}" for i in range(devices)])
    with here.scope() if devices > 1 else nullcontext():
        whole = run(tmp_path / "whole")
        with pytest.raises(SystemExit) as end:
            run(tmp_path / "stopped", stop_at=3)
        assert end.value.code == 128 + number
        assert f"Stopped by {name}. s is saved at step 3 of 8: " in warnings.text
        assert run(tmp_path / "stopped") == whole
    assert [row["step"] for row in whole if "L_xent" in row] == [2, 4, 6, 8]


def test_half_of_the_first_checkpoint_is_none(tmp_path):
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "state.index").write_bytes(b"half")
    state, checkpoints = stored(tmp_path)
    checkpoints.restore()
    assert checkpoints.latest is None
    assert state.numpy() == 0


def test_killed_before_there_were_settings(tmp_path):
    (tmp_path / ".tmp.config.json").write_text("{")
    RunFolder(tmp_path, Config()).close()
    assert {p.name for p in tmp_path.iterdir()} == {".lock", "config.json"}


@pytest.mark.parametrize("removed", [False, True])
def test_a_run_folder_that_goes_away_ends_in_one_sentence(whole, tmp_path, removed):
    """And goes on at its new place, if it has one."""
    path, ours = tmp_path / "run", trainer()

    def validate(step, log):
        if step == 3:
            shutil.rmtree(path) if removed else path.rename(tmp_path / "new")
        return {}

    how = {"steps": STEPS, "log_every": 8, "checkpoint_every": 2, "validate": validate}
    with RunFolder(path, Config()) as folder, pytest.raises(UserError, match="renamed or removed"):
        train(ours, batches, folder=folder, stage="s", **how)
    assert not path.exists()
    if not removed:
        same(run(tmp_path / "new"), whole)


# --- damaged checkpoints --------------------------------------------------------------------------


def stored(folder: Path, *steps: int) -> tuple[tf.Variable, Checkpoints]:
    """A state that is its own step, saved after `steps`; then 0."""
    state = tf.Variable(0.0)
    checkpoints = Checkpoints(tf.train.Checkpoint(state=state), folder)
    for step in steps:
        state.assign(step)
        checkpoints.save(step)
    state.assign(0)
    return state, Checkpoints(tf.train.Checkpoint(state=state), folder)


def test_the_newest_two_are_kept_and_the_newest_is_read(tmp_path):
    state, checkpoints = stored(tmp_path, 8, 9, 10)
    assert {p.name for p in tmp_path.iterdir()} == {"ckpt-9", "ckpt-10"}
    checkpoints.restore()
    assert state.numpy() == 10
    assert checkpoints.latest == tmp_path / "ckpt-10"


@pytest.mark.parametrize("damage", [flip, halve, Path.unlink], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["state.index", "state.data-00000-of-00001"])
def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path, warnings, name, damage):
    state, checkpoints = stored(tmp_path, 4, 6)
    damage(tmp_path / "ckpt-6" / name)
    checkpoints.restore()
    assert state.numpy() == 4
    assert "ckpt-6 is damaged" in warnings.text
    state.assign(5)
    checkpoints.save(5)  # what is damaged does not count among the newest two
    assert {p.name for p in tmp_path.iterdir()} == {"ckpt-4", "ckpt-5"}


def test_all_damaged_is_no_reason_to_begin_anew(tmp_path, warnings):
    run(tmp_path, steps=4)
    checkpoints = tmp_path / "checkpoints" / "s"
    for step in (2, 4):
        flip(checkpoints / f"ckpt-{step}" / "state.data-00000-of-00001")
    with pytest.raises(UserError, match=r"expected an undamaged checkpoint in .*ckpt-4, ckpt-2"):
        run(tmp_path)
    assert {p.name for p in checkpoints.iterdir()} == {"ckpt-2", "ckpt-4"}


def test_training_goes_on_from_the_checkpoint_before(whole, tmp_path, warnings):
    run(tmp_path, steps=4)
    flip(tmp_path / "checkpoints" / "s" / "ckpt-4" / "state.data-00000-of-00001")
    same(run(tmp_path), whole)
    assert "ckpt-4 is damaged" in warnings.text
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4, 6, 8]


def test_a_checkpoint_of_another_version(tmp_path):
    other = tf.train.Checkpoint(weights=tf.Variable(1.0))
    Checkpoints(other, tmp_path).save(6)
    with pytest.raises(
        UserError, match=r"expected the state of this version's trainer in .*ckpt-6"
    ):
        stored(tmp_path)[1].restore()


# --- disks ----------------------------------------------------------------------------------------


class Disk:
    """A file system of its own in memory, of the size in bytes."""

    def __init__(self, path: Path, size: int):
        self.path = path
        path.mkdir()
        self._mount(f"size={size}")

    def _mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(self.path)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only who may mount a file system can have a small one")

    def remount(self, options: str) -> None:
        """Other options, such as ro."""
        self._mount(f"remount,{options}")


@pytest.fixture
def disk(tmp_path):
    """One that holds one checkpoint of `run`, and no second."""
    path = tmp_path / "disk"
    yield Disk(path, 4 << 20)
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on(whole, disk):
    with pytest.raises(UserError, match=r"No space left on device.*what was saved before is kept"):
        run(disk.path / "run")
    checkpoints = disk.path / "run" / "checkpoints" / "s"
    assert {p.name for p in checkpoints.iterdir()} == {"ckpt-2"}  # nor is space lost to a half one
    disk.remount("size=40m")
    same(run(disk.path / "run"), whole)


def test_a_file_that_may_not_grow_is_not_left_half(tmp_path, monkeypatch):
    """The same without a disk of one's own: the kernel refuses to write beyond a limit."""
    network = trainer().network
    state = tf.train.Checkpoint(variables=[v.value for v in network.variables])
    checkpoints = Checkpoints(state, tmp_path)
    checkpoints.save(2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"File too large: .*state"), disk_errors():
            checkpoints.save(4)
        with pytest.raises(UserError, match="File too large"), disk_errors():
            save_model(network, tmp_path / "student.keras")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt-2"]
    Checkpoints(state, tmp_path).restore()


def test_a_program_ends_with_status_1_and_one_sentence(monkeypatch, capsys):
    def main(_):
        with open("/dev/full", "w") as full:
            full.write("metrics")

    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as end:
        run_entry_point(main)
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "No space left on device" in said
    assert "run the same command" in said
    assert said.count("\n") == 1


def test_errors_of_other_kinds_are_not_the_disk_s():
    with pytest.raises(FileNotFoundError), disk_errors():
        open("/nowhere")  # noqa: SIM115
    with pytest.raises(UserError, match=r"^x; Permission denied$"), disk_errors():
        raise UserError("x; Permission denied")


def test_a_read_only_run_folder(tmp_path, request):
    if os.geteuid():  # permissions do not hold root back
        folder = tmp_path / "run"
        RunFolder(folder, Config()).close()
        folder.chmod(0o555)
    else:
        disk = request.getfixturevalue("disk")
        folder = disk.path / "run"
        RunFolder(folder, Config()).close()
        disk.remount("ro")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(UserError, match=f"expected a folder to write to in --workdir={folder}"):
        RunFolder(folder, Config())
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


# --- two processes --------------------------------------------------------------------------------

HOLDER = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_that_another_process_holds_until_it_is_killed(tmp_path):
    RunFolder(tmp_path / "run", Config()).close()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "run" / ".lock"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is working in"):
            RunFolder(tmp_path / "run", Config())
        killed = threading.Event()  # set before the kill that frees the folder
        threading.Timer(0.5, lambda: (killed.set(), other.kill())).start()
        RunFolder(tmp_path / "run", Config(), wait=True).close()
        assert killed.is_set()
    RunFolder(tmp_path / "run", Config()).close()


# --- clocks ---------------------------------------------------------------------------------------


def test_clocks_that_go_backwards(whole, tmp_path, monkeypatch):
    """The wall clock falls by an hour at each look; the other one begins anew, as after a reboot."""
    run(tmp_path, steps=4)
    checkpoints = tmp_path / "checkpoints" / "s"
    os.utime(checkpoints / "ckpt-4", (0, 0))
    now, monotonic, looks = time.time(), time.monotonic, [0]

    def falling() -> float:
        looks[0] += 1
        return now - 3600 * looks[0]

    began = monotonic()
    monkeypatch.setattr(time, "time", falling)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() - began)
    same(run(tmp_path), whole)
    assert looks[0]
    assert {p.name for p in checkpoints.iterdir()} == {"ckpt-6", "ckpt-8"}
    minutes = [row["train_minutes"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert len(minutes) == 4
    assert minutes == sorted(minutes)
    assert minutes[0] > 0


# --- damaged data and products --------------------------------------------------------------------


@pytest.mark.parametrize("damage", [flip, halve], ids=lambda f: f.__name__)
def test_a_damaged_record_names_the_file(data_dir, tmp_path, damage):
    place = Path("mnist") / "3.0.1"
    shutil.copytree(data_dir / "tensorflow_datasets" / place, tmp_path / place)
    records = tmp_path / place / "mnist-test.tfrecord-00000-of-00001"
    damage(records)
    with pytest.raises(UserError, match=rf"mnist in .* is damaged \({records}: .*record") as error:
        datasets.load("mnist", "test", data_dir=str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "student.keras"
    network = MnistCNN(3)
    network.build((None, 4, 4, 1))
    save_model(network, path)
    return path


def test_a_model_of_which_any_bit_is_wrong_is_refused_or_the_same(model, tmp_path):
    """Where a bit does not matter, such as in a date, the weights are what they were."""
    weights = load_model(model).get_weights()
    sentences = []
    for position in np.linspace(0, 1, 48, endpoint=False):
        path = tmp_path / "student.keras"
        shutil.copy(model, path)
        flip(path, position)
        try:
            same(load_model(path).get_weights(), weights)
        except UserError as error:
            sentences.append(str(error))
    assert len(sentences) > 40
    assert all(str(path) in sentence and "\n" not in sentence for sentence in sentences)


def test_half_a_model(model, tmp_path):
    path = tmp_path / "teacher.keras"
    shutil.copy(model, path)
    halve(path)
    with pytest.raises(
        UserError, match=f"expected a readable .keras file .*; received {path}: damaged"
    ):
        load_model(path)


@pytest.mark.parametrize("damage", [halve, lambda path: path.write_text("[]")])
def test_damaged_settings(tmp_path, damage):
    RunFolder(tmp_path / "run", Config()).close()
    damage(tmp_path / "run" / "config.json")
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"expected .*JSON.* in .*config\.json; it "):
        RunFolder(tmp_path / "run", Config())
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_damaged_results(tmp_path):
    write_json(tmp_path / "results.json", {"igam": {"results": {}, "data": "tfds"}})
    with pytest.raises(UserError, match=r"a report of each model in .*json; it is damaged"):
        report([tmp_path])
    halve(tmp_path / "results.json")
    with pytest.raises(UserError, match=r"expected JSON in .*results\.json; it is damaged"):
        read_results(tmp_path)


def test_damaged_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"stage": "s", "step": step, "L_xent": 1.5} for step in (2, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"stage": "s", "st')
    assert read_metrics(path) == rows  # half a line is what a killed process leaves
    flip(path, 0.2)
    with pytest.raises(UserError, match=rf"in line 1 of {path}; it is damaged"):
        read_metrics(path)
