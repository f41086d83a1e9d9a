"""The plots of a report, as SVG text: no display, no file, the same bytes for the same figures.

Markers, labels or positions say what the colours say, so that the plots can be read without colour.
"""

from typing import Any

import matplotlib
from matplotlib.figure import Figure

from igam_tf.evaluation.evaluate import fraction_text
from igam_tf.evaluation.palette import BLUE, GREEN, GREY, VERMILION, error_bars, svg_text

_STYLE = {"svg.hashsalt": "audit", "svg.fonttype": "none", "font.size": 11}


def _figure(height: float = 3.6) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure) -> str:
    whole = svg_text(figure)
    return whole[whole.index("<svg") :]  # a page has no place for an XML declaration


def _against(report: dict, check: str, setting: str) -> tuple[Figure, Any, list]:
    """(figure, axes, values) of accuracy in percent over the values of a setting of its attacks."""
    rows = [report["rows"][name] for name in report["checks"][check]["rows"]]
    values = [row[setting] for row in rows]
    figure, axes = _figure()
    axes.errorbar(
        values, [row["accuracy"] for row in rows], yerr=error_bars(rows), color=BLUE, marker="o",
        capsize=4, label="accuracy, 95 % interval",
    )  # fmt: skip
    return figure, axes, values


def accuracy_against_eps(report: dict) -> str:
    """Accuracy in percent over eps as a fraction of the pixel range, with intervals and chance."""
    figure, axes, _ = _against(report, "eps", "eps")
    chance, eps = report["checks"]["eps"]["data"]["chance"], report["subject"]["eps"]
    axes.axhline(100 * chance, color=GREY, linestyle=":", label="chance")
    axes.axvline(eps, color=VERMILION, linestyle="--", label=f"headline eps {fraction_text(eps)}")
    axes.set(
        xlabel="l-inf eps (fraction of the pixel range)", ylabel="accuracy (%)", ylim=(-3, 103)
    )
    axes.legend(frameon=False)
    return _svg(figure)


def accuracy_against_steps(report: dict) -> str:
    """Accuracy in percent over the number of PGD steps; a sentence where there are only two."""
    figure, axes, steps = _against(report, "steps", "steps")
    if len(steps) < 3:
        rows = [report["rows"][name] for name in report["checks"]["steps"]["rows"]]
        found = " and ".join(f"{row['accuracy']:.1f} % after {row['steps']} steps" for row in rows)
        return f"<p>Accuracy is {found}.</p>"
    axes.set_xscale("log")
    axes.set_xticks(steps, labels=[str(k) for k in steps])
    axes.minorticks_off()
    axes.set(xlabel="PGD steps", ylabel="accuracy (%), 95 % interval", ylim=(-3, 103))
    return _svg(figure)


def every_attack(report: dict) -> str:
    """Accuracy in percent under each attack of the headline, and under all of them."""
    headline = report["headline"]
    rows = {name: report["rows"][name] for name in headline["attacks"]}
    ordered = sorted(rows, key=lambda name: -rows[name]["accuracy"])
    names, values = [*ordered, "worst case"], [*(rows[name] for name in ordered), headline]
    figure, axes = _figure(1.2 + 0.26 * len(names))
    places = range(len(names))
    axes.barh(
        places, [row["accuracy"] for row in values], xerr=error_bars(values), capsize=3,
        color=[BLUE] * len(ordered) + [VERMILION], ecolor="black",
    )  # fmt: skip
    axes.set_yticks(places, labels=names, fontsize=9)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set(xlabel="accuracy (%), 95 % interval", xlim=(0, 100))
    return _svg(figure)


def gradient_agreement(report: dict) -> str:
    """Histogram over the images of cos(J(x), J(x + d))."""
    values = report["checks"]["linearity"]["data"]["cosine"]
    figure, axes = _figure()
    axes.hist(values, bins=30, range=(-1, 1), color=GREEN, edgecolor="white")
    axes.axvline(0, color=GREY, linestyle=":")
    axes.text(0.01, 0.95, "unrelated", transform=axes.get_xaxis_transform(), color=GREY, va="top")
    axes.set(xlabel="cos(J(x), J(x + d)), d uniform in the eps-ball", ylabel="images")
    return _svg(figure)


def batch_norm_modes(report: dict) -> str:
    """Accuracy in percent, clean and under PGD, by batch-norm mode."""
    modes = report["checks"]["batch_norm"]["data"]["modes"]
    rows = [report["rows"][name] for name in report["checks"]["batch_norm"]["rows"]]
    figure, axes = _figure()
    places = range(len(modes))
    for k, (label, colour, hatch) in enumerate((("clean", BLUE, ""), ("PGD", VERMILION, "//"))):
        axes.bar(
            [p + 0.4 * k - 0.2 for p in places], [row["accuracy"] for row in rows[k::2]], 0.38,
            yerr=error_bars(rows[k::2]), capsize=4, label=label, color=colour, hatch=hatch,
            edgecolor="white",
        )  # fmt: skip
    axes.set_xticks(places, labels=[name.replace(" of", "\nof") for name in modes])
    axes.set(ylabel="accuracy (%), 95 % interval", ylim=(0, 103))
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return _svg(figure)


PLOTS = {
    "eps": ("Accuracy against eps", accuracy_against_eps),
    "steps": ("Accuracy against PGD steps", accuracy_against_steps),
    "linearity": ("Do gradients agree in the neighbourhood?", gradient_agreement),
    "batch_norm": ("Batch-norm modes side by side", batch_norm_modes),
}


def plots(report: dict) -> dict[str, str]:
    """Title -> SVG of every plot that the report has figures for, or a sentence as HTML."""
    with matplotlib.rc_context(_STYLE):
        drawn = {
            title: draw(report)
            for name, (title, draw) in PLOTS.items()
            if report["checks"].get(name, {}).get("data")
        }
        if report["headline"].get("attacks"):
            drawn["Every attack at the headline eps"] = every_attack(report)
    return drawn
