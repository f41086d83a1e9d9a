"""Thousands of commands have the settings that they had before the recipes became flagfiles."""

import json
import lzma
from pathlib import Path
from typing import Any

from igam_tf.experiments.recipes import KEY, recipe, setting_of, transfers
from igam_tf.experiments.resolve import explained
from igam_tf.reproduce.tables import TABLES

KEPT = Path(__file__).with_name("resolved_settings.json.xz")
# Settings that gained nothing and are no more.
GONE = {"diff_view", "disc_label_smoothing", "disc_r1", "disc_norm", "averaging"}


def chosen_by(command: str) -> dict[str, Any]:
    """Settings of a command line; a transfer had two flagfiles, <transfer> and <transfer>_cpu."""
    found: dict[str, Any] = {}
    for argument in command.split():
        name, _, text = argument.removeprefix("--").partition("=")
        if name == "flagfile" and "_to_" in text:
            stem = Path(text).stem
            transfer, cpu = stem.removesuffix("_cpu"), stem.endswith("_cpu")
            row = recipe(f"transfers/{transfer}", f"transfers/{transfer.removesuffix('_resize')}")
            found |= {name: row[name][0] for name in ("source", "target", "transform")}
            found["preset"] = "cpu" if cpu else "paper"
            if cpu and found["source"] == "cifar10":
                found["teacher"] = "train"
        elif name == "flagfile":
            found |= {name: value for name, (value, _) in recipe(Path(text).stem).items()}
        else:
            found[name] = setting_of(name, text)
    return found


def resolved(command: str) -> dict[str, Any]:
    """Every setting of a command, the teacher's as they were when its data set had some of them."""
    values = {name: value for name, (value, _) in explained(chosen_by(command)).items()}
    return values | {
        "disc_channels": list(values["disc_channels"]),
        "teacher_network": values["teacher_network"] or values["student"],
        "teacher_weight_decay": 0.0
        if values["teacher_optimizer"] == "adam"
        else values["weight_decay"],
        "teacher_attacks": values.pop("teacher_eval_attacks"),
    }


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


def keep() -> None:
    """Keeps what the commands have now, after a change that is meant."""
    texts = {c: json.dumps(resolved(c), sort_keys=True) for c in kept()["commands"]}
    number = {text: i for i, text in enumerate(dict.fromkeys(texts.values()))}
    first, *others = map(json.loads, number)
    content = {
        "settings": [first, *({k: v for k, v in o.items() if v != first[k]} for o in others)],
        "commands": {command: number[text] for command, text in texts.items()},
        "transfers": list(transfers().values()),
        "tables": table_rows(),
    }
    KEPT.write_bytes(lzma.compress(json.dumps(content, indent=0).encode(), preset=9))


def kept() -> dict[str, Any]:
    return json.loads(lzma.decompress(KEPT.read_bytes()))


def test_settings_are_to_the_digit_what_they_were():
    content = kept()
    first = content["settings"][0]
    for command, index in content["commands"].items():
        expected = {k: v for k, v in (first | content["settings"][index]).items() if k not in GONE}
        values = resolved(command)
        row = transfers().get(tuple(values[name] for name in KEY))
        if row in (None, *content["transfers"]):  # else the pair had no row when this was kept
            assert (command, values) == (command, expected)


def test_tables_are_what_they_were():
    assert table_rows() == kept()["tables"]


if __name__ == "__main__":
    keep()
