"""Converts a MadryLab checkpoint to a Keras file and checks it.

python -m madry_models.convert --checkpoint=models/mnist/adv_trained --output=teacher.keras
"""

from pathlib import Path

import numpy as np

from igam_tf.common.errors import flags_alone
from igam_tf.common.keras_files import new_keras_file, save_checked
from igam_tf.common.program import run_entry_point

TOLERANCE = 1e-5  # largest difference of logits in float32


def convert(checkpoint: str | Path, output: str | Path) -> float:
    """Writes the network of a TF1 checkpoint to `output`, a new .keras file.

    Returns:
        The largest difference between the logits of the network and of the reloaded file, on 16
        random images.

    Raises:
        UserError: `output` or the checkpoint is wrong, or the logits differ; nothing is written.
    """
    from madry_models.tf1_checkpoint import from_tf1_checkpoint

    output = new_keras_file(output)
    model = from_tf1_checkpoint(checkpoint)
    shape = (16, 28, 28, 1) if model.pixel_max == 1.0 else (16, 32, 32, 3)
    x = np.random.default_rng(0).uniform(0, model.pixel_max, shape).astype("float32")
    return save_checked(model, output, x, tolerance=TOLERANCE)


def _main(argv: list[str]) -> None:
    from absl import flags

    flags_alone(argv)
    difference = convert(flags.FLAGS.checkpoint, flags.FLAGS.output)
    print(f"wrote {flags.FLAGS.output}; largest difference of logits after reloading: {difference}")


def program() -> None:
    """The command line."""
    from absl import flags

    flags.DEFINE_string(
        "checkpoint",
        None,
        "The checkpoint to convert: its folder, or the common prefix of its files.",
        required=True,
    )
    flags.DEFINE_string(
        "output", None, "The .keras file to write; it must not exist.", required=True
    )
    run_entry_point(_main)


if __name__ == "__main__":
    program()
