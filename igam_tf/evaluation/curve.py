"""The plot of accuracy over eps, as SVG text: the same bytes for the same figures."""

from igam_tf.evaluation.evaluate import WORST_CASE
from igam_tf.evaluation.palette import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    error_bars,
    svg_text,
)

_COLOURS, _MARKERS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY), "osD^vX"


def curve(report: dict) -> str:
    """Accuracy in percent, with intervals, of each attack over the radii of a report, from 0 on.

    Args:
        report: of `igam_tf.evaluation.evaluate.model_report` with several radii.
    """
    import matplotlib
    from matplotlib.figure import Figure

    parts = sorted(report["radii"], key=lambda part: part["eps"])
    clean = parts[0]["results"].get("clean")
    names = [name for name in parts[0]["results"] if name != "clean"]
    with matplotlib.rc_context({"svg.hashsalt": "curve", "svg.fonttype": "none", "font.size": 11}):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for i, name in enumerate(names):
            rows = [*([clean] if clean else []), *(part["results"][name] for part in parts)]
            worst = name == WORST_CASE
            accuracy = [row["accuracy"] for row in rows]
            axes.errorbar(
                [row["eps"] for row in rows], accuracy, yerr=error_bars(rows), capsize=3,
                color=BLACK if worst else _COLOURS[i % len(_COLOURS)],
                linestyle="--" if worst else "-", marker=_MARKERS[i % len(_MARKERS)],
                label="worst case" if worst else name,
            )  # fmt: skip
        unit = parts[0]["results"][WORST_CASE]["eps_unit"].split(",")[0]
        axes.set(xlabel=f"{unit} eps (fraction of the pixel range)", ylabel="accuracy (%)")
        axes.set(ylim=(-3, 103))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return svg_text(figure)
