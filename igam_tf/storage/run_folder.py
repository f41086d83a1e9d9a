"""The run folder: a run's settings, checkpoints, metrics, models and results.

    config.json        every setting, versions, git commit
    teacher_source.keras, teacher.keras, student.keras   the stages' networks, each written once
    checkpoints/<stage>/    the state of a stage that is being trained
    metrics.jsonl, tensorboard/    scalars and pictures, logged during training
    teacher_source.json    where a trained teacher comes from, and its accuracy on its own task
    images.json        fingerprints of the images, wherever these are stored
    data.json          number of images of the target
    results.json       the evaluation

Every file is complete or absent: it is written under another name and renamed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import madry_models  # noqa: F401 (registers its classes for .keras files)
from igam_tf.common.archives import archive_errors, open_zip
from igam_tf.common.errors import UserError
from igam_tf.common.files import read_json, replacing, temporary_of, write_json
from igam_tf.common.lazy import keras, tf
from igam_tf.common.locks import is_at, take_folder
from igam_tf.common.private_api import reason_of_loading

_PACKAGES = ("igam_tf", "keras", "tensorflow-datasets", "numpy", "absl-py")


def environment() -> dict[str, str | None]:
    """Versions, processor and git commit of this process."""
    versions = {"tensorflow": tf.__version__}  # its distribution can have several names
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    )
    commit = git.stdout.strip() if git.returncode == 0 else None
    return versions | {"python": platform.python_version(), "git_commit": commit}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without an incomplete last line; none if the file is absent.

    Raises:
        UserError: a line is damaged.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else [], 1):
        try:
            row = json.loads(line)
            _ = row["stage"], row["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"expected a row of JSON with stage and step in line {number} of {path}; it is "
                f"damaged ({error}): repair or remove that line"
            ) from error
        rows.append(row)
    return rows


def save_model(model: keras.Model, path: Path) -> None:
    """Saves a `.keras` file atomically."""
    with replacing(path) as temporary:
        model.save(temporary)


def load_model(path: Path) -> keras.Model:
    """Loads a `.keras` file of this project; code in it is never run.

    Raises:
        UserError: it is damaged, too large, no model, or contains code (a Lambda layer).
    """
    try:
        # If a checksum is wrong, Keras would read the weights again without checking it.
        with archive_errors(), open_zip(path) as bundle:
            if damaged := bundle.testzip():
                raise UserError(f"{damaged} in it is damaged")
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a file of unknown origin can raise any error
        raise UserError(
            "expected a readable .keras file without code in it; "
            f"received {path}: {textwrap.shorten(reason_of_loading(error), 200)}"
        ) from error


def _as_json(value: Any) -> Any:
    """The value after a round trip through JSON."""
    return json.loads(json.dumps(value))


class RunFolder:
    """The folder of one run with fixed settings; only one process at a time works in it.

    Args:
        path: the folder; it is created if absent.
        config: dataclass of settings; an existing folder must have the same.
        chief: whether this process writes; other workers of a cluster only read what the chief
            writes.
        wait: whether to wait while another process works in it.

    Raises:
        UserError: the folder has other settings, is used by another process or is not writable; for
            a worker that is not the chief: it is no run folder.
    """

    def __init__(
        self, path: str | os.PathLike, config: Any, *, chief: bool = True, wait: bool = False
    ):
        self.path, self.chief, self._lock = Path(path), chief, None
        if chief:
            self._lock = take_folder("workdir", self.path, wait=wait)
        try:
            self._settle(config)
        except UserError:
            self.close()
            raise

    def _settle(self, config: Any) -> None:
        """Writes the settings, or compares them with those in the folder.

        Paths of this machine are not compared, see `config.without_places`.
        """
        path, settings = self / "config.json", _as_json(dataclasses.asdict(config))
        if path.exists():
            before = read_json(path)
            before.pop("environment", None)
            without_places = getattr(config, "without_places", dict)
            ours, theirs = without_places(settings), without_places(before)
            changed = [
                f"--{name} was {before.get(name)!r}, is {settings.get(name)!r}"
                for name in sorted(before.keys() | settings.keys())
                if theirs.get(name) != ours.get(name)
            ]
            if changed:
                raise UserError(
                    f"{self.path} holds a run of other settings ({'; '.join(changed)}); "
                    "name another --workdir or the same settings"
                )
            return
        if not self.chief:
            raise UserError(
                f"expected the chief's run folder in --workdir={self.path}, on a file system that all "
                "workers share; it holds no config.json"
            )
        ours = (self / ".lock", temporary_of(path))
        if any(p not in ours for p in self.path.iterdir()):
            raise UserError(
                f"expected an empty folder or a run folder in --workdir={self.path}; "
                "it holds other files and no config.json"
            )
        write_json(path, settings | {"environment": environment()})

    def __truediv__(self, name: str) -> Path:
        """The path of a file in the folder; checks as `check_place` does."""
        self.check_place()
        return self.path / name

    def check_place(self) -> None:
        """Raises a UserError if the folder was renamed or removed while this process worked in it."""
        if self._lock and not is_at(self._lock, self.path / ".lock"):
            raise UserError(
                f"expected the run folder {self.path} to stay at its place; it was renamed or "
                "removed while this process worked in it: the saved files are still in it: resume "
                "with --workdir=<its new name>"
            )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Releases the lock, so that another process can work in the folder."""
        if self._lock:
            self._lock.close()
            self._lock = None
