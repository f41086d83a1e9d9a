"""All checks in order, each kept once finished; and the headline, the worst case of all attacks."""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

from igam_tf.audit.audited import BUDGETS, AttackResult, AuditedModel, joint
from igam_tf.audit.catalogue import CHECKS, check_names
from igam_tf.audit.checks import (
    DISTRUST,
    FAIL,
    NOT_APPLICABLE,
    PASS,
    STATUSES,
    TEXTS,
    WARN,
    Finding,
    not_applicable,
)
from igam_tf.common.checks import check_model, eps_unit
from igam_tf.common.errors import UserError
from igam_tf.common.files import read_json, write_json
from igam_tf.common.private_api import reason_of
from igam_tf.datasets import data_text
from igam_tf.evaluation.arrays import Data
from igam_tf.evaluation.evaluate import figures, fraction_text, split_of_arrays
from igam_tf.evaluation.loading import as_called
from igam_tf.formulas.statistics import wilson_interval
from igam_tf.method.look import as_json
from igam_tf.method.preprocess import Preprocessed
from igam_tf.storage.journal import MASK_KEY, checksum, text_of_mask


def audit(
    audited: AuditedModel,
    *,
    names: Sequence[str] = tuple(CHECKS),
    progress_file: Path | None = None,
    show: Callable[[dict[str, Any]], None] = lambda check: None,
) -> dict[str, Any]:
    """The report of an audit, for JSON.

    Args:
        audited: the model, its images and settings.
        names: of the checks to run, from `check_names`.
        progress_file: where finished checks are kept, and found again by the next process.
        show: called with each finished check.

    Returns:
        verdict: the report in a sentence or two; verdict_status: one of STATUSES, FAIL where the
        headline is not to be trusted; not_run: names of the checks that were left out; headline: the
        worst case per example over every attack at the headline eps; doubts: what makes it doubtful,
        see `igam_tf.method.look`; subject: model, data and settings; checks: name -> check with its
        finding; rows: name -> attack with accuracy, settings, and its robust mask under MASK_KEY, in
        the order in which they ran.
    """
    checks = _resume(audited, progress_file)

    def keep() -> None:
        if progress_file:
            rows = {name: result.to_json() for name, result in audited.results.items()}
            content = {"checks": checks, "rows": rows}
            write_json(progress_file, content | {"sha256": checksum(content)})

    for name in names:
        if name not in checks:
            unscored = [n for n, c in checks.items() if c.get("error") and c["status"] == FAIL]
            checks[name] = _run(audited, name, unscored)
            keep()
        show(checks[name])
    try:
        headline = _headline(audited)
        keep()
    except Exception as error:  # a model may fail in any way under an attack
        headline = {"text": f"no figure: {reason_of(error)}"}
    clean = audited.results.get("clean")
    hits = 0 if clean is None else int(clean.robust.sum())
    checks = {name: checks[name] for name in names}
    status, verdict = _verdict(
        checks,
        robust=headline.get("accuracy", float("nan")),
        clean_low=wilson_interval(hits, audited.n)[0],
        chance=1 / audited.split.spec.num_classes,
        random=headline.get("random", False),
        doubts=[doubt.code for doubt in audited.doubts],
    )
    return {
        "verdict": verdict,
        "verdict_status": status,
        "not_run": [name for name in CHECKS if name not in checks],
        "headline": headline,
        "doubts": as_json(audited.doubts),
        "subject": _facts(audited),
        "checks": checks,
        "rows": {name: result.to_json() for name, result in audited.results.items()},
    }


def audit_model(
    model: keras.Model,
    images: Data,
    labels: np.ndarray | None = None,
    *,
    eps: float,
    pixel_max: float,
    preprocess: str | None = None,
    from_probabilities: bool = False,
    num_examples: int | None = None,
    class_order: Sequence[int] | None = None,
    budget: str = "quick",
    checks: str = "all",
    step_size: float | None = None,
    seed: int = 0,
    batch_size: int = 100,
    transfer_from: dict[str, keras.Model] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Audit of any Keras model on any images: is it robust, or only hard to attack by gradients?

    Args:
        model: images [B,H,W,C] in 0..pixel_max -> logits [B,K].
        images: [n,H,W,C], uint8 in 0..255, or float in 0..pixel_max; all of them are used. Or,
            without labels, batches of pairs, see `igam_tf.evaluate`.
        labels: [n] int, below K.
        eps: headline l-inf radius, as a fraction of the pixel range.
        pixel_max: highest pixel value of the model's input, such as 1 or 255; with `preprocess`, of
            the images.
        preprocess: what the model takes in place of pixels in 0..pixel_max, see `igam_tf.evaluate`.
        from_probabilities, num_examples, class_order: likewise.
        budget: "quick", "standard" or "full": number and length of the attacks.
        checks: "all", or names of `igam_tf.audit.audit.CHECKS`, separated by commas.
        step_size: of PGD, as a fraction of the pixel range; None: by eps and the number of steps.
        seed: seed of all random starts and points.
        batch_size: images attacked at once.
        transfer_from: name -> model whose adversarial examples are tried on this one.
        progress: whether progress bars are shown.

    Returns:
        See `audit`.

    Raises:
        UserError: images, labels or outputs of the model that do not go together; an unknown check
            or budget.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential(
        ...     [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), np.uint8)
        >>> labels = np.arange(8) % 2
        >>> report = audit_model(
        ...     model, images, labels, eps=8 / 255, pixel_max=1.0, checks="deterministic")
        >>> report["checks"]["deterministic"]["status"]
        'PASS'
    """
    if budget not in BUDGETS:
        raise UserError(f"expected a budget among {', '.join(BUDGETS)}; received {budget!r}")
    names = check_names(checks)
    check_model(model, "model")
    model = as_called(
        model, pixel_max, from_probabilities=from_probabilities, preprocess=preprocess
    )
    split, logits = split_of_arrays(
        model, images, labels, eps=eps, pixel_max=pixel_max, batch_size=batch_size,
        num_examples=num_examples, class_order=class_order,
    )  # fmt: skip
    audited = AuditedModel(
        model, split, logits=logits,
        pixel_max=pixel_max, eps=eps, step_size=step_size, seed=seed, batch_size=batch_size,
        budget=BUDGETS[budget], sources=transfer_from, progress=progress,
    )  # fmt: skip
    return {"name": _class_name(model), "budget": budget} | audit(audited, names=names)


def _resume(audited: AuditedModel, progress_file: Path | None) -> dict[str, dict]:
    """The finished checks, name -> finding, and into `audited` the results of their attacks.

    A damaged file counts as not there.
    """
    if progress_file is None or not progress_file.exists():
        return {}
    try:
        kept = read_json(progress_file)
        sound = kept.pop("sha256", None) == checksum(kept) and "checks" in kept
    except UserError:
        sound = False
    if not sound:
        logging.warning("%s is damaged or of an older version: all checks run again", progress_file)
        return {}
    audited.results |= {name: AttackResult.from_json(row) for name, row in kept["rows"].items()}
    return kept["checks"]


def _run(audited: AuditedModel, name: str, unscored: Sequence[str]) -> dict[str, Any]:
    """One check with its finding, for JSON.

    Args:
        audited: the model.
        name: of the check.
        unscored: the finished checks that FAIL because logits are not finite, so cannot be scored.
    """
    check, error_text = CHECKS[name], ""
    try:
        _ = audited.repeated_logits  # finite, or nothing can be judged
        if check.needs_gradient and (audited.zero_gradients == 1).all():
            found = not_applicable("no image has a gradient, of any loss: see the check gradients")
        else:
            found = check.judge(audited)
    except UserError as error:
        found = not_applicable(f"{error} (see the check {', '.join(unscored)})")
        if not unscored:
            found, error_text = Finding(status=FAIL, figure=str(error)), str(error)
    except Exception as error:  # no check's crash ends the audit
        reason = f"the check crashed: {type(error).__name__}: {reason_of(error)}"
        found, error_text = Finding(status=WARN, figure=reason), traceback.format_exc()
    texts = {key: getattr(check, key) for key in TEXTS}
    return {"name": name} | texts | vars(found) | {"rows": list(found.rows), "error": error_text}


def _headline(audited: AuditedModel) -> dict[str, Any]:
    """The worst case of all attacks in inference mode at exactly the headline eps, and clean."""
    audited.ensemble()
    at_eps = {
        name: result
        for name, result in audited.results.items()
        if result.settings["eps"] in (0.0, audited.eps)
        and result.settings["batch_norm"] == "inference"
    }
    robust = joint(at_eps)
    worst_case, clean = figures(robust), 100 * audited.clean.accuracy
    low, high = worst_case["ci95"]
    text = (
        f"robust accuracy {worst_case['accuracy']:.2f} % (95 % interval {low:.2f} to {high:.2f}), "
        f"clean {clean:.2f} %: n = {audited.n}, l-inf eps "
        f"{fraction_text(audited.eps)} of the pixel range, worst case per image over "
        f"{len(at_eps)} attacks, each with its step size, steps, restarts and loss in the table, "
        f"batch norm inference, seed {audited.seed}"
    )
    if audited.random:
        text += (
            "; each attack met a single draw of this random network, so this is no upper bound of "
            "the accuracy of its average over many draws"
        )
    return {
        "text": text,
        **worst_case,
        "clean": clean,
        "random": audited.random,
        "eps": audited.eps,
        "eps_unit": eps_unit("linf"),
        "batch_norm": "inference",
        "seed": audited.seed,
        "attacks": list(at_eps),
        MASK_KEY: text_of_mask(robust),
    }


def _verdict(
    checks: dict[str, dict],
    *,
    robust: float,
    clean_low: float,
    chance: float,
    random: bool,
    doubts: Sequence[str] = (),
) -> tuple[str, str]:
    """(status, the report in a sentence or two), by the weight of the checks that FAIL.

    Args:
        checks: name -> finding.
        robust: the headline accuracy, in percent; NaN where there is none.
        clean_low: lower end of clean accuracy's 95 % interval, a share.
        chance: 1 / classes.
        random: whether the network's outputs are, so that 0 % of single draws says little.
        doubts: codes of the doubts about the headline.
    """
    of = {
        status: [name for name, check in checks.items() if check["status"] == status]
        for status in STATUSES
    }
    failing, warning = (
        f"{len(of[s])} of {len(checks)} checks {s} ({', '.join(of[s])})" for s in (FAIL, WARN)
    )
    weight = sum(CHECKS[name].weight for name in of[FAIL])
    missing = len(CHECKS) - len(checks)
    left_out = f"; {missing} of {len(CHECKS)} checks were not run" if missing else ""
    status = NOT_APPLICABLE
    if clean_low <= chance:
        said = (
            "Nothing can be said of robustness: clean accuracy is not above chance "
            f"({100 * chance:g} %)"
        )
        said += f"; {failing}" if of[FAIL] else ""
    elif robust == 0 and not random:
        said = "Not robust: no image is robust to every attack, so there is nothing to mask"
        said += f"; {failing}" if of[FAIL] else ""
    elif weight >= DISTRUST:
        said, status = f"Not to be trusted: {failing}", FAIL
    elif of[FAIL]:
        said, status = (
            f"Doubtful: {failing}, which is a hint of masked gradients and no proof",
            WARN,
        )
    elif of[WARN]:
        said, status = f"No check fails: {warning}", WARN
    else:
        ran = len(checks) - len(of[NOT_APPLICABLE])
        said = f"None of {ran} checks found a sign of masked gradients"
        status = NOT_APPLICABLE if missing else PASS
        if doubts:
            said = f"Doubtful: {', '.join(doubts)}, as below; {said[0].lower()}{said[1:]}"
            status = WARN
    advice = {
        FAIL: " The headline is an upper bound at best.",
        WARN: " Read these before you quote the headline.",
    }.get(status, "")
    idle = [f"{', '.join(of[NOT_APPLICABLE])} (did not apply)"] if of[NOT_APPLICABLE] else []
    idle += ["other images, radii and norms", "attacks made for this very network"]
    return status, f"{said}{left_out}.{advice} Not tested: {'; '.join(idle)}."


def _facts(audited: AuditedModel) -> dict[str, Any]:
    split, model = audited.split, audited.model
    behind = isinstance(model, Preprocessed)
    return {
        "model": _class_name(model),
        "dataset": split.spec.name,
        "split": split.name,
        "data": data_text(split.source),
        "images": split.fingerprint(),
        "n": audited.n,
        "classes": split.spec.num_classes,
        "pixel_max": audited.pixel_max,
        **({"preprocess": model.preprocess.convention} if behind else {}),
        **({"class_order": list(split.class_order)} if split.class_order else {}),
        "eps": audited.eps,
        "eps_unit": eps_unit("linf"),
        "step_size": audited.step_size,
        "batch_size": audited.batch_size,
        "seed": audited.seed,
        "transfer_from": list(audited.sources),
    }


def _class_name(model: keras.Model) -> str:
    return type(model.base if isinstance(model, Preprocessed) else model).__name__
