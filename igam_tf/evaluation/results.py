"""Reads results.json: the reports of a finished run's models."""

from pathlib import Path

from igam_tf.common.errors import UserError
from igam_tf.common.files import read_json
from igam_tf.datasets import data_text, fraction_text
from igam_tf.evaluation.evaluate import WORST_CASE, attack_texts
from igam_tf.method.look import doubtful_lines
from igam_tf.storage.journal import MASK_KEY


def read_results(folder: Path) -> dict[str, dict]:
    """Model -> its report, from a run folder's results.json.

    Raises:
        UserError: the results are absent or damaged.
    """
    path = folder / "results.json"
    try:
        return checked(read_json(path), path)
    except OSError as error:
        raise UserError(f"expected a finished run folder with {path}; {error}") from error


def checked(reports: dict[str, dict], path: Path) -> dict[str, dict]:
    """The reports of a file's models, after comparing every figure with its robust mask.

    Raises:
        UserError: a figure differs from its mask, as in a file that was changed, or it is no
            report.
    """
    try:
        for report in reports.values():
            _ = settings_text(report), doubtful_lines(report)
            _check_masks(report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"expected a report of each model in {path}; it is damaged: {error}"
        ) from error
    return reports


def _check_masks(report: dict) -> None:
    results = report["results"]
    masks = {name: row[MASK_KEY] for name, row in results.items() if MASK_KEY in row}
    if masks.keys() == results.keys() - {WORST_CASE}:
        every = zip(*masks.values(), strict=True)
        masks[WORST_CASE] = "".join("1" if set(each) == {"1"} else "0" for each in every)
    for name, mask in masks.items():
        stated, counted = results[name]["accuracy"], 100 * mask.count("1") / max(len(mask), 1)
        if len(mask) != results[name]["n"] or abs(stated - counted) > 1e-6 or set(mask) - {*"01"}:
            raise ValueError(
                f"{name} says {stated} % of {results[name]['n']}, its mask {counted:g} %"
            )


def settings_text(r: dict) -> str:
    """The settings of one model's figures as text: those of `evaluation_text`, and the seed."""
    return f"{evaluation_text(r)}, seed {r['results']['worst_case']['seed']}"


def evaluation_text(r: dict) -> str:
    """The settings that all seeds share: data, n, threat model, attacks, batch norm."""
    worst = r["results"]["worst_case"]
    attacks = ", ".join(
        f"{name}: {steps} x {step_size}, {row['restarts']} restart(s), loss {row['loss']}"
        for name, row in r["results"].items()
        for steps, step_size, _ in [attack_texts(row)]
        if steps
    )
    return (
        f"accuracy in % (95 % interval) on {r['dataset']} {r['split']}, "
        f"data {data_text(r['data'])}, n = {worst['n']}, "
        f"l-inf eps {fraction_text(worst['eps'])} of the pixel range, {attacks}, "
        f"batch norm {worst['batch_norm']}"
    )
