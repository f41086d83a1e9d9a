"""One line of an audit: PASS, WARN, FAIL or not applicable, and the statistics behind it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from igam_tf.formulas.statistics import Z95

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
    """A line before it is drawn.

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


@dataclasses.dataclass(frozen=True)
class Excess:
    """By how much a suspect attack beats a reference on the same n examples.

    Attributes:
        net: examples that the suspect alone breaks, less those that the reference alone breaks.
        low, high: 95 % interval of net / n.
        n: examples.
    """

    net: int
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        amount = f"{abs(self.net)} {'fewer' if self.net < 0 else 'more'}" if self.net else "as many"
        return (
            f"{amount} of {self.n} ({100 * self.net / self.n:+.1f} points, 95 % interval "
            f"{100 * self.low:+.1f} to {100 * self.high:+.1f})"
        )


def excess(reference: np.ndarray, suspect: np.ndarray) -> Excess:
    """Paired difference of two attacks, with the interval of Agresti and Min (2005).

    That is Wald's with half an example added to each cell of the 2 x 2 table, which holds where few
    examples differ.

    Args:
        reference, suspect: examples left standing, [n] bool.

    Example:
        >>> excess(np.array([True] * 10), np.array([True] * 4 + [False] * 6)).net
        6
    """
    n = len(reference)
    gained, lost = int((reference & ~suspect).sum()), int((suspect & ~reference).sum())
    a, b, m = gained + 0.5, lost + 0.5, n + 2
    centre, half = (a - b) / m, Z95 * np.sqrt(a + b - (a - b) ** 2 / m) / m
    return Excess(gained - lost, float(centre - half), float(centre + half), n)


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
