"""Settings -> networks, trainers and optimizers; nothing here reads data or writes files."""

from pathlib import Path

import keras
import numpy as np

from igam_tf.common.checks import logits_of
from igam_tf.common.errors import UserError
from igam_tf.datasets import DatasetSpec
from igam_tf.experiments.config import Config
from igam_tf.experiments.resolve import teacher_network
from igam_tf.method.architectures import build_network
from igam_tf.method.discriminator import Discriminator
from igam_tf.method.igam import IGAM
from igam_tf.method.look import misplaced_range, refuse
from igam_tf.method.networks import pixel_max_of
from igam_tf.method.new_trainer import arguments_of, trainer
from igam_tf.method.objectives import METHODS
from igam_tf.method.optimizers import JoinSchedules, Momentum, schedule
from igam_tf.method.preprocess import preprocessed
from igam_tf.method.teacher import Teacher
from igam_tf.method.trainer import ClassifierTrainer
from igam_tf.pytorch.named import check_architecture, is_pytorch, is_weight_file, load_named
from igam_tf.storage.run_folder import load_model


def load_source_network(
    path: str, spec: DatasetSpec, preprocess: str = "", architecture: str = ""
) -> keras.Model:
    """Loads a finished teacher: a MadryLab checkpoint folder, a `.keras` file, or one of PyTorch.

    Args:
        path: of the folder or file; or a name, see `igam_tf.pytorch.named`.
        spec: the data set of its images.
        preprocess: `--teacher_preprocess`; the map to the teacher's input applies it.
        architecture: of a PyTorch weight file.

    Raises:
        UserError: it is none of them, or the network takes other images or another input.
    """
    if is_pytorch(path):
        if is_weight_file(path):
            check_architecture(architecture, path, flag="teacher_network")
        network = load_named(path, architecture=architecture, preprocess=preprocess)
    elif path.endswith(".keras"):
        network = load_model(Path(path).expanduser())
    else:
        from madry_models.tf1_checkpoint import from_tf1_checkpoint

        network = from_tf1_checkpoint(path)
    try:
        logits_of(network, np.zeros((1, *spec.image_shape), "float32"), "network")
    except UserError as error:
        raise UserError(
            f"expected a network of {spec.name} images {spec.image_shape} in "
            f"--teacher_checkpoint={path}; {error}"
        ) from error
    _check_convention("teacher_preprocess", preprocess, network)
    return network


def new_source_network(
    config: Config, spec: DatasetSpec, *, synchronized: bool = False
) -> keras.Model:
    """The teacher's network before it is trained on the source task.

    Raises:
        UserError: the network expects another pixel range than that of the source's images.
    """
    name = teacher_network(config)
    network = build_network(name, spec.image_shape, spec.num_classes, synchronized=synchronized)
    own = pixel_max_of(network, default=spec.pixel_max)
    if own != spec.pixel_max:
        raise UserError(
            f"expected a --teacher_network for {spec.name} images in 0..{spec.pixel_max:g}; {name} "
            f"takes pixels in 0..{own:g}"
        )
    return network


def new_student(
    config: Config, spec: DatasetSpec, precision: str, *, synchronized: bool = False
) -> keras.Model:
    """The student before it is trained, with its layers in this `--precision`."""
    student = build_network(
        config.student,
        spec.image_shape,
        spec.num_classes,
        precision=precision,
        input_layer=config.student_input,
        activation=config.activation,
        synchronized=synchronized,
    )
    _check_convention("preprocess", config.preprocess, student)
    return preprocessed(student, config.preprocess or None, spec.pixel_max)


def _check_convention(flag: str, convention: str, network: keras.Model) -> None:
    """Raises a UserError if the network has a pixel range that contradicts the flag."""
    own = getattr(network, "pixel_max", None)
    if convention and own is not None and convention != f"0..{own:g}":
        raise UserError(
            f"expected --{flag}=0..{own:g}, the pixel range that the network itself defines; "
            f"received {convention}"
        )


def check_student(config: Config, spec: DatasetSpec) -> None:
    """Builds a student once in advance, so that a wrong one is reported before anything is trained.

    Raises:
        UserError: it does not accept the target's images, or has another number of logits than
            classes.
    """
    x = np.full((2, *spec.image_shape), spec.pixel_max / 2, np.float32)
    student = new_student(config, spec, "float32")
    own = getattr(student, "pixel_max", None)
    if own not in (None, spec.pixel_max):
        raise UserError(
            f"expected --pixel_max={own:g}, of the pixels that {config.student} takes, for {spec.name}; "
            f"received {spec.pixel_max:g}"
        )
    logits_of(student, x, f"student {config.student}", spec.num_classes)
    refuse(misplaced_range(student, spec.pixel_max))


def new_optimizers(config: Config) -> list[Momentum]:
    """The optimizers of student and discriminator; the latter's schedule counts its own steps."""
    c, method = config, METHODS[config.method]
    igam_steps = c.train_steps - c.igam_start
    rate = schedule(c.lr_schedule, c.learning_rate, c.train_steps)
    if method.matched_to and c.igam_learning_rate:
        plain = schedule(c.lr_schedule, c.learning_rate, c.igam_start)
        matching = schedule(c.lr_schedule, c.igam_learning_rate, igam_steps)
        rate = JoinSchedules(plain, matching, c.igam_start)
    rates = [rate]
    if method.discriminator:
        turns = -(-igam_steps // (c.match_every * c.disc_every))
        rates.append(schedule(c.lr_schedule, c.disc_learning_rate, turns))
    return [Momentum(rate, momentum=c.momentum) for rate in rates]


def new_trainer(
    config: Config,
    spec: DatasetSpec,
    student: keras.Model,
    teacher: Teacher | None,
    *,
    synchronized: bool = False,
) -> ClassifierTrainer:
    """The trainer of `--method`, not compiled; all variables of its networks exist."""
    c, method = config, METHODS[config.method]
    if method.matched_to and teacher and c.precision != "float32":
        teacher.set_precision(c.precision)
    given = {
        "eps": spec.eps,
        "step_size": spec.step_size,
        "seed": c.seed,
        "pixel_max": spec.pixel_max,
        "weight_decay": c.weight_decay,
        "label_smoothing": c.label_smoothing,
    }
    if method.discriminator:
        given["discriminator"] = Discriminator(
            c.disc_channels, outputs=c.disc_outputs, synchronized=synchronized
        )
    read = arguments_of(c.method)
    chosen = {name: value for name, value in given.items() if name in read}
    made = trainer(c.method, student, teacher, settings=c, **chosen)
    if isinstance(made, IGAM):
        made.make_players(spec.image_shape)
    return made
