"""Files and folders that appear whole or not at all: made beside their place, and renamed."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from igam_tf.common.errors import UserError, folder_in_place


def temporary_of(path: Path) -> Path:
    """Where `replacing` has a file or folder made."""
    return path.with_name(f".tmp.{path.name}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """A path to make a file or a folder at; it becomes `path` once the block ends without error.

    Args:
        path: absent, a file that is replaced by one, or an empty folder.
        temporary: what is yielded; what is there is removed. None: `temporary_of`, for a path that no
            other process writes.

    Raises:
        UserError: the folder of `path` is there no more.
    """
    temporary = temporary or temporary_of(path)
    _remove(temporary)  # what a killed process left
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
    """A folder beside `path` to work in; it takes the name of `path` once the block ends without error.

    Args:
        flag: names the path to the user.
        path: absent, or an empty folder.

    Raises:
        UserError: something is there already, or the folder cannot be made.
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
    """Copies a file to `path`, which appears whole."""
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)


def write_json(path: Path, content: Any) -> None:
    """Writes `path` atomically, as JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        UserError: damaged.
        OSError: not there, or not to be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"expected JSON in {path}; it is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"expected a JSON object in {path}; it holds a {type(content).__name__}")
    return content
