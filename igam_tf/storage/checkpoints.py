"""The checkpoints of a stage under way; one that is not whole, or was changed since, is not used.

tf.train.CheckpointManager does less: it keeps no digests, writes files at their final place, and
reads the newest checkpoint or none.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path

import tensorflow as tf
from absl import logging

from igam_tf.common.digests import hexdigest
from igam_tf.common.errors import UserError
from igam_tf.common.literal import literal
from igam_tf.storage.run_folder import sync

DIGESTS = "sha256"


class Checkpoints:
    """The newest checkpoints of one stage, each a folder `ckpt-<step>` with a digest of every file.

    A checkpoint is written to `.partial`, its digests last (file `sha256`, in the format of
    `sha256sum -c`), and then renamed. So a folder `ckpt-<step>` was written completely, and its
    digests tell whether it has changed since. The newest is the one of the highest step, whatever its
    files' times are.

    Args:
        state: what is saved.
        folder: the stage's own.
        keep: how many of those that were read or written here are kept.
        earlier: the part of `state` that checkpoints of earlier versions hold.
    """

    def __init__(
        self,
        state: tf.train.Checkpoint,
        folder: Path,
        *,
        keep: int = 2,
        earlier: tf.train.Checkpoint | None = None,
    ):
        self._state, self._earlier, self._folder, self._keep = state, earlier, folder, keep
        self._good: list[Path] = []

    @property
    def latest(self) -> Path | None:
        """The newest one that was read or written here."""
        return self._good[-1] if self._good else None

    def _found(self) -> list[Path]:
        """All, damaged ones too, the newest first."""
        steps = {p: re.fullmatch(r"ckpt-(\d+)", p.name) for p in self._folder.glob("ckpt-*")}
        return sorted((p for p in steps if steps[p]), key=lambda p: -int(steps[p][1]))

    def restore(self) -> None:
        """Sets the state from the newest undamaged checkpoint; leaves it where there is none at all.

        Raises:
            UserError: all that are there are damaged, or the newest is of another version's state.
        """
        found = self._found()
        for path in found:
            if _undamaged(path):
                self._read(path)
                self._good = [path]
                return
            logging.warning(
                "checkpoint %s is damaged: its files do not have the digests they were written "
                "with; it is passed over for the one before it", path
            )  # fmt: skip
        if found:
            raise UserError(
                f"expected an undamaged checkpoint in {self._folder}; all of them, "
                f"{', '.join(path.name for path in found)}, are damaged: put back a copy of one, or "
                "remove that folder to begin the stage anew"
            )
        if any(self._folder.glob("ckpt-*.index")):
            raise UserError(
                f"expected checkpoints with digests in {self._folder}; an earlier version wrote those "
                "that are there: finish the run with it, or remove that folder to begin the stage anew"
            )

    def _read(self, path: Path) -> None:
        prefix = str(literal(path) / "state")
        try:
            try:
                self._state.read(prefix).assert_consumed()
            except AssertionError:
                if self._earlier is None:
                    raise
                self._earlier.read(prefix).assert_consumed()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            raise UserError(
                f"expected the state of this version's trainer in {path}, which is undamaged; "
                f"{str(error).strip().splitlines()[0]}"
            ) from error

    def save(self, step: int) -> None:
        """Writes the state after `step`, then removes all but the newest `keep` good ones.

        Raises:
            OSError, tf.errors.OpError: it cannot be written; those before it stay.
        """
        partial, path = self._folder / ".partial", self._folder / f"ckpt-{step}"
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
        try:
            partial.mkdir(parents=True)
            self._state.write(str(partial / "state"))
            (partial / DIGESTS).write_text(_digests(partial), encoding="ascii")
            for file in partial.iterdir():
                sync(file)
            shutil.rmtree(path, ignore_errors=True)  # a damaged one
            os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._good = [*self._good, path][-self._keep :]
        for other in self._found():
            if other not in self._good:
                shutil.rmtree(other, ignore_errors=True)


def _digests(folder: Path) -> str:
    """A line for each file of a checkpoint, as sha256sum writes them."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.name != DIGESTS:
            lines.append(f"{hexdigest(path, hashlib.sha256())}  {path.name}\n")
    return "".join(lines)


def _undamaged(folder: Path) -> bool:
    try:
        return (folder / DIGESTS).read_bytes() == _digests(folder).encode()
    except OSError:
        return False
