"""A report as an entry of RobustBench's leaderboard: model_info/<dataset>/<Linf or L2>/<name>.json.

The keys are those of its files (https://github.com/RobustBench/robustbench).
"""

from pathlib import Path
from typing import Any

from igam_tf.attacks import attack_specs
from igam_tf.common.checks import NORM_TEXT, expect
from igam_tf.common.files import read_json
from igam_tf.common.tables import interval_text
from igam_tf.datasets import fraction_text
from igam_tf.evaluation.evaluate import WORST_CASE, settings_dict
from igam_tf.evaluation.results import checked, read_results

BOARDS = ("cifar10", "cifar100")  # RobustBench's data sets that have the same name here
ENSEMBLE = "autoattack"


def report_of(path: Path) -> dict[str, Any]:
    """The report of a file of `igam-eval --json`, or of a run's student.

    Raises:
        UserError: it is damaged, of several eps or of --adversarial, or no such file.
    """
    if path.is_dir():
        return next(iter(read_results(path).values()))
    expect(path.is_file(), "a run folder, or a file of igam-eval --json", str(path))
    report = read_json(path)
    what = "a report of attacks of one eps"
    for key, kind in (("radii", "several eps"), ("adversarial", "the images of --adversarial")):
        expect(not isinstance(report, dict) or key not in report, what, f"{path} of {kind}")
    return checked({"model": report}, path)["model"]


def robustbench(report: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the entry, what is left to do): what was not measured is empty.

    Args:
        report: of `igam_tf.evaluate`.

    Raises:
        UserError: the images are synthetic, or not a test split's.
    """
    expect(report["split"] == "test", "a report on test images", report["split"])
    expect(report["data"] != "builtin", "a report on real images", "synthetic ones (builtin)")
    results = report["results"]
    clean, full, worst = (results.get(name) for name in ("clean", ENSEMBLE, WORST_CASE))
    known = report["dataset"] if report["dataset"] in BOARDS else ""
    notes = [f"n = {worst['n']}, the first test images"]
    todo = [] if clean else ["clean_acc: run igam-eval with --attacks=clean,autoattack"]
    if clean:
        notes.append(f"clean {_text(clean)}")
    if doubts := [doubt["code"] for doubt in report["doubts"]]:
        todo.append(f"autoattack_acc: the report is doubtful ({', '.join(doubts)})")
    elif not _standard(results):
        todo.append("autoattack_acc: run igam-eval with --attacks=clean,autoattack")
    if measured := not doubts and _standard(results):
        notes.append(f"AutoAttack {_text(full)}, by igam_tf, seed {full['seed']}")
        if worst["accuracy"] < full["accuracy"]:
            others = ", ".join(name for name in worst["attacks"] if not name.startswith(ENSEMBLE))
            notes.append(f"together with {others} {_text(worst)}")
    entry = {
        "link": "",
        "name": "",
        "authors": "",
        "additional_data": None,
        "number_forward_passes": None,
        "dataset": known,
        "venue": "",
        "architecture": "",
        "eps": fraction_text(worst["eps"]),
        "clean_acc": f"{clean['accuracy']:.2f}" if clean else "",
        "reported": "",
        "autoattack_acc": f"{full['accuracy']:.2f}" if measured else "",
        "footnote": "; ".join(notes),
        "unreliable": None,
    }
    said = {text.partition(":")[0] for text in todo}
    empty = [key for key, value in entry.items() if value in ("", None) and key not in said]
    return entry, [*todo, f"to fill in: {', '.join(empty)}"]


def _text(row: dict[str, Any]) -> str:
    return f"{row['accuracy']:.2f} (95 % interval {interval_text(row['ci95'], '.2f')})"


def _standard(results: dict[str, dict]) -> bool:
    """Whether the four attacks of AutoAttack ran, each with the settings of its standard version."""
    if ENSEMBLE not in results:
        return False
    row = results[ENSEMBLE]
    norm = next(name for name, text in NORM_TEXT.items() if row["eps_unit"].startswith(text))
    specs = attack_specs(
        [ENSEMBLE], eps=row["eps"], step_size=row["eps"] / 4, restarts=1, loss="xent", norm=norm
    )
    return all(
        spec.name in results and settings_dict(spec).items() <= results[spec.name].items()
        for spec in specs
    )
