"""What all plots share: Okabe and Ito's colours, intervals as error bars, SVG without a date.

The colours can be told apart with any common colour blindness.
"""

import io
from typing import Any

BLACK, GREY = "#000000", "#666666"
BLUE, SKY, GREEN, YELLOW = "#0072B2", "#56B4E9", "#009E73", "#F0E442"
ORANGE, VERMILION, PURPLE = "#E69F00", "#D55E00", "#CC79A7"

_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def svg_text(figure: Any) -> str:
    """A Matplotlib figure as SVG: the same bytes for the same figures."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=_NO_METADATA)
    return text.getvalue()


def error_bars(rows: list[dict]) -> list[list[float]]:
    """The lengths of the intervals of a report's rows below and above their accuracies, [2][n]."""
    return [
        [max(0.0, row["accuracy"] - row["ci95"][0]) for row in rows],
        [max(0.0, row["ci95"][1] - row["accuracy"]) for row in rows],
    ]
