"""Folders whose names TensorFlow would take for patterns."""

import functools
import itertools
import os
import re
import tempfile
from pathlib import Path

_numbers = itertools.count()


@functools.cache
def _links() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="igam-")  # removed with the process


@functools.cache
def _link(folder: Path) -> Path:
    link = Path(_links().name) / str(next(_numbers))
    link.symlink_to(folder, target_is_directory=True)
    return link


def literal(folder: Path) -> Path:
    """A path of a folder without *, ?, [, ] and backslashes: its own, or that of a link to it.

    TensorFlow looks for checkpoints, and tensorflow-datasets for records, by patterns that begin with
    the folder's name, and does not find them in one that is called `run[1]`.

    Args:
        folder: of an existing folder.
    """
    whole = folder.absolute()
    return _link(whole) if re.search(r"[*?\[\]\\]", os.fspath(whole)) else folder
