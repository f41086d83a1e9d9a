"""An audit's report for people: a terminal, a Markdown file and one HTML page with its plots."""

from html import escape
from typing import Any

from igam_tf.audit.checks import FAIL, NOT_APPLICABLE, PASS, STATUSES, WARN
from igam_tf.common.tables import Table, interval_text
from igam_tf.datasets import fraction_text
from igam_tf.evaluation.evaluate import attack_texts
from igam_tf.method.look import doubtful_lines

_MARKS = {PASS: "✓", WARN: "!", FAIL: "✗", NOT_APPLICABLE: "–"}
_COLUMNS = (
    "attack", "accuracy %", "95 % interval", "n", "eps", "step size", "steps", "restarts", "loss",
    "gradient", "batch norm", "batch size", "seed",
)  # fmt: skip


def check_text(check: dict[str, Any]) -> str:
    """A check for the terminal: status and figure; after a WARN or FAIL threshold and advice too."""
    text = f"{check['status']:<4}  {check['title']}: {check['figure']}"
    if check["status"] in (WARN, FAIL):
        text += f"\n      threshold: {check['threshold']}\n      what to do: {check['advice']}"
    return text


def summary(report: dict[str, Any]) -> str:
    """The end of the terminal's output."""
    return "\n".join(["", facts(report), *_headline(report), report["verdict"]])


def _headline(report: dict[str, Any]) -> list[str]:
    """The headline, and a line for each doubt about it."""
    return [report["headline"]["text"], *doubtful_lines(report)]


def _attacks(report: dict[str, Any]) -> Table:
    """Every attack with every setting."""
    return Table(_COLUMNS, [_cells(name, row) for name, row in report["rows"].items()])


def _cells(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    steps, step_size, runs = attack_texts(row)
    return (
        name + (f" (after {row['after']})" if row["after"] else ""), f"{row['accuracy']:.2f}",
        interval_text(row["ci95"], ".2f"), str(row["n"]), fraction_text(row["eps"]), step_size, steps,
        runs, row["loss"] or "", row["gradient"] if steps else "", row["batch_norm"],
        str(row["batch_size"]), str(row["seed"]),
    )  # fmt: skip


def facts(report: dict[str, Any]) -> str:
    """Model, data and settings, which hold for every figure that states no others."""
    s = report["subject"]
    behind = f", preprocess={s['preprocess']}" if "preprocess" in s else ""
    return (
        f"{report['name']} ({s['model']}) on {s['dataset']} {s['split']}, data {s['data']}, first "
        f"n = {s['n']} images, pixels 0..{s['pixel_max']:g}{behind}; budget {report['budget']}. Unless "
        f"a name says otherwise: l-inf eps {fraction_text(s['eps'])} of the pixel range, PGD with step "
        f"size {fraction_text(s['step_size'])}, 1 random start, loss xent, batch norm "
        f"inference, seed {s['seed']}"
    )


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown, without plots."""
    checks = _worst_first(report)
    text = ["# Audit", "", facts(report), ""]
    text += [line for said in _headline(report) for line in (f"**{said}**", "")]
    text += [report["verdict"], "", "## Checks", ""]
    rows = [(c["status"], c["title"], c["figure"], c["threshold"], _advice(c)) for c in checks]
    text += [Table(("", "check", "figure", "threshold", "what to do"), rows).markdown()]
    text += ["", "## Attacks", "", _UNITS, "", _attacks(report).markdown()]
    return "\n".join(text) + "\n"


def _worst_first(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The checks: FAIL, WARN, PASS and N/A, each in the order that they ran in."""
    return sorted(report["checks"].values(), key=lambda check: STATUSES.index(check["status"]))


def _advice(check: dict[str, Any]) -> str:
    return check["advice"] if check["status"] in (WARN, FAIL) else ""


_UNITS = (
    "Accuracy is the share of all n examples that is right clean and after every restart. eps and step "
    "sizes are fractions of the pixel range, in l-inf; an attack that chooses its own step size says so."
)

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
h1 { margin-bottom: .2rem; } .facts { color: #444; }
.headline { font-size: 1.15rem;
  border-left: .4rem solid #0072B2; padding: .4rem 1rem; background: #eef5fa; }
.verdict { font-size: 1.25rem; font-weight: 700; border-left: .4rem solid #1a1a1a; padding: .4rem 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid #ddd; }
.scroll { overflow-x: auto; } .attacks { font-size: .8rem; font-variant-numeric: tabular-nums; }
.attacks th, .attacks td { padding: .3rem .4rem; }
.status { white-space: nowrap; font-weight: 700; }
.PASS { color: #00664a; } .WARN { color: #7a5000; } .FAIL { color: #b03a00; } .NA { color: #555; }
tr.FAIL-row { background: #fdf1ea; } tr.WARN-row { background: #fdf8e6; }
details { color: #444; } figure { margin: 1.5rem 0; } figcaption { font-weight: 600; }
svg { max-width: 100%; height: auto; }
"""


def html(report: dict[str, Any]) -> str:
    """The report as one self-contained page: style and plots are in it, nothing is fetched."""
    from igam_tf.audit.plots import plots

    rows = []
    for check in _worst_first(report):
        status = check["status"]
        kind = status.replace("/", "")
        advice = f"<p><b>What to do:</b> {escape(_advice(check))}</p>" if _advice(check) else ""
        rows.append(
            f'<tr class="{kind}-row"><td class="status {kind}">{_MARKS[status]} {status}</td>'
            f"<td>{escape(check['title'])}</td><td>{escape(check['figure'])}{advice}"
            f"<details><summary>threshold</summary>{escape(check['threshold'])}</details></td></tr>"
        )
    s = report["subject"]
    shared = (
        f"n = {s['n']}, data {s['data']}; other settings: top of the page, and table of attacks"
    )
    figures = "".join(
        f"<figure><figcaption>{escape(title)} <small>({shared})</small></figcaption>{svg}</figure>"
        for title, svg in plots(report).items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Audit of {escape(report['name'])}</title><style>{_STYLE}</style></head><body>"
        f'<h1>Audit</h1><p class="facts">{escape(facts(report))}</p>'
        f'<p class="verdict">{escape(report["verdict"])}</p>'
        f'<p class="headline">{"<br>".join(map(escape, _headline(report)))}</p>'
        "<h2>Checks</h2><table><tr><th>status</th><th>check</th><th>figure</th></tr>"
        f"{''.join(rows)}</table><h2>Plots</h2>{figures}"
        f'<h2>Attacks</h2><p>{_UNITS}</p><div class="scroll">'
        f"{_attacks(report).html('attacks')}</div></body></html>\n"
    )
