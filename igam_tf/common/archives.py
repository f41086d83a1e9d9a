"""Zip archives of unknown origin, which are checked before anything is read or unpacked."""

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from igam_tf.common.errors import UserError

MAX_UNPACKED = 4 * 2**30  # bytes; the largest checkpoint, weights and momentum, takes 0.4 GB


def open_zip(path: Path) -> zipfile.ZipFile:
    """Opens an archive, unless an entry is a link or leaves its folder, or the entries are too large.

    `zipfile` never reads more of an entry than the size that is checked here. Call this, and read
    the archive, within `archive_errors`.

    Raises:
        UserError: the archive is unsafe; the sentence does not name the file.
    """
    bundle = zipfile.ZipFile(path)
    entries = bundle.infolist()
    unsafe = next((entry.filename for entry in entries if not _is_safe(entry)), None)
    unpacked = sum(entry.file_size for entry in entries)
    if unsafe is None and unpacked <= MAX_UNPACKED:
        return bundle
    bundle.close()
    if unsafe is not None:
        raise UserError(f"unsafe archive: {unsafe!r} is a link or leaves its folder")
    raise UserError(f"unsafe archive: expected at most {MAX_UNPACKED} bytes; received {unpacked}")


def _is_safe(entry: zipfile.ZipInfo) -> bool:
    name = entry.filename.replace("\\", "/")
    path = PurePosixPath(name)
    leaves = path.is_absolute() or ".." in path.parts or ":" in name
    return not leaves and not stat.S_ISLNK(entry.external_attr >> 16)


@contextmanager
def archive_errors() -> Iterator[None]:
    """Context that turns the errors of `zipfile` into one sentence.

    Raises:
        UserError: the archive is damaged or of an unsupported kind; the sentence does not name the
            file.
    """
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"damaged or unsupported archive: {error}") from None
