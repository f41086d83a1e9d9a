"""Stage 0: the robust network of the source task, trained once for all runs with the same settings.

    <teachers>/<source>-<digest>/    a run folder of its own: config.json, checkpoints, metrics
        teacher_source.keras         the network
        results.json                 its own accuracy, on test images of the source

The digest is that of `TeacherSettings`, on which its weights depend.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import keras
import tensorflow as tf

from igam_tf.common import devices
from igam_tf.datasets import Split, short_name
from igam_tf.experiments.config import Config
from igam_tf.experiments.resolve import teacher_network
from igam_tf.method.new_trainer import trainer
from igam_tf.method.optimizers import Momentum, schedule
from igam_tf.method.trainer import ClassifierTrainer
from igam_tf.storage.run_folder import RunFolder, read_metrics

STAGE = "teacher_source"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """All settings on which the weights of a teacher depend.

    Attributes:
        source: name of its data set, without folders.
        images: fingerprint of its training images and labels.
        classes: number of its logits.
        network: name of its architecture.
        optimizer: "adam" or "momentum".
        learning_rate, lr_schedule, momentum, weight_decay: of the optimizer; momentum 0 with Adam.
        steps, batch_size, seed: of the training.
        attack_steps: of PGD; 0 means training without an attack.
        eps, step_size: of the attack, in the network's pixel unit; 0 without one.
        eps_warmup: fraction of the steps in which both grow from 0.
        sync_batch_norm: whether batch norm uses the statistics of whole batches.
    """

    source: str
    images: str
    classes: int
    network: str
    optimizer: str
    learning_rate: float
    lr_schedule: str
    momentum: float
    weight_decay: float
    steps: int
    batch_size: int
    seed: int
    attack_steps: int
    eps: float
    step_size: float
    eps_warmup: float
    sync_batch_norm: bool

    @property
    def folder(self) -> str:
        """Name of the teacher's folder."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        name = re.sub(r"[^\w.]+", "-", self.source)
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def teacher_settings(c: Config, split: Split, *, own_statistics: bool) -> TeacherSettings:
    """The settings of the teacher that a run needs.

    Args:
        c: settings of the run.
        split: training images of the source.
        own_statistics: whether each of several devices computes its own batch norm statistics.
    """
    spec, adam = split.spec, c.teacher_optimizer == "adam"
    attacked = c.teacher_gradient != "plain" and c.teacher_attack_steps > 0
    eps = spec.eps * spec.pixel_max
    step_size = c.teacher_step_size * eps or spec.step_size * spec.pixel_max
    lr_schedule = c.teacher_lr_schedule
    if lr_schedule == "auto":
        lr_schedule = "constant" if adam else "step"
    return TeacherSettings(
        source=short_name(spec.name),
        images=split.fingerprint(),
        classes=spec.num_classes,
        network=teacher_network(c),
        optimizer=c.teacher_optimizer,
        learning_rate=c.teacher_learning_rate,
        lr_schedule=lr_schedule,
        momentum=0.0 if adam else c.momentum,
        weight_decay=0.0 if adam else c.weight_decay,
        steps=c.teacher_steps,
        batch_size=c.teacher_batch_size,
        seed=c.seed,
        attack_steps=c.teacher_attack_steps if attacked else 0,
        eps=eps if attacked else 0.0,
        step_size=step_size if attacked else 0.0,
        eps_warmup=c.teacher_eps_warmup if attacked else 0.0,
        sync_batch_norm=not own_statistics,
    )


def shared_folder(teachers: Path, settings: TeacherSettings, *, chief: bool) -> RunFolder:
    """Locks the teacher's folder until it is closed; waits while another process works in it.

    All workers of a cluster call this together.

    Raises:
        UserError: as `RunFolder`.
    """
    strategy, path = tf.distribute.get_strategy(), teachers / settings.folder
    if not chief:
        devices.same_everywhere(strategy, 0)  # wait for the chief, which creates the folder
    folder = RunFolder(path, settings, chief=chief, wait=True)
    if chief:
        devices.same_everywhere(strategy, 0)
    return folder


def teacher_trainer(
    network: keras.Model, s: TeacherSettings, pixel_max: float
) -> tuple[ClassifierTrainer, keras.optimizers.Optimizer]:
    """(the trainer of the network, not compiled, its optimizer)."""
    rate = schedule(s.lr_schedule, s.learning_rate, s.steps)
    if s.optimizer == "adam":
        optimizer = keras.optimizers.Adam(rate)
    else:
        optimizer = Momentum(rate, momentum=s.momentum)
    common = {"pixel_max": pixel_max, "weight_decay": s.weight_decay}
    if not s.attack_steps:
        return trainer("standard", network, **common), optimizer
    attack = {
        "eps": s.eps / pixel_max, "step_size": s.step_size / pixel_max, "steps": s.attack_steps,
        "seed": s.seed,
        "ramp_steps": round(s.eps_warmup * s.steps),
    }  # fmt: skip
    return trainer("pgd", network, **attack, **common), optimizer


def minutes(folder: Path) -> float:
    """Training time of the teacher in this folder, in minutes; 0 if nothing was logged."""
    lines = read_metrics(folder / "metrics.jsonl")
    return lines[-1]["train_minutes"] if lines else 0.0
