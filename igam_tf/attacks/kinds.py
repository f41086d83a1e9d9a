"""The attacks by name. To add one, write a file with a `KIND`, and add a line here."""

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np

from igam_tf.attacks.apgd import KIND as APGD
from igam_tf.attacks.attack_losses import loss_named
from igam_tf.attacks.draws import Draws, for_each
from igam_tf.attacks.fab import KIND as FAB
from igam_tf.attacks.norms import check_norm
from igam_tf.attacks.pgd import KIND as PGD
from igam_tf.attacks.spec import AttackSpec, Kind, Threat
from igam_tf.attacks.square import KIND as SQUARE
from igam_tf.common.checks import expect
from igam_tf.common.errors import UserError

KINDS: dict[str, Kind] = {"pgd": PGD, "apgd": APGD, "fab": FAB, "square": SQUARE}


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Attacks of which each gets only the examples that are robust to the previous ones.

    Attributes:
        parts: their names, in order.
        starts, eot: see `igam_tf.attacks.spec.Threat`.
    """

    parts: tuple[str, ...]
    starts: int = 1
    eot: int = 1


# The versions of AutoAttack in the authors' order, and settings: `set_version` in
# autoattack/autoattack.py of github.com/fra31/auto-attack, commit a392200. "apgd" is the standard
# version's first half, which leaves the rest little to find.
ENSEMBLES = {
    "autoattack": Ensemble(("apgd-ce", "apgd-t", "fab-t", "square")),
    "autoattack-plus": Ensemble(
        ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"), starts=5
    ),
    "autoattack-rand": Ensemble(("apgd-ce", "apgd-dlr"), eot=20),
    "apgd": Ensemble(("apgd-ce", "apgd-t")),
}
# What version "custom" is made of; its own settings are those of the constructor there.
CUSTOM, CUSTOM_STARTS = "autoattack:", 5
_PARTS = ENSEMBLES["autoattack-plus"].parts
SHOWN = ", ".join(
    ["clean", *(kind.shown for kind in KINDS.values()), *ENSEMBLES, f"{CUSTOM}<attack>+<attack>"]
)


def _ensemble(name: str) -> Ensemble | None:
    """The ensemble of this name, if it is one.

    Raises:
        UserError: a custom one with parts that AutoAttack does not have, or one of them twice.
    """
    if not name.startswith(CUSTOM):
        return ENSEMBLES.get(name)
    parts = tuple(name.removeprefix(CUSTOM).split("+"))
    if {*parts} - {*_PARTS} or len({*parts}) < len(parts):
        raise UserError(
            f"expected {CUSTOM} and different ones of {', '.join(_PARTS)}, joined by +, such as "
            f"{CUSTOM}apgd-ce+square; received {name!r}"
        )
    return Ensemble(parts, starts=CUSTOM_STARTS)


def _kind_of(name: str) -> Kind | None:
    return next((kind for kind in KINDS.values() if re.fullmatch(kind.names, name)), None)


def attack_names(text: str | Sequence[str]) -> list[str]:
    """Names out of "clean,fgsm,pgd20", or of a list: "clean", an ensemble, or an attack in `KINDS`.

    The ensembles are those of `ENSEMBLES`, and "autoattack:apgd-ce+square" of any parts of them.

    Raises:
        UserError: there is none, or one is unknown or named twice.

    Example:
        >>> attack_names("clean, pgd20")
        ['clean', 'pgd20']
    """
    text = text if isinstance(text, str) else ",".join(text)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name != "clean" and _ensemble(name) is None and _kind_of(name) is None:
            raise UserError(
                f"expected attacks separated by commas, each of them one of {SHOWN}; received "
                f"{name!r} in {text!r}"
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
    individual: bool = False,
    targets: str | int | None = None,
) -> list[AttackSpec]:
    """The attacks of these names.

    Args:
        names: from `attack_names`; an ensemble becomes a row for each attack, the last its result.
        eps, step_size, restarts, loss, num_classes, norm: see `igam_tf.attacks.spec.Threat`.
        individual: whether each attack of an ensemble gets all examples that are right clean; then
            none is the ensemble's result.
        targets: the class that PGD, apgd-ce, apgd-dlr and Square have to reach: "random" (any but the
            label), "least_likely", or a class; None: any class but the label.

    Raises:
        UserError: no such loss, norm or target, an attack that has none, or too few classes for a
            loss that an ensemble needs.
    """
    loss_named(loss)
    check_norm(norm)
    aim = _checked_aim(names, targets, num_classes)
    threat = Threat(
        eps=eps,
        step_size=step_size,
        restarts=restarts,
        loss=loss,
        num_classes=num_classes,
        norm=norm,
        aim=aim,
    )
    specs = []
    for name in names:
        if name == "clean":
            specs.append(AttackSpec(name=name, norm=norm))
        elif ensemble := _ensemble(name):
            expect(
                name != "autoattack-plus" or norm != "l1", f"{name} with norm linf or l2", norm,
                "its authors set it for these alone; in l1 take autoattack",
            )  # fmt: skip
            own = dataclasses.replace(threat, starts=ensemble.starts, eot=ensemble.eot)
            rows = [f"{name}/{part}" for part in ensemble.parts]
            if not individual:
                rows[-1] = name
            before = [None] * len(rows) if individual else [None, *rows[:-1]]
            for part, row, after in zip(ensemble.parts, rows, before, strict=True):
                spec = _kind_of(part).spec(part, own)
                specs.append(dataclasses.replace(spec, name=row, after=after))
        else:
            specs.append(_kind_of(name).spec(name, threat))
    return specs


AIMS = ("random", "least_likely")
_WITH_AIM = "fgsm, pgd<steps>, apgd-ce, apgd-dlr and square"


def _checked_aim(names: Sequence[str], targets: str | int | None, num_classes: int) -> str | None:
    """`targets` as a spec has it, checked for these attacks."""
    if targets is None:
        return None
    aim = str(targets)
    expect(
        aim in AIMS or (re.fullmatch(r"\d{1,9}", aim) and int(aim) < num_classes),
        f"targets as {', '.join(AIMS)} or a class of 0..{num_classes - 1}", aim,
    )  # fmt: skip
    for name in names:
        kind = None if _ensemble(name) else _kind_of(name)
        able = name == "clean" or (kind and kind.aims and name != "apgd-t")
        expect(able, f"{_WITH_AIM} alone with targets={aim}", name)
    return aim if aim in AIMS else str(int(aim))


_AIM = 2**62  # of its own random numbers, which no restart has


def random_inputs(
    spec: AttackSpec,
    shape: tuple[int, ...],
    indices: Iterable[int],
    *,
    eps: float,
    seed: int,
    restart: int,
    dtype: type,
) -> Draws:
    """The random numbers of an attack on these examples, of images of this shape, eps in pixels."""
    draws = KINDS[spec.kind].draws
    spec = dataclasses.replace(spec, random_start=spec.random_start or restart > 0)
    drawn = for_each(
        lambda generator: draws(spec, shape, generator, eps, dtype),
        indices, seed=seed, restart=restart,
    )  # fmt: skip
    if spec.aim == "random":  # the same class for every restart and attack
        of_class = lambda generator: {"aim": generator.random(dtype=np.float32)}  # noqa: E731
        drawn |= for_each(of_class, indices, seed=seed, restart=_AIM)
    return drawn
