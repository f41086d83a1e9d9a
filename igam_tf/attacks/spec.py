"""Which attack, how strong: from the names on a command line to the settings that a result states."""

import dataclasses
import re
from collections.abc import Sequence

from igam_tf.attacks.losses import loss_named
from igam_tf.attacks.norms import check_norm
from madry_models.errors import UserError

# Croce and Hein's standard ensemble, in their order: each attacks only what still stands.
AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")
STEPS = 100  # of APGD and FAB
QUERIES = 5000  # of Square
TARGETS = 9  # classes that a targeted attack tries, those of the highest logits first

_NAME = re.compile(r"clean|fgsm|pgd[1-9]\d*|apgd-ce|apgd-dlr|apgd-t|fab-t|square|autoattack")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """One attack of an evaluation; eps and step_size are fractions of the pixel range.

    No run at all is no attack: the clean images.

    Attributes:
        name: row of the results.
        kind: "pgd", "apgd", "fab" or "square"; FGSM is one step of PGD.
        norm: "linf" or "l2", of the ball.
        steps: gradient steps, or queries of Square.
        restarts: random starts, each on what the one before left standing.
        targets: classes tried one after another, from the second highest logit on; 0: untargeted.
        random_start: whether each restart begins at a random point.
        after: row whose broken examples are not attacked again and count as broken here too.
    """

    name: str
    kind: str = "pgd"
    norm: str = "linf"
    eps: float = 0.0
    step_size: float = 0.0
    steps: int = 0
    restarts: int = 0
    targets: int = 0
    loss: str | None = None
    random_start: bool = False
    after: str | None = None

    @property
    def runs(self) -> int:
        """Passes over the examples: one for each restart and target."""
        return self.restarts * max(self.targets, 1)


def attack_names(text: str) -> list[str]:
    """Names out of "clean,fgsm,pgd20": clean, fgsm, pgd<k> for k steps of PGD, apgd-ce, apgd-dlr,
    apgd-t, fab-t, square, or autoattack.

    Raises:
        UserError: none at all, an unknown one, or one named twice.
    """  # fmt: skip
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(
                "expected attacks with commas between, each of them clean, fgsm, pgd<number of "
                "steps>, apgd-ce, apgd-dlr, apgd-t, fab-t, square or autoattack; "
                f"received {name!r} in {text!r}"
            )
        if names.count(name) > 1:
            raise UserError(f"expected each attack once; received {name!r} twice in {text!r}")
    return names


def attack_specs(
    names: Sequence[str],
    *,
    eps: float,
    step_size: float,
    restarts: int,
    loss: str,
    num_classes: int = 10,
    norm: str = "linf",
) -> list[AttackSpec]:
    """The attacks of these names; FGSM is one step of eps from the image itself, as in the challenges.

    Args:
        names: from `attack_names`; "autoattack" becomes four rows, the last of them its result.
        eps, step_size: radius and PGD's step, as fractions of the pixel range.
        restarts: random starts of each PGD; the other attacks have one.
        loss: of FGSM and PGD, name in `LOSSES`.
        num_classes: a targeted attack tries at most all but the true one.
        norm: "linf" or "l2".

    Raises:
        UserError: no such loss or norm, or too few classes for a loss that AutoAttack needs.
    """
    loss_named(loss)
    check_norm(norm)
    threat = {"norm": norm, "eps": eps, "restarts": 1}
    targets = {"targets": min(TARGETS, num_classes - 1)}
    apgd = threat | {"kind": "apgd", "steps": STEPS, "random_start": True}
    kinds = {
        "clean": {"norm": norm},
        "fgsm": threat | {"loss": loss, "step_size": eps, "steps": 1},
        "apgd-ce": apgd | {"loss": "xent"},
        "apgd-dlr": apgd | {"loss": "dlr"},
        "apgd-t": apgd | targets | {"loss": "dlr_targeted"},
        "fab-t": threat | targets | {"kind": "fab", "steps": STEPS, "loss": "distance"},
        "square": threat | {"kind": "square", "steps": QUERIES, "loss": "cw", "random_start": True},
    }
    least = {"apgd-dlr": 3, "apgd-t": 4, "autoattack": 4}
    specs = []
    for name in names:
        if num_classes < least.get(name, 0):
            raise UserError(
                f"expected at least {least[name]} classes for {name}, whose difference of logits "
                f"ratio is not defined below; received {num_classes}"
            )
        if name == "autoattack":
            rows = [f"autoattack/{part}" for part in AUTOATTACK[:-1]] + ["autoattack"]
            for part, row, after in zip(AUTOATTACK, rows, [None, *rows], strict=False):
                specs.append(AttackSpec(name=row, after=after, **kinds[part]))
        elif name in kinds:
            specs.append(AttackSpec(name=name, **kinds[name]))
        else:
            pgd = {"loss": loss, "step_size": step_size, "steps": int(name.removeprefix("pgd"))}
            specs.append(
                AttackSpec(name=name, random_start=True, **(threat | pgd | {"restarts": restarts}))
            )
    return specs
