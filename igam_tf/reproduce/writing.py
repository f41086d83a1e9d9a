"""Writes the figures of a table as Markdown and LaTeX, and plots accuracy over minutes."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igam_tf.common.files import write_json, write_text
from igam_tf.common.tables import Table, with_interval
from igam_tf.evaluation.palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from igam_tf.method.look import doubtful_lines
from igam_tf.method.objectives import METHODS
from igam_tf.reproduce.tables import PAPER_SECONDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = "osD^vPX*<>"  # one marker per curve, so that it can be read without colour
NAMES = {
    "clean": "clean",
    "fgsm": "FGSM",
    "apgd": "APGD-CE, then APGD-T",
    "autoattack": "AutoAttack",
}


def write(content: dict[str, Any], output: Path, name: str) -> str:
    """Writes <name>.json, .md, .tex and, if rows were validated, <name>-minutes.png and .svg.

    Args:
        content: from `igam_tf.reproduce.collecting.collect`.
        output: an existing folder.
        name: of the files.

    Returns:
        The Markdown.
    """
    text = markdown(content)
    write_json(output / f"{name}.json", content)
    write_text(output / f"{name}.md", text)
    write_text(output / f"{name}.tex", latex(content))
    if _validated(content):
        figure = over_minutes(content)
        for kind in ("png", "svg"):
            figure.savefig(output / f"{name}-minutes.{kind}", dpi=200)
    return text


def markdown(content: dict[str, Any]) -> str:
    """The table with its notes, paired differences and times; rows that were not run are blank."""
    lines = [f"# {content['title']}", "", content["settings"] or "No row was run.", ""]
    for heading, texts in (("Data", content["data"]), ("Teacher", content["teachers"])):
        lines += [f"{heading}, {text}." for text in texts] + ([""] if texts else [])
    for part, rows in _parts(content):
        lines += [f"## {part}", ""] if part else []
        cells = [_cells(row, content["attacks"]) for row in rows]
        lines += [Table(_head(content), cells).markdown(), ""]
    lines += _doubts(content)
    lines += [
        "Cells: paper / ours (95 % interval) / difference; a blank was not published or not run.",
        "Minutes: training on this machine, the teacher's fine-tuning included; not its own training "
        "on the source, nor evaluation.",
        _cosine_note(content),
        "",
    ]
    if (seeds := _seed_rows(content)).rows:
        lines += ["## Each seed", "", "Above are means; their intervals are over the test images."]
        lines += ["", seeds.markdown(), ""]
    at_equal_minutes = (
        "At equal minutes: clean / PGD-20 on validation images, at the last look before"
    )
    for title, table in (
        ("Paired differences in points (95 % interval)", _gain_rows(content)),
        ("Seconds an epoch, stage 1 included", _epoch_rows(content["epoch_seconds"])),
        (at_equal_minutes, _minute_rows(_validated(content))),
    ):
        lines += [f"## {title}", "", table.markdown(), ""] if table.rows else []
    return "\n".join(lines).rstrip() + "\n"


def latex(content: dict[str, Any]) -> str:
    """Only the rows, as a tabular."""
    rows = [
        line
        for part, rows in _parts(content)
        for line in ([part] if part else [], *(_cells(row, content["attacks"]) for row in rows))
        if line
    ]
    about = f"% {content['title']}\n% {content['settings']}\n"
    return about + Table(_head(content), rows).latex() + "\n"


def over_minutes(content: dict[str, Any]) -> "Figure":
    """Clean and PGD-20 accuracy on validation images over minutes trained, of every validated row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, key, title in zip(panels, ("clean", "pgd20"), ("clean", "PGD-20"), strict=True):
        for i, row in enumerate(_validated(content)):
            curve = row["run"]["curve"]
            axes.plot(
                [point["minutes"] for point in curve], [point[key] for point in curve],
                color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], markersize=4,
                markevery=-(-len(curve) // 12), linewidth=1.2, label=row["label"],
                linestyle="-" if i < len(COLOURS) else "--",
            )  # fmt: skip
        axes.set(xlabel="minutes trained", ylabel="validation accuracy (%)", title=title)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(textwrap.fill(content["title"], 120), fontsize=8)
    return figure


# --- cells -----------------------------------------------------------------------------------------


def _parts(content: dict[str, Any]) -> list[tuple[str, list[dict]]]:
    parts = dict.fromkeys(row["part"] for row in content["rows"])
    return [(part, [r for r in content["rows"] if r["part"] == part]) for part in parts]


def _validated(content: dict[str, Any]) -> list[dict]:
    """Rows with accuracies over time: those of the paper's table, and one row of each other method."""
    rows, methods = [], set()
    for row in content["rows"]:
        run = row["run"]
        if run and run["curve"] and (not row["part"] or run["method"] not in methods):
            rows.append(row)
            methods.add(run["method"])
    return rows


def _head(content: dict[str, Any]) -> list[str]:
    return ["row", *map(_attack, content["attacks"]), *COLUMNS]


def _attack(name: str) -> str:
    return NAMES.get(name, name.replace("pgd", "PGD-"))


def _cells(row: dict, attacks: list[str]) -> list[str]:
    cells = [_cell(row["cells"][attack]) for attack in attacks]
    run = row["run"]
    label = row["label"] + (" (!)" if run and run["doubts"] else "")
    return [label, *cells, *(text_of(run) if run else "" for text_of in COLUMNS.values())]


def _doubts(content: dict[str, Any]) -> list[str]:
    """A paragraph for each doubt about the rows that are marked."""
    return [
        f"(!) {row['label']}: {line}\n"
        for row in content["rows"]
        if row["run"]
        for line in doubtful_lines(row["run"])
    ]


def _cosine(run: dict) -> str:
    """Mean cosine with its interval, and a star if J_t comes from the teacher of another row."""
    found = run["alignment"]
    if not found:
        return "is the teacher" if METHODS[run["method"]].trains_teacher else ""
    star = " *" if "teacher_of" in found else ""
    return with_interval(found["cosine"], found["cosine_ci95"], ".3f") + star


# Head of each column behind the attacks' -> its cell, a text, from `collecting._run`.
COLUMNS: dict[str, Callable[[dict], str]] = {
    "cos(J_s, J_t)": _cosine,
    "steps": lambda run: str(run["steps"]),
    "minutes": lambda run: f"{sum(run['minutes'].values()):.1f}",
}


def _cosine_note(content: dict[str, Any]) -> str:
    text = "cos(J_s, J_t): mean over the same test images, 95 % interval."
    found = [row["run"]["alignment"] or {} for row in content["rows"] if row["run"]]
    others = sorted({each["teacher_of"] for each in found if "teacher_of" in each})
    return f"{text} *: trained without a teacher, J_t is {', '.join(others)}'s." if others else text


def _cell(cell: dict) -> str:
    paper = "" if cell["paper"] is None else f"{cell['paper']:g}"
    if cell["ours"] is None:
        return f"{paper} / / " if paper else ""
    ours = with_interval(cell["ours"], cell["ci95"])
    return f"{paper} / {ours} / {cell['difference']:+.1f}" if paper else ours


def _seed_rows(content: dict[str, Any]) -> Table:
    """The accuracy of each seed in a table of means; empty for a single seed."""
    rows = [
        [row["label"], *(", ".join(f"{a:.1f}" for a in c["seeds"]) for c in row["cells"].values())]
        for row in content["rows"]
        if all("seeds" in cell for cell in row["cells"].values())
    ]
    return Table(["row", *map(_attack, content["attacks"])], rows)


def _gain_rows(content: dict[str, Any]) -> Table:
    rows = [
        [g["row"], g["over"],
         *(with_interval(points, g["ci95"][a], "+.1f") for a, points in g["points"].items()),
         str(g["n"])]
        for g in content["gains"]
    ]  # fmt: skip
    return Table(["row", "over", *map(_attack, content["attacks"]), "n"], rows)


def _epoch_rows(ours: dict[str, float]) -> Table:
    both = {"paper": PAPER_SECONDS, "ours": ours} if ours.keys() == PAPER_SECONDS.keys() else {}
    rows = [
        (whose, f"{s['igam']:.0f}", f"{s['pgd']:.0f}", f"{s['igam'] / s['pgd']:.2f}")
        for whose, s in both.items()
    ]
    return Table(("", "IGAM", "PGD7-trained", "IGAM / PGD7-trained"), rows)


def _minute_rows(rows: list[dict]) -> Table:
    end = max((row["run"]["curve"][-1]["minutes"] for row in rows), default=0.0)
    times = [end * share for share in (0.25, 0.5, 0.75, 1.0)]
    lines = []
    for row in rows:
        curve = row["run"]["curve"]
        cells = []
        for t in times:
            seen = [point for point in curve if point["minutes"] <= t + 1e-9]
            cells.append(f"{seen[-1]['clean']:.1f} / {seen[-1]['pgd20']:.1f}" if seen else "")
        lines.append([row["label"], *cells, f"{curve[-1]['minutes']:.1f} min"])
    return Table(["row", *(f"{t:.1f} min" for t in times), "done after"], lines)
