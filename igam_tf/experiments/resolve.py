"""Combines the settings of a run: defaults, the paper, presets, and the user's flags."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from igam_tf.common.errors import UserError
from igam_tf.datasets import (
    SPECS,
    DatasetSpec,
    checked_name,
    parse_fraction,
    spec_of,
    steps_per_epoch,
)
from igam_tf.experiments.config import Config
from igam_tf.experiments.recipes import Found, recipe, transfers
from igam_tf.method import transforms
from igam_tf.method.maps import AUTO, MAPS
from igam_tf.method.objectives import METHODS
from igam_tf.method.preprocess import Preprocess
from igam_tf.method.settings import PUBLISHED_TO_MEAN_UNIT
from igam_tf.method.transforms import Compose, Identity, Scale, map_between
from igam_tf.pytorch.named import is_weight_file

FINETUNE_EPOCHS = 100  # in the paper's FT-* rows


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
    """The source's data set, with the run's settings if it is not in `SPECS` or is the target.

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
    """Architecture of a teacher that is trained here, written as for `--student`."""
    return config.teacher_network or config.student


def described_transform(
    config: Config, source_pixel_max: float | None = None
) -> tuple[str, Identity]:
    """(the map in words, the map): the layers of `--transform`, then the change of pixel unit.

    Args:
        config: settings.
        source_pixel_max: highest pixel value of the teacher's input; None means the source data
            set's. It is not used with --teacher_preprocess.

    Raises:
        UserError: the map's output does not have the shape of the teacher's input.
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


# The files in flags/ from which a run takes its settings, in order of rising priority. Of each line
# only the first file that exists is read. Flags on the command line win over all files. {transfer}
# is the file of source, target and transform in flags/transfers/, or `others`.
ORDER = {
    "teacher": ("teachers/{source}_{teacher_gradient}", "teachers/{source}", "teachers/others"),
    "control": ("controls/{teacher_gradient}",),
    "transfer": ("transfers/{transfer}",),
    "fidelity": ("fidelity/{fidelity}/{transfer}", "fidelity/{fidelity}"),
    "preset": ("presets/{preset}",),
    "objective at this size": ("{preset}/{fidelity}/{method}", "{preset}/{fidelity}"),
    "source at this size": ("{preset}/sources/{source}",),
    "target at this size": ("{preset}/targets/{target}",),
    "trained teacher at this size": (
        "{preset}/teachers/{source}_{teacher_gradient}",
        "{preset}/teachers/{source}",
        "{preset}/teachers/others",
    ),
    "method": ("methods/{method}",),
    "method at this size": ("{preset}/methods/{method}_{fidelity}", "{preset}/methods/{method}"),
}


def explained(
    chosen: dict[str, Any], places: Mapping[str, str] | None = None
) -> dict[str, tuple[Any, str]]:
    """Name of each setting -> (its value, where it comes from).

    Args:
        chosen: the user's flags (None if not set).
        places: "<file>:<line>" of flags that came from a flagfile; files of `ORDER` keep their
            priority.

    Raises:
        UserError: the data cannot be used, or a recipe cannot be read.
    """
    chosen = {name: value for name, value in chosen.items() if value is not None}
    base = Config(**chosen)
    of_target = target_spec(base)
    row = _transfer(base, chosen)
    choices = vars(base) | {"transfer": row or "others"}
    found: Found = {f.name: (f.default, "default") for f in dataclasses.fields(Config)}
    files = {
        layer: recipe(*(name.format_map(choices) for name in names))
        for layer, names in ORDER.items()
    }
    found |= files["teacher"]
    if "teacher_checkpoint" in chosen:
        found["teacher"] = "load", "computed: a --teacher_checkpoint is given"
        if is_weight_file(base.teacher_checkpoint):  # the recipe's network is of no such file
            found["teacher_network"] = "", "default"
    elif base.data == "builtin":
        found["teacher"] = "train", "computed: nothing is fetched for synthetic images"
    found |= files["control"]
    found |= files["transfer"]
    found |= _of_images(found, base, of_target, row)
    if base.fidelity == "release":
        published, place = found["lambda_diff"]
        unit = round(published / PUBLISHED_TO_MEAN_UNIT, 9)
        found["lambda_diff"] = unit, f"computed: {place} in the unit of R1 and R2"
    found |= files["fidelity"]
    if base.fidelity == "best":
        found["lambda_diff"] = of_target.eps, "computed: eps"
    if METHODS[base.method].trains_teacher:
        steps = FINETUNE_EPOCHS * steps_per_epoch(of_target.train_images, 128)
        found["finetune_steps"] = steps, f"computed: {FINETUNE_EPOCHS} epochs"
    found |= files["preset"]
    (batch, _) = found["batch_size"]
    found |= files["objective at this size"]
    whole = {name: value for name, (value, _) in found.items()}
    smaller = batch / whole["batch_size"]
    found |= _in_proportion(files["source at this size"], smaller, whole, whole)
    found |= files["target at this size"]
    if chosen.get("teacher", found["teacher"][0]) != "train":
        files["trained teacher at this size"] = {}
    found |= files["trained teacher at this size"]
    found |= files["method"]
    sized = {name: value for name, (value, _) in found.items()}
    found |= _in_proportion(files["method at this size"], smaller, sized, whole)
    used = {place.rpartition(":")[0] for layer in files.values() for _, place in layer.values()}
    for name, value in chosen.items():
        place = (places or {}).get(name) or "flag"
        if place.rpartition(":")[0] not in used:
            found[name] = value, place
    return found


def _transfer(base: Config, chosen: dict[str, Any]) -> str | None:
    """Name of the transfer's file; None if there is none for these data sets and this map."""
    pair = {
        key[2]: name for key, name in transfers().items() if key[:2] == (base.source, base.target)
    }
    return pair.get(chosen.get("transform", next(iter(pair), None)))


def _of_images(found: Found, base: Config, target: DatasetSpec, row: str | None) -> Found:
    """Settings that depend on the images, such as the steps of an epoch.

    Without a transfer's file these are also the ones that depend on the images' number and size.
    """
    all_images = SPECS[base.target].train_images if row else 50_000
    of_file, epoch = (steps_per_epoch(n, 128) for n in (all_images, target.train_images))
    computed = {}
    if epoch != of_file:
        for name in ("finetune_steps", "train_steps"):
            computed[name] = found[name][0] // of_file * epoch
    if not row:
        computed["num_validation"] = min(1000, target.train_images // 10)
        computed["eval_examples"] = min(1000, target.test_images)
        side = min(*source_spec(base).image_shape[:2], *target.image_shape[:2])
        channels = found["disc_channels"][0]
        computed["disc_channels"] = channels[: max(1, (side - 1).bit_length())]
    return {
        name: (value, f"computed: of {found[name][1]}")
        for name, value in computed.items()
        if value != found[name][0]
    }


def _in_proportion(
    layer: Found, smaller: float, sized: dict[str, Any], whole: dict[str, Any]
) -> Found:
    """Scales the steps in a file by the batch size and by those of IGAM at this size, `whole`."""
    computed = dict(layer)
    for name in {"finetune_steps", "igam_start", "train_steps"} & layer.keys():
        steps, place = layer[name]
        share = sized[name] / whole[name] if whole[name] else 1
        if (value := round(smaller * steps * share)) != steps:
            computed[name] = value, f"computed: in proportion, of {place}"
    return computed


def resolve(chosen: dict[str, Any], places: Mapping[str, str] | None = None) -> Config:
    """All settings of a run from the user's flags, see `explained`; data paths become absolute.

    Raises:
        UserError: data that cannot be used, or settings that contradict each other.
    """
    names = {n: checked_name(chosen[n], n) for n in ("source", "target") if chosen.get(n)}
    found = explained(chosen | names, places)
    config = Config(**{name: value for name, (value, _) in found.items()})
    _check(config, found)
    if config.teacher == "train" and chosen.get("teacher_checkpoint"):
        raise UserError(
            "expected --teacher_checkpoint without --teacher=train and --teacher_gradient=plain, which "
            f"train a teacher here; received --teacher_checkpoint={config.teacher_checkpoint}"
        )
    both = chosen.get("teacher_checkpoint") and chosen.get("teacher_network")
    if both and not is_weight_file(config.teacher_checkpoint):
        raise UserError(
            "expected --teacher_network only with a teacher that is trained here, or with weights in "
            "a .pt, .pth or .safetensors file; received "
            f"--teacher_network={config.teacher_network} with "
            f"--teacher_checkpoint={config.teacher_checkpoint}, which has a network of its own"
        )
    if config.teacher == "train" and config.teacher_preprocess:
        raise UserError(
            "expected --teacher_preprocess only with a teacher that is loaded, because one that "
            "is trained here takes pixels; received "
            f"--teacher_preprocess={config.teacher_preprocess}"
        )
    return config


def _check(config: Config, found: Found) -> None:
    """Raises a UserError where settings contradict each other; `found` says where each comes from."""

    def received(name: str) -> str:
        """Its value; of one that was not given, where it comes from and what to do."""
        value, place = found[name]
        return str(value) if place == "flag" else f"{value} ({place}): give --{name} too"

    if config.image_size and {config.source, config.target} <= SPECS.keys():
        raise UserError(
            "expected --image_size only with tfds:, folder: or npz: images; received "
            f"{config.image_size} for {config.source} and {config.target}"
        )
    method = METHODS[config.method]
    if method.matched_to and config.igam_start > config.train_steps:
        raise UserError(
            f"expected --igam_start within the {config.train_steps} training steps; "
            f"received {received('igam_start')}"
        )
    control = config.teacher_gradient
    if control != "teacher" and method.matched_to != "teacher":
        names = ", ".join(name for name, m in METHODS.items() if m.matches_teacher)
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
                    f"on and {spec.test_images} to test; received {received(name)}"
                )
