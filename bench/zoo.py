"""The audit of every network of `igam_tf.audit.zoo`, and of some by others, beside the true figure.

python bench/zoo.py --output=docs/zoo.md

A row is right where a masked defence has a WARN or FAIL of the checks that must find it, or a headline
within TOLERANCE points of the truth; and where an honest network has no FAIL. Finished rows are kept in
--workdir: killed, the same command goes on; delete the folder after a change. The exit status is 2
where a row is not right. Networks whose files are absent are named as such and left out.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from absl import flags

from igam_tf import datasets
from igam_tf.audit import zoo
from igam_tf.audit.audit import audit
from igam_tf.audit.audited import AuditedModel
from igam_tf.audit.checks import FAIL, WARN
from igam_tf.common.errors import UserError, flags_alone
from igam_tf.common.files import read_json, write_json, write_text
from igam_tf.common.program import run_entry_point
from igam_tf.datasets import fraction_text
from igam_tf.pytorch.weights import load_port
from igam_tf.storage.journal import mask_of_text, text_of_mask
from madry_models.tf1_checkpoint import from_tf1_checkpoint

FLAGS = flags.FLAGS
TOLERANCE = 3.0  # points by which a headline may be above the true figure
# File of the folder `wong2018` -> (data set, eps in pixels of 0..1, architecture)
WONG = {
    "mnist_eps0.1": ("mnist", 0.1, "wong-small-mnist"),
    "mnist_small_eps0.3": ("mnist", 0.3, "wong-small-mnist"),
    "cifar_small_8px": ("cifar10", 8 / 255, "wong-small-cifar"),
}


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_list("only", [], "Audit only these networks; by default all.")
    flags.DEFINE_integer("num_examples", 30, "Attack N images of each network.", lower_bound=1)
    flags.DEFINE_string("workdir", "audits/zoo", "Folder of the finished rows.")
    flags.DEFINE_string("output", None, "Markdown page to write.")
    flags.DEFINE_string("shared", "../shared", "Folder with models, golden files and real data.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A specimen with the images that it is audited on.

    Attributes:
        specimen: the network.
        split: the images.
        eps: l-inf radius, a fraction of the pixel range.
        known: robust mask [n] that somebody else found; None: none.
        helpers: networks whose adversarial examples are tried by the attack that knows the defence.
    """

    specimen: zoo.Specimen
    split: datasets.Split
    eps: float = zoo.EPS
    known: np.ndarray | None = None
    helpers: tuple = (zoo.plain, zoo.robust)


def cases(shared: Path, n: int) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Name of each network -> what makes its case; those of other people last, where they are found."""
    digits_ = functools.cache(lambda: datasets.load("mnist", "test", source="builtin", num=n))
    for name, specimen in zoo.ZOO.items():
        yield name, lambda specimen=specimen: Case(specimen=specimen, split=digits_())

    def real(data: str) -> datasets.Split:
        return datasets.load(
            data, "test", data_dir=str(shared / "data" / "tensorflow_datasets"), num=n
        )

    folder = shared / "golden" / "mnist" / "models" / "adv_trained"
    theirs = zoo.Specimen(
        build=lambda: from_tf1_checkpoint(folder),
        source="Madry et al. 2018, the challenge's MNIST network, arXiv:1706.06083",
    )
    if _found("madry_mnist", folder):
        yield (
            "madry_mnist",
            lambda: Case(specimen=theirs, split=real("mnist"), eps=0.3, helpers=()),
        )
    left = shared / "models" / "wong2018" / "autoattack_first500.npz"
    for name, (data, eps, architecture) in WONG.items():
        file = left.with_name(f"{name}.npz")
        specimen = zoo.Specimen(
            build=functools.partial(load_port, file, architecture),
            source="Wong et al. 2018, provably robust, arXiv:1805.12514; true: the original AutoAttack",
        )
        if _found(f"wong2018_{name}", file, left):
            yield (
                f"wong2018_{name}",
                lambda specimen=specimen, data=data, eps=eps, name=name: Case(
                    specimen=specimen, split=real(data), eps=eps, helpers=(),
                    known=np.load(left)[name][:n],
                ),
            )  # fmt: skip


def _found(name: str, *files: Path) -> bool:
    absent = [str(file) for file in files if not file.exists()]
    if absent:
        print(f"{name}: left out, {absent[0]} is absent", flush=True)
    return not absent


def row_of(name: str, case: Case, truth_file: Path) -> dict:
    """The row of one network, for JSON; the true figure's mask is kept in a file of its own."""
    specimen, split = case.specimen, case.split
    model = specimen()
    audited = AuditedModel(model, split, eps=case.eps, progress=False)
    if case.known is not None:
        left = case.known
    elif truth_file.exists():
        left = mask_of_text(read_json(truth_file)["left"])
    else:
        left = zoo.robust_mask(
            model, split.images, split.labels, eps=case.eps, pixel_max=audited.pixel_max,
            stand_in=specimen.stand_in(model), random=specimen.random,
            helpers=[helper() for helper in case.helpers],
        )  # fmt: skip
        write_json(truth_file, {"left": text_of_mask(left)})
    report = audit(audited)
    headline = report["headline"].get("accuracy")
    if headline is not None and not specimen.random:  # whatever breaks an image counts
        left = left & mask_of_text(report["headline"]["robust_mask"])
    marked = {
        check: line["status"]
        for check, line in report["checks"].items()
        if line["status"] in (FAIL, WARN)
    }
    truth = 100 * float(left.mean())
    if specimen.checks:
        near = headline is not None and headline - truth <= TOLERANCE
        right = bool(set(specimen.checks) & marked.keys()) or near
    else:
        right = FAIL not in marked.values()
    return {
        "name": name, "source": specimen.source, "expected": specimen.checks, "n": audited.n,
        "eps": case.eps, "clean": 100 * audited.clean.accuracy, "headline": headline,
        "true": truth, "marked": marked, "verdict": report["verdict"], "right": right,
    }  # fmt: skip


def page(rows: list[dict]) -> str:
    """The rows as Markdown."""

    def table(rows: list[dict], masked: bool) -> str:
        expected = " must be found by |" if masked else ""
        lines = [
            f"| network | source | clean | headline | true | WARN or FAIL |{expected} right |",
            "|---|---|---|---|---|---|" + ("---|" if masked else "") + "---|",
        ]
        for r in rows:
            marked = ", ".join(f"{name} {status}" for name, status in r["marked"].items()) or "none"
            headline = "none" if r["headline"] is None else f"{r['headline']:.0f}"
            own = f" {', '.join(r['expected'])} |" if masked else ""
            lines.append(
                f"| `{r['name']}` | {r['source']} | {r['clean']:.0f} | {headline} | {r['true']:.0f} | "
                f"{marked} |{own} {'yes' if r['right'] else '**no**'} |"
            )
        return "\n".join(lines)

    masked = [r for r in rows if r["expected"]]
    honest = [r for r in rows if not r["expected"]]
    n, eps = rows[0]["n"], fraction_text(zoo.EPS)
    others = (f"`{r['name']}` {fraction_text(r['eps'])}" for r in rows if r["eps"] != zoo.EPS)
    own = ", ".join(others) or "none"
    return f"""# The zoo of defences

The audit is compared with attacks that know each network: {len(masked)} published defences and
{len(honest)} networks without masking. It runs with `--budget=quick` on {n} images each, l-inf
eps {eps} of the pixel range; accuracies are in %. `make audit-zoo` measures it anew. Networks
with another eps: {own}.

Each defence is the idea of its source in a few lines of `igam_tf.audit.zoo`, before or inside a
small network, on built-in (synthetic) digits. None is the authors' code, and no figure here says
anything about theirs.

- **headline**: what the audit prints, the worst case of its attacks. For a random network it is
  the worst over single draws.
- **true**: the lowest figure found by attacks that know the defence. These are PGD on the margin
  and on the cross-entropy through a differentiable stand-in, averaged over {zoo.DRAWS} draws if
  the network is random; transfer from undefended networks; Square; and the audit's own attacks. A
  random network is judged by the average of {zoo.DRAWS} draws. Like every attack's figure it is
  an upper bound.
- **right**: a defence has a WARN or FAIL of a check that must find it, or its headline is at most
  {TOLERANCE:g} points above the true figure; a network without masking has no FAIL.

## Published defences, and controls

{table(masked, True)}

## Networks without masking

{table(honest, False)}
"""


def main(argv: list[str]) -> None:
    """Audits all of them, and writes the page."""
    flags_alone(argv)
    found = dict(cases(Path(FLAGS.shared), FLAGS.num_examples))
    if unknown := [name for name in FLAGS.only if name not in found]:
        raise UserError(f"expected --only among {', '.join(found)}; received {unknown[0]!r}")
    names = FLAGS.only or list(found)
    folder = Path(FLAGS.workdir) / str(FLAGS.num_examples)
    folder.mkdir(parents=True, exist_ok=True)
    rows, begin, done = [], time.monotonic(), 0
    for k, name in enumerate(names):
        file = folder / f"{name}.json"
        if not file.exists():
            start = time.monotonic()
            row = row_of(name, found[name](), folder / f"{name}.true.json")
            write_json(file, row | {"seconds": round(time.monotonic() - start, 1)})
            done += 1
        row = read_json(file)
        rows.append(row)
        left = (time.monotonic() - begin) / max(done, 1) * (len(names) - k - 1) / 60
        print(
            f"[{k + 1}/{len(names)}] {name}: headline {row['headline']}, true {row['true']:.0f}, "
            f"{row['marked'] or 'no mark'}, {'right' if row['right'] else 'NOT RIGHT'}; "
            f"{row['seconds']:.0f} s, about {left:.0f} min left",
            flush=True,
        )
    if FLAGS.output:
        write_text(Path(FLAGS.output), page(rows))
    wrong = [row["name"] for row in rows if not row["right"]]
    print(json.dumps({"networks": len(rows), "not_right": wrong}))
    raise SystemExit(2 if wrong else 0)


if __name__ == "__main__":
    define_flags()
    run_entry_point(main)
