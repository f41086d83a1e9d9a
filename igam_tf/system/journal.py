"""A file of finished work, so that a killed evaluation goes on where it was."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from madry_models.errors import UserError


def digits(standing: np.ndarray) -> str:
    """One character for each example: 1 where it is left standing. [n] bool."""
    return "".join("1" if s else "0" for s in standing)


def undigits(text: str) -> np.ndarray:
    """Inverse of `digits`."""
    return np.frombuffer(text.encode(), np.uint8) == ord("1")


class Journal:
    """Which examples each finished batch left standing, by everything that decides it.

    One line of JSON for each batch, on disk before the next begins. Whatever changes, the model, an
    image, a setting, changes the key, so that nothing stale is ever taken for an answer.

    Args:
        path: the file; made if absent. Half a line at its end, of a process that was killed, is cut.
        identity: of what no key can see; see `model_identity`.

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
            for line in whole[:end].splitlines():
                entry = json.loads(line)
                self._known[entry["key"]] = entry["standing"]
        except OSError as error:
            raise UserError(f"expected to read and write {path}; {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"expected a journal of an evaluation in {path}; {error}") from error

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
        """What `put` was given under this key, [B] bool; None if nothing was."""
        text = self._known.get(key)
        return None if text is None else undigits(text)

    def put(self, key: str, standing: np.ndarray) -> None:
        """Keeps a finished batch, [B] bool."""
        self._known[key] = digits(standing)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "standing": self._known[key]}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def remembered(
    journal: Journal | None, parts: Sequence[Any], work: Callable[..., np.ndarray], *arguments: Any
) -> np.ndarray:
    """What the journal holds under the key of `parts`; else work(*arguments), [B] bool, kept there."""
    if journal is None:
        return work(*arguments)
    key = journal.key(*parts)
    standing = journal.get(key)
    if standing is None:
        standing = work(*arguments)
        journal.put(key, standing)
    return standing


def model_identity(model: keras.Model) -> str:
    """Digest of a model's class, configuration and weights, wherever its module lies."""
    digest = hashlib.sha256(keras.saving.get_registered_name(type(model)).encode())
    with contextlib.suppress(NotImplementedError):
        config = {k: v for k, v in model.get_config().items() if k != "name"}  # numbered by Keras
        digest.update(json.dumps(config, sort_keys=True, default=repr).encode())
    for weight in model.get_weights():
        digest.update(f"{weight.dtype} {weight.shape} ".encode() + weight.tobytes())
    return digest.hexdigest()


def settings_of(spec: Any) -> dict[str, Any]:
    """The settings of an attack that decide its outcome: all but its name and place."""
    return {k: v for k, v in dataclasses.asdict(spec).items() if k not in ("name", "after")}
