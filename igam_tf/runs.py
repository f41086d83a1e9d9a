"""The run folder: what a run is (`config.json`), where it stands (checkpoints), what came out.

    config.json        every setting, versions, git commit
    teacher_source.keras, teacher.keras, student.keras   products of the stages, each written once
    checkpoints/<stage>/    the state of a stage under way
    metrics.jsonl, tensorboard/    what was logged
    results.json       the evaluation

Every file appears whole or not at all: it is written beside its place and renamed.
"""

import dataclasses
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import keras

from madry_models.errors import UserError

_PACKAGES = ("igam_tf", "tensorflow", "keras", "tensorflow-datasets", "numpy", "absl-py")


def environment() -> dict[str, str | None]:
    """Versions, processor and git commit of this process."""
    versions = {}
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


def write_text(path: Path, content: str) -> None:
    """Writes `path` atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Writes `path` atomically, as JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def save_model(model: keras.Model, path: Path) -> None:
    """Saves a `.keras` file atomically."""
    temporary = path.with_name(f".tmp.{path.name}")
    model.save(temporary)
    os.replace(temporary, path)


def load_model(path: Path) -> keras.Model:
    """Loads a `.keras` file of this project.

    Raises:
        UserError: not a readable `.keras` file.
    """
    try:
        return keras.saving.load_model(path, compile=False)
    except (ValueError, OSError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"expected a readable .keras file; {path} is not: {error}") from error


class RunFolder:
    """A folder that one process at a time works in, for one set of settings.

    Args:
        path: made if absent.
        config: dataclass of settings; an existing folder must hold the same.

    Raises:
        UserError: other settings than those in the folder, another process in it, or not writable.
    """

    def __init__(self, path: str | os.PathLike, config: Any):
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 (held while the run lives)
        except OSError as error:
            raise UserError(
                f"expected a folder to write to in --workdir={path}; {error.strerror}: {error.filename}"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise UserError(
                f"another process is working in --workdir={path}; wait for it or name another folder"
            ) from error
        try:
            self._settle(json.loads(json.dumps(dataclasses.asdict(config))))
        except UserError:
            self.close()
            raise

    def _settle(self, settings: dict[str, Any]) -> None:
        path = self / "config.json"
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            del before["environment"]
            changed = [
                f"--{name} was {before.get(name)!r}, is {settings.get(name)!r}"
                for name in sorted(before.keys() | settings.keys())
                if before.get(name) != settings.get(name)
            ]
            if changed:
                raise UserError(
                    f"{self.path} holds a run of other settings ({'; '.join(changed)}); "
                    "name another --workdir or the same settings"
                )
            return
        if any(p.name != ".lock" for p in self.path.iterdir()):
            raise UserError(
                f"expected an empty folder or a run folder in --workdir={self.path}; "
                "it holds other files and no config.json"
            )
        write_json(path, settings | {"environment": environment()})

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Lets another process in."""
        self._lock.close()
