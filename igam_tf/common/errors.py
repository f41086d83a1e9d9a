"""The exception for a user's mistake; `igam_tf.common.program` prints it."""

import difflib
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from igam_tf.common.private_api import file_and_reason

# Errors of a full, failing or read-only disk.
_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM
)  # fmt: skip


class UserError(ValueError):
    """Bad input: one sentence says what was expected and what was received, without a traceback."""

    ag_pass_through = True  # makes tf.function leave out its "in user code: File ..."


@contextmanager
def disk_errors() -> Iterator[None]:
    """Context that turns errors of a full, failing or read-only disk into one sentence.

    Raises:
        UserError: such an OSError was raised, or a TensorFlow error that ends in its text.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            where, what = error.filename, os.strerror(error.errno)
        elif found := file_and_reason(error, map(os.strerror, _DISK)):
            where, what = found
        else:
            raise
        raise UserError(
            f"cannot write: {what}{f': {where}' if where else ''}; what was saved before is kept: "
            "correct this and run the same command to continue"
        ) from error


@contextmanager
def folder_in_place(path: Path) -> Iterator[None]:
    """Context in which a file is written to an existing folder.

    Raises:
        UserError: the folder no longer exists.
    """
    try:
        yield
    except FileNotFoundError as error:
        if path.parent.is_dir():
            raise
        raise UserError(
            f"expected the folder of {path} to stay in place; it was renamed or removed "
            "meanwhile: finished work is still in it"
        ) from error


def writable(flag: str, path: str | os.PathLike) -> Path:
    """The path of a file, which is checked to be writable before the work begins.

    Args:
        flag: name of the flag that holds the path.
        path: the file; its folder must exist.

    Raises:
        UserError: it cannot be written.
    """
    file = Path(path).expanduser()
    try:
        if file.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        tempfile.TemporaryFile(dir=file.absolute().parent).close()
    except OSError as error:
        raise UserError(f"expected --{flag}={path} to be writable; {error.strerror}") from error
    return file


def did_you_mean(name: str, known: Iterable[str], mark: str = "") -> str:
    """ "did you mean <mark><the nearest of the known names>? ", or "" if none is near."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {mark}{near[0]}? " if near else ""


def flags_alone(argv: list[str]) -> None:
    """Raises a UserError if a command line has more than flags; argv: the argument of `main`."""
    if argv[1:]:
        raise UserError(f"expected flags alone; received {' '.join(argv[1:])!r} as well")
