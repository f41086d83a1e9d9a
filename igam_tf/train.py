"""`python -m igam_tf.train`: one transfer experiment, all stages, from flags to results.json.

Killed at any moment, the same command goes on where it was.
"""

import dataclasses
import re
import time
from pathlib import Path

import keras
from absl import flags, logging

from igam_tf import datasets
from igam_tf.attacks import attack_names
from igam_tf.experiments.config import Config
from igam_tf.experiments.paper import TRANSFERS
from igam_tf.experiments.resolve import resolve, source_spec, target_spec
from igam_tf.method.architectures import builder_of
from igam_tf.method.objectives import METHODS
from igam_tf.system import devices
from igam_tf.system.run_folder import RunFolder
from igam_tf.training.building import check_student, load_source_network
from igam_tf.training.stages import Run
from madry_models.errors import UserError, flags_alone, run_entry_point

FLAGS = flags.FLAGS

_DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
}


def define_flags() -> None:
    """One flag for each setting; unset ones come from row, fidelity and preset."""
    for field in dataclasses.fields(Config):
        doc, choices = field.metadata["doc"], field.metadata["choices"]
        if choices:
            flags.DEFINE_enum(field.name, None, choices, doc)
        elif field.name == "disc_channels":
            flags.DEFINE_list(field.name, None, doc)
        else:
            _DEFINE[field.type](field.name, None, doc)
    flags.DEFINE_string("workdir", None, "run folder; default runs/<source>-<target>-<method>-...")
    flags.DEFINE_enum("strategy", "auto", devices.STRATEGIES, "devices; see devices.strategy")
    flags.DEFINE_integer("replicas", 0, "devices of one machine to train on; 0: all")


def config_from_flags() -> Config:
    """The settings of this command line.

    Raises:
        UserError: a value that is not of its kind, or settings that contradict each other.
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
    return resolve(chosen)


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
    logging.set_verbosity(logging.INFO)
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
    with devices.lost_workers(chosen):
        if not chief:
            devices.same_everywhere(chosen, 0)  # wait for the chief, who makes the folder
        with RunFolder(workdir, config, chief=chief) as folder:
            if chief:
                devices.same_everywhere(chosen, 0)
            with chosen.scope():
                check_student(config)
                keras.utils.set_random_seed(config.seed)
                run = Run(config, folder, checkpoint)
                run.student()
            if chief:
                with devices.alone(chosen).scope():
                    run.evaluate()
    logging.info("%s: done in %.1f minutes", workdir, (time.monotonic() - started) / 60)


if __name__ == "__main__":
    define_flags()
    run_entry_point(main)
