"""Two workers, each a process of its own, on the loopback interface."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import run_here

from igam_tf import train
from igam_tf.storage.run_folder import read_metrics

# Students on natural images alone; `test_igam` has the others on several replicas.
SMOKE = ["--preset=smoke", "--data=builtin", "--method=standard", "--validate_every=100"]
SMOKE += ["--student=mnist-cnn", "--pixel_max=1"]  # graphs of a second
LOST = "error: another worker stopped or cannot be reached"


def start(folders: list[Path], *flags: str) -> list[subprocess.Popen]:
    """One process for each worker, in its folder."""
    sockets = [socket.create_server(("localhost", 0)) for _ in folders]
    cluster = {"worker": [f"localhost:{s.getsockname()[1]}" for s in sockets]}
    for s in sockets:
        s.close()
    processes = []
    for index, folder in enumerate(folders):
        config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_CONFIG": json.dumps(config)}
        command = [sys.executable, "-m", "igam_tf.train", *SMOKE, f"--workdir={folder}", *flags]
        processes.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        )  # fmt: skip
    return processes


def end(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """(exit statuses, what went to stderr) of all; none may take minutes."""
    try:
        texts = [process.communicate(timeout=500)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], texts


def weights(folder: Path) -> list[np.ndarray]:
    """Every array of the student, in the order of their names."""
    arrays = {}
    with (
        zipfile.ZipFile(folder / "student.keras") as archive,
        h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file,
    ):
        file.visititems(
            lambda name, d: arrays.update({name: d[()]}) if hasattr(d, "shape") else None
        )
    return [arrays[name] for name in sorted(arrays)]


def assert_same_weights(one: Path, other: Path):
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_two_workers_give_the_weights_of_one(tmp_path):
    """And the chief alone writes: one line of each step, one log for TensorBoard."""
    steps = ["--train_steps=4", "--eval_attacks=clean", "--eval_examples=16", "--num_validation=0"]
    run_here(train, *SMOKE, f"--workdir={tmp_path / '1'}", *steps)
    statuses, texts = end(start([tmp_path / "2"] * 2, *steps))
    assert statuses == [0, 0], texts
    assert_same_weights(tmp_path / "1", tmp_path / "2")
    rows = [read_metrics(tmp_path / w / "metrics.jsonl") for w in "12"]
    for one, two in zip(*rows, strict=True):
        assert (one["stage"], one["step"]) == (two["stage"], two["step"])
        assert ("L_xent" in one) == ("L_xent" in two)
        assert one.get("L_xent", 0) == pytest.approx(two.get("L_xent", 0), rel=1e-4)
    written = [sorted(p.relative_to(tmp_path / w) for p in (tmp_path / w).glob("*")) for w in "12"]
    assert written[0] == written[1]


def _when_saved(folder: Path, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 500
    while not list((folder / "checkpoints" / "student").glob("ckpt-*")):
        assert all(process.poll() is None for process in processes), (
            "one ended before it was killed"
        )
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_is_killed_the_other_stops_and_the_same_command_goes_on(tmp_path, victim):
    steps = ["--train_steps=200", "--checkpoint_every=10", "--log_every=10"]
    killed = tmp_path / "killed"
    processes = start([killed] * 2, *steps)
    _when_saved(killed, processes)
    processes[victim].kill()
    begin = time.monotonic()
    statuses, texts = end(processes)
    assert time.monotonic() - begin < 60
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] == 1
    lines = [line for line in texts[1 - victim].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith(LOST)
    assert not (killed / "student.keras").exists()
    statuses, texts = end(start([killed] * 2, *steps))
    assert statuses == [0, 0], texts
    for text in texts:
        assert int(re.search(r"student: resuming at step (\d+) of 200", text)[1]) >= 10
    statuses, _ = end(start([tmp_path / "whole"] * 2, *steps))
    assert statuses == [0, 0]
    for a, b in zip(weights(killed), weights(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_sigterm_to_all_is_saved_by_the_chief(tmp_path):
    processes = start([tmp_path / "run"] * 2, "--train_steps=5000", "--checkpoint_every=10")
    _when_saved(tmp_path / "run", processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    statuses, texts = end(processes)
    assert statuses == [128 + signal.SIGTERM, 1]
    assert "Stopped by SIGTERM. student is saved at step" in texts[0]
    assert LOST in texts[1]


@pytest.mark.slow
def test_folders_that_are_not_shared_are_refused(tmp_path):
    """The second worker sees another folder than its chief, as on a machine without the share."""
    statuses, texts = end(start([tmp_path / "chief", tmp_path / "other"]))
    assert statuses == [1, 1]
    assert LOST in texts[0]
    assert "error: expected the chief's run folder in --workdir=" in texts[1]
    assert not (tmp_path / "other").exists()
