"""One line of an audit: PASS, WARN, FAIL or not applicable, and the statistics behind it."""

import dataclasses
from collections.abc import Callable
from typing import Any

from igam_tf.formulas.statistics import Excess

PASS, WARN, FAIL, NOT_APPLICABLE = "PASS", "WARN", "FAIL", "N/A"
STATUSES = (FAIL, WARN, PASS, NOT_APPLICABLE)

# Fewer examples than this are never a finding: one or two change sides with the seed alone.
LEAST_EXAMPLES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found.

    Attributes:
        status: one of STATUSES.
        figure: what was measured, in words; why not, where the line is not applicable.
        rows: names of the attacks it rests on.
        data: figures for the plots and for other programs, such as JSON can hold.
    """

    status: str
    figure: str
    rows: tuple[str, ...] = ()
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """Definition of one line of the report: what is judged, and how.

    Attributes:
        title: what is expected of an honest network.
        threshold: from where on it is a WARN or a FAIL.
        advice: what to do when it is.
        judge: Subject -> Finding.
    """

    title: str
    threshold: str
    advice: str
    judge: Callable[[Any], Finding]


def not_applicable(reason: str, rows: tuple[str, ...] = ()) -> Finding:
    """A line that says nothing about this network, and why."""
    return Finding(status=NOT_APPLICABLE, figure=reason, rows=rows)


def judge_excess(found: Excess, tolerance: float) -> str:
    """WARN where the excess is more than honest networks show; FAIL where that is beyond doubt.

    So an honest network at the edge of the tolerance seldom fails, however many examples there are.

    Args:
        found: from `excess`.
        tolerance: share of the examples that an honest network may show.
    """
    if found.net < max(LEAST_EXAMPLES, tolerance * found.n):
        return PASS
    return FAIL if found.low > tolerance else WARN


def worst(statuses: list[str]) -> str:
    """The most serious of them; PASS goes before N/A."""
    return min(statuses, key=STATUSES.index)
