"""Run folders -> the figures of a table; the cells of a row that was not run are None."""

from pathlib import Path
from typing import Any

from igam_tf.datasets import SPECS, data_text, steps_per_epoch
from igam_tf.evaluation.results import read_results, settings_text
from igam_tf.formulas.statistics import excess
from igam_tf.method.objectives import METHODS
from igam_tf.reproduce.tables import PAPER_SECONDS, Table, TableRow
from igam_tf.system.journal import MASK_KEY, undigits
from igam_tf.system.run_folder import read_json, read_metrics
from igam_tf.training.monitor import CLEAN, ROBUST
from madry_models.errors import UserError

ALIGNMENT = "alignment.json"  # in the folder of a row without a teacher, see `aligning`


def finished(folder: Path) -> bool:
    """Whether a row's run folder has its results."""
    return (folder / "results.json").exists()


def collect(table: Table, output: Path) -> dict[str, Any]:
    """The content of a table, for JSON.

    Args:
        table: one of `igam_tf.reproduce.tables.TABLES`.
        output: folder that holds a run folder for each row that was run.

    Returns:
        title, with the budget of the rows that stand for the paper's; attacks; the evaluation's
        settings in words; rows, see `_row`; gains, see `_gains`; seconds an epoch.

    Raises:
        UserError: rows that were evaluated differently, or a folder whose results are not a row's.
    """
    rows = [_row(row, table, output / row.name) for row in table.rows]
    done = [row["run"] for row in rows if row["run"]]
    settings = {run["settings"] for run in done}
    if len(settings) > 1:
        raise UserError(f"expected rows evaluated alike; received {'; '.join(sorted(settings))}")
    budgets = sorted({run["budget"] for run in done})
    return {
        "title": f"{table.title} ({'; '.join(budgets) or 'nothing run'})",
        "attacks": list(table.attacks),
        "settings": next(iter(settings), ""),
        "rows": rows,
        "gains": _gains(table, rows),
        "epoch_seconds": _epoch_seconds(rows),
    }


def _row(row: TableRow, table: Table, folder: Path) -> dict[str, Any]:
    """One row: name, label, part; cells, attack -> paper, ours, ci95, difference, mask; run, see `_run`.

    None stands for what was not published or not run.
    """
    run, results = _run(folder) if finished(folder) else (None, {})
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
    minutes = {stage: of_stage[-1]["train_minutes"] for stage, of_stage in stages.items()}
    last = stages[list(stages)[-1]]
    before = sum(minutes.values()) - last[-1]["train_minutes"]
    run = {
        "settings": settings_text(report),
        "budget": _budget(config),
        "method": config["method"],
        "steps": last[-1]["step"],
        "minutes": minutes,
        "alignment": read_json(aligned) if aligned.exists() else report.get("alignment"),
        "epoch_seconds": _epoch(config, last, minutes.get("teacher", 0.0)),
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
    if config["data"] == "builtin":
        text += f"; data {data_text(config['data'])}"
    return text + ("; fidelity release" if config["fidelity"] == "release" else "")


def _gains(table: Table, rows: list[dict]) -> list[dict[str, Any]]:
    """Paired differences of robust accuracy under the last attack, in points, with 95 % intervals."""
    attack = table.attacks[-1]
    found = {row["name"]: row for row in rows if row["run"]}
    gains = []
    for name, other in table.gains:
        if {name, other} <= found.keys():
            ours, theirs = (undigits(found[n]["cells"][attack][MASK_KEY]) for n in (name, other))
            gain = excess(ours, theirs)
            gains.append(
                {
                    "row": found[name]["label"],
                    "over": found[other]["label"],
                    "attack": attack,
                    "points": 100 * gain.net / gain.n,
                    "ci95": [100 * gain.low, 100 * gain.high],
                    "n": gain.n,
                }
            )
    return gains


def _epoch_seconds(rows: list[dict]) -> dict[str, float]:
    """Seconds an epoch of the table's first IGAM and first PGD row, where they were run."""
    seconds: dict[str, float] = {}
    for row in rows:
        run = row["run"]
        if run and run["method"] in PAPER_SECONDS and run["epoch_seconds"]:
            seconds.setdefault(run["method"], run["epoch_seconds"])
    return seconds


def _epoch(config: dict, lines: list[dict], teacher_minutes: float) -> float | None:
    """Seconds that an epoch takes, over the steps that match J_s where a method has such steps.

    The minutes of stage 1 are spread over the steps, as in §5.2.
    """
    start = config["igam_start"] if METHODS[config["method"]].matched_to else 0
    lines = [line for line in lines if line["step"] > start]
    steps = lines[-1]["step"] - lines[0]["step"] if lines else 0
    if not steps:
        return None
    a_step = (lines[-1]["train_minutes"] - lines[0]["train_minutes"]) / steps
    a_step += teacher_minutes / config["train_steps"]
    images = config["train_examples"] or SPECS[config["target"]].train_images
    return 60 * a_step * steps_per_epoch(images, config["batch_size"])
