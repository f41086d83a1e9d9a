"""All lines in order, kept as they are finished; and the headline, the worst case over everything."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from igam_tf.audit import attacking, outputs, planted
from igam_tf.audit.lines import FAIL, NOT_APPLICABLE, STATUSES, WARN, Check
from igam_tf.audit.subject import BUDGETS, Row, Subject, joint
from igam_tf.datasets import data_text
from igam_tf.evaluation.evaluate import (
    eps_unit,
    figures,
    fraction_text,
    split_of_arrays,
)
from igam_tf.formulas.statistics import wilson_interval
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
    clean = subject.rows.get("clean")
    hits = 0 if clean is None else int(clean.standing.sum())
    lines = {name: lines[name] for name in names}
    return {
        "verdict": _verdict(
            lines,
            robust=headline.get("accuracy", float("nan")),
            clean_low=wilson_interval(hits, subject.n)[0],
            chance=1 / subject.split.spec.num_classes,
        ),
        "headline": headline,
        "subject": _facts(subject),
        "lines": lines,
        "rows": {name: row.to_json() for name, row in sorted(subject.rows.items())},
    }


def audit_model(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    eps: float,
    pixel_max: float,
    budget: str = "quick",
    lines: str = "all",
    step_size: float | None = None,
    seed: int = 0,
    batch_size: int = 100,
    transfer_from: dict[str, keras.Model] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Audit of any Keras model on any images: is it robust, or only hard to attack by gradients?

    Args:
        model: images [B,H,W,C] in 0..pixel_max -> logits [B,K].
        images: [n,H,W,C], uint8 in 0..255, or float in 0..pixel_max; all of them are used.
        labels: [n] int, below K.
        eps: headline l-inf radius, as a fraction of the pixel range.
        pixel_max: highest pixel value of the model's input, such as 1 or 255.
        budget: "quick", "standard" or "full".
        lines: "all", or some of `CHECKS` with commas between.
        step_size: of PGD, as a fraction of the pixel range; None: by eps and the number of steps.
        seed: of everything random.
        batch_size: images attacked at once.
        transfer_from: name -> model whose adversarial examples are tried on this one.
        progress: shows bars.

    Returns:
        See `audit`.

    Raises:
        UserError: images, labels or outputs of the model that do not go together; an unknown line
            or budget.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential(
        ...     [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), np.uint8)
        >>> labels = np.arange(8) % 2
        >>> report = audit_model(
        ...     model, images, labels, eps=8 / 255, pixel_max=1.0, lines="deterministic")
        >>> report["lines"]["deterministic"]["status"]
        'PASS'
    """
    if budget not in BUDGETS:
        raise UserError(f"expected a budget among {', '.join(BUDGETS)}; received {budget!r}")
    names = check_names(lines)
    subject = Subject(
        model, split_of_arrays(model, images, labels, eps=eps, pixel_max=pixel_max),
        pixel_max=pixel_max, eps=eps, step_size=step_size, seed=seed, batch_size=batch_size,
        budget=BUDGETS[budget], sources=transfer_from, progress=progress,
    )  # fmt: skip
    return {"name": type(model).__name__, "budget": budget} | audit(subject, names=names)


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


def _verdict(lines: dict[str, dict], *, robust: float, clean_low: float, chance: float) -> str:
    """The report in a sentence.

    Args:
        lines: by name.
        robust: the headline accuracy, in percent; NaN where there is none.
        clean_low: lower end of clean accuracy's 95 % interval, a share.
        chance: 1 / classes.
    """
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
    idle = len(of[NOT_APPLICABLE])
    ran = len(lines) - idle
    rest = f"; {idle} of {len(lines)} did not apply" if idle else ""
    if clean_low <= chance:
        return (
            "Nothing can be told of robustness: clean accuracy is not above chance "
            f"({100 * chance:g} %)."
        )
    if robust == 0:
        return f"Not robust: no image is right under every attack; there is nothing to mask{rest}."
    return f"None of {ran} lines found a sign of masked gradients{rest}."


def _facts(subject: Subject) -> dict[str, Any]:
    split = subject.split
    return {
        "model": type(subject.model).__name__,
        "dataset": split.spec.name,
        "split": split.name,
        "data": data_text(split.source),
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
