"""Hyperparameters of the objective (eq. 14), each with its meaning, choices and range."""

import dataclasses
import math
from collections.abc import Collection
from functools import partial
from typing import Any, ClassVar

from igam_tf.common.errors import UserError
from igam_tf.formulas import losses
from igam_tf.method.objectives import METHODS

# Values of `needs`, see `setting`.
J, ADV, DIFF, ATTACK = ("matched_to",), ("discriminator",), ("difference",), ("adversarial",)
ONE_OR_MORE, POSITIVE = (1, math.inf), (1e-6, math.inf)
# The published lambda_diff multiplies a sum over 32 images, with J per pixel of 0..255 (R1, R2).
# For a mean over the batch, with J per pixel of 0..1, the same weight is smaller by this factor.
PUBLISHED_TO_MEAN_UNIT = 32 / 255**2


def setting(
    default: Any,
    doc: str,
    *,
    group: str,
    choices: Collection[str] | None = None,
    within: tuple[float, float] = (0, math.inf),
    needs: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with its help text and the values that it allows.

    Args:
        default: its value if none is given.
        doc: its help text, a whole sentence with the unit.
        group: the heading of the help text that lists it.
        choices: allowed texts; None allows any.
        within: smallest and largest allowed number.
        needs: which methods use it: those with one of these attributes, or one of these names.
    """
    metadata = {"doc": doc, "group": group, "choices": choices, "within": within, "needs": needs}
    return dataclasses.field(default=default, metadata=metadata)


_objective = partial(setting, group="objective")
_discriminator = partial(setting, group="discriminator")
_baselines = partial(setting, group="baselines")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Hyperparameters of the objective; the defaults are those of IGAM-MNIST in the paper (Table 1).

    A method uses only the settings of its own terms (`igam_tf.method.objectives.METHODS`): without
    f_disc none called disc_ or adv_, and without L_diff none called diff_; only trades uses
    `trades_beta`.

    Raises:
        UserError: a value outside its choices or its range, or two that contradict each other.

    Example:
        >>> Settings(lambda_diff=1.0, second_order="finite_difference").match_every
        1
    """

    # What error messages write before a name: nothing in Python, "--" on a command line.
    prefix: ClassVar[str] = ""

    method: str = setting(
        "igam",
        "The method that trains the student; docs/methods.md says what each one does.",
        group="experiment",
        choices=METHODS,
    )
    teacher_gradient: str = _objective(
        "teacher",
        "What J_s is matched to: teacher is J_t itself, and the others are controls. zero: "
        "gradients set to zero; shuffled: J_t of the next image in the batch; plain: J_t of a "
        "teacher that was trained without an attack.",
        choices=("teacher", "zero", "shuffled", "plain"),
        needs=("matches_teacher",),
    )
    lambda_adv: float = _objective(1.0, "Weight of L_adv (eq. 14).", needs=ADV)
    lambda_diff: float = _objective(
        100 * PUBLISHED_TO_MEAN_UNIT,
        "Weight of L_diff (eq. 14). Its scale depends on the unit of J (gradient_pixel_max) and "
        "on diff_reduction.",
        needs=DIFF,
    )
    igam_start: int = _objective(
        0,
        "Train on L_xent alone for this many steps before L_adv and L_diff are switched on (R8).",
        needs=J,
    )
    ramp_steps: int = _objective(
        0,
        "Linear warm-up steps: of lambda_adv and lambda_diff, from igam_start on; for methods "
        "with adversarial examples of eps and the step size, from the first step on.",
        needs=J + ATTACK,
    )
    match_every: int = _objective(
        1,
        "Apply L_adv and L_diff every N steps, with N times the weight; the other steps train on "
        "L_xent alone (Karras et al. 2020, arXiv 1912.04958). 1 is Algorithm 1.",
        within=ONE_OR_MORE,
        needs=J,
    )
    input_gradient: str = _objective(
        "xent",
        "The quantity whose input gradient is J: xent is the cross-entropy (eq. 8-9), softmax the "
        "probability of the true class (R1).",
        choices=("xent", "softmax"),
        needs=J,
    )
    gradient_pixel_max: float = _objective(
        1.0,
        "Unit of J: the derivative is with respect to pixels in 0..gradient_pixel_max. The "
        "release uses 255 (R1).",
        within=POSITIVE,
        needs=J,
    )
    diff_norm: str = _objective(
        "squared_l2",
        "Norm of J_s - J_t in L_diff. squared_l2 is eq. 13; l1, the dual of l-inf, suits l-inf "
        "attacks; l2 suits l2 attacks. The scale of lambda_diff depends on it: with l1 or l2 it "
        "is a radius, such as 8/255 = 0.031.",
        choices=tuple(losses.DIFF_NORMS),
        needs=("in_norm",),
    )
    diff_reduction: str = _objective(
        "mean",
        "How L_diff is reduced over the global batch: to its mean, or to its sum (R2).",
        choices=("mean", "sum"),
        needs=DIFF,
    )
    adv_reduction: str = _objective(
        "sum_of_means",
        "How L_adv is reduced over the global batch: sum_of_means is eq. 10; mean_of_both is the "
        "mean cross-entropy over the 2B gradients, which is half of it (R3).",
        choices=("sum_of_means", "mean_of_both"),
        needs=ADV,
    )
    teacher_batch_norm: str = _objective(
        "inference",
        "Batch norm of the teacher when it computes J_t: with moving averages, or with batch "
        "statistics (R6).",
        choices=("inference", "batch"),
        needs=("matches_teacher",),
    )
    second_order: str = _objective(
        "exact",
        "How the update is differentiated through J_s: exact uses double back-propagation; "
        "finite_difference takes the difference of two ordinary gradients and needs "
        "input_gradient=xent.",
        choices=("exact", "finite_difference"),
        needs=J,
    )
    difference_length: float = _objective(
        0.1,
        "With second_order=finite_difference: mean l2 length of the step from x, in pixels of "
        "0..1.",
        within=(1e-12, math.inf),
        needs=J,
    )
    disc_every: int = _discriminator(
        10,
        "k: update the discriminator at every k-th step that uses J.",
        within=ONE_OR_MORE,
        needs=ADV,
    )
    disc_view: str = _discriminator(
        "teacher",
        "The part of J that f_disc sees: teacher is the part that the teacher can see (§4.3.2); "
        "all is the whole J.",
        choices=("teacher", "all"),
        needs=ADV,
    )
    disc_gradients: str = _discriminator(
        "same",
        "J_s in the discriminator's step: same reuses that of the student's step (Algorithm 1); "
        "recomputed computes it again after the student's update (R9).",
        choices=("same", "recomputed"),
        needs=ADV,
    )

    pgd_steps: int = _baselines(
        7,
        "With --method=pgd, trades or ard: number of attack steps; their size is the data set's.",
        within=ONE_OR_MORE,
        needs=("many_steps",),
    )
    trades_beta: float = _baselines(
        6.0, "With --method=trades: weight of KL(p(x) || p(x_adv)).", needs=("trades",)
    )
    ard_alpha: float = _baselines(
        1.0,
        "With --method=ard: weight of the teacher's term; the labels have 1 - ard_alpha.",
        within=(0, 1),
        needs=("ard",),
    )
    ard_temperature: float = _baselines(
        30.0, "With --method=ard: temperature of both softmaxes.", within=POSITIVE, needs=("ard",)
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            self._check(field)
        if self.second_order == "finite_difference" and self.input_gradient != "xent":
            raise UserError(
                f"expected {self.prefix}input_gradient=xent with "
                f"{self.prefix}second_order=finite_difference, which needs the same loss for J "
                f"and for the update; received {self.prefix}input_gradient={self.input_gradient}"
            )

    def _check(self, field: dataclasses.Field) -> None:
        name, value = self.prefix + field.name, getattr(self, field.name)
        choices, (least, most) = field.metadata["choices"], field.metadata["within"]
        if choices and value not in tuple(choices):
            raise UserError(f"expected {name} among {', '.join(choices)}; received {value!r}")
        numbers = value if isinstance(value, tuple) else (value,)
        if field.type in (int, float) and not isinstance(value, int | float):
            raise UserError(f"expected {name} as a number; received {value!r}")
        if any(
            not (math.isfinite(n) and least <= n <= most) for n in numbers if not isinstance(n, str)
        ):
            wanted = f"within {least}..{most}" if math.isfinite(most) else f"of at least {least}"
            received = ",".join(map(str, numbers))
            raise UserError(f"expected {name} {wanted}; received {received}")
