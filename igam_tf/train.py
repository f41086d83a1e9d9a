"""Trains a student on the input gradients of a robust teacher: all stages, from flags to results.json.

python -m igam_tf.train --source=mnist --target=cifar10 --preset=cpu --workdir=runs/mnist-cifar10

If it is interrupted, run the same command to resume. --source, --target, --transform, --fidelity,
--preset and --method name files in flags/, which set the others; flags on the command line win over
them. --print_config prints every setting of a command, and the file and line that it comes from.
"""

import time
from typing import Any

from absl import flags, logging

from igam_tf.common import devices
from igam_tf.common.errors import flags_alone
from igam_tf.common.flagfiles import FOLDER
from igam_tf.common.program import PLACES, run_entry_point, value_text
from igam_tf.experiments.command_line import (
    chosen_settings,
    define_settings,
    fields_of,
    of_group,
    process_flags,
)
from igam_tf.experiments.config import GROUPS, Config

FLAGS = flags.FLAGS


def define_flags() -> None:
    """One flag for each setting, see `igam_tf.experiments.command_line`."""
    define_settings()
    with of_group("run"):
        flags.DEFINE_bool(
            "print_config", False, "Print every setting and where it comes from, and exit."
        )


def config_from_flags() -> Config:
    """The settings of this command line.

    Raises:
        UserError: a value is of the wrong kind, or settings contradict each other.
    """
    from igam_tf.experiments.resolve import resolve

    return resolve(chosen_settings(FLAGS), PLACES)


def config_text(chosen: dict[str, Any]) -> str:
    """One line for each setting, below its heading: flag, value, and where it comes from.

    Raises:
        UserError: settings that contradict each other.
    """
    from igam_tf.experiments.resolve import explained, resolve

    resolve(chosen, PLACES)
    found = explained(chosen, PLACES)
    names = {name: f"--{name}={value_text(value)}" for name, (value, _) in found.items()}
    width = max(map(len, names.values()))
    lines = []
    for group in GROUPS:
        lines += ["", group] if lines else [group]
        for field in fields_of(group):
            lines.append(f"  {names[field.name]:<{width}}  {found[field.name][1]}")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Runs every stage that is not finished."""
    flags_alone(argv)
    if FLAGS.print_config:
        print(config_text(chosen_settings(FLAGS)))
        return
    from igam_tf.training.open_run import opened_run

    started = time.monotonic()
    config = config_from_flags()
    with opened_run(config, **process_flags(FLAGS)) as (run, chosen):
        with chosen.scope():
            run.student()
        if run.folder.chief:
            with devices.without_peers(chosen).scope():
                run.evaluate()
    minutes = (time.monotonic() - started) / 60
    logging.info("%s: finished in %.1f minutes", run.folder.path, minutes)


def program() -> None:
    """The command line."""
    define_flags()
    run_entry_point(main, flagfiles=FOLDER)


if __name__ == "__main__":
    program()
