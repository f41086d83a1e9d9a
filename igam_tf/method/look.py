"""The look before every figure: what makes the figures of a model doubtful, with the remedy."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doubt:
    """A reason not to trust the figures of a report.

    Attributes:
        code: its kind, in one word for other programs.
        sentence: what was found, with its figures.
        remedy: what to do.
    """

    code: str
    sentence: str
    remedy: str


def doubtful_lines(report: dict) -> list[str]:
    """A line for each of a report's `doubts`; reports of before have none."""
    return [f"DOUBTFUL: {d['sentence']} {d['remedy']}" for d in report.get("doubts", ())]


def as_json(doubts: Sequence[Doubt]) -> list[dict[str, str]]:
    """What a report holds under `doubts`."""
    return [dataclasses.asdict(doubt) for doubt in doubts]
