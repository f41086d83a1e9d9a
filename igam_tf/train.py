"""Trains a student on the input gradients of a robust teacher: all stages, from flags to results.json.

python -m igam_tf.train --source=mnist --target=cifar10 --preset=cpu --workdir=runs/mnist-cifar10

Killed at any moment, the same command goes on where it was. Defaults give way to the row of the
paper, to --fidelity and to --preset, and these to flags: --print_config shows every setting of a
command, and where it comes from.
"""

import madry_models.quiet  # noqa: F401

# isort: split
import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import keras
from absl import flags, logging

from igam_tf import datasets
from igam_tf.attacks import attack_names
from igam_tf.experiments.config import GROUPS, Config
from igam_tf.experiments.paper import TRANSFERS
from igam_tf.experiments.resolve import explained, resolve, source_spec, target_spec
from igam_tf.method.architectures import builder_of
from igam_tf.method.objectives import METHODS
from igam_tf.system import devices
from igam_tf.system.run_folder import RunFolder
from igam_tf.training.building import check_student, load_source_network
from igam_tf.training.stages import Run
from madry_models.errors import UserError, flags_alone
from madry_models.program import default_and_range, heading, run_entry_point, value_text

FLAGS = flags.FLAGS
# The experiments' flagfiles: in the package where it is installed, in flags/ of a checkout.
FLAGFILES = Path(__file__).parent / "flagfiles"
if not FLAGFILES.is_dir():
    FLAGFILES = Path(__file__).parents[1] / "flags"

_DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
}


def define_flags() -> None:
    """One flag for each setting; unset ones come from row, fidelity and preset."""
    for group, meaning in GROUPS.items():
        with heading(f"{group}: {meaning}"):
            for field in _fields_of(group):
                _define(field)
            if group == "run":
                _define_flags_of_this_process()


def _fields_of(group: str) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(Config) if f.metadata["group"] == group]


def _define(field: dataclasses.Field) -> None:
    choices, (least, most) = field.metadata["choices"], field.metadata["within"]
    least = None if field.type in (str, bool) else least
    doc = field.metadata["doc"] + default_and_range(field.default, least, most)
    if choices:
        flags.DEFINE_enum(field.name, None, choices, doc)
    elif field.name == "disc_channels":
        flags.DEFINE_list(field.name, None, doc)
    else:
        _DEFINE[field.type](field.name, None, doc)


def _define_flags_of_this_process() -> None:
    flags.DEFINE_string(
        "workdir", None, "The run folder; runs/<source>-<target>-<method>-<preset> by default."
    )
    flags.DEFINE_string(
        "teachers", None,
        "Folder of the teachers that --teacher=train trains, each once for all runs with the same "
        "settings of it; teachers, beside the run folder, by default.",
    )  # fmt: skip
    flags.DEFINE_enum(
        "strategy",
        "auto",
        devices.STRATEGIES,
        "Devices to train on: default, one; mirrored, those of this machine; multiworker, those of all "
        "machines that the environment's TF_CONFIG names; auto, multiworker where there is a "
        "TF_CONFIG, else mirrored.",
    )
    flags.DEFINE_integer("replicas", 0, "Devices of this machine to train on; 0: all.")
    flags.DEFINE_bool(
        "print_config", False, "Print every setting and where it comes from, and exit."
    )


def config_from_flags() -> Config:
    """The settings of this command line.

    Raises:
        UserError: a value that is not of its kind, or settings that contradict each other.
    """
    return resolve(chosen_settings())


def chosen_settings() -> dict[str, Any]:
    """Name of each setting -> what its flag says; None: nothing.

    Raises:
        UserError: numbers in --disc_channels that are none.
    """
    chosen = {f.name: FLAGS[f.name].value for f in dataclasses.fields(Config)}
    if chosen["disc_channels"] is not None:
        try:
            chosen["disc_channels"] = tuple(map(int, chosen["disc_channels"]))
        except ValueError as error:
            raise UserError(
                f"expected --disc_channels as whole numbers with commas between; "
                f"received {','.join(chosen['disc_channels'])!r}"
            ) from error
    return chosen


def config_text(chosen: dict[str, Any]) -> str:
    """A line for each setting below the heading of its group: flag, value, where it comes from.

    Raises:
        UserError: settings that contradict each other.
    """
    resolve(chosen)
    found = explained(chosen)
    names = {name: f"--{name}={value_text(value)}" for name, (value, _) in found.items()}
    width = max(map(len, names.values()))
    lines = []
    for group in GROUPS:
        lines += ["", group] if lines else [group]
        for field in _fields_of(group):
            lines.append(f"  {names[field.name]:<{width}}  {found[field.name][1]}")
    return "\n".join(lines)


def default_workdir(config: Config) -> str:
    """Folder name that says what the run is."""
    names = map(datasets.short_name, (config.source, config.target))
    parts = [re.sub(r"[^\w.]+", "-", name) for name in names]
    pair = (config.source, config.target)
    parts += [config.transform] if sum(key[:2] == pair for key in TRANSFERS) > 1 else []
    parts += [config.method, config.preset]
    parts += [config.teacher_gradient] if config.teacher_gradient != "teacher" else []
    parts += ["release"] if config.fidelity == "release" else []
    parts += ["builtin"] if config.data == "builtin" else []
    return str(Path("runs") / "-".join(parts))


def teacher_checkpoint(config: Config) -> str | None:
    """Where the teacher is loaded from: a checkpoint, fetched where it is a known name, or a file."""
    if not METHODS[config.method].teacher or config.teacher == "train":
        return None
    from madry_models.fetch import NAMES, fetch
    from madry_models.tf1_checkpoint import checkpoint_prefix

    if config.teacher_checkpoint in NAMES:
        return str(fetch(config.source, config.teacher_checkpoint))
    if config.teacher_checkpoint.endswith(".keras"):
        load_source_network(config.teacher_checkpoint, source_spec(config))
    else:
        checkpoint_prefix(config.teacher_checkpoint)
    return config.teacher_checkpoint


def main(argv: list[str]) -> None:
    """Runs every stage that is not done yet."""
    flags_alone(argv)
    if FLAGS.print_config:
        print(config_text(chosen_settings()))
        return
    started = time.monotonic()
    config = config_from_flags()
    builder_of(config.student)
    attack_names(config.eval_attacks)
    checkpoint = teacher_checkpoint(config)
    trained = METHODS[config.method].teacher and config.teacher == "train"
    for spec in (target_spec(config), *([source_spec(config)] if trained else [])):
        datasets.check_available(spec, source=config.data, data_dir=config.data_dir or None)
    workdir = FLAGS.workdir or default_workdir(config)
    if config.data == "builtin":
        logging.warning(
            "data: %s, seed %d: no real images", datasets.data_text(config.data), config.data_seed
        )
    chosen = devices.strategy(FLAGS.strategy, FLAGS.replicas)
    chief = devices.is_chief(chosen)
    with chosen.scope():
        check_student(config)
    with devices.lost_workers(chosen):
        if not chief:
            devices.same_everywhere(chosen, 0)  # wait for the chief, who makes the folder
        with RunFolder(workdir, config, chief=chief) as folder:
            if chief:
                devices.same_everywhere(chosen, 0)
            with chosen.scope():
                keras.utils.set_random_seed(config.seed)
                run = Run(config, folder, checkpoint, FLAGS.teachers)
                run.check_sizes()
                run.student()
            if chief:
                with devices.alone(chosen).scope():
                    run.evaluate()
    logging.info("%s: done in %.1f minutes", workdir, (time.monotonic() - started) / 60)


def program() -> None:
    """The command line."""
    define_flags()
    run_entry_point(main, flagfiles=FLAGFILES)


if __name__ == "__main__":
    program()
