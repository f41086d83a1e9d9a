"""Puts the settings of a run together: defaults, the paper, presets, and what the user says."""

import dataclasses
from typing import Any

from igam_tf.datasets import SPECS
from igam_tf.experiments.config import Config
from igam_tf.experiments.paper import TEACHERS, TRANSFERS
from igam_tf.experiments.presets import (
    CPU_BUDGETS,
    CPU_OBJECTIVE,
    METHOD_SETTINGS,
    PLAIN_MNIST,
    PRESETS,
)
from igam_tf.method.objectives import METHODS
from igam_tf.method.transforms import MAPS, Compose, Identity, Scale
from madry_models.errors import UserError

# (where settings come from, settings)
Layer = tuple[str, dict[str, Any]]


def transform(config: Config) -> Identity:
    """The map of a run: the layers of `--transform`, then the change of pixel unit if there is one."""
    source, target = SPECS[config.source], SPECS[config.target]
    maps = MAPS[config.transform](source.image_shape[0], config.up_resize)
    if source.pixel_max != target.pixel_max:
        maps.append(Scale(source.pixel_max / target.pixel_max))
    return Compose(maps)


def layers(chosen: dict[str, Any]) -> list[Layer]:
    """Where the settings of a run come from, in the order of precedence: the later layer wins.

    Args:
        chosen: what the user says.

    Raises:
        UserError: no such row of the paper.
    """
    base = Config(**chosen)
    source, target, fidelity, preset = base.source, base.target, base.fidelity, base.preset
    key = _transfer(base, chosen)
    row, cpu = TRANSFERS[key], preset == "cpu"
    released = row.as_released(base.method) if fidelity == "release" else {}
    sized = PRESETS[preset] | (CPU_OBJECTIVE[fidelity] if cpu else {})
    own = METHOD_SETTINGS.get(base.method, {}) | (CPU_BUDGETS.get(base.method, {}) if cpu else {})
    control: dict[str, Any] = {}
    if base.teacher_gradient == "plain":
        control = {"teacher": "train"} | (PLAIN_MNIST[preset] if source == "mnist" else {})
    return [
        ("default", {f.name: f.default for f in dataclasses.fields(Config)}),
        (f"teacher of {source}", TEACHERS[source]),
        (
            f"row {source} to {target}",
            {"transform": key[2]} | row.as_published(target, base.method),
        ),
        (f"fidelity {fidelity}", released),
        (f"preset {preset}", sized),
        (f"method {base.method}", own),
        (f"control {base.teacher_gradient}", control),
        ("flag", chosen),
    ]


def _transfer(base: Config, chosen: dict[str, Any]) -> tuple[str, str, str]:
    """Key of the paper's row."""
    pair = {key[2]: key for key in TRANSFERS if key[:2] == (base.source, base.target)}
    key = pair.get(chosen.get("transform", next(iter(pair), None)))
    if key is None:
        known = ", ".join(f"--source={s} --target={t} --transform={m}" for s, t, m in TRANSFERS)
        asked = f" --transform={base.transform}" if "transform" in chosen else ""
        raise UserError(
            f"expected one of the transfers {known}; received --source={base.source} "
            f"--target={base.target}{asked}"
        )
    return key


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
    """All settings of a run from those the user chose (None: not chosen).

    Raises:
        UserError: no such row of the paper, or settings that contradict each other.
    """
    config = Config(**{name: value for name, (value, _) in explained(chosen).items()})
    _check(config)
    return config


def _check(config: Config) -> None:
    """Raises a UserError where settings contradict each other."""
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
