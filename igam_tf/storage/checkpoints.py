"""The checkpoints of a stage under way; a damaged one is passed over for the one before it.

tf.train.CheckpointManager does less: it writes files at their final place, and reads the newest
checkpoint or none. That a file was damaged is told by TensorFlow's own checksums.
"""

import re
import shutil
from pathlib import Path

import tensorflow as tf
from absl import logging

from igam_tf.common.errors import UserError
from igam_tf.common.files import replacing
from igam_tf.common.literal import literal

KEPT = 2  # checkpoints, of those that were read or written by this process


class Checkpoints:
    """The newest checkpoints of one stage, each a folder `ckpt-<step>`.

    A checkpoint is written to `.partial` and then renamed, so that a folder `ckpt-<step>` was written
    completely. The newest is the one of the highest step, whatever its files' times are.

    Args:
        state: what is saved.
        folder: the stage's own.
    """

    def __init__(self, state: tf.train.Checkpoint, folder: Path):
        self._state, self._folder = state, folder
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
            try:
                self._state.read(str(literal(path) / "state")).assert_consumed()
            except (tf.errors.OpError, IndexError) as error:  # the latter where a file was cut
                logging.warning(
                    "checkpoint %s is damaged (%s); it is passed over for the one before it",
                    path, _reason(error),
                )  # fmt: skip
            except (AssertionError, ValueError) as error:
                raise UserError(
                    f"expected the state of this version's trainer in {path}, which is undamaged; "
                    f"{_reason(error)}"
                ) from error
            else:
                self._good = [path]
                return
        if found:
            raise UserError(
                f"expected an undamaged checkpoint in {self._folder}; all of them, "
                f"{', '.join(path.name for path in found)}, are damaged: put back a copy of one, or "
                "remove that folder to begin the stage anew"
            )

    def save(self, step: int) -> None:
        """Writes the state after `step`, then removes all but the newest KEPT good ones.

        Raises:
            OSError, tf.errors.OpError: it cannot be written; those before it stay.
        """
        path = self._folder / f"ckpt-{step}"
        with replacing(path, self._folder / ".partial") as partial:
            partial.mkdir(parents=True)
            self._state.write(str(partial / "state"))
            shutil.rmtree(path, ignore_errors=True)  # a damaged one
        self._good = [*self._good, path][-KEPT:]
        for other in self._found():
            if other not in self._good:
                shutil.rmtree(other, ignore_errors=True)


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
