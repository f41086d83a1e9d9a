"""Prints the results of several runs in one table.

python -m igam_tf.report runs/mnist-cifar10-standard-cpu runs/mnist-cifar10-igam-cpu
"""

from pathlib import Path

from igam_tf.common.errors import UserError
from igam_tf.common.program import called_as, run_entry_point
from igam_tf.common.tables import Table, with_interval


def report(folders: list[Path]) -> str:
    """A table with a row for each model of each folder: accuracy in percent and its 95 % interval.

    Raises:
        UserError: a folder has no results, or the runs were evaluated differently.
    """
    from igam_tf.evaluation.results import read_results, settings_text
    from igam_tf.method.look import doubtful_lines

    found = [(folder, model, r) for folder in folders for model, r in read_results(folder).items()]
    settings = [settings_text(r) for _, _, r in found]
    if len({*settings}) > 1:
        parts = [text.split(", ") for text in settings]
        common = set(parts[0]).intersection(*parts)
        unlike = [", ".join(part for part in own if part not in common) for own in parts]
        received = (
            f"{f}: {own or 'none of these'}" for (f, _, _), own in zip(found, unlike, strict=True)
        )
        raise UserError(f"expected runs that were evaluated alike; received {'; '.join(received)}")
    attacks = list(found[0][2]["results"])
    rows = [
        [f"{model} ({folder})"]
        + [with_interval(row["accuracy"], row["ci95"]) for row in map(r["results"].get, attacks)]
        for folder, model, r in found
    ]
    lines = [settings[0], "", Table(["", *attacks], rows).text()]
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
