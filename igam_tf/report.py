"""Prints the results of several runs in one table.

python -m igam_tf.report runs/mnist-cifar10-standard-cpu runs/mnist-cifar10-igam-cpu
"""

import igam_tf.common.quiet  # noqa: F401

# isort: split
from pathlib import Path

from igam_tf.common.errors import UserError
from igam_tf.common.program import called_as, run_entry_point
from igam_tf.evaluation.results import read_results, settings_text
from igam_tf.method.look import doubtful_lines


def report(folders: list[Path]) -> str:
    """A table with a row for each model of each folder: accuracy in percent and its 95 % interval.

    Raises:
        UserError: folders without results, or evaluated differently.
    """
    found = [(folder, model, r) for folder in folders for model, r in read_results(folder).items()]
    settings = {settings_text(r) for _, _, r in found}
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
    lines += [
        f"{model} ({folder}): preprocess={r['preprocess']} in front of the model"
        for folder, model, r in found
        if "preprocess" in r
    ]
    lines += [
        f"{model} ({folder}): {line}" for folder, model, r in found for line in doubtful_lines(r)
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Prints the table."""
    if not argv[1:]:
        raise UserError(f"expected run folders: {called_as()} <folder> <folder> ...")
    print(report([Path(folder).expanduser() for folder in argv[1:]]))


def program() -> None:
    """The command line."""
    run_entry_point(main)


if __name__ == "__main__":
    program()
