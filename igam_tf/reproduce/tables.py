"""The paper's tables as data: rows, their flags for `igam_tf.train`, the published figures."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from igam_tf.experiments.recipes import recipe
from igam_tf.method.settings import PUBLISHED_TO_MEAN_UNIT

PGD_20 = ("clean", "fgsm", "pgd5", "pgd10", "pgd20")
PGD_100 = (*PGD_20, "pgd50", "pgd100")
PAPER_SECONDS = {"igam": 347.0, "pgd": 815.0}  # per epoch; §5.2 "Compute Time"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row of a table, which is one run.

    Attributes:
        name: name of its run folder.
        label: first cell in the table, as in the paper if it has the row.
        flags: flags of `igam_tf.train`, besides those of every row.
        paper: accuracy in % for each of the table's attacks, as published, None if the paper lacks
            this attack; empty if it lacks the row.
        part: heading above the row; empty for rows of the paper's table.
        cpu: flags that replace these at `--preset=cpu`.
    """

    name: str
    label: str
    flags: Mapping[str, str]
    paper: tuple[float | None, ...] = ()
    part: str = ""
    cpu: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def method(self) -> str:
        """Of `igam_tf.method.objectives.METHODS`."""
        return self.flags.get("method", "igam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One table of the paper, or one of this project.

    Attributes:
        title: what the table shows.
        attacks: attack of each column.
        rows: the runs.
        gains: names of pairs of rows whose paired differences are computed.
        cpu: text that is added to the title at `--preset=cpu`.
    """

    title: str
    attacks: tuple[str, ...]
    rows: tuple[TableRow, ...]
    gains: tuple[tuple[str, str], ...] = ()
    cpu: str = ""

    def at_preset(self, preset: str) -> "Table":
        """The table with its rows at a preset.

        At cpu the weights of the objective do not depend on map and source, and a student with J_t
        = 0 does not depend on its teacher. So rows with J_t = 0 that differ only in these are one
        row there.
        """
        if preset != "cpu":
            return self
        kept: dict[Any, TableRow] = {}
        same: dict[str, str] = {}  # name of a row -> name of the row that replaces it
        for row in self.rows:
            row = dataclasses.replace(row, flags=row.flags | row.cpu)
            key: Any = row.name
            if row.flags.get("teacher_gradient") == "zero":
                key = frozenset(f for f in row.flags.items() if f[0] not in ("source", "transform"))
            if key in kept:
                kept[key] = dataclasses.replace(kept[key], label="J_t = 0, for each row")
            same[row.name] = kept.setdefault(key, row).name
        gains = tuple((name, same[other]) for name, other in self.gains)
        title = f"{self.title}; {self.cpu}" if self.cpu else self.title
        return dataclasses.replace(self, title=title, rows=tuple(kept.values()), gains=gains)

    def with_target(self, target: str) -> "Table":
        """The same rows, trained on another task, without published figures."""
        rows = tuple(
            dataclasses.replace(row, flags=row.flags | {"target": target}, paper=())
            for row in self.rows
        )
        return dataclasses.replace(self, title=f"{self.title}, target {target}", rows=rows)

    def with_attacks(self, attacks: Sequence[str]) -> "Table":
        """The same rows under these attacks, with the published figures for those that the paper has."""

        def under_these(row: TableRow) -> TableRow:
            published = dict(zip(self.attacks, row.paper, strict=bool(row.paper)))
            return dataclasses.replace(row, paper=tuple(map(published.get, attacks)))

        return dataclasses.replace(
            self, attacks=tuple(attacks), rows=tuple(map(under_these, self.rows))
        )

    @property
    def first_igam(self) -> TableRow:
        """The first row that trains with IGAM; rows without a teacher are compared with its J_t."""
        return next(row for row in self.rows if row.method == "igam")


def _row(
    name: str, label: str, flags: str, *paper: float, part: str = "", cpu: str = ""
) -> TableRow:
    """A row by its flags as on a command line, without --; `paper`: its published accuracies."""
    of_row, of_cpu = (dict(flag.split("=") for flag in text.split()) for text in (flags, cpu))
    return TableRow(name=name, label=label, flags=of_row, paper=paper, part=part, cpu=of_cpu)


def _with_controls(*rows: TableRow) -> dict[str, Any]:
    """`rows` and `gains` of a table: adds two controls to each IGAM row."""
    controls, gains = [], []
    others = [row.name for row in rows if row.method != "igam"]
    for row in rows:
        if row.method != "igam":
            continue
        own = [
            dataclasses.replace(
                row, name=f"{row.name}-{kind}", label=f"{row.label}, {text}", part=_CONTROLS,
                flags={**row.flags, "teacher_gradient": kind}, paper=(),
            )
            for kind, text in (("zero", "J_t = 0"), ("shuffled", "J_t of another image"))
        ]  # fmt: skip
        gains += [(row.name, other) for other in (*others, *(control.name for control in own))]
        controls += own
    return {"rows": (*rows, *controls), "gains": tuple(gains)}


def _over_each(name: str, rows: tuple[TableRow, ...]) -> dict[str, Any]:
    """`rows` and `gains` of a table: the gain of one row over each of the others."""
    others = (row.name for row in rows if row.name != name)
    return {"rows": rows, "gains": tuple((name, other) for other in others)}


_CONTROLS = "Controls, J_t replaced"
_ABLATION = "Ablation, lambda_adv x lambda_diff"
_BEYOND = "Beyond the paper"

_UP = "source=mnist target=cifar10"
_DOWN = "source=tiny_imagenet target=cifar10"
_MAIN = (
    _row("standard", "Standard", f"{_UP} method=standard", 95.0, 13.4, 0.0, 0.0, 0.0),
    _row("ft-mnist", "FT-MNIST", f"{_UP} method=finetune", 33.4, 1.51, 0.44, 0.15, 0.12),
    _row("igam-mnist", "IGAM-MNIST", _UP, 93.6, 67.8, 63.6, 56.9, 43.5),
    _row("pgd7", "PGD7-trained", f"{_UP} method=pgd", 87.3, 56.2, 55.5, 47.3, 45.9),
)
_ZERO = _row("zero", "J_t = 0", f"{_UP} teacher_gradient=zero", part=_CONTROLS)
_OTHER_METHODS = {
    "l2": "l2 matching (L_diff alone)",
    "cosine": "cosine matching",
    "jarn": "JARN",
    "gradient_penalty": "gradient penalty",
    "ard": "ARD",
    "fast": "fast adversarial training",
    "n_fgsm": "N-FGSM",
    "trades": "TRADES",
}
_L1 = f"{_UP} method=gradient_penalty diff_norm=l1 lambda_diff={8 / 255!r}"
_B = f"{_UP} fidelity=best"
_BEST = (
    _row("standard", "Standard", f"{_B} method=standard"),
    _row("ft-mnist", "FT-MNIST", f"{_B} method=finetune"),
    _row("igam-paper", "IGAM-MNIST, as in the paper", _UP),
    _row("gradient_penalty", "gradient penalty, squared l2", f"{_UP} method=gradient_penalty"),
    _row("l1-penalty", "gradient penalty, l1", f"{_B} method=gradient_penalty"),
    _row("igam-mnist", "IGAM-MNIST, l1", _B),
    _row("zero", "IGAM, l1, J_t = 0", f"{_B} teacher_gradient=zero"),
    _row("shuffled", "IGAM, l1, J_t of another image", f"{_B} teacher_gradient=shuffled"),
    _row("fast", _OTHER_METHODS["fast"], f"{_B} method=fast"),
    _row("n_fgsm", _OTHER_METHODS["n_fgsm"], f"{_B} method=n_fgsm"),
    _row("trades", _OTHER_METHODS["trades"], f"{_B} method=trades"),
    _row("pgd", "PGD7-trained", f"{_B} method=pgd"),
)

_CPU = {name: value for name, (value, _) in recipe("cpu/paper").items()}


def _weights(lambda_adv: float, lambda_diff: float, clean: float, pgd20: float) -> TableRow:
    """IGAM-CIFAR10 with the published weights, in the release's unit.

    At the cpu preset they are scaled in proportion to its own, which replace the table's (2, 10).
    """
    own = (lambda_adv / 2 * _CPU["lambda_adv"], lambda_diff / 10 * _CPU["lambda_diff"])
    weights = f"lambda_adv={lambda_adv:g} lambda_diff={lambda_diff * PUBLISHED_TO_MEAN_UNIT!r}"
    return _row(
        f"adv{lambda_adv:g}-diff{lambda_diff:g}",
        f"lambda_adv {lambda_adv:g}, lambda_diff {lambda_diff:g}",
        f"source=cifar10 target=cifar100 {weights}", clean, pgd20,
        cpu="lambda_adv={!r} lambda_diff={!r}".format(*own),
    )  # fmt: skip


_SCALED = (
    "the preset's lambda_adv {lambda_adv:g} and lambda_diff {lambda_diff:g} are the row (2, 10)"
).format(**_CPU)

TABLES: dict[str, Table] = {
    "1": Table(
        title="Table 1: CIFAR-10, upwards transfer",
        attacks=PGD_20,
        **_over_each("igam-mnist", (
            *_MAIN,
            _row("no-adv", "lambda_adv = 0", f"{_UP} lambda_adv=0", part=_ABLATION),
            _row("no-diff", "lambda_diff = 0", f"{_UP} lambda_diff=0", part=_ABLATION),
            _ZERO,
            _row("shuffled", "J_t of another image", f"{_UP} teacher_gradient=shuffled", part=_CONTROLS),
            _row("plain", "J_t of a plain teacher", f"{_UP} teacher_gradient=plain", part=_CONTROLS),
        )),
    ),
    "2": Table(
        title="Table 2: CIFAR-10, downwards transfer",
        attacks=PGD_100,
        **_with_controls(
            _row("standard", "Standard", f"{_DOWN} method=standard", 95.0, 13.4, 0, 0, 0, 0, 0),
            _row("ft-tiny-imagenet", "FT-TinyImagenet", f"{_DOWN} transform=resize method=finetune",
                 77.2, 37.7, 33.9, 28.0, 24.9, 23.0, 22.5),
            _row("transpose-conv", "IGAM-TransposeConv", f"{_DOWN} transform=transpose_conv",
                 93.2, 65.0, 58.8, 44.5, 32.4, 22.4, 18.7),
            _row("random-pad", "IGAM-RandomPad", f"{_DOWN} transform=random_pad",
                 88.3, 35.8, 43.9, 40.1, 38.6, 37.8, 37.6),
            _row("pad", "IGAM-Pad", f"{_DOWN} transform=pad",
                 87.9, 51.6, 52.2, 46.6, 44.0, 43.0, 42.5),
            _row("upsize", "IGAM-Upsize", f"{_DOWN} transform=resize",
                 88.7, 54.0, 52.5, 47.6, 45.1, 43.5, 43.0),
            _row("pgd7", "PGD7-trained", f"{_DOWN} method=pgd",
                 87.25, 56.22, 55.5, 47.3, 45.9, 45.4, 45.3),
        ),
    ),
    "3": Table(
        title="Table 3: CIFAR-100",
        attacks=PGD_20,
        **_with_controls(
            _row("standard", "Standard", "source=mnist target=cifar100 method=standard",
                 78.7, 7.95, 0.13, 0.03, 0),
            _row("ft-cifar10", "FT-CIFAR10", "source=cifar10 target=cifar100 method=finetune",
                 49.3, 17.2, 15.3, 11.7, 10.5),
            _row("igam-mnist", "IGAM-MNIST", "source=mnist target=cifar100",
                 73.16, 41.41, 33.09, 23.35, 17.67),
            _row("igam-cifar10", "IGAM-CIFAR10", "source=cifar10 target=cifar100",
                 62.39, 34.31, 29.59, 24.05, 21.74),
            _row("pgd7", "PGD7-trained", "source=mnist target=cifar100 method=pgd",
                 60.4, 29.1, 29.3, 24.3, 23.5),
        ),
    ),
    "4": Table(
        title="Table 4: IGAM-CIFAR10 with varying lambda_diff",
        cpu=_SCALED,
        attacks=("clean", "pgd20"),
        **_with_controls(
            _weights(2, 0, 58.9, 16.0),
            _weights(2, 2.5, 61.8, 16.3),
            _weights(2, 5, 62.9, 21.7),
            _weights(2, 10, 62.4, 21.7),
        ),
    ),
    "5": Table(
        title="Table 5: IGAM-CIFAR10 with varying lambda_adv",
        cpu=_SCALED,
        attacks=("clean", "pgd20"),
        **_with_controls(
            _weights(0, 10, 78.4, 3.9),
            _weights(0.5, 10, 77.4, 4.34),
            _weights(1, 10, 74.3, 7.37),
            _weights(2, 10, 62.4, 21.7),
        ),
    ),
    "figure5": Table(
        title="Figure 5: Tiny-ImageNet (the figure gives no numbers)",
        attacks=PGD_20,
        **_with_controls(
            *(
                _row(name, label, f"source={source} target=tiny_imagenet {flag}")
                for name, label, source, flag in (
                    ("standard", "Standard", "cifar10", "method=standard"),
                    ("ft-cifar10", "FT-CIFAR10", "cifar10", "method=finetune"),
                    ("ft-cifar100", "FT-CIFAR100", "cifar100", "method=finetune"),
                    ("cifar10-resize", "IGAM-CIFAR10-Resize", "cifar10", "transform=resize"),
                    ("cifar10-crop", "IGAM-CIFAR10-Crop", "cifar10", "transform=crop"),
                    ("cifar100-resize", "IGAM-CIFAR100-Resize", "cifar100", "transform=resize"),
                    ("cifar100-crop", "IGAM-CIFAR100-Crop", "cifar100", "transform=crop"),
                    ("pgd7", "PGD7-trained", "cifar10", "method=pgd"),
                )
            ),
        ),
    ),
    "baselines": Table(
        title="Baselines: CIFAR-10, the methods of the paper and others",
        attacks=PGD_20,
        **_over_each("igam-mnist", (
            *_MAIN,
            *(
                _row(method, label, f"{_UP} method={method}", part=_BEYOND)
                for method, label in _OTHER_METHODS.items()
            ),
            _row("l1_penalty", "gradient penalty, l1", _L1, part=_BEYOND, cpu="igam_learning_rate=0.06"),
            _ZERO,
        )),
    ),
    "best": Table(
        title="Best recipes: CIFAR-10, --fidelity=best beside the squared l2 norm of the paper",
        attacks=("clean", "pgd20", "apgd"),
        rows=_BEST,
        gains=(
            *((row.name, "fast") for row in _BEST if row.name != "fast"),
            *(("igam-mnist", control) for control in ("zero", "shuffled")),
        ),
    ),
}  # fmt: skip
