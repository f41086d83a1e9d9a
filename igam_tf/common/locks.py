"""Locks between processes; they go with the process that holds them, however it ends."""

import fcntl
import os
from pathlib import Path
from typing import IO


def take_lock(path: Path, *, wait: bool = False) -> IO[bytes]:
    """Opens a file, made if absent, that no other process has locked; closing it releases the lock.

    Whoever holds the lock may remove the file.

    Args:
        path: of the file, whose content stays.
        wait: whether to wait while another process has it.

    Raises:
        BlockingIOError: another process has it.
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
        file.close()  # its last owner has removed it meanwhile


def is_at(file: IO[bytes], path: Path) -> bool:
    """Whether `path` is still the place of an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False
