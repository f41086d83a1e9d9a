"""Collects the figures of a table from run folders; cells of a row that was not run are None."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from igam_tf.common.errors import UserError
from igam_tf.common.files import read_json
from igam_tf.common.tables import with_interval
from igam_tf.datasets import SPECS, data_text, short_name, steps_per_epoch
from igam_tf.evaluation.results import evaluation_text, read_results
from igam_tf.formulas.statistics import difference_interval
from igam_tf.method.objectives import METHODS
from igam_tf.reproduce.tables import PAPER_SECONDS, Table, TableRow
from igam_tf.storage.journal import MASK_KEY, mask_of_text
from igam_tf.storage.run_folder import read_metrics
from igam_tf.training.monitor import CLEAN, ROBUST
from igam_tf.training.teachers import STAGE as TEACHER

ALIGNMENT = "alignment.json"  # in the folder of a row without a teacher, see `aligning`


def finished(folder: Path) -> bool:
    """Whether a row's run folder has its results."""
    return (folder / "results.json").exists()


def collect(table: Table, output: Path) -> dict[str, Any]:
    """The content of a table, see `content_of`.

    Args:
        table: one of `igam_tf.reproduce.tables.TABLES`.
        output: folder with a run folder for each row that was run.

    Raises:
        UserError: rows were evaluated differently or lack an attack, or a folder's results are not
            those of a row.
    """
    rows = [_row(row, table, output / row.name) for row in table.rows]
    return content_of(table, rows, kept_images(rows))


def content_of(table: Table, rows: list[dict], kept: Mapping[str, Mapping]) -> dict[str, Any]:
    """The content of a table, for JSON.

    Args:
        table: the table of the rows.
        rows: see `_row`.
        kept: see `kept_images`.

    Returns:
        title, with the budget of the rows that reproduce the paper's; attacks; the evaluation's
        settings as text; data and teachers, a sentence each; the rows; gains, see `_gains`; seconds
        an epoch.

    Raises:
        UserError: rows were evaluated differently.
    """
    done = [row["run"] for row in rows if row["run"]]
    settings = {f"{run['settings']}, {run['seed']}" for run in done}
    if len(settings) > 1:
        raise UserError(f"expected rows evaluated alike; received {'; '.join(sorted(settings))}")
    budgets = sorted({run["budget"] for run in done})
    return {
        "title": f"{table.title} ({'; '.join(budgets) or 'nothing run'})",
        "attacks": list(table.attacks),
        "settings": next(iter(settings), ""),
        "data": distinct(run["data"] for run in done),
        "teachers": distinct(run["teacher"] for run in done),
        "rows": rows,
        "gains": _gains(table, kept),
        "epoch_seconds": _epoch_seconds(rows),
    }


def kept_images(rows: list[dict]) -> dict[str, dict[str, np.ndarray]]:
    """Name of a row that was run -> attack -> robust mask of the row, [n] of 0 and 1."""
    return {
        row["name"]: {
            a: mask_of_text(cell[MASK_KEY]).astype(float) for a, cell in row["cells"].items()
        }
        for row in rows
        if row["run"]
    }


def distinct(texts: Iterable[str]) -> list[str]:
    """The texts that are not empty, without repetitions."""
    return list(dict.fromkeys(text for text in texts if text))


def _row(row: TableRow, table: Table, folder: Path) -> dict[str, Any]:
    """One row: name, label, part; cells, attack -> paper, ours, ci95, difference, mask; run, see `_run`.

    None means not published or not run.
    """
    try:
        run, results = _run(folder) if finished(folder) else (None, {})
    except (KeyError, FileNotFoundError) as error:
        raise UserError(
            f"expected a run of this version in {folder}; it lacks {error}: train it again"
        ) from error
    if run and (absent := [attack for attack in table.attacks if attack not in results]):
        raise UserError(
            f"expected the row in {folder} under {', '.join(table.attacks)}; it was not attacked by "
            f"{', '.join(absent)}"
        )
    cells = {}
    for i, attack in enumerate(table.attacks):
        paper = row.paper[i] if row.paper else None
        ours = results.get(attack, {})
        known = paper is not None and ours
        cells[attack] = {
            "paper": paper,
            "ours": ours.get("accuracy"),
            "ci95": ours.get("ci95"),
            "difference": round(ours["accuracy"] - paper, 2) if known else None,
            MASK_KEY: ours.get(MASK_KEY),
        }
    return {"name": row.name, "label": row.label, "part": row.part, "cells": cells, "run": run}


def _run(folder: Path) -> tuple[dict[str, Any], dict[str, dict]]:
    """(a run's settings, steps, minutes, alignment and validation curve; attack -> result)."""
    config = read_json(folder / "config.json")
    report = read_results(folder)[config["method"]]
    aligned = folder / ALIGNMENT
    stages: dict[str, list[dict]] = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        stages.setdefault(line["stage"], []).append(line)
    minutes = {
        stage: of_stage[-1]["train_minutes"]
        for stage, of_stage in stages.items()
        if stage != TEACHER
    }
    last = stages[list(stages)[-1]]
    before = sum(minutes.values()) - last[-1]["train_minutes"]
    run = {
        "settings": evaluation_text(report),
        "seed": f"seed {report['results']['worst_case']['seed']}",
        "budget": _budget(config),
        "data": _data(folder),
        "teacher": _teacher(config, folder),
        "doubts": report["doubts"],
        "method": config["method"],
        "steps": last[-1]["step"],
        "minutes": minutes,
        "alignment": read_json(aligned) if aligned.exists() else report.get("alignment"),
        "epoch_seconds": _epoch(config, last, minutes.get("teacher", 0.0), folder),
        "curve": [
            {"minutes": before + line["train_minutes"], "clean": line[CLEAN], "pgd20": line[ROBUST]}
            for line in last
            if ROBUST in line
        ],
    }
    return run, report["results"]


def _budget(config: dict) -> str:
    text = f"preset {config['preset']}"
    if config["preset"] != "paper":
        text += f": {config['student']}, not the paper's budget"
    for role in ("source", "target"):
        if n := config[f"{role}_classes"]:
            text += f"; {role} {config[role]}: first {n} classes"
    if config["data"] == "builtin":
        text += f"; data {data_text(config['data'])}"
    for name, usual in (("fidelity", "paper"), ("precision", "float32")):
        text += "" if config[name] == usual else f"; {name} {config[name]}"
    return text


def _data(folder: Path) -> str:
    """Describes the target's images."""
    d = read_json(folder / "data.json")
    here, published = d["train_images"] + d["validation_images"], d["published_train_images"]
    text = (
        f"{d['data']}: {d['train_images']} images to train on, {d['validation_images']} to validate"
    )
    text += f", {d['test_images']} to test"
    text += f"; a subset, of {published} to train on" if here < published else ""
    return text + (f"; stored as {d['stored_as']}" if d["stored_as"] else "")


def _teacher(config: dict, folder: Path) -> str:
    """Describes the teacher, with its own accuracy if it was trained here; "" without a teacher."""
    if not METHODS[config["method"]].teacher:
        return ""
    path = folder / f"{TEACHER}.json"
    if not path.exists():
        name, loaded = Path(config["teacher_checkpoint"]).name, config["teacher"] == "load"
        return f"{short_name(config['source'])}: {name}, loaded" if loaded and name else ""
    t = read_json(path)
    s, report = t["settings"], t.get("report")
    attack = "no attack"
    if s["attack_steps"]:
        attack = f"{s['attack_steps']} attack step(s) of {s['step_size'] / s['eps']:.3g} eps"
    text = f"{t['data']}: {s['network']}, {s['steps']} steps of {s['batch_size']} images of "
    text += f"{t['train_images']}, {attack}, {t['minutes']:.1f} minutes"
    if report:
        found = {k: v for k, v in report["results"].items() if k != "worst_case"}
        text += "; on its own task " + ", ".join(
            f"{name} {with_interval(r['accuracy'], r['ci95'])}" for name, r in found.items()
        )
        text += f", n = {next(iter(found.values()))['n']}"
    return text


def _gains(table: Table, kept: Mapping[str, Mapping]) -> list[dict[str, Any]]:
    """Paired differences of accuracy, attack -> points and their 95 % interval, of n images."""
    label = {row.name: row.label for row in table.rows}
    gains = []
    for name, other in table.gains:
        if {name, other} <= kept.keys():
            more = {attack: kept[name][attack] - kept[other][attack] for attack in table.attacks}
            gains.append(
                {
                    "row": label[name],
                    "over": label[other],
                    "points": {attack: 100 * float(d.mean()) for attack, d in more.items()},
                    "ci95": {
                        attack: [100 * end for end in difference_interval(d)]
                        for attack, d in more.items()
                    },
                    "n": len(next(iter(more.values()))),
                }
            )
    return gains


def _epoch_seconds(rows: list[dict]) -> dict[str, float]:
    """Seconds per epoch of the table's first IGAM row and first PGD row, if they were run."""
    seconds: dict[str, float] = {}
    for row in rows:
        run = row["run"]
        if run and run["method"] in PAPER_SECONDS and run["epoch_seconds"]:
            seconds.setdefault(run["method"], run["epoch_seconds"])
    return seconds


def _epoch(config: dict, lines: list[dict], teacher_minutes: float, folder: Path) -> float | None:
    """Seconds per epoch; if the method matches J_s, only over steps that do.

    The time of stage 1 is spread over the steps, as in §5.2.
    """
    start = config["igam_start"] if METHODS[config["method"]].matched_to else 0
    lines = [line for line in lines if line["step"] > start]
    steps = lines[-1]["step"] - lines[0]["step"] if lines else 0
    if not steps:
        return None
    a_step = (lines[-1]["train_minutes"] - lines[0]["train_minutes"]) / steps
    a_step += teacher_minutes / config["train_steps"]
    images = config["train_examples"] or SPECS[config["target"]].train_images
    if config["target_classes"]:
        images = read_json(folder / "data.json")["train_images"]
    return 60 * a_step * steps_per_epoch(images, config["batch_size"])
