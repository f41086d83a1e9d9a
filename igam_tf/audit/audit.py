"""All lines in order, kept as they are finished; and the headline, the worst case over everything."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from igam_tf.audit import attacking, outputs, planted
from igam_tf.audit.lines import FAIL, STATUSES, WARN, Check
from igam_tf.audit.subject import Row, Subject, joint
from igam_tf.evaluation.evaluate import eps_unit, figures, fraction_text
from igam_tf.system.journal import digits
from igam_tf.system.run_folder import read_json, write_json
from madry_models.errors import UserError

CHECKS: dict[str, Check] = {**outputs.CHECKS, **attacking.CHECKS, **planted.CHECKS}


def check_names(text: str) -> list[str]:
    """Names of lines out of "logits,square"; "all" is all of them.

    Raises:
        UserError: an unknown one.
    """
    names = list(CHECKS) if text == "all" else [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in CHECKS]:
        raise UserError(f"expected lines among {', '.join(CHECKS)}; received {unknown[0]!r}")
    return [name for name in CHECKS if name in names]


def audit(
    subject: Subject,
    *,
    names: Sequence[str] = tuple(CHECKS),
    progress_file: Path | None = None,
    show: Callable[[dict[str, Any]], None] = lambda line: None,
) -> dict[str, Any]:
    """The report of an audit, for JSON.

    Args:
        subject: what is audited.
        names: of the lines.
        progress_file: where finished lines are kept, and found again by the next process.
        show: called with each line, as soon as it is there.

    Returns:
        verdict: in words; headline: the worst case per example over every attack at the headline eps;
        lines; rows: every attack with its settings, `standing` one digit per example.
    """
    lines = _resume(subject, progress_file)

    def keep() -> None:
        if progress_file:
            rows = {title: row.to_json() for title, row in subject.rows.items()}
            write_json(progress_file, {"lines": lines, "rows": rows})

    for name in names:
        if name not in lines:
            lines[name] = _line(subject, name)
            keep()
        show(lines[name])
    try:
        headline = _headline(subject)
        keep()
    except UserError as error:
        headline = {"text": f"no figure: {error}"}
    lines = {name: lines[name] for name in names}
    return {
        "verdict": _verdict(lines),
        "headline": headline,
        "subject": _facts(subject),
        "lines": lines,
        "rows": {name: row.to_json() for name, row in sorted(subject.rows.items())},
    }


def _resume(subject: Subject, progress_file: Path | None) -> dict[str, dict]:
    if progress_file is None or not progress_file.exists():
        return {}
    kept = read_json(progress_file)
    subject.rows |= {name: Row.from_json(row) for name, row in kept["rows"].items()}
    return kept["lines"]


def _line(subject: Subject, name: str) -> dict[str, Any]:
    check = CHECKS[name]
    try:
        found = check.judge(subject)
        status, figure, rows, data = found.status, found.figure, found.rows, found.data
    except UserError as error:  # logits that are not finite under attack: no attack can be scored
        status, figure, rows, data = FAIL, str(error), (), {}
    return {
        "name": name,
        "title": check.title,
        "status": status,
        "figure": figure,
        "threshold": check.threshold,
        "advice": check.advice,
        "rows": list(rows),
        "data": data,
    }


def _headline(subject: Subject) -> dict[str, Any]:
    """The worst case of all attacks in inference mode at exactly the headline eps, and clean."""
    subject.ensemble()
    rows = {
        name: row
        for name, row in sorted(subject.rows.items())
        if row.settings["eps"] in (0.0, subject.eps) and row.settings["batch_norm"] == "inference"
    }
    standing = joint(rows)
    worst_case, clean = figures(standing), 100 * subject.clean.accuracy
    low, high = worst_case["ci95"]
    text = (
        f"robust accuracy {worst_case['accuracy']:.2f} % (95 % interval {low:.2f} to {high:.2f}), "
        f"clean {clean:.2f} %: n = {subject.n}, l-inf eps "
        f"{fraction_text(subject.eps)} of the pixel range, worst case per example over "
        f"{len(rows)} attacks, each with its step size, steps, restarts and loss in the table, batch "
        f"norm inference, seed {subject.seed}"
    )
    return {
        "text": text,
        **worst_case,
        "clean": clean,
        "eps": subject.eps,
        "eps_unit": eps_unit("linf"),
        "batch_norm": "inference",
        "seed": subject.seed,
        "attacks": list(rows),
        "standing": digits(standing),
    }


def _verdict(lines: dict[str, dict]) -> str:
    of = {
        status: [n for n, line in lines.items() if line["status"] == status] for status in STATUSES
    }
    if of[FAIL]:
        return (
            f"Not to be trusted: {len(of[FAIL])} of {len(lines)} lines FAIL ({', '.join(of[FAIL])}). "
            "The headline is an upper bound at best."
        )
    if of[WARN]:
        return (
            f"No line fails; {len(of[WARN])} of {len(lines)} WARN ({', '.join(of[WARN])}). Read them "
            "before quoting the headline."
        )
    return f"None of {len(lines)} lines found a sign of masked gradients."


def _facts(subject: Subject) -> dict[str, Any]:
    split = subject.split
    return {
        "model": type(subject.model).__name__,
        "dataset": split.spec.name,
        "split": split.name,
        "data": "builtin (synthetic)" if split.source == "builtin" else split.source,
        "images": split.fingerprint(),
        "n": subject.n,
        "classes": split.spec.num_classes,
        "pixel_max": subject.pixel_max,
        "eps": subject.eps,
        "eps_unit": eps_unit("linf"),
        "step_size": subject.step_size,
        "batch_size": subject.batch_size,
        "seed": subject.seed,
        "transfer_from": list(subject.sources),
    }
