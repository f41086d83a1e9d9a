"""`python -m igam_tf.report <run folder> ...`: the results of several runs in one table."""

import json
from pathlib import Path

from igam_tf.evaluation import fraction_text
from madry_models.errors import UserError, run_entry_point


def rows(folder: Path) -> dict[str, dict]:
    """Model -> its report, from a run folder's results.json.

    Raises:
        UserError: no results there.
    """
    path = folder / "results.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"expected a finished run folder with {path}; {error}") from error


def report(folders: list[Path]) -> str:
    """One line for each model of each folder: accuracy in percent, its 95 % interval below n.

    Raises:
        UserError: folders without results, or evaluated differently.
    """
    found = [(folder, model, r) for folder in folders for model, r in rows(folder).items()]
    settings = {_settings(r) for _, _, r in found}
    if len(settings) > 1:
        raise UserError(
            f"expected runs that were evaluated alike; received {'; '.join(sorted(settings))}"
        )
    attacks = list(found[0][2]["results"])
    width = max(len(f"{model} ({folder})") for folder, model, _ in found)
    lines = [settings.pop(), "", " " * width + "".join(f"{a:>24}" for a in attacks)]
    for folder, model, r in found:
        cells = "".join(
            f"{row['accuracy']:10.1f} ({row['ci95'][0]:4.1f} - {row['ci95'][1]:4.1f})"
            for row in (r["results"][a] for a in attacks)
        )
        lines.append(f"{f'{model} ({folder})':<{width}}{cells}")
    return "\n".join(lines)


def _settings(r: dict) -> str:
    worst, data = r["results"]["worst_case"], r["data"]
    attacks = ", ".join(
        f"{name}: {row['steps']} x {fraction_text(row['step_size'])}, "
        f"{row['restarts']} restart(s), loss {row['loss']}"
        for name, row in r["results"].items()
        if row.get("steps")
    )
    return (
        f"accuracy in % (95 % interval) on {r['dataset']} {r['split']}, "
        f"data {'builtin (synthetic)' if data == 'builtin' else data}, n = {worst['n']}, "
        f"l-inf eps {fraction_text(worst['eps'])} of the pixel range, {attacks}, "
        f"batch norm {worst['batch_norm']}, seed {worst['seed']}"
    )


def main(argv: list[str]) -> None:
    """Prints the table."""
    if not argv[1:]:
        raise UserError("expected run folders: python -m igam_tf.report <folder> <folder> ...")
    print(report([Path(folder) for folder in argv[1:]]))


if __name__ == "__main__":
    run_entry_point(main)
