"""One check of an audit, its finding (PASS, WARN, FAIL or N/A), and how differences are judged."""

import dataclasses
from collections.abc import Callable
from typing import Any

from igam_tf.formulas.statistics import Excess

PASS, WARN, FAIL, NOT_APPLICABLE = "PASS", "WARN", "FAIL", "N/A"
STATUSES = (FAIL, WARN, PASS, NOT_APPLICABLE)
TEXTS = ("title", "meaning", "threshold", "reason", "advice")  # of a check

PROOF, HINT, TUNING = 2.0, 1.0, 0.5
DISTRUST = 2.0

# Fewer examples than this are never held against a network: one or two change with the seed alone.
LEAST_EXAMPLES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of one check.

    Attributes:
        status: one of STATUSES.
        figure: what was measured, in words; where the check is not applicable, why.
        rows: names of the attacks whose results it compares.
        data: figures for the plots and for other programs, as JSON values; accuracies are shares, 0..1.
    """

    status: str
    figure: str
    rows: tuple[str, ...] = ()
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """Definition of one check: all that the command, the page and the documentation say of it.

    Attributes:
        title: what is expected of a network without masked gradients.
        meaning: what a PASS means, in a sentence.
        threshold: what counts as a WARN and as a FAIL, in words.
        reason: why the threshold is there, in sentences.
        advice: what to do after a WARN or a FAIL, in sentences.
        judge: AuditedModel -> Finding.
        weight: of a FAIL in the verdict, which distrusts the headline from DISTRUST on: PROOF of masked
            gradients or of a figure that is none; a HINT of them; TUNING, a sign that some attacks of
            the audit are weak, whose worst case the headline is.
        needs_gradient: whether the check compares gradient attacks, which tell nothing apart where no
            image has a gradient.
    """

    title: str
    meaning: str
    threshold: str
    reason: str
    advice: str
    judge: Callable[[Any], Finding]
    weight: float
    needs_gradient: bool = False


def not_applicable(reason: str, rows: tuple[str, ...] = ()) -> Finding:
    """The finding of a check that can tell nothing about this network, with the reason."""
    return Finding(status=NOT_APPLICABLE, figure=reason, rows=rows)


def judge_excess(found: Excess, tolerance: float) -> str:
    """WARN where the excess reaches the tolerance; FAIL where its whole 95 % interval is above it.

    So an honest network at the edge of the tolerance seldom fails, however many examples there are.

    Args:
        found: from `igam_tf.formulas.statistics.excess`.
        tolerance: largest excess of an honest network, as a share of the examples.
    """
    if found.net < max(LEAST_EXAMPLES, tolerance * found.n):
        return PASS
    return FAIL if found.low > tolerance else WARN


def worst(statuses: list[str]) -> str:
    """The most serious of these statuses; PASS counts as more serious than N/A."""
    return min(statuses, key=STATUSES.index)
