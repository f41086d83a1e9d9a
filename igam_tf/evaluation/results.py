"""Reads results.json: the reports of a finished run's models."""

from pathlib import Path

from igam_tf.datasets import data_text
from igam_tf.evaluation.evaluate import fraction_text, step_text
from igam_tf.system.run_folder import read_json
from madry_models.errors import UserError


def read_results(folder: Path) -> dict[str, dict]:
    """Model -> its report, from a run folder's results.json.

    Raises:
        UserError: no results there, or damaged ones.
    """
    path = folder / "results.json"
    try:
        reports = read_json(path)
        for report in reports.values():
            settings_text(report)
    except OSError as error:
        raise UserError(f"expected a finished run folder with {path}; {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"expected a report of each model in {path}; it is damaged: {error}"
        ) from error
    return reports


def settings_text(r: dict) -> str:
    """The settings of one model's figures in words: those of `evaluation_text`, and the seed."""
    return f"{evaluation_text(r)}, seed {r['results']['worst_case']['seed']}"


def evaluation_text(r: dict) -> str:
    """The settings that every seed has: data, n, threat model, attacks, batch norm."""
    worst = r["results"]["worst_case"]
    attacks = ", ".join(
        f"{name}: {row['steps']} x {step_text(row)}, {row['restarts']} restart(s), loss {row['loss']}"
        for name, row in r["results"].items()
        if row.get("steps")
    )
    return (
        f"accuracy in % (95 % interval) on {r['dataset']} {r['split']}, "
        f"data {data_text(r['data'])}, n = {worst['n']}, "
        f"l-inf eps {fraction_text(worst['eps'])} of the pixel range, {attacks}, "
        f"batch norm {worst['batch_norm']}"
    )
