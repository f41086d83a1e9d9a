"""The one exception for a user's mistake; `igam_tf.common.program` shows it."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from igam_tf.common.private_api import file_and_reason

# A full or failing disk, and one that may not be written to.
_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM
)  # fmt: skip


class UserError(ValueError):
    """Bad input: one sentence with what was expected and what came. Shown without a traceback."""

    ag_pass_through = True  # tells a tf.function not to put "in user code: File ..." before it


@contextmanager
def disk_errors() -> Iterator[None]:
    """Says in one sentence that the disk is full, failing or read-only.

    Raises:
        UserError: an OSError of such a kind came, or a TensorFlow error that ends in one's text.
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
            f"cannot write: {what}{f': {where}' if where else ''}; what was saved before is kept: mend "
            "this, and run the same command to continue"
        ) from error


@contextmanager
def folder_in_place(path: Path) -> Iterator[None]:
    """Context in which a file is written to a folder that was there before.

    Raises:
        UserError: it is there no more.
    """
    try:
        yield
    except FileNotFoundError as error:
        if path.parent.is_dir():
            raise
        raise UserError(
            f"expected the folder of {path} to stay at its place; it was renamed or removed "
            "meanwhile: what was finished is kept where it is now"
        ) from error


def writable(flag: str, path: str | os.PathLike) -> Path:
    """The path of a file that can be written, checked before the work rather than after it.

    Args:
        flag: name of the flag that holds the path.
        path: the file; its folder must be there.

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


def flags_alone(argv: list[str]) -> None:
    """Raises a UserError where a command line has more than flags; argv: what `main` was given."""
    if argv[1:]:
        raise UserError(f"expected flags alone; received {' '.join(argv[1:])!r} as well")
