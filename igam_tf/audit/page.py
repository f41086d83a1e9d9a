"""An audit's report for people: a terminal, a Markdown file and one HTML page with its plots."""

import re
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
    text = f"{check['status']:<4}  {check['name']}: {check['title']}. {_sentence(check['figure'])}"
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
    behind += f", class_order={s['class_order']}" if "class_order" in s else ""
    return (
        f"{report['name']} ({s['model']}) on {s['dataset']} {s['split']}, data {s['data']}, first "
        f"n = {s['n']} images, pixels 0..{s['pixel_max']:g}{behind}; budget {report['budget']}. "
        f"Unless a name says otherwise: l-inf eps {fraction_text(s['eps'])} of the pixel range, "
        f"PGD with step size {fraction_text(s['step_size'])}, 1 random start, loss xent, batch "
        f"norm inference, seed {s['seed']}"
    )


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown, without plots."""
    checks = _worst_first(report)
    text = ["# Audit", "", f"**{report['verdict']}**", ""]
    text += [line for said in (*_headline(report), facts(report)) for line in (said, "")]
    rows = [
        (c["status"], c["name"], c["title"], c["figure"], c["threshold"], _advice(c))
        for c in checks
    ]
    head = ("", "check", "expected", "figure", "threshold", "what to do")
    text += ["## Checks", "", Table(head, rows).markdown()]
    text += ["", "## Attacks", "", _UNITS, "", _attacks(report).markdown()]
    return "\n".join(text) + "\n"


def _worst_first(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The checks: FAIL, WARN, PASS and N/A, each in the order that they ran in."""
    return sorted(report["checks"].values(), key=lambda check: STATUSES.index(check["status"]))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _advice(check: dict[str, Any]) -> str:
    return check["advice"] if check["status"] in (WARN, FAIL) else ""


_UNITS = (
    "Accuracy is the share of all n images that are right clean and after every restart. eps and "
    "step sizes are fractions of the pixel range, in l-inf; an attack that chooses its own step "
    "size says so. The attacks are in the order in which they ran."
)

_STYLE = """
:root { color-scheme: light; --PASS: #00664a; --WARN: #7a5000; --FAIL: #b03a00; --NA: #555; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
h1 { margin-bottom: .6rem; font-size: 1.5rem; overflow-wrap: anywhere; } .facts { color: #444; }
.PASS { color: var(--PASS); } .WARN { color: var(--WARN); } .FAIL { color: var(--FAIL); }
.NA { color: var(--NA); }
.verdict { border-left: .5rem solid; padding: .6rem 1rem; background: #f6f6f6; }
.verdict b { display: block; font-size: 2rem; line-height: 1.2; margin-bottom: .3rem; }
.verdict span { color: #1a1a1a; }
.headline, .doubt { padding: 0 1.5rem; } .distrusted { color: #777; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid #ddd; }
.checks td { overflow-wrap: anywhere; } .checks p { margin: .4rem 0; }
.checks code { white-space: nowrap; font-weight: 700; }
.scroll { overflow-x: auto; } .attacks { font-size: .8rem; font-variant-numeric: tabular-nums; }
.attacks th, .attacks td { padding: .3rem .4rem; }
@media (max-width: 40rem) { .verdict b { font-size: 1.6rem; } .checks th { display: none; }
  .checks td { display: block; border: 0; } .checks tr { border-bottom: 1px solid #ddd; } }
.status { white-space: nowrap; font-weight: 700; }
tr.FAIL-row { background: #fdf1ea; } tr.WARN-row { background: #fdf8e6; }
details { color: #444; } figure { margin: 1.5rem 0; } figcaption { font-weight: 600; }
svg { max-width: 100%; height: auto; }
"""


def html(report: dict[str, Any]) -> str:
    """The report as one self-contained page: style and plots are in it, nothing is fetched."""
    from igam_tf.audit.plots import plots

    status = report["verdict_status"]
    short, rest = re.fullmatch(r"([^:.]+)[:.] (.*)", report["verdict"]).groups()
    figure, *doubts = map(escape, _headline(report))
    tag = "s" if status == FAIL else "b"  # where the figure is an upper bound at best, it is struck
    shown_doubts = "".join(f'<p class="doubt WARN">{doubt}</p>' for doubt in doubts)
    figure = re.sub(r"^[^(]+(?= \()", rf"<{tag}>\g<0></{tag}>", _sentence(figure))
    s = report["subject"]
    shared = (
        f"n = {s['n']}, data {s['data']}; other settings: top of the page, and table of attacks"
    )
    shown = "".join(
        f"<figure><figcaption>{escape(title)} <small>({shared})</small></figcaption>{plot}</figure>"
        for title, plot in plots(report).items()
    )
    rows = "".join(map(_row, _worst_first(report)))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Audit of {escape(report['name'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>Audit of {escape(report['name'])}</h1>"
        f'<p class="verdict {_kind(status)}"><b>{_MARKS[status]} {escape(short)}</b>'
        f"<span>{escape(_sentence(rest))}</span></p>"
        f'<p class="headline{" distrusted" * (status == FAIL)}">{figure}</p>'
        f"{shown_doubts}"
        f'<p class="facts">{escape(facts(report))}</p>'
        f'<h2>Checks</h2><table class="checks"><tr><th>status</th><th>check</th><th>figure</th></tr>'
        f"{rows}</table>"
        f"<h2>Plots</h2>{shown}"
        f'<h2>Attacks</h2><p>{_UNITS}</p><div class="scroll">'
        f"{_attacks(report).html('attacks')}</div></body></html>\n"
    )


def _kind(status: str) -> str:
    return status.replace("/", "")


def _row(check: dict[str, Any]) -> str:
    """A check's row of the page; what its entry says of it is folded."""
    status, kind = check["status"], _kind(check["status"])
    advice = f"<p><b>What to do:</b> {escape(_advice(check))}</p>" if _advice(check) else ""
    about = (("PASS means", "meaning"), ("Threshold", "threshold"), ("Why", "reason"))
    documented = "".join(f"<p><b>{head}:</b> {escape(check[key])}</p>" for head, key in about)
    return (
        f'<tr class="{kind}-row" id="{check["name"]}"><td class="status {kind}">{_MARKS[status]} '
        f"{status}</td><td><code>{check['name']}</code><br>{escape(check['title'])}</td>"
        f"<td>{escape(_sentence(check['figure']))}{advice}"
        f"<details><summary>about this check</summary>{documented}</details></td></tr>"
    )
