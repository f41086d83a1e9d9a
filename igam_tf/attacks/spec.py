"""Which attack, how strong: from the names on a command line to the settings that a result states."""

import dataclasses
import re
from collections.abc import Sequence

from igam_tf.attacks.losses import loss_named
from madry_models.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """One attack of an evaluation; eps and step_size are fractions of the pixel range.

    No restart at all is no attack: the clean images.
    """

    name: str
    eps: float = 0.0
    step_size: float = 0.0
    steps: int = 0
    restarts: int = 0
    loss: str | None = None
    random_start: bool = False


def attack_names(text: str) -> list[str]:
    """Names out of "clean,fgsm,pgd20": clean, fgsm, or pgd<k> for k steps of PGD.

    Raises:
        UserError: none at all, an unknown one, or one named twice.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not re.fullmatch(r"clean|fgsm|pgd[1-9]\d*", name):
            raise UserError(
                "expected attacks with commas between, each of them clean, fgsm or pgd<number of "
                f"steps>; received {name!r} in {text!r}"
            )
        if names.count(name) > 1:
            raise UserError(f"expected each attack once; received {name!r} twice in {text!r}")
    return names


def attack_specs(
    names: Sequence[str], *, eps: float, step_size: float, restarts: int, loss: str
) -> list[AttackSpec]:
    """The attacks of these names; FGSM is one step of eps from the image itself, as in the challenges.

    Args:
        names: from `attack_names`.
        eps, step_size: l-inf radius and PGD's step, as fractions of the pixel range.
        restarts: random starts of each PGD.
        loss: name in `LOSSES`.

    Raises:
        UserError: no such loss.
    """
    loss_named(loss)
    threat = {"eps": eps, "loss": loss}
    pgd = threat | {"step_size": step_size, "restarts": restarts, "random_start": True}
    kinds = {"clean": {}, "fgsm": threat | {"step_size": eps, "steps": 1, "restarts": 1}}
    return [
        AttackSpec(name=name, **kinds[name])
        if name in kinds
        else AttackSpec(name=name, steps=int(name.removeprefix("pgd")), **pgd)
        for name in names
    ]
