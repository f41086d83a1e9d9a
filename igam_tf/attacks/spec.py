"""The settings of an attack that a result reports, and what an evaluation needs of an attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from igam_tf.attacks.draws import Draws
from igam_tf.common.lazy import tf

STEPS = 100  # of APGD and FAB, as in AutoAttack
BATCH_NORMS = ("inference", "batch")  # by moving averages, or by each batch's statistics
# Name of a setting that few attacks have -> what it is in the others.
_RARE = {"eot": 1, "aim": None, "clip_first": False}
TARGETS = 9  # classes that a targeted attack tries, those of the highest logits first


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """One attack of an evaluation; eps and step_size are fractions of the pixel range.

    The defaults, without a restart, mean the clean images.

    Attributes:
        name: of its row in the results.
        kind: key of `igam_tf.attacks.kinds.KINDS`; FGSM is one step of "pgd".
        norm: "linf", "l2" or "l1", of the ball.
        steps: gradient steps, or queries of Square.
        restarts: starts, each on the examples that the previous one did not break.
        targets: number of target classes, from the second highest logit on; 0 means untargeted.
        random_start: whether the first start is at a random point too, not at the image.
        eot: draws of a random network over which each gradient is averaged.
        aim: the class that has to be reached: "random", "least_likely" or a number; None: any.
        clip_first: of PGD in l2, see `igam_tf.attacks.pgd`.
        after: name of an earlier attack; examples that it broke are not attacked again, and count as
            broken by this attack too.
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
    eot: int = 1
    aim: str | None = None
    clip_first: bool = False

    @property
    def runs(self) -> int:
        """Passes over the examples: one for each restart and target."""
        return self.restarts * max(self.targets, 1)

    @property
    def targeted(self) -> bool:
        """Whether its loss has a target: one of several `targets`, or its aim."""
        return bool(self.targets or self.aim)

    def rare(self) -> dict[str, Any]:
        """The settings that few attacks have, by name, where this one has them."""
        return {
            name: getattr(self, name) for name, none in _RARE.items() if getattr(self, name) != none
        }

    def settings(self) -> dict[str, Any]:
        """What affects its result, by name: all but its name and its place in the order.

        Rare ones count where it has them, so that journals from before them remain in use.
        """
        left_out = {"name", "after"} | _RARE.keys()
        common = {k: v for k, v in dataclasses.asdict(self).items() if k not in left_out}
        return common | self.rare()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threat:
    """What a user chooses for all attacks at once.

    Attributes:
        eps, step_size: radius and PGD's step, as fractions of the pixel range.
        restarts: random starts of each PGD.
        loss: of FGSM and PGD.
        num_classes: a targeted attack tries at most all but the true one.
        norm: "linf", "l2" or "l1".
        starts: of APGD without a target class, in l-inf and l2.
        eot: draws of a random network over which APGD averages each gradient.
        aim: the class that has to be reached, see `AttackSpec`.
    """

    eps: float
    step_size: float
    restarts: int
    loss: str
    num_classes: int
    norm: str
    starts: int = 1
    eot: int = 1
    aim: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What an evaluation needs of an attack beside its pure function; one for each attack's file.

    Attributes:
        names: regular expression of the names on a command line.
        shown: those names, as errors and help texts print them.
        spec: (name, threat) -> the row's settings.
        draws: (spec, shape of an image, generator, eps, dtype) -> one image's random numbers; eps
            in the pixel unit.
        run: (logits_fn, x, y, spec, *, eps, bounds, step_size, steps, target, **draws) -> x_adv, with
            eps, bounds and step_size in the pixel unit, step_size and steps as tensors, and target
            [B], or None where the attack has no target.
        aims: whether it supports an aim; it is then in the spec, and `run` gets the classes as target.
        on_batch_statistics: whether it supports batch norm in training mode.
        traced_by_steps: whether each number of steps needs its own graph.
        begin: (x, spec, *, eps, bounds, **draws) -> the point that `run` begins at; `run` then
            takes it, or the x_adv of fewer steps, as `start`, with the same result as one run of
            all steps. None means that the attack cannot be continued.
    """

    names: str
    shown: str
    spec: Callable[[str, Threat], AttackSpec]
    draws: Callable[[AttackSpec, tuple[int, ...], np.random.Generator, float, type], Draws]
    run: Callable[..., tf.Tensor]
    aims: bool = False
    on_batch_statistics: bool = False
    traced_by_steps: bool = True
    begin: Callable[..., tf.Tensor] | None = None
