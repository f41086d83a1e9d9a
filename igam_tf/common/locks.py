"""Locks between processes; a lock is released when its process ends in any way."""

import fcntl
import os
from pathlib import Path
from typing import IO


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


def is_at(file: IO[bytes], path: Path) -> bool:
    """Whether `path` is still the path of an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False
