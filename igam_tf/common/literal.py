"""Makes folders usable whose names TensorFlow would read as patterns."""

import functools
import itertools
import os
import re
import tempfile
from pathlib import Path

_numbers = itertools.count()


@functools.cache
def _links() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="igam-")  # removed when the process ends


@functools.cache
def _link(folder: Path) -> Path:
    link = Path(_links().name) / str(next(_numbers))
    link.symlink_to(folder, target_is_directory=True)
    return link


def literal(folder: Path) -> Path:
    """A path to the folder without *, ?, [, ] and backslashes: its own, or that of a link to it.

    TensorFlow looks for checkpoints, and tensorflow-datasets for records, by patterns that begin
    with the folder's name, and do not find them in a folder named `run[1]`.

    Args:
        folder: path of an existing folder.
    """
    whole = folder.absolute()
    return _link(whole) if re.search(r"[*?\[\]\\]", os.fspath(whole)) else folder
