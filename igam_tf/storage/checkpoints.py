"""The checkpoints of an unfinished stage; if one is damaged, the previous one is used.

tf.train.CheckpointManager does less: it writes files directly to their final place, and reads only
the newest checkpoint. TensorFlow's own checksums detect damaged files.
"""

import re
import shutil
from pathlib import Path

import tensorflow as tf
from absl import logging

from igam_tf.common.errors import UserError
from igam_tf.common.files import replacing
from igam_tf.common.literal import literal

KEPT = 2  # checkpoints kept, of those that this process read or wrote


class Checkpoints:
    """The newest checkpoints of one stage, each a folder `ckpt-<step>`.

    A checkpoint is written to `.partial` and then renamed, so a folder `ckpt-<step>` is always
    complete. The newest is the one with the highest step; the times of the files do not count.

    Args:
        state: the state to save.
        folder: the stage's folder.
    """

    def __init__(self, state: tf.train.Checkpoint, folder: Path):
        self._state, self._folder = state, folder
        self._good: list[Path] = []

    @property
    def latest(self) -> Path | None:
        """The newest checkpoint that this process read or wrote."""
        return self._good[-1] if self._good else None

    def _found(self) -> list[Path]:
        """All checkpoints, also damaged ones, newest first."""
        steps = {p: re.fullmatch(r"ckpt-(\d+)", p.name) for p in self._folder.glob("ckpt-*")}
        return sorted((p for p in steps if steps[p]), key=lambda p: -int(steps[p][1]))

    def restore(self) -> None:
        """Restores the state from the newest undamaged checkpoint, if there is any checkpoint.

        Raises:
            UserError: all checkpoints are damaged, or the newest was written by another version.
        """
        found = self._found()
        for path in found:
            try:
                self._state.read(str(literal(path) / "state")).assert_consumed()
            except (tf.errors.OpError, IndexError) as error:  # IndexError: a file was truncated
                logging.warning(
                    "checkpoint %s is damaged (%s); the previous one is used instead",
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
                f"{', '.join(path.name for path in found)}, are damaged: restore a copy of one, "
                "or remove that folder to start the stage again"
            )

    def save(self, step: int) -> None:
        """Writes the state after `step`, then removes all but the newest KEPT undamaged checkpoints.

        Raises:
            OSError, tf.errors.OpError: it cannot be written; earlier checkpoints stay.
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
