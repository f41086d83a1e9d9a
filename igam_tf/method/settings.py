"""Hyperparameters of the objective (eq. 14), each with its meaning, choices and range."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any, ClassVar

from igam_tf.common.errors import UserError
from igam_tf.formulas import losses
from igam_tf.method.objectives import METHODS

# What reads a setting, see `setting`.
J, ADV, DIFF, ATTACK = ("matched_to",), ("discriminator",), ("difference",), ("adversarial",)
ONE_OR_MORE, POSITIVE = (1, math.inf), (1e-6, math.inf)
# The published lambda_diff weighs a sum over 32 images of J in 0..255 pixels (R1, R2). On a mean
# over the batch of J in 0..1 pixels the same weight is smaller by this factor.
PUBLISHED_TO_MEAN_UNIT = 32 / 255**2


def setting(
    default: Any,
    doc: str,
    group: str,
    *,
    choices: Collection[str] | None = None,
    within: tuple[float, float] = (0, math.inf),
    needs: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with what a help text and a check need.

    Args:
        default: its value where nobody says otherwise.
        doc: a whole phrase, with the unit.
        group: heading of the help text below which it stands.
        choices: of a text; None: any.
        within: least and largest number, both allowed.
        needs: what reads it: methods that have one of these attributes, or one of these names.
    """
    metadata = {"doc": doc, "group": group, "choices": choices, "within": within, "needs": needs}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Hyperparameters of the objective; the defaults are those of IGAM-MNIST in the paper (Table 1).

    A method reads what its terms need: without f_disc nothing called disc_ or adv_, without L_diff
    nothing called diff_, `trades_beta` for trades alone (`igam_tf.method.objectives.METHODS`).

    Raises:
        UserError: a value outside its choices or its range, or two that contradict each other.

    Example:
        >>> Settings(lambda_diff=1.0, second_order="finite_difference").match_every
        1
    """

    # How a setting is written where it is set: `name` in code, `--name` on a command line.
    prefix: ClassVar[str] = ""

    method: str = setting(
        "igam",
        "The method that trains the student; docs/methods.md says what each one does.",
        "experiment",
        choices=METHODS,
    )
    teacher_gradient: str = setting(
        "teacher",
        "What stands in the place of J_t: teacher, J_t itself. The others are controls: zero; "
        "shuffled, the J_t of the next image of the batch; plain, J_t of a teacher that was trained "
        "without an attack.",
        "objective",
        choices=("teacher", "zero", "shuffled", "plain"),
        needs=("matches_teacher",),
    )
    lambda_adv: float = setting(1.0, "Weight of L_adv (eq. 14).", "objective", needs=ADV)
    lambda_diff: float = setting(
        100 * PUBLISHED_TO_MEAN_UNIT,
        "Weight of L_diff (eq. 14). It belongs to the unit of J (gradient_pixel_max) and to "
        "diff_reduction.",
        "objective",
        needs=DIFF,
    )
    igam_start: int = setting(
        0, "Steps of plain training before both terms are switched on (R8).", "objective", needs=J
    )
    ramp_steps: int = setting(
        0,
        "Steps over which what makes robust grows evenly from 0 to its value: both weights, from "
        "igam_start on; with adversarial examples eps and the step, from the beginning.",
        "objective",
        needs=J + ATTACK,
    )
    match_every: int = setting(
        1,
        "J is looked at in every so many steps, with both weights so many times as large; the steps "
        "between are plain ones (Karras et al. 2020, arXiv 1912.04958). 1 is Algorithm 1.",
        "objective",
        within=ONE_OR_MORE,
        needs=J,
    )
    input_gradient: str = setting(
        "xent",
        "What J is the gradient of: xent, the cross-entropy (eq. 8-9); softmax, the true class's "
        "probability (R1).",
        "objective",
        choices=("xent", "softmax"),
        needs=J,
    )
    gradient_pixel_max: float = setting(
        1.0,
        "J is per unit of pixels in 0..gradient_pixel_max; 255 in the release (R1).",
        "objective",
        within=POSITIVE,
        needs=J,
    )
    diff_norm: str = setting(
        "squared_l2",
        "Norm of J_s - J_t in L_diff: squared_l2, eq. 13; l1, the dual of l-inf, which suits attacks "
        "in l-inf; l2, for attacks in l2. lambda_diff belongs to it: with l1 or l2 it is a radius, "
        "such as 8/255 = 0.031.",
        "objective",
        choices=tuple(losses.DIFF_NORMS),
        needs=("in_norm",),
    )
    diff_reduction: str = setting(
        "mean", "L_diff over the global batch: its mean, or its sum (R2).", "objective",
        choices=("mean", "sum"), needs=DIFF,
    )  # fmt: skip
    adv_reduction: str = setting(
        "sum_of_means",
        "L_adv over the global batch: sum_of_means, eq. 10; mean_of_both, the mean cross-entropy over "
        "the 2B gradients, which is half of it (R3).",
        "objective",
        choices=("sum_of_means", "mean_of_both"),
        needs=ADV,
    )
    teacher_batch_norm: str = setting(
        "inference",
        "Batch norm of the teacher in J_t: by moving averages, or by batch statistics (R6).",
        "objective",
        choices=("inference", "batch"),
        needs=("matches_teacher",),
    )
    second_order: str = setting(
        "exact",
        "The update's gradient through J_s: exact, by double back-propagation; finite_difference, of "
        "two ordinary gradients, for input_gradient=xent alone.",
        "objective",
        choices=("exact", "finite_difference"),
        needs=J,
    )
    difference_length: float = setting(
        0.1,
        "Of second_order=finite_difference: mean l2 length of the step from x, in pixels of 0..1.",
        "objective",
        within=(1e-12, math.inf),
        needs=J,
    )
    disc_every: int = setting(
        10,
        "k: steps that look at J for each step of the discriminator.",
        "discriminator",
        within=ONE_OR_MORE,
        needs=ADV,
    )
    disc_view: str = setting(
        "teacher",
        "What f_disc sees of J: teacher, what the teacher can see (§4.3.2); all.",
        "discriminator",
        choices=("teacher", "all"),
        needs=ADV,
    )
    disc_gradients: str = setting(
        "same",
        "J_s of the discriminator's step: same as in the student's (Algorithm 1); recomputed after it "
        "(R9).",
        "discriminator",
        choices=("same", "recomputed"),
        needs=ADV,
    )

    pgd_steps: int = setting(
        7,
        "With --method=pgd, trades or ard: steps of the attack, of the data set's step size.",
        "baselines",
        within=ONE_OR_MORE,
        needs=("many_steps",),
    )
    trades_beta: float = setting(
        6.0,
        "With --method=trades: weight of KL(p(x) || p(x_adv)).",
        "baselines",
        needs=("trades",),
    )
    ard_alpha: float = setting(
        1.0,
        "With --method=ard: weight of the teacher against the labels.",
        "baselines",
        within=(0, 1),
        needs=("ard",),
    )
    ard_temperature: float = setting(
        30.0,
        "With --method=ard: temperature of both softmaxes.",
        "baselines",
        within=POSITIVE,
        needs=("ard",),
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            self._check(field)
        if self.second_order == "finite_difference" and self.input_gradient != "xent":
            raise UserError(
                f"expected {self.prefix}input_gradient=xent with {self.prefix}second_order="
                "finite_difference, which takes J and the update from one loss; received "
                f"{self.prefix}input_gradient={self.input_gradient}"
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
