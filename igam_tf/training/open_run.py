"""Validates the settings, then opens the run folder; nothing is trained before both have passed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import tensorflow as tf
from absl import logging

from igam_tf import datasets
from igam_tf.attacks import attack_names
from igam_tf.common import devices
from igam_tf.experiments.config import Config
from igam_tf.experiments.recipes import transfers
from igam_tf.experiments.resolve import source_spec, target_spec
from igam_tf.method.architectures import builder_of, import_classes
from igam_tf.method.objectives import METHODS
from igam_tf.pytorch.named import is_pytorch
from igam_tf.storage.run_folder import RunFolder
from igam_tf.training.building import check_student, load_source_network
from igam_tf.training.stages import Run


def default_workdir(config: Config) -> str:
    """The run folder's default name, from its settings."""
    names = map(datasets.short_name, (config.source, config.target))
    parts = [re.sub(r"[^\w.]+", "-", name) for name in names]
    pair = (config.source, config.target)
    parts += [config.transform] if sum(key[:2] == pair for key in transfers()) > 1 else []
    parts += [config.method, config.preset]
    parts += [config.teacher_gradient] if config.teacher_gradient != "teacher" else []
    parts += [config.fidelity] if config.fidelity != "paper" else []
    parts += ["builtin"] if config.data == "builtin" else []
    return str(Path("runs") / "-".join(parts))


def teacher_checkpoint(config: Config) -> str | None:
    """The teacher's checkpoint or file; a published checkpoint is downloaded if needed."""
    if not METHODS[config.method].teacher or config.teacher == "train":
        return None
    from madry_models.fetch import NAMES, fetch
    from madry_models.tf1_checkpoint import checkpoint_prefix

    if config.teacher_checkpoint in NAMES:
        return str(fetch(config.source, config.teacher_checkpoint))
    if is_pytorch(config.teacher_checkpoint) or config.teacher_checkpoint.endswith(".keras"):
        load_source_network(
            config.teacher_checkpoint, source_spec(config), config.teacher_preprocess,
            config.teacher_network,
        )  # fmt: skip
    else:
        checkpoint_prefix(config.teacher_checkpoint)
    return config.teacher_checkpoint


@contextmanager
def opened_run(
    config: Config,
    *,
    workdir: str | None,
    teachers: str | None,
    strategy: str,
    replicas: int,
    wait: bool,
) -> Iterator[tuple[Run, tf.distribute.Strategy]]:
    """Context with (the run in its folder, which it locks; the strategy of its devices).

    Args:
        config: all settings.
        workdir: the run folder, new or with the same settings; None means `default_workdir`.
        teachers: see `Run`.
        strategy, replicas: see `igam_tf.common.devices.strategy`.
        wait: see `RunFolder`.

    Raises:
        UserError: the network, attacks, checkpoint, data or folder cannot be used.
    """
    builder_of(config.student)
    if config.teacher_network and config.teacher == "train":
        import_classes(config.teacher_network)
    attack_names(config.eval_attacks)
    attack_names(config.teacher_eval_attacks)
    checkpoint = teacher_checkpoint(config)
    trained = METHODS[config.method].teacher and config.teacher == "train"
    target = target_spec(config)
    for spec in (target, *([source_spec(config)] if trained else [])):
        datasets.check_available(spec, source=config.data, data_dir=config.data_dir or None)
    if config.data == "builtin":
        logging.warning(
            "data: %s, seed %d: no real images", datasets.data_text(config.data), config.data_seed
        )
    chosen = devices.strategy(strategy, replicas)
    with chosen.scope():
        check_student(config, target)
    chief = devices.is_chief(chosen)
    with devices.lost_workers(chosen):
        if not chief:
            devices.same_everywhere(chosen, 0)  # wait for the chief, which creates the folder
        path = workdir or default_workdir(config)
        with RunFolder(Path(path).expanduser(), config, chief=chief, wait=wait) as folder:
            if chief:
                devices.same_everywhere(chosen, 0)
            with chosen.scope():
                keras.utils.set_random_seed(config.seed)
                run = Run(config, folder, checkpoint, teachers, target)
                run.check_sizes()
            yield run, chosen
