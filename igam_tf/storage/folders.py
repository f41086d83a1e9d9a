"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from igam_tf.common.errors import UserError


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
    partial = place.with_name(f".partial-{place.name}-{os.getpid()}")
    try:
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(None, "it is a file")
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"expected a folder to write to in --{flag}={path}; {error.strerror}"
        ) from error
    try:
        yield partial
        try:
            os.replace(partial, place)
        except OSError as error:
            raise UserError(
                f"expected --{flag}={path} to stay new or empty; another process wrote it meanwhile"
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
