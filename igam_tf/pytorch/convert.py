"""Converts the weights of a published PyTorch network to a Keras file, and checks it.

python -m igam_tf.pytorch.convert robust.pt --architecture=dm-wrn-28-10 --output=robust.keras
"""

from __future__ import annotations

import hashlib
import textwrap
from pathlib import Path

import numpy as np

from igam_tf.common.errors import UserError
from igam_tf.common.files import hexdigest
from igam_tf.common.keras_files import new_keras_file, save_checked
from igam_tf.common.lazy import keras
from igam_tf.common.program import run_entry_point
from igam_tf.pytorch.architectures import FAMILIES, FORMS, STATISTICS, plan_of
from igam_tf.pytorch.weights import Weights, read


def listing() -> str:
    """The architectures: how they are called, where they are defined, who uses them."""
    paragraphs = []
    for family in FAMILIES:
        size = "x".join(map(str, family.image_shape))
        own = family.preprocess
        own = "that of CIFAR-10 or CIFAR-100, by its classes" if own == "cifar" else own
        lines = [
            f"images: {size}, preprocess: {own}, activation: {family.activation}",
            f"defined in {family.source}",
            f"used by {family.published}",
        ]
        wrapped = [
            textwrap.fill(
                line, 96, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
            )
            for line in lines
        ]
        paragraphs.append("\n".join([family.form, *wrapped]))
    return "\n\n".join(paragraphs)


def convert(
    weights: str | Path,
    output: str | Path,
    architecture: str,
    *,
    num_classes: int | None = None,
    preprocess: str | None = None,
) -> tuple[Weights, keras.Model]:
    """Writes the network of a PyTorch weight file to `output`, a new .keras file.

    Args:
        weights, architecture, num_classes, preprocess: see `igam_tf.pytorch.weights.load_port`;
            preprocess can be a name in `STATISTICS` too.

    Returns:
        (what was read, the network).

    Raises:
        UserError: as `load_port`; `output` is wrong, or the reloaded file has other logits; nothing
            is written.
    """
    output = new_keras_file(output)
    found = read(weights, architecture, num_classes)
    network = found.network(STATISTICS.get(preprocess or "", preprocess))
    x = np.random.default_rng(0).uniform(size=(2, *found.plan.family.image_shape)).astype("float32")
    save_checked(network, output, x)
    return found, network


def main(argv: list[str]) -> None:
    """Converts, or lists; argv: the program and its arguments that are not flags."""
    from absl import flags

    values = flags.FLAGS
    if values.list:
        print(listing())
        return
    if len(argv) != 2:
        raise UserError(
            f"expected one weight file, such as robust.pt; received {' '.join(argv[1:]) or 'none'}"
        )
    for name in ("architecture", "output"):
        if not values[name].value:
            raise UserError(f"expected --{name}; received none: --list prints the architectures")
    plan_of(values.architecture, 10)
    found, network = convert(
        argv[1],
        values.output,
        values.architecture,
        num_classes=values.num_classes,
        preprocess=values.preprocess,
    )
    numbers = sum(array.size for array in found.arrays.values())
    digest = hexdigest(Path(argv[1]).expanduser(), hashlib.sha256())
    print(
        f"read {len(found.arrays)} tensors with {numbers:,} numbers, every one of "
        f"{values.architecture}; left out {len(found.unused)} that its logits do not depend on"
    )
    print(
        f"{found.plan.classes} classes, activation {found.plan.activation}, "
        f"preprocess {network.preprocess.convention}"
    )
    print(f"wrote {values.output}, which takes pixels in 0..1; reloaded, its logits are the same")
    print(f"sha256 {digest}  {argv[1]}")


def define_flags() -> None:
    """Defines the flags."""
    from absl import flags

    flags.DEFINE_bool("list", False, "Prints the architectures, with their sources, and exits.")
    flags.DEFINE_string("architecture", None, f"Name of the network: {FORMS}.")
    flags.DEFINE_string("output", None, "The .keras file to write; it must not exist.")
    flags.DEFINE_integer(
        "num_classes",
        None,
        "Number of classes that the file must have; without it, as many as it has.",
        lower_bound=1,
    )
    flags.DEFINE_string(
        "preprocess",
        None,
        "What the network takes in place of pixels in 0..1, if that is neither the architecture's own "
        f"nor in the file: {', '.join(STATISTICS)}, imagenet, -1..1, 0..1, or "
        "mean=0.5,0.5,0.5/std=0.2,0.2,0.2.",
    )


def program() -> None:
    """The command line."""
    define_flags()
    run_entry_point(main)


if __name__ == "__main__":
    program()
