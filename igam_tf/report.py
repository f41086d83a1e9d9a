"""Prints the results of several runs in one table, or one as an entry of RobustBench's leaderboard.

python -m igam_tf.report runs/mnist-cifar10-standard-cpu runs/mnist-cifar10-igam-cpu
"""

import json
import sys
from pathlib import Path

from absl import flags

from igam_tf.common.errors import UserError
from igam_tf.common.files import read_json
from igam_tf.common.program import called_as, run_entry_point
from igam_tf.common.tables import Table, with_interval

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_enum(
        "format", "table", ("table", "robustbench"),
        "table, or robustbench: one run, or one file of igam-eval --json, as an entry of "
        "RobustBench's leaderboard (model_info/<dataset>/<Linf or L2>/<name>.json). What was not "
        "measured is empty in it.",
    )  # fmt: skip


def report(folders: list[Path]) -> str:
    """A table with a row for each model of each folder: accuracy in percent and its 95 % interval.

    Raises:
        UserError: a folder has no results, or the runs were evaluated differently.
    """
    from igam_tf.evaluation.results import read_results, settings_text
    from igam_tf.method.look import doubtful_lines

    found = [
        (folder, f"{model}{_control(folder, model)}", r)
        for folder in folders
        for model, r in read_results(folder).items()
    ]
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


def _control(folder: Path, model: str) -> str:
    """What stood in the place of J_t, if a run's student did not get its teacher's; else ""."""
    settings = folder / "config.json"
    found = read_json(settings) if settings.is_file() and model != "teacher" else {}
    control = found.get("teacher_gradient", "teacher")
    return "" if control == "teacher" else f" --teacher_gradient={control}"


def main(argv: list[str]) -> None:
    """Prints the table, or the entry."""
    if FLAGS.format == "robustbench":
        _print_entry([Path(name).expanduser() for name in argv[1:]])
        return
    if not argv[1:]:
        raise UserError(f"expected run folders: {called_as()} <folder> <folder> ...")
    print(report([Path(folder).expanduser() for folder in argv[1:]]))


def _print_entry(paths: list[Path]) -> None:
    """Prints the JSON; what is left to do goes to stderr, so that the JSON can go into a file."""
    from igam_tf.evaluation.leaderboard import report_of, robustbench

    if len(paths) != 1:
        raise UserError(
            "expected one run folder, or one file of igam-eval --json, with --format=robustbench; "
            f"received {len(paths)}"
        )
    entry, todo = robustbench(report_of(paths[0]))
    print(json.dumps(entry, indent=2))
    print("\n".join(todo), file=sys.stderr)


def program() -> None:
    """The command line."""
    define_flags()
    run_entry_point(main)


if __name__ == "__main__":
    program()
