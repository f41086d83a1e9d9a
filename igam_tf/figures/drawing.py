"""Draws numbers with matplotlib; only positions and colours are computed here.

Sizes are in inches, as printed; no letter is smaller than 7 points. Each category has a number as
well as a colour, so that the figures can be read without colour.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from igam_tf.common.tables import with_interval
from igam_tf.evaluation.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, YELLOW
from igam_tf.figures.measuring import Plane

STYLE = {"svg.hashsalt": "figures", "svg.fonttype": "none", "font.size": 8, "axes.titlesize": 8}
_SMALL = 7
# The first colour is the true class's; classes beyond the last colour share the grey.
_CLASSES = (SKY, ORANGE, GREEN, YELLOW, PURPLE, BLUE, VERMILION)
_OTHERS = "#BBBBBB"
_APART = 0.12  # smallest distance between two numbers in a panel, as a share of its side
# Levels of the cross-entropy, in nats.
_LEVELS = (
    0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100, 1000,
)  # fmt: skip


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="compressed")
    lines = [textwrap.fill(line, int(15 * width)) for line in title.splitlines()]
    figure.suptitle("\n".join(lines), fontsize=9)
    return figure


def _wrapped(text: str, inches: float) -> str:
    return textwrap.fill(text, max(8, int(15 * inches)))


def _picture(axes: Axes, image: np.ndarray, **kwargs) -> None:
    axes.imshow(image, interpolation="nearest", **kwargs)
    axes.set_xticks([])
    axes.set_yticks([])


def gradient_grid(
    images: np.ndarray,
    names: Sequence[str],
    columns: Mapping[str, np.ndarray],
    *,
    unit: str,
    title: str,
) -> tuple[Figure, dict[str, list[float]]]:
    """One row for each image, one column for each model (Figures 1, 4 and 6).

    J is summed over the channels: the effect of brightening the pixel. Each picture goes from -s,
    blue, through 0, white, to s, red; s is the 99th percentile of its own |J|, printed below it.

    Args:
        images: [n,H,W,C] uint8.
        names: [n], of the true classes.
        columns: label -> J [n,H,W,C].
        unit: of J.
        title: of the figure.

    Returns:
        (figure, label -> s of each picture)
    """
    n, cell = len(images), 1.15
    figure = _figure(max(4.2, cell * (len(columns) + 1) + 0.5), 1.3 + (cell + 0.17) * n, title)
    grid = figure.subplots(n, len(columns) + 1, squeeze=False)
    scales: dict[str, list[float]] = {}
    colours = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-1, 1), "RdBu_r")
    grid[0, 0].set_title("image")
    for row, image, name in zip(grid, images, names, strict=True):
        _picture(row[0], image.squeeze(), cmap="gray", vmin=0, vmax=255)
        row[0].set_ylabel(_wrapped(name, cell), fontsize=8)
    for k, (label, j) in enumerate(columns.items(), start=1):
        maps = j.sum(-1)
        scales[label] = [float(np.percentile(np.abs(m), 99)) for m in maps]
        grid[0, k].set_title(_wrapped(label, cell))
        for axes, m, s in zip(grid[:, k], maps, scales[label], strict=True):
            _picture(axes, m / s if s else m, cmap=colours.cmap, norm=colours.norm)
            axes.set_xlabel(f"s = {s:.2g}", fontsize=_SMALL, labelpad=2)
    bar = figure.colorbar(colours, ax=grid, location="bottom", aspect=40, fraction=0.04, pad=0.02)
    bar.set_ticks([-1, 0, 1], labels=["−s", "0", "s"])
    bar.set_label(f"J, summed over the channels ({unit})")
    return figure, scales


def _panels(labels: Sequence[str], title: str, extra: float) -> tuple[Figure, list[Axes]]:
    """(figure, one square panel for each label), in rows of four at most."""
    columns = min(4, len(labels))
    rows = -(-len(labels) // columns)
    figure = _figure(max(5.0, 1.8 * columns + 0.9), 2.1 * rows + extra, title)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in axes[len(labels) :]:
        panel.set_visible(False)
    for k, (panel, label) in enumerate(zip(axes, labels, strict=False)):
        panel.set_aspect("equal")
        panel.set_title(_wrapped(label, 1.8))
        panel.tick_params(labelsize=_SMALL, labelbottom=k + columns >= len(labels))
    return figure, list(axes[: len(labels)])


def _directions(axes: list[Axes], p: Plane, eps: float, factor: float, unit: str) -> None:
    """Labels both directions; draws x and its l-inf ball in every panel."""
    e, edge = eps * factor, p.ticks[-1] * factor
    around = [patheffects.withStroke(linewidth=2.6, foreground="white")]
    for panel in axes:
        panel.plot(
            (e, 0, -e, 0, e), (0, e, 0, -e, 0), color="black", linewidth=1.2, path_effects=around
        )
        panel.plot(0, 0, "o", color="black", markersize=4, markeredgecolor="white")
        panel.set(xlim=(-edge, edge), ylim=(-edge, edge))
        if panel.get_subplotspec().is_first_col():
            panel.set_ylabel(f"b, random direction\n(l-inf step, {unit})", fontsize=_SMALL)
        if panel.xaxis.get_major_ticks()[0].label1.get_visible():
            panel.set_xlabel(f"a, adversarial direction\n(l-inf step, {unit})", fontsize=_SMALL)


def _legend(figure: Figure, handles: list[Artist], panels: int) -> None:
    """Draws a legend of `handles` and of the marks in every panel, below the panels."""
    handles = [
        *handles,
        Line2D([], [], marker="o", linestyle="", color="black", markersize=4, label="the image x"),
        Line2D([], [], color="black", linewidth=1.2, label="l-inf ball of eps: |a| + |b| ≤ eps"),
    ]
    columns = 2 if panels < 3 else 3
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def landscape(
    planes: Mapping[str, Plane], *, eps: float, factor: float, unit: str, title: str
) -> Figure:
    """L_xent around one image, one panel for each model, with one colour scale (Figure 7, right).

    Args:
        planes: label -> values.
        eps: as a fraction of the pixel range.
        factor, unit: of the axes, in which such a fraction is multiplied by `factor`.
        title: of the figure.
    """
    figure, axes = _panels(list(planes), title, 1.2)
    every = np.concatenate([p.loss.ravel() for p in planes.values()])
    # At least two levels, even if the loss is 0 everywhere.
    around = np.searchsorted(_LEVELS, [every.min(), every.max()])
    first, last = np.clip(around, 1, len(_LEVELS) - 1)
    levels = _LEVELS[first - 1 : last + 1]
    extend = "max" if every.max() > levels[-1] else "neither"
    norm = BoundaryNorm(levels, 256, extend=extend)
    colours = matplotlib.cm.ScalarMappable(norm, "viridis")
    for panel, p in zip(axes, planes.values(), strict=True):
        ticks = p.ticks * factor
        shown = {"levels": levels, "norm": norm, "extend": extend}
        panel.contourf(ticks, ticks, p.loss, cmap=colours.cmap, **shown)
        panel.contour(ticks, ticks, p.loss, colors="white", linewidths=0.4, **shown)
    _directions(axes, p, eps, factor, unit)
    bar = figure.colorbar(colours, ax=axes, location="right", aspect=30, spacing="uniform")
    bar.set_ticks(levels, labels=[f"{level:g}" for level in levels])
    bar.ax.tick_params(labelsize=_SMALL)
    bar.set_label("cross-entropy of the true class (nats)")
    _legend(figure, [], len(planes))
    return figure


def regions(
    planes: Mapping[str, Plane],
    true_class: int,
    names: Sequence[str],
    *,
    eps: float,
    factor: float,
    unit: str,
    title: str,
) -> Figure:
    """Predicted class around one image, one panel for each model (Figure 7, left).

    The region of the true class has a thick outline; numbers in the regions are those of the legend.

    Args:
        planes: label -> values.
        true_class: of the image.
        names: of all classes.
        eps, factor, unit, title: as `landscape`.
    """
    figure, axes = _panels(list(planes), title, 1.8)
    everywhere = np.concatenate([p.predicted.ravel() for p in planes.values()])
    found, sizes = np.unique(everywhere, return_counts=True)
    by_size = found[np.argsort(-sizes, kind="stable")].tolist()
    order = [true_class, *(k for k in by_size if k != true_class)]
    place = np.full(len(names), len(_CLASSES))
    place[order[: len(_CLASSES)]] = range(len(order[: len(_CLASSES)]))
    colours = ListedColormap([*_CLASSES, _OTHERS])
    for panel, p in zip(axes, planes.values(), strict=True):
        ticks = p.ticks * factor
        edge = ticks[-1] + (ticks[1] - ticks[0]) / 2  # of the picture; ticks are pixel centres
        panel.imshow(
            place[p.predicted], cmap=colours, vmin=-0.5, vmax=len(_CLASSES) + 0.5, origin="lower",
            extent=(-edge, edge, -edge, edge), interpolation="nearest",
        )  # fmt: skip
        right = p.predicted == true_class
        if right.any() and not right.all():
            panel.contour(ticks, ticks, right, levels=[0.5], colors="black", linewidths=2)
        _number_regions(panel, p, eps, factor)
    _directions(axes, p, eps, factor, unit)
    handles: list[Artist] = [
        Patch(
            color=colours(place[k]),
            label=class_label(k, names) + (" (true)" if k == true_class else ""),
        )
        for k in order[: len(_CLASSES)]
    ]
    if len(order) > len(_CLASSES):
        handles.append(Patch(color=_OTHERS, label=f"{len(order) - len(_CLASSES)} other classes"))
    handles.append(Line2D([], [], color="black", linewidth=2, label="edge of the true class"))
    _legend(figure, handles, len(planes))
    return figure


def class_label(k: int, names: Sequence[str]) -> str:
    """Number and name of a class, or "class <number>" if it has no name."""
    return f"class {k}" if names[k] == str(k) else f"{k} {names[k]}"


def _number_regions(panel: Axes, p: Plane, eps: float, factor: float) -> None:
    """Writes the class into each region of 2 % or more, near its middle and apart from other numbers.

    It is above or below the eps-ball if the region extends there. The smallest region is placed
    first.
    """
    placed = np.empty((0, 2))
    classes, sizes = np.unique(p.predicted, return_counts=True)
    for k in classes[np.argsort(sizes, kind="stable")]:
        where = np.argwhere(p.predicted == k)
        if len(where) < 0.02 * p.predicted.size:
            continue
        distance = np.linalg.norm(where[:, None] - placed, axis=2).min(1, initial=np.inf)
        free = distance >= _APART * len(p.ticks)
        clear = np.abs(p.ticks[where[:, 0]]) > 1.2 * eps
        # Use the first of these conditions that any point satisfies.
        where = next(
            where[ok] for ok in (clear & free, free, distance == distance.max()) if ok.any()
        )
        b, a = where[np.argmin(((where - where.mean(0)) ** 2).sum(1))]
        placed = np.append(placed, [[b, a]], axis=0)
        panel.text(
            p.ticks[a] * factor, p.ticks[b] * factor, str(k), ha="center", va="center",
            fontsize=9, fontweight="bold",
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip


def alignment(
    values: Mapping[str, Mapping[str, np.ndarray]],
    numbers: Mapping[str, Mapping[str, dict[str, Any]]],
    teacher: str | None,
    *,
    title: str,
) -> Figure:
    """Plots every image's cosine, alpha and rho, with median and quartiles, above a table.

    Args:
        values: label -> `cosine`, if there is a teacher and it is another model; `alpha` and
            `rho`, l2 in pixels of 0..1; [n] each.
        numbers: `measuring.statistics` of the values.
        teacher: label of the model whose gradients are J_t; None means no cosines.
        title: of the figure.
    """
    axis_labels = {
        "cosine": f"cos(J_s, J_t), no unit\nJ_t: {teacher}",
        "alpha": "alpha = |⟨x, g⟩| / |g|\n(l2, pixels of 0..1)",
        "rho": "rho = m / |g|\n(l2, pixels of 0..1; log scale)",
    }
    if teacher is None:
        del axis_labels["cosine"]
    n = len(values)
    figure = _figure(7.2, 2.5 + 0.62 * n, title)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.5 + 0.42 * n, 0.6 + 0.2 * n))
    panels = dict(zip(axis_labels, top.subplots(1, len(axis_labels), sharey=True), strict=True))
    for name, panel in panels.items():
        for y, row in enumerate(values.values()):
            if name in row:
                _strip(panel, row[name], y)
        panel.set_xlabel(axis_labels[name])
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=_SMALL)
    next(iter(panels.values())).set_yticks(range(n), labels=[_wrapped(k, 1.3) for k in values])
    panels["alpha"].set_ylim(n - 0.5, -0.5)
    panels["alpha"].set_xlim(right=max(0.1, panels["alpha"].get_xlim()[1]))
    panels["rho"].set_xscale("log")
    handles = [
        Line2D([], [], color=GREY, marker=".", linestyle="", label="one image"),
        Line2D([], [], **_MEDIAN, linewidth=3, label="median, quartiles"),
    ]
    top.legend(handles=handles, loc="outside upper center", frameon=False, ncols=2)
    axes = bottom.subplots()
    axes.axis("off")
    table = axes.table(
        [[label, *(_cell(row, name) for name in axis_labels)] for label, row in numbers.items()],
        colLabels=["model", *(_HEADS[name] for name in axis_labels)],
        loc="center", cellLoc="left",
    )  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    note = "alpha is 0, up to rounding, of a network that standardises each image"
    bottom.supxlabel(note, fontsize=_SMALL)
    return figure


_MEDIAN = {"color": BLUE, "marker": "o", "markerfacecolor": "white", "markersize": 6}
_HEADS = {"cosine": "mean cos, 95 % interval", "alpha": "median alpha", "rho": "median rho"}


def _strip(axes: Axes, values: np.ndarray, y: float) -> None:
    low, median, high = np.percentile(values, [25, 50, 75])
    jitter = y + np.random.default_rng(0).uniform(-0.15, 0.15, len(values))
    axes.plot(values, jitter, ".", color=GREY, alpha=0.25, markersize=2, rasterized=True)
    axes.plot([low, high], [y, y], color=BLUE, linewidth=3, solid_capstyle="butt")
    axes.plot(median, y, **_MEDIAN)


def _cell(row: Mapping[str, dict[str, Any]], name: str) -> str:
    if name != "cosine":
        return f"{row[name]['median']:.3f}"
    if name not in row:
        return "itself"
    mean, interval = row[name]["mean"], row[name]["mean_ci95"]
    return with_interval(mean, interval, ".3f") if interval else f"{mean:.3f}"
