"""Averages the figures of a table over several seeds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from igam_tf.common.errors import UserError
from igam_tf.formulas.statistics import share_interval
from igam_tf.reproduce.collecting import content_of, distinct, kept_images
from igam_tf.reproduce.tables import Table
from igam_tf.storage.journal import MASK_KEY


def mean_of_seeds(table: Table, contents: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """The content of the table of means, with the rows that every seed has.

    Accuracies, minutes and cosines are means. Their intervals, and those of the gains, are over the
    test images: the value of an image is the share of seeds in which it is robust.

    Args:
        table: the table of the contents.
        contents: seed -> its content, from `igam_tf.reproduce.collecting.collect`.

    Returns:
        As `igam_tf.reproduce.collecting.content_of`; each cell also has the accuracy of every seed.

    Raises:
        UserError: seeds were evaluated differently.
    """
    several = list(contents.values())
    masks = [kept_images(content["rows"]) for content in several]
    kept = {
        name: {a: np.mean([of[name][a] for of in masks], axis=0) for a in table.attacks}
        for name in masks[0]
        if all(name in of for of in masks)
    }
    seeds = f"mean of seeds {', '.join(map(str, contents))}"
    rows = []
    for same in zip(*(content["rows"] for content in several), strict=True):
        row = dict(same[0])
        if row["name"] in kept:
            row["run"] = _mean_run([r["run"] for r in same]) | {"seed": seeds}
            row["cells"] = {
                attack: _mean_cell([r["cells"][attack] for r in same], kept[row["name"]][attack])
                for attack in table.attacks
            }
        else:
            row["run"] = None
            row["cells"] = {a: cell | {"ours": None} for a, cell in row["cells"].items()}
        rows.append(row)
    content = content_of(table, rows, kept)
    content["title"] += f", {seeds}"
    for said in ("data", "teachers"):
        content[said] = distinct(text for of in several for text in of[said])
    return content


def _mean_cell(cells: list[dict], kept: np.ndarray) -> dict[str, Any]:
    ours, paper = 100 * float(kept.mean()), cells[0]["paper"]
    return {
        "paper": paper,
        "ours": ours,
        "ci95": [100 * end for end in share_interval(kept)],
        "difference": None if paper is None else round(ours - paper, 2),
        MASK_KEY: None,
        "seeds": [cell["ours"] for cell in cells],
    }


def _mean_run(runs: list[dict]) -> dict[str, Any]:
    if len(settings := {run["settings"] for run in runs}) > 1:
        raise UserError(f"expected seeds evaluated alike; received {'; '.join(sorted(settings))}")
    return runs[0] | {
        name: _mean([run[name] for run in runs])
        for name in ("minutes", "alignment", "epoch_seconds", "curve")
    }


def _mean(values: list) -> Any:
    """The mean of numbers, or of dicts and lists entry by entry; None if a seed has none.

    Of other values, such as names, the first.
    """
    if any(value is None for value in values):
        return None
    first = values[0]
    if isinstance(first, dict):
        return {key: _mean([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [_mean(list(entries)) for entries in zip(*values, strict=True)]
    return float(np.mean(values)) if isinstance(first, int | float) else first
