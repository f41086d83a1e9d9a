"""Puts the settings of a run together: defaults, the paper, presets, and what the user says."""

import dataclasses
from typing import Any

from igam_tf.common.errors import UserError
from igam_tf.datasets import SPECS, DatasetSpec, checked_name, parse_fraction, spec_of
from igam_tf.experiments.config import Config
from igam_tf.experiments.paper import TRANSFERS, best_objective, few_images, without_a_row
from igam_tf.experiments.presets import (
    CPU_BEST_BUDGETS,
    CPU_BEST_OF_METHOD,
    CPU_BEST_OF_OTHERS,
    CPU_BUDGETS,
    CPU_OBJECTIVE,
    CPU_SOURCES,
    CPU_TARGETS,
    CPU_TEACHERS,
    METHOD_SETTINGS,
    PRESETS,
)
from igam_tf.method import transforms
from igam_tf.method.maps import AUTO, MAPS
from igam_tf.method.objectives import METHODS
from igam_tf.method.preprocess import Preprocess
from igam_tf.method.transforms import Compose, Identity, Scale, map_between

# (where settings come from, settings)
Layer = tuple[str, dict[str, Any]]


def target_spec(config: Config) -> DatasetSpec:
    """The target's data set, with the run's eps, step size and pixel range.

    Raises:
        UserError: as `igam_tf.datasets.spec_of`.
    """
    return spec_of(
        config.target,
        data_dir=config.data_dir or None,
        image_size=0 if config.target in SPECS else config.image_size,
        eps=parse_fraction("eps", config.eps or None),
        step_size=parse_fraction("step_size", config.step_size or None),
        pixel_max=config.pixel_max or None,
        classes=config.target_classes,
    )


def source_spec(config: Config) -> DatasetSpec:
    """The source's data set; outside `SPECS`, or where it is the target, with the run's settings.

    Raises:
        UserError: as `igam_tf.datasets.spec_of`.
    """
    if config.source == config.target:
        return target_spec(dataclasses.replace(config, target_classes=config.source_classes))
    if config.source in SPECS:
        return SPECS[config.source].first_classes(config.source_classes)
    return spec_of(
        config.source,
        data_dir=config.data_dir or None,
        image_size=config.image_size,
        pixel_max=config.pixel_max or None,
        classes=config.source_classes,
    )


def teacher_network(config: Config) -> str:
    """Architecture of a teacher that is trained, as `--student` names them."""
    return config.teacher_network or source_spec(config).teacher.network or config.student


def described_transform(
    config: Config, source_pixel_max: float | None = None
) -> tuple[str, Identity]:
    """(the map in words, the map): the layers of `--transform`, then the change of pixel unit.

    Args:
        config: settings.
        source_pixel_max: of the teacher's input; None: of the source's data set. Without meaning
            where there is a --teacher_preprocess.

    Raises:
        UserError: the map does not lead from the target's images to the teacher's.
    """
    source, target = source_spec(config), target_spec(config)
    source_pixel_max = source_pixel_max or source.pixel_max
    wanted = source.image_shape
    if config.transform == AUTO:
        words, chosen = map_between(target.image_shape, wanted, up_resize=config.up_resize)
        maps = chosen.maps
    else:
        size = wanted[0] if wanted[0] == wanted[1] else wanted[:2]
        words, maps = config.transform, MAPS[config.transform](transforms, size, config.up_resize)
    try:
        shape = Compose(maps).compute_output_shape((None, *target.image_shape))[1:]
    except UserError as error:
        shape = str(error)
    if shape != wanted:
        raise UserError(
            f"expected a map from images {list(target.image_shape)} of {target.name} to "
            f"{list(wanted)} of {source.name}, such as --transform=auto; --transform="
            f"{config.transform} gives {shape if isinstance(shape, str) else list(shape)}"
        )
    if convention := config.teacher_preprocess:
        last = Preprocess(convention, target.pixel_max)
        last.build(wanted)
        maps = [*maps, last]
        words += f", pixels in 0..{target.pixel_max:g} brought to --teacher_preprocess={convention}"
    elif source_pixel_max != target.pixel_max:
        maps = [*maps, Scale(source_pixel_max / target.pixel_max)]
        words += f", pixels in 0..{target.pixel_max:g} scaled to 0..{source_pixel_max:g}"
    return words, Compose(maps)


def layers(chosen: dict[str, Any]) -> list[Layer]:
    """Where the settings of a run come from, in the order of precedence: the later layer wins.

    Args:
        chosen: what the user says.

    Raises:
        UserError: data that cannot be used.
    """
    base = Config(**chosen)
    source, target, fidelity, preset = base.source, base.target, base.fidelity, base.preset
    of_source, of_target, cpu = source_spec(base), target_spec(base), preset == "cpu"
    key = _transfer(base, chosen)
    if key is None:
        place, transform = "defaults without a row", chosen.get("transform", AUTO)
        row, sizes = without_a_row(of_source, of_target), few_images(of_target)
    else:
        place, transform = f"row {source} to {target}", key[2]
        row, sizes = TRANSFERS[key], {}
    published = row.as_published(of_target.train_images, base.method)
    objective = {
        "paper": {},
        "release": row.as_released(base.method),
        "best": best_objective(of_target.eps),
    }[fidelity]
    teacher = dict(of_source.teacher.settings)
    if "teacher_checkpoint" in chosen:
        teacher["teacher"] = "load"
    elif base.data == "builtin":
        teacher["teacher"] = "train"  # nothing is fetched for synthetic images
    sized = PRESETS[preset]
    own = METHOD_SETTINGS.get(base.method, {})
    if cpu:
        whole = sized | CPU_OBJECTIVE[fidelity]
        steps = CPU_BUDGETS.get(base.method, {})
        if fidelity == "best":
            whole |= {} if METHODS[base.method].matched_to else CPU_BEST_OF_OTHERS
            own = own | CPU_BEST_OF_METHOD.get(base.method, {})
            steps = CPU_BEST_BUDGETS.get(base.method, steps)
        smaller = sized["batch_size"] / whole["batch_size"]
        source_sizes = {name: round(smaller * n) for name, n in CPU_SOURCES.get(source, {}).items()}
        sized = whole | source_sizes | CPU_TARGETS.get(target, {})
        own = own | {n: round(smaller * k * sized[n] / whole[n]) for n, k in steps.items()}
        sized |= _cpu_teacher(base, of_source, (teacher | chosen)["teacher"])
    control: dict[str, Any] = {}
    if base.teacher_gradient == "plain":
        control = {"teacher": "train"} | dict(of_source.teacher.plain.get(preset, {}))
    return [
        ("default", {f.name: f.default for f in dataclasses.fields(Config)}),
        (f"teacher of {source}", teacher),
        (place, {"transform": transform} | published | sizes),
        (f"fidelity {fidelity}", objective),
        (f"preset {preset}", sized),
        (f"method {base.method}", own),
        (f"control {base.teacher_gradient}", control),
        ("flag", chosen),
    ]


def _cpu_teacher(base: Config, source: DatasetSpec, teacher: str) -> dict[str, Any]:
    """The cpu preset's budget of a teacher that is trained by the recipe of robust ones."""
    plain = base.teacher_gradient == "plain"
    trained = plain or teacher == "train"
    if not trained or (plain and "cpu" in source.teacher.plain):
        return {}
    return CPU_TEACHERS.get(base.source, CPU_TEACHERS["cifar10"])


def _transfer(base: Config, chosen: dict[str, Any]) -> tuple[str, str, str] | None:
    """Key of the paper's row; None where it has none of these data sets and this map."""
    pair = {key[2]: key for key in TRANSFERS if key[:2] == (base.source, base.target)}
    return pair.get(chosen.get("transform", next(iter(pair), None)))


def explained(chosen: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """Name of each setting -> (its value, the layer that it comes from).

    Args:
        chosen: what the user says (None: nothing).

    Raises:
        UserError: as `resolve`.
    """
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return {name: (v, place) for place, values in layers(chosen) for name, v in values.items()}


def resolve(chosen: dict[str, Any]) -> Config:
    """All settings of a run from those the user chose (None: not chosen); paths of data are absolute.

    Raises:
        UserError: data that cannot be used, or settings that contradict each other.
    """
    names = {n: checked_name(chosen[n], n) for n in ("source", "target") if chosen.get(n)}
    config = Config(**{name: value for name, (value, _) in explained(chosen | names).items()})
    _check(config)
    if config.teacher == "train" and chosen.get("teacher_checkpoint"):
        raise UserError(
            "expected --teacher_checkpoint without --teacher=train and --teacher_gradient=plain, which "
            f"train a teacher here; received --teacher_checkpoint={config.teacher_checkpoint}"
        )
    if config.teacher == "train" and config.teacher_preprocess:
        raise UserError(
            "expected --teacher_preprocess with a teacher that is loaded, for one that is trained here "
            f"takes its images as they are; received --teacher_preprocess={config.teacher_preprocess}"
        )
    return config


def _check(config: Config) -> None:
    """Raises a UserError where settings contradict each other."""
    if config.image_size and {config.source, config.target} <= SPECS.keys():
        raise UserError(
            "expected --image_size with tfds:, folder: or npz: images alone; received "
            f"{config.image_size} for {config.source} and {config.target}"
        )
    method = METHODS[config.method]
    if method.matched_to and config.igam_start > config.train_steps:
        raise UserError(
            f"expected --igam_start within the {config.train_steps} training steps; "
            f"received {config.igam_start}"
        )
    control = config.teacher_gradient
    if control != "teacher" and method.matched_to != "teacher":
        names = ", ".join(name for name, m in METHODS.items() if m.matched_to == "teacher")
        raise UserError(
            f"expected a method that matches J_t ({names}) with --teacher_gradient={control}; "
            f"received --method={config.method}"
        )
    if control == "plain" and config.teacher != "train":
        raise UserError(
            "expected --teacher=train with --teacher_gradient=plain, whose teacher is trained here "
            f"without an attack; received --teacher={config.teacher}"
        )
    if method.teacher:
        described_transform(config)
    if config.target not in SPECS:
        spec = target_spec(config)
        train = min(config.train_examples or spec.train_images, spec.train_images)
        for name, most in (("num_validation", train - 1), ("eval_examples", spec.test_images)):
            if getattr(config, name) > most:
                raise UserError(
                    f"expected --{name} of at most {most}, for {spec.name} has {train} images to train "
                    f"on and {spec.test_images} to test; received {getattr(config, name)}"
                )
