"""What all measurements here share: rounds in which every kind takes its turn.

The standard library alone, as of Python 3.7.
"""

from __future__ import annotations

import statistics
from typing import Callable  # noqa: UP035


def medians(calls: dict, repeats: int, between: Callable[[], object] = lambda: None) -> dict:
    """Median seconds of each kind: kind -> what its call returned, over so many rounds of all kinds.

    Each call, and `between`, which follows every measured one, is made once before, unmeasured.
    """
    for call in (*calls.values(), between):
        call()
    seconds = {kind: [] for kind in calls}
    for _ in range(repeats):
        for kind, call in calls.items():
            seconds[kind].append(call())
            between()
    return {kind: statistics.median(values) for kind, values in seconds.items()}


def timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of one call, by a clock of `time`."""
    begin = clock()
    work()
    return clock() - begin
