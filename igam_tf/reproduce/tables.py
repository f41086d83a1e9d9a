"""The paper's tables as data: rows, their flags for `igam_tf.train`, the published figures."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from igam_tf.experiments.recipes import recipe
from igam_tf.method.settings import PUBLISHED_TO_MEAN_UNIT

PGD_20 = ("clean", "fgsm", "pgd5", "pgd10", "pgd20")
PGD_100 = (*PGD_20, "pgd50", "pgd100")
PAPER_SECONDS = {"igam": 347.0, "pgd": 815.0}  # of an epoch, by method; §5.2 "Compute Time"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row of a table, which is one run.

    Attributes:
        name: name of its run folder.
        label: first cell in the table; the paper's where it has the row.
        flags: flags of `igam_tf.train`, beyond those that every row has.
        paper: accuracy in % for each of the table's attacks, as published, None where the paper has no
            such attack; empty: not in the paper.
        part: heading above the row; empty: the paper's own table.
        cpu: flags that take the place of these at `--preset=cpu`.
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
        gains: names of pairs of rows whose paired differences are given.
        cpu: what the title adds at `--preset=cpu`.
    """

    title: str
    attacks: tuple[str, ...]
    rows: tuple[TableRow, ...]
    gains: tuple[tuple[str, str], ...] = ()
    cpu: str = ""

    def at_preset(self, preset: str) -> "Table":
        """The rows at a preset.

        At cpu the objective has the same weights whatever the map and the source, and a student of
        J_t = 0 knows nothing of its teacher: rows J_t = 0 that differ in these alone are one there.
        """
        if preset != "cpu":
            return self
        kept: dict[Any, TableRow] = {}
        same: dict[str, str] = {}  # name of a row -> name of the row that stands for it
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
        """The same rows, trained for another task, of which the paper has no figures."""
        rows = tuple(
            dataclasses.replace(row, flags=row.flags | {"target": target}, paper=())
            for row in self.rows
        )
        return dataclasses.replace(self, title=f"{self.title}, target {target}", rows=rows)

    def with_attacks(self, attacks: Sequence[str]) -> "Table":
        """The same rows under these attacks, with the paper's figures for those that it has."""

        def under_these(row: TableRow) -> TableRow:
            published = dict(zip(self.attacks, row.paper, strict=bool(row.paper)))
            return dataclasses.replace(row, paper=tuple(map(published.get, attacks)))

        return dataclasses.replace(
            self, attacks=tuple(attacks), rows=tuple(map(under_these, self.rows))
        )

    @property
    def first_igam(self) -> TableRow:
        """The first row that trains with IGAM, whose J_t rows without a teacher are compared with."""
        return next(row for row in self.rows if row.method == "igam")


def _transfer(source: str, target: str, **flags: str) -> dict[str, str]:
    return {"source": source, "target": target} | flags


CPU_OBJECTIVE = {"paper": {name: value for name, (value, _) in recipe("cpu/paper").items()}}
_MNIST = _transfer("mnist", "cifar10")
_ABLATION = "Ablation, lambda_adv x lambda_diff"
_CONTROLS = "Controls, what stands for J_t"
_BEYOND = "Beyond the paper"

_MAIN = (
    TableRow(
        name="standard", label="Standard", flags=_MNIST | {"method": "standard"},
        paper=(95.0, 13.4, 0.0, 0.0, 0.0),
    ),
    TableRow(
        name="ft-mnist", label="FT-MNIST", flags=_MNIST | {"method": "finetune"},
        paper=(33.4, 1.51, 0.44, 0.15, 0.12),
    ),
    TableRow(name="igam-mnist", label="IGAM-MNIST", flags=_MNIST, paper=(93.6, 67.8, 63.6, 56.9, 43.5)),
    TableRow(
        name="pgd7", label="PGD7-trained", flags=_MNIST | {"method": "pgd"},
        paper=(87.3, 56.2, 55.5, 47.3, 45.9),
    ),
)  # fmt: skip


def _mnist(name: str, label: str, part: str, **flags: str) -> TableRow:
    return TableRow(name=name, label=label, part=part, flags=_MNIST | flags)


def _gains(name: str, rows: tuple[TableRow, ...]) -> tuple[tuple[str, str], ...]:
    """The row against each of the others."""
    return tuple((name, row.name) for row in rows if row.name != name)


_ZERO = _mnist("zero", "J_t = 0", _CONTROLS, teacher_gradient="zero")
_TABLE_1 = (
    *_MAIN,
    _mnist("no-adv", "lambda_adv = 0", _ABLATION, lambda_adv="0"),
    _mnist("no-diff", "lambda_diff = 0", _ABLATION, lambda_diff="0"),
    _ZERO,
    _mnist("shuffled", "J_t of another image", _CONTROLS, teacher_gradient="shuffled"),
    _mnist("plain", "J_t of a plain teacher", _CONTROLS, teacher_gradient="plain"),
)

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
_BASELINES = (
    *_MAIN,
    *(_mnist(method, label, _BEYOND, method=method) for method, label in _OTHER_METHODS.items()),
    TableRow(
        name="l1_penalty",
        label="gradient penalty, l1",
        part=_BEYOND,
        flags=_MNIST
        | {"method": "gradient_penalty", "diff_norm": "l1", "lambda_diff": repr(8 / 255)},
        cpu={"igam_learning_rate": "0.06"},
    ),
    _ZERO,
)


def _best(name: str, label: str, **flags: str) -> TableRow:
    return _mnist(name, label, "", fidelity="best", **flags)


_BEST = (
    _best("standard", "Standard", method="standard"),
    _best("ft-mnist", "FT-MNIST", method="finetune"),
    _mnist("igam-paper", "IGAM-MNIST, as in the paper", ""),
    _mnist("gradient_penalty", "gradient penalty, squared l2", "", method="gradient_penalty"),
    _best("l1-penalty", "gradient penalty, l1", method="gradient_penalty"),
    _best("igam-mnist", "IGAM-MNIST, l1"),
    _best("zero", "IGAM, l1, J_t = 0", teacher_gradient="zero"),
    _best("shuffled", "IGAM, l1, J_t of another image", teacher_gradient="shuffled"),
    *(
        _best(method, _OTHER_METHODS.get(method, "PGD7-trained"), method=method)
        for method in ("fast", "n_fgsm", "trades", "pgd")
    ),
)


def _downwards(name: str, label: str, paper: tuple[float, ...], **flags: str) -> TableRow:
    flags = _transfer("tiny_imagenet", "cifar10", **flags)
    return TableRow(name=name, label=label, flags=flags, paper=paper)


def _cifar100(
    name: str, label: str, source: str, paper: tuple[float, ...], **flags: str
) -> TableRow:
    return TableRow(
        name=name, label=label, flags=_transfer(source, "cifar100", **flags), paper=paper
    )


def _tiny_imagenet(name: str, label: str, source: str, **flags: str) -> TableRow:
    """Figure 5 has bars without numbers."""
    return TableRow(name=name, label=label, flags=_transfer(source, "tiny_imagenet", **flags))


def _with_controls(*rows: TableRow) -> dict[str, Any]:
    """`rows` and `gains` of a table: each IGAM row also with J_t = 0 and with another image's."""
    controls, gains = [], []
    for row in rows:
        if row.method != "igam":
            continue
        own = [
            TableRow(
                name=f"{row.name}-{kind}", label=f"{row.label}, {text}", part=_CONTROLS,
                flags=row.flags | {"teacher_gradient": kind}, cpu=row.cpu,
            )
            for kind, text in (("zero", "J_t = 0"), ("shuffled", "J_t of another image"))
        ]  # fmt: skip
        others = [other for other in rows if other.method != "igam"]
        gains += [(row.name, other.name) for other in (*others, *own)]
        controls += own
    return {"rows": (*rows, *controls), "gains": tuple(gains)}


_SCALED = (
    "the preset's lambda_adv {lambda_adv:g} and lambda_diff {lambda_diff:g} are the row (2, 10)"
)


def _weights(lambda_adv: float, lambda_diff: float, clean: float, pgd20: float) -> TableRow:
    """IGAM-CIFAR10 with weights as published, in the release's unit.

    At the cpu preset they are in proportion to its own, which stand for the table's (2, 10).
    """
    own = CPU_OBJECTIVE["paper"]
    cpu = {
        "lambda_adv": repr(lambda_adv / 2 * own["lambda_adv"]),
        "lambda_diff": repr(lambda_diff / 10 * own["lambda_diff"]),
    }
    flags = {
        "lambda_adv": f"{lambda_adv:g}",
        "lambda_diff": repr(lambda_diff * PUBLISHED_TO_MEAN_UNIT),
    }
    name, label = (
        text.format(lambda_adv, lambda_diff)
        for text in ("adv{:g}-diff{:g}", "lambda_adv {:g}, lambda_diff {:g}")
    )
    return dataclasses.replace(_cifar100(name, label, "cifar10", (clean, pgd20), **flags), cpu=cpu)


TABLES: dict[str, Table] = {
    "1": Table(
        title="Table 1: CIFAR-10, upwards transfer",
        attacks=PGD_20,
        rows=_TABLE_1,
        gains=_gains("igam-mnist", _TABLE_1),
    ),
    "2": Table(
        title="Table 2: CIFAR-10, downwards transfer",
        attacks=PGD_100,
        **_with_controls(
            _downwards("standard", "Standard", (95.0, 13.4, 0, 0, 0, 0, 0), method="standard"),
            _downwards(
                "ft-tiny-imagenet", "FT-TinyImagenet", (77.2, 37.7, 33.9, 28.0, 24.9, 23.0, 22.5),
                transform="resize", method="finetune",
            ),
            _downwards(
                "transpose-conv", "IGAM-TransposeConv", (93.2, 65.0, 58.8, 44.5, 32.4, 22.4, 18.7),
                transform="transpose_conv",
            ),
            _downwards(
                "random-pad", "IGAM-RandomPad", (88.3, 35.8, 43.9, 40.1, 38.6, 37.8, 37.6),
                transform="random_pad",
            ),
            _downwards(
                "pad", "IGAM-Pad", (87.9, 51.6, 52.2, 46.6, 44.0, 43.0, 42.5), transform="pad"
            ),
            _downwards(
                "upsize", "IGAM-Upsize", (88.7, 54.0, 52.5, 47.6, 45.1, 43.5, 43.0), transform="resize"
            ),
            _downwards(
                "pgd7", "PGD7-trained", (87.25, 56.22, 55.5, 47.3, 45.9, 45.4, 45.3), method="pgd"
            ),
        ),
    ),
    "3": Table(
        title="Table 3: CIFAR-100",
        attacks=PGD_20,
        **_with_controls(
            _cifar100("standard", "Standard", "mnist", (78.7, 7.95, 0.13, 0.03, 0), method="standard"),
            _cifar100(
                "ft-cifar10", "FT-CIFAR10", "cifar10", (49.3, 17.2, 15.3, 11.7, 10.5), method="finetune"
            ),
            _cifar100("igam-mnist", "IGAM-MNIST", "mnist", (73.16, 41.41, 33.09, 23.35, 17.67)),
            _cifar100("igam-cifar10", "IGAM-CIFAR10", "cifar10", (62.39, 34.31, 29.59, 24.05, 21.74)),
            _cifar100("pgd7", "PGD7-trained", "mnist", (60.4, 29.1, 29.3, 24.3, 23.5), method="pgd"),
        ),
    ),
    "4": Table(
        title="Table 4: IGAM-CIFAR10 with varying lambda_diff",
        cpu=_SCALED.format(**CPU_OBJECTIVE["paper"]),
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
        cpu=_SCALED.format(**CPU_OBJECTIVE["paper"]),
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
            _tiny_imagenet("standard", "Standard", "cifar10", method="standard"),
            _tiny_imagenet("ft-cifar10", "FT-CIFAR10", "cifar10", method="finetune"),
            _tiny_imagenet("ft-cifar100", "FT-CIFAR100", "cifar100", method="finetune"),
            _tiny_imagenet("cifar10-resize", "IGAM-CIFAR10-Resize", "cifar10", transform="resize"),
            _tiny_imagenet("cifar10-crop", "IGAM-CIFAR10-Crop", "cifar10", transform="crop"),
            _tiny_imagenet("cifar100-resize", "IGAM-CIFAR100-Resize", "cifar100", transform="resize"),
            _tiny_imagenet("cifar100-crop", "IGAM-CIFAR100-Crop", "cifar100", transform="crop"),
            _tiny_imagenet("pgd7", "PGD7-trained", "cifar10", method="pgd"),
        ),
    ),
    "baselines": Table(
        title="Baselines: CIFAR-10, the methods of the paper and others",
        attacks=PGD_20,
        rows=_BASELINES,
        gains=_gains("igam-mnist", _BASELINES),
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
