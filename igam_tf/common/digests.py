"""Digests of files too large to be read at once."""

import hashlib
from pathlib import Path


def hexdigest(path: Path, digest: "hashlib._Hash") -> str:
    """Hexadecimal digest of what `digest` was given before and then a file; Python 3.10 lacks its own.

    Args:
        path: the file.
        digest: of hashlib, such as `hashlib.sha256()`; changed.
    """
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
