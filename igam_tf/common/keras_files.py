"""A converted network: a new .keras file, read again before it gets its name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from igam_tf.common.errors import UserError, writable
from igam_tf.common.files import replacing
from igam_tf.common.lazy import keras


def new_keras_file(path: str | Path) -> Path:
    """The path of --output, at which a .keras file can be written.

    Raises:
        UserError: it ends otherwise, exists, or cannot be written.
    """
    output = Path(path).expanduser()
    if output.suffix != ".keras":
        raise UserError(f"expected --output ending in .keras; received {output}")
    if output.exists():
        raise UserError(f"--output={output} exists; remove it or choose another name")
    return writable("output", output)


def save_checked(
    model: keras.Model, output: Path, x: np.ndarray, *, tolerance: float = 0.0
) -> float:
    """Saves a network, and reads it again; nothing is written if the logits differ.

    Args:
        model: built, images [B,H,W,C] -> logits [B,K].
        output: of `new_keras_file`.
        x: images on which both are compared.
        tolerance: largest difference of logits.

    Returns:
        The largest difference of the reloaded network's logits.

    Raises:
        UserError: it is above the tolerance.
    """
    with replacing(output, output.with_name(f".partial-{os.getpid()}-{output.name}")) as partial:
        model.save(partial)
        reloaded = keras.saving.load_model(partial)
        difference = float(np.abs(model(x, training=False) - reloaded(x, training=False)).max())
        if not difference <= tolerance:
            raise UserError(
                f"expected logits of the converted file within {tolerance:g} of the network's; "
                f"received a difference of {difference}"
            )
    return difference
