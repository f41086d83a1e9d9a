"""Files and folders that are complete or absent: written under another name, then renamed."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from igam_tf.common.errors import UserError, folder_in_place


def temporary_of(path: Path) -> Path:
    """The temporary path that `replacing` uses for `path`."""
    return path.with_name(f".tmp.{path.name}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Context with a path for a new file or folder; it is renamed to `path` if the block succeeds.

    Args:
        path: absent, a file to be replaced by a file, or an empty folder.
        temporary: the yielded path; what exists there is removed. None means `temporary_of`, for a
            path that no other process writes.

    Raises:
        UserError: the folder of `path` no longer exists.
    """
    temporary = temporary or temporary_of(path)
    _remove(temporary)  # left by a killed process
    try:
        with folder_in_place(path):
            yield temporary
            for file in (temporary, *temporary.rglob("*")):
                if file.is_file():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
            os.replace(temporary, path)
    finally:
        _remove(temporary)


@contextmanager
def new_folder(flag: str, path: str) -> Iterator[Path]:
    """Context with a folder beside `path`; it is renamed to `path` if the block succeeds.

    Args:
        flag: name of the flag that holds the path.
        path: absent, or an empty folder.

    Raises:
        UserError: something else exists there, or the folder cannot be created.
    """
    place = Path(path).expanduser().absolute()
    if place.is_dir() and any(place.iterdir()):
        raise UserError(f"expected --{flag}={path} to be new or empty; it holds files")
    try:
        with replacing(place, place.with_name(f".partial-{place.name}-{os.getpid()}")) as partial:
            try:
                if place.exists() and not place.is_dir():
                    raise NotADirectoryError(None, "it is a file")
                partial.mkdir(parents=True)
            except OSError as error:
                raise UserError(
                    f"expected a folder to write to in --{flag}={path}; {error.strerror}"
                ) from error
            yield partial
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise UserError(
            f"expected --{flag}={path} to stay new or empty; another process wrote it meanwhile"
        ) from error


def write_text(path: Path, content: str) -> None:
    """Writes `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def copy_file(source: Path, path: Path) -> None:
    """Copies a file to `path` atomically."""
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)


def write_json(path: Path, content: Any) -> None:
    """Writes `path` atomically, as JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        UserError: it is damaged, or no object.
        OSError: it is absent or cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"expected JSON in {path}; it is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"expected a JSON object in {path}; it holds a {type(content).__name__}")
    return content


def hexdigest(path: Path, digest: "hashlib._Hash") -> str:
    """Adds a file to `digest` in parts and returns the hex digest; Python 3.10 has no such function."""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
