"""A file of finished work, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from igam_tf.common.errors import UserError, folder_in_place
from igam_tf.common.lazy import keras
from igam_tf.common.locks import take_lock
from igam_tf.common.private_api import layers_of

# Results and journals hold robust masks under this key.
MASK_KEY = "robust_mask"
_LINE = re.compile(
    rf'{{"key": "([0-9a-f]+)", "{MASK_KEY}": "([01]*)", "sha256": "[0-9a-f]+"}}'.encode()
)


def text_of_mask(robust: np.ndarray) -> str:
    """A robust mask [n] bool as text: for each example 1 where it is robust, else 0."""
    return "".join("1" if r else "0" for r in robust)


def mask_of_text(text: str) -> np.ndarray:
    """Inverse of `digits`, [n] bool."""
    return np.frombuffer(text.encode(), np.uint8) == ord("1")


def checksum(content: Any) -> str:
    """First 16 hex digits of the SHA-256 of a content as JSON has it."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _line(key: str, mask: str) -> str:
    return json.dumps({"key": key, MASK_KEY: mask, "sha256": checksum([key, mask])})


class Journal:
    """A cache of outcomes on disk: robust masks of finished batches, keyed by model, images, settings.

    One line of JSON for each batch, with its checksum, is on disk before the next batch begins. A
    change of the model, of an image or of a setting changes the key, so that an outcome is never taken
    for another's. A damaged line counts as not there.

    Args:
        path: the file; made if absent. Half a line at its end, of a process that was killed, is cut.
        identity: part of every key, for what `key` is not given; see `model_identity`.

    Raises:
        UserError: another file is there, or it cannot be written.
    """

    def __init__(self, path: str | os.PathLike, identity: str):
        self.path, self.identity = Path(path), identity
        self._known: dict[str, str] = {}
        try:
            with open(self.path, "a+b") as file:
                file.seek(0)
                whole = file.read()
                end = whole.rfind(b"\n") + 1
                file.truncate(end)
        except OSError as error:
            raise UserError(f"expected to read and write {path}; {error.strerror}") from error
        lines = whole.split(b"\n")[:-1]
        passed_over = [line for line in lines if not self._take(line)]
        if passed_over and _is_another_json(lines[0]):
            raise UserError(
                f"expected a journal of an evaluation in {path}; it is another file: move it away"
            )
        if passed_over:
            logging.warning(
                "%d of %d lines of %s are damaged; their batches are computed again",
                len(passed_over), len(lines), path,
            )  # fmt: skip

    def _take(self, line: bytes) -> bool:
        """Takes over the outcome in a line; returns whether it is sound."""
        found = _LINE.fullmatch(line)
        if not found:
            return False
        key, mask = (part.decode() for part in found.groups())
        if _line(key, mask).encode() != line:
            return False
        self._known[key] = mask
        return True

    def key(self, *parts: Any) -> str:
        """Digest of the identity and of `parts`: arrays, or anything JSON can write."""
        digest = hashlib.sha256(self.identity.encode())
        for part in parts:
            digest.update(b"\0")
            if isinstance(part, np.ndarray):
                digest.update(f"{part.dtype} {part.shape} ".encode() + part.tobytes())
            else:
                digest.update(json.dumps(part, sort_keys=True).encode())
        return digest.hexdigest()

    def get(self, key: str) -> np.ndarray | None:
        """The mask [B] bool that was put under this key; None if there is none."""
        text = self._known.get(key)
        return None if text is None else mask_of_text(text)

    def put(self, key: str, robust: np.ndarray) -> None:
        """Keeps the mask [B] bool of a finished batch.

        Raises:
            UserError: the journal's folder is not at its place any more.
        """
        self._known[key] = text_of_mask(robust)
        with folder_in_place(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(key, self._known[key]) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _is_another_json(line: bytes) -> bool:
    """Whether a line is JSON that no journal has."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return not isinstance(content, dict) or "key" not in content


@contextmanager
def journal_beside(file: Path, identity: str, part: str = "") -> Iterator[Journal]:
    """The journal <file>.journal of results on their way to `file`, this process's own meanwhile.

    It is removed where the block ends without error.

    Args:
        file: where the results are written in the block.
        identity: see `Journal`.
        part: of several journals of one file, which.

    Raises:
        UserError: another process is at it, or as `Journal`.
    """
    path = file.with_name(".".join(filter(None, (file.name, part, "journal"))))
    try:
        lock = take_lock(path)
    except BlockingIOError as error:
        raise UserError(
            f"another process is writing {file}; wait for it or name another file"
        ) from error
    except OSError as error:
        raise UserError(f"expected to read and write {path}; {error.strerror}") from error
    with lock:
        yield Journal(path, identity)
        path.unlink()


def journaled(
    journal: Journal | None, parts: Sequence[Any], work: Callable[..., np.ndarray], *arguments: Any
) -> np.ndarray:
    """The journal's mask [B] bool for the key of `parts`; else work(*arguments), which is kept there."""
    if journal is None:
        return work(*arguments)
    key = journal.key(*parts)
    robust = journal.get(key)
    if robust is None:
        robust = work(*arguments)
        journal.put(key, robust)
    return robust


def model_identity(model: keras.Model) -> str:
    """Digest of a model's class, configuration, weights, and of the files of a user's own classes.

    A class of this project may move to another module.
    """
    digest = hashlib.sha256(keras.saving.get_registered_name(type(model)).encode())
    with contextlib.suppress(NotImplementedError):
        config = {k: v for k, v in model.get_config().items() if k != "name"}  # numbered by Keras
        digest.update(json.dumps(config, sort_keys=True, default=repr).encode())
    for name in sorted({type(layer).__module__ for layer in layers_of(model)}):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and name.split(".")[0] not in ("keras", "igam_tf", "madry_models"):
            digest.update(Path(file).read_bytes())
    for weight in model.get_weights():
        digest.update(f"{weight.dtype} {weight.shape} ".encode() + weight.tobytes())
    return digest.hexdigest()


def settings_of(spec: Any) -> dict[str, Any]:
    """The settings of an attack that decide its outcome: all but its name and place."""
    return {k: v for k, v in dataclasses.asdict(spec).items() if k not in ("name", "after")}
