"""Locks between processes; a lock is released when its process ends in any way."""

import fcntl
import os
from pathlib import Path
from typing import IO

from absl import logging

from igam_tf.common.errors import UserError


def take_lock(path: Path, *, wait: bool = False) -> IO[bytes]:
    """Opens and locks a file, which is created if absent; closing it releases the lock.

    The process that holds the lock can remove the file.

    Args:
        path: of the file; its content is kept.
        wait: whether to wait while another process holds the lock.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be written.
    """
    while True:
        file = open(path, "ab")  # noqa: SIM115 (held until the caller closes it)
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise
        if is_at(file, path):
            return file
        file.close()  # the process that held it has removed it


def take_folder(flag: str, path: Path, *, wait: bool = False) -> IO[bytes]:
    """Locks a folder, which is created if absent, by the file .lock in it; see `take_lock`.

    Args:
        flag: name of the flag that holds the path.
        path: of the folder.
        wait: whether to wait, and log this, while another process works in it.

    Raises:
        UserError: another process works in it, or it cannot be written.
    """
    lock = path / ".lock"
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            return take_lock(lock)
        except BlockingIOError:
            if not wait:
                raise
            logging.info("waiting for the process that works in %s", path)
            return take_lock(lock, wait=True)
    except BlockingIOError as error:
        raise UserError(
            f"another process is working in --{flag}={path}; wait for it or name another folder"
        ) from error
    except OSError as error:
        raise UserError(
            f"expected a folder to write to in --{flag}={path}; {error.strerror}: {error.filename}"
        ) from error


def is_at(file: IO[bytes], path: Path) -> bool:
    """Whether `path` is still the path of an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False
