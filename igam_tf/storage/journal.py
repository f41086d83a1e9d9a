"""A file of finished batches, from which an interrupted evaluation is resumed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from igam_tf.common.errors import UserError, folder_in_place
from igam_tf.common.files import replacing
from igam_tf.common.lazy import keras
from igam_tf.common.locks import take_lock
from igam_tf.common.private_api import layers_of

# The key of robust masks in results and journals.
MASK_KEY = "robust_mask"
_DIGEST = hashlib.sha256().digest_size
_LINE = re.compile(
    rf'{{"key": "([0-9a-f]+)", "{MASK_KEY}": "([01]*)", "sha256": "[0-9a-f]+"}}'.encode()
)


def text_of_mask(robust: np.ndarray) -> str:
    """A robust mask [n] bool as text: 1 for each robust example, else 0."""
    return "".join("1" if r else "0" for r in robust)


def mask_of_text(text: str) -> np.ndarray:
    """Inverse of `text_of_mask`, [n] bool."""
    return np.frombuffer(text.encode(), np.uint8) == ord("1")


def checksum(content: Any) -> str:
    """First 16 hex digits of the SHA-256 of a content written as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _line(key: str, mask: str) -> str:
    return json.dumps({"key": key, MASK_KEY: mask, "sha256": checksum([key, mask])})


class Journal:
    """A cache of outcomes on disk: robust masks of finished batches, keyed by model, images, settings.

    Each batch writes one line of JSON with a checksum to disk before the next batch begins. A
    change of the model, of an image or of a setting changes the key, so a result is never used for
    anything else. Damaged lines are ignored.

    Args:
        path: the file; it is created if absent. An incomplete last line, left by a killed process,
            is removed.
        identity: part of every key, which identifies the model; see `model_identity`.

    Raises:
        UserError: the file is not a journal, or it cannot be written.
    """

    def __init__(self, path: str | os.PathLike, identity: str):
        self.path, self.identity = Path(path), identity
        self._known: dict[str, str] = {}
        self._arrays = self.path.with_name(f"{self.path.name}.arrays")
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
        """Reads the result in a line; returns whether the line is undamaged."""
        found = _LINE.fullmatch(line)
        if not found:
            return False
        key, mask = (part.decode() for part in found.groups())
        if _line(key, mask).encode() != line:
            return False
        self._known[key] = mask
        return True

    def key(self, *parts: Any) -> str:
        """Digest of the identity and of `parts`: arrays, or values that JSON can write."""
        digest = hashlib.sha256(self.identity.encode())
        for part in parts:
            digest.update(b"\0")
            if isinstance(part, np.ndarray):
                digest.update(f"{part.dtype} {part.shape} ".encode() + part.tobytes())
            else:
                digest.update(json.dumps(part, sort_keys=True).encode())
        return digest.hexdigest()

    def get(self, key: str) -> np.ndarray | None:
        """The mask [B] bool stored under this key, or None."""
        text = self._known.get(key)
        return None if text is None else mask_of_text(text)

    def arrays_folder(self) -> Path:
        """The folder of `journaled_arrays`; it is created if absent.

        Raises:
            UserError: the journal's folder was renamed or removed.
        """
        with folder_in_place(self._arrays):
            self._arrays.mkdir(exist_ok=True)
        return self._arrays

    def remove(self) -> None:
        """Removes the file and the folder."""
        self.path.unlink()
        shutil.rmtree(self._arrays, ignore_errors=True)

    def put(self, key: str, robust: np.ndarray) -> None:
        """Stores the mask [B] bool of a finished batch.

        Raises:
            UserError: the journal's folder was renamed or removed.
        """
        self._known[key] = text_of_mask(robust)
        with folder_in_place(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(key, self._known[key]) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _is_another_json(line: bytes) -> bool:
    """Whether a line is JSON, but not that of a journal."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return not isinstance(content, dict) or "key" not in content


@contextmanager
def journal_beside(file: Path, identity: str, part: str = "") -> Iterator[Journal]:
    """Context with the journal <file>.journal of results that will be written to `file`; locks it.

    It is removed if the block ends without error, with its arrays.

    Args:
        file: where the results are written in the block.
        identity: see `Journal`.
        part: distinguishes several journals of one file.

    Raises:
        UserError: another process uses it, or as `Journal`.
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
        journal = Journal(path, identity)
        yield journal
        journal.remove()


def journaled(
    journal: Journal | None, parts: Sequence[Any], work: Callable[..., np.ndarray], *arguments: Any
) -> np.ndarray:
    """The mask [B] bool that the journal has for `parts`; else work(*arguments), which it stores."""
    if journal is None:
        return work(*arguments)
    key = journal.key(*parts)
    robust = journal.get(key)
    if robust is None:
        robust = work(*arguments)
        journal.put(key, robust)
    return robust


def journaled_arrays(
    journal: Journal | None, parts: Sequence[Any], work: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays that the journal's folder has for `parts`; else work(), which it stores.

    Each is a file of its own, so that no more than one is in memory; damaged ones are ignored.
    """
    if journal is None:
        return work()
    path = journal.arrays_folder() / journal.key(*parts)
    if path.exists():
        whole = path.read_bytes()
        content = whole[:-_DIGEST]
        if hashlib.sha256(content).digest() == whole[-_DIGEST:]:
            return dict(np.load(io.BytesIO(content), allow_pickle=False))
        logging.warning("%s is damaged; its batch is computed again", path)
    arrays, file = work(), io.BytesIO()
    np.savez(file, **arrays)
    content = file.getvalue()
    with replacing(path) as temporary:
        temporary.write_bytes(content + hashlib.sha256(content).digest())
    return arrays


def model_identity(model: keras.Model) -> str:
    """Digest of a model's class, configuration and weights, and of a user's own classes.

    Of these the files count, and the numbers and texts that their objects hold as public attributes.

    Classes of this project count by name, so they can move to another module.
    """
    digest = hashlib.sha256(keras.saving.get_registered_name(type(model)).encode())
    with contextlib.suppress(NotImplementedError):
        config = {k: v for k, v in model.get_config().items() if k != "name"}  # numbered by Keras
        digest.update(json.dumps(config, sort_keys=True, default=repr).encode())
    known = ("keras", "igam_tf", "madry_models")
    own = [part for part in layers_of(model) if type(part).__module__.split(".")[0] not in known]
    for name in sorted({type(layer).__module__ for layer in own}):
        if file := getattr(sys.modules.get(name), "__file__", None):
            digest.update(Path(file).read_bytes())
    keras_own = ("name", "built", "compiled")  # names are numbered
    for layer in own:
        held = {
            k: v
            for k, v in vars(layer).items()
            if not k.startswith("_") and k not in keras_own and isinstance(v, int | float | str)
        }
        digest.update(json.dumps(held, sort_keys=True).encode())
    for weight in model.get_weights():
        digest.update(f"{weight.dtype} {weight.shape} ".encode() + weight.tobytes())
    return digest.hexdigest()
