"""The attacks by name. To add one, write a file with a `KIND`, and add a line here."""

import dataclasses
import re
from collections.abc import Iterable, Sequence

from igam_tf.attacks.apgd import KIND as APGD
from igam_tf.attacks.attack_losses import loss_named
from igam_tf.attacks.draws import Draws, for_each
from igam_tf.attacks.fab import KIND as FAB
from igam_tf.attacks.norms import check_norm
from igam_tf.attacks.pgd import KIND as PGD
from igam_tf.attacks.spec import AttackSpec, Kind, Threat
from igam_tf.attacks.square import KIND as SQUARE
from igam_tf.common.errors import UserError

KINDS: dict[str, Kind] = {"pgd": PGD, "apgd": APGD, "fab": FAB, "square": SQUARE}
# Each attack gets only the examples that are robust to the previous ones. "autoattack" is Croce and
# Hein's standard ensemble in their order; "apgd" is its first half, which leaves the rest little to
# find.
ENSEMBLES = {
    "autoattack": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "apgd": ("apgd-ce", "apgd-t"),
}
SHOWN = ", ".join(["clean", *(kind.shown for kind in KINDS.values()), *ENSEMBLES])


def _kind_of(name: str) -> Kind | None:
    return next((kind for kind in KINDS.values() if re.fullmatch(kind.names, name)), None)


def attack_names(text: str) -> list[str]:
    """Names out of "clean,fgsm,pgd20": "clean", one of `ENSEMBLES`, or one of an attack in `KINDS`.

    Raises:
        UserError: there is none, or one is unknown or named twice.

    Example:
        >>> attack_names("clean, pgd20")
        ['clean', 'pgd20']
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ("clean", *ENSEMBLES) and _kind_of(name) is None:
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
) -> list[AttackSpec]:
    """The attacks of these names.

    Args:
        names: from `attack_names`; an ensemble becomes a row for each attack, the last its result.
        eps, step_size, restarts, loss, num_classes, norm: see `igam_tf.attacks.spec.Threat`.

    Raises:
        UserError: no such loss or norm, or too few classes for a loss that an ensemble needs.
    """
    loss_named(loss)
    check_norm(norm)
    threat = Threat(
        eps=eps,
        step_size=step_size,
        restarts=restarts,
        loss=loss,
        num_classes=num_classes,
        norm=norm,
    )
    specs = []
    for name in names:
        if name == "clean":
            specs.append(AttackSpec(name=name, norm=norm))
        elif parts := ENSEMBLES.get(name):
            rows = [*(f"{name}/{part}" for part in parts[:-1]), name]
            for part, row, after in zip(parts, rows, [None, *rows], strict=False):
                spec = _kind_of(part).spec(part, threat)
                specs.append(dataclasses.replace(spec, name=row, after=after))
        else:
            specs.append(_kind_of(name).spec(name, threat))
    return specs


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
    return for_each(
        lambda generator: draws(spec, shape, generator, eps, dtype),
        indices, seed=seed, restart=restart,
    )  # fmt: skip
