"""Thousands of commands have the settings that they had before the recipes became flagfiles."""

import dataclasses
import json
import lzma
from pathlib import Path
from typing import Any

from igam_tf.experiments.config import Config
from igam_tf.experiments.resolve import explained, source_spec, teacher_network
from igam_tf.reproduce.tables import TABLES

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).with_name("resolved_settings.json.xz")
FIELDS = {field.name: field for field in dataclasses.fields(Config)}
# Settings that gained nothing and are no more.
GONE = {"diff_view", "disc_label_smoothing", "disc_r1", "disc_norm", "averaging"}


def value_of(name: str, text: str) -> Any:
    """What a flag says, as the setting that it is."""
    if name == "disc_channels":
        return tuple(map(int, text.split(",")))
    return FIELDS[name].type(text)


def chosen_by(command: str) -> dict[str, Any]:
    """Settings of a command line."""
    found: dict[str, Any] = {}
    for argument in command.split():
        name, _, text = argument.removeprefix("--").partition("=")
        if name == "flagfile":
            lines = (ROOT / text).read_text(encoding="utf-8").splitlines()
            found |= chosen_by(" ".join(line for line in lines if line.startswith("--")))
        else:
            found[name] = value_of(name, text)
    return found


def resolved(command: str) -> dict[str, Any]:
    """Every setting of a command, and what its data set adds to the teacher's."""
    values = {name: value for name, (value, _) in explained(chosen_by(command)).items()}
    config = Config(**values)
    teacher = source_spec(config).teacher
    values |= {
        "teacher_network": teacher_network(config),
        "teacher_optimizer": teacher.optimizer,
        "teacher_weight_decay": config.weight_decay if teacher.weight_decay else 0.0,
        "teacher_attacks": teacher.attacks,
    }
    return json.loads(json.dumps({k: v for k, v in values.items() if k not in GONE}))


def table_rows() -> dict[str, Any]:
    """Of each table at each preset: titles, attacks, gains, and every row with its flags and figures."""
    found = {}
    for name in TABLES:
        for preset in ("paper", "cpu", "smoke"):
            table = TABLES[name].at_preset(preset)
            rows = [
                [row.name, row.label, row.part, row.paper, dict(sorted(row.flags.items()))]
                for row in table.rows
            ]
            found[f"{name} {preset}"] = [table.title, table.attacks, rows, table.gains]
    return json.loads(json.dumps(found))


def test_settings_are_to_the_digit_what_they_were():
    kept = json.loads(lzma.decompress(KEPT.read_bytes()))
    first = kept["settings"][0]
    assert first.keys() - GONE <= FIELDS.keys() | {
        "teacher_weight_decay",
        "teacher_optimizer",
        "teacher_attacks",
    }
    for command, index in kept["commands"].items():
        assert (command, resolved(command)) == (command, first | kept["settings"][index])


def test_tables_are_what_they_were():
    assert table_rows() == json.loads(lzma.decompress(KEPT.read_bytes()))["tables"]
