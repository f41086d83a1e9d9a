"""The methods that train a student, each with one entry and one formula.

    match J_s, use no adversarial examples            igam, l2, cosine, jarn, gradient_penalty
    train on adversarial examples                  pgd, fast, n_fgsm, trades, ard
    neither                                          standard, finetune

To add a method, add an entry to METHODS; `igam_tf.method.new_trainer.trainer` then makes its
trainer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from igam_tf.common.lazy import keras, tf
from igam_tf.formulas import losses

# x [B,H,W,C] -> logits [B,K] of the student in training mode
Forward = Callable[["tf.Tensor"], "tf.Tensor"]
Loss = Callable[["tf.Tensor", "tf.Tensor"], "tf.Tensor"]  # logits [B,K], y [B] -> [B]
# (loss [B], terms to report, each [B], logits whose accuracy is reported [B,K])
Objective = tuple["tf.Tensor", dict[str, "tf.Tensor"], "tf.Tensor"]


def adversarial_xent(
    f: Forward, x: tf.Tensor, x_adv: tf.Tensor, y: tf.Tensor, *, xent: Loss = losses.xent
) -> Objective:
    """L_xent at the adversarial example (eq. 3; Madry et al. 2018)."""
    logits = f(x_adv)
    l_xent = xent(logits, y)
    return l_xent, {"L_xent": l_xent}, logits


def trades(
    f: Forward,
    x: tf.Tensor,
    x_adv: tf.Tensor,
    y: tf.Tensor,
    *,
    beta: float,
    xent: Loss = losses.xent,
) -> Objective:
    """L_xent(x) + `beta` KL(p(x) || p(x_adv)) (Zhang et al. 2019, arXiv 1901.08573, eq. 5)."""
    logits = f(x)
    terms = {"L_xent": xent(logits, y), "L_kl": losses.kl(logits, f(x_adv))}
    return terms["L_xent"] + beta * terms["L_kl"], terms, logits


def ard(
    f: Forward,
    x: tf.Tensor,
    x_adv: tf.Tensor,
    y: tf.Tensor,
    *,
    teacher: keras.Model,
    alpha: float,
    temperature: float,
    xent: Loss = losses.xent,
) -> Objective:
    """(1 - alpha) L_xent(x) + alpha t^2 KL(teacher's p_t(x) || student's p_t(x_adv)).

    t is `temperature`, p_t the softmax of logits / t (Goldblum et al. 2020, arXiv 1905.09747).
    """
    logits, t = f(x), temperature
    l_kl = losses.kl(teacher(x, training=False) / t, f(x_adv) / t)
    terms = {"L_xent": xent(logits, y), "L_kl": l_kl}
    return (1 - alpha) * terms["L_xent"] + alpha * t**2 * l_kl, terms, logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """What one method needs, and what it minimises besides L_xent and weight decay.

    Attributes:
        teacher: whether it needs f_t of stages 0 and 1. If this is all it has, f_t itself is the
            student.
        matched_to: what J_s is matched to: "teacher" (J_t), "zero" or "image" (x itself); None
            means that J_s is not used.
        difference: (J_s, what it is matched to) -> [B], the term that lambda_diff multiplies;
            L_diff is in the norm of `diff_norm`. A difference that draws random numbers has a third
            argument, `key`, [2] int32, which depends only on the trainer's seed, the step and the
            replica.
        discriminator: whether it has f_disc, and with it the term L_adv.
        adaptor: whether a trained 1x1 convolution and a tanh come between J_s and f_disc.
        adversarial: the function of the objective on adversarial examples, see `trades`. Its
            numbers are fields of `Settings` whose names begin with the method's, such as
            trades_beta.
        own_terms: names of the terms that `adversarial` reports besides L_xent.
        attack_loss: the loss that the attack maximises, "xent" or "kl", the divergence from p(x).
        one_step: step size in eps of an attack with one step; None means `pgd_steps` steps of
            `step_size`.
        noise: the attack starts from uniform noise within noise * eps of x; above 1 it is not
            projected back.
    """

    teacher: bool = False
    matched_to: str | None = None
    difference: Callable[..., tf.Tensor] | None = None
    discriminator: bool = False
    adaptor: bool = False
    adversarial: Callable[..., Objective] | None = None
    own_terms: tuple[str, ...] = ()
    attack_loss: str = "xent"
    one_step: float | None = None
    noise: float = 1.0

    @property
    def trains_teacher(self) -> bool:
        """Whether the fine-tuned teacher of stage 1 is itself the student."""
        return self.teacher and not (self.matched_to or self.adversarial)

    @property
    def matches_teacher(self) -> bool:
        """Whether J_s is matched to J_t."""
        return self.matched_to == "teacher"

    @property
    def in_norm(self) -> bool:
        """Whether L_diff is the norm that `diff_norm` names."""
        return self.difference is losses.l_diff

    @property
    def many_steps(self) -> bool:
        """Whether its attack takes several steps."""
        return self.adversarial is not None and self.one_step is None

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms that a step reports."""
        terms = ["L_xent"]
        terms += ["L_adv", "disc_accuracy"] if self.discriminator else []
        terms += ["L_diff"] if self.difference else []
        terms += ["cosine", "norm_ratio"] if self.matches_teacher else []
        return (*terms, *self.own_terms, "accuracy")


METHODS: dict[str, Method] = {
    "igam": Method(
        teacher=True, matched_to="teacher", difference=losses.l_diff, discriminator=True
    ),
    # Training on natural images alone (eq. 7).
    "standard": Method(),
    # Madry et al. 2018, the paper's PGD7-trained.
    "pgd": Method(adversarial=adversarial_xent),
    # The paper's FT-* rows: the teacher with new logits, as a classifier.
    "finetune": Method(teacher=True),
    # eq. 13 alone.
    "l2": Method(teacher=True, matched_to="teacher", difference=losses.l_diff),
    # Matches the direction of J, not its length.
    "cosine": Method(teacher=True, matched_to="teacher", difference=losses.l_cosine),
    # Chan et al. 2020, arXiv 1912.10185: f_disc tells the adapted J_s from the image.
    "jarn": Method(matched_to="image", discriminator=True, adaptor=True),
    # |J_s|^2: Drucker and LeCun 1992; Ross and Doshi-Velez 2018, arXiv 1711.09404.
    "gradient_penalty": Method(matched_to="zero", difference=losses.l_diff),
    "ard": Method(teacher=True, adversarial=ard, own_terms=("L_kl",)),
    # Wong et al. 2020, arXiv 2001.03994.
    "fast": Method(adversarial=adversarial_xent, one_step=1.25),
    # de Jorge et al. 2022, arXiv 2202.01181.
    "n_fgsm": Method(adversarial=adversarial_xent, one_step=1.0, noise=2.0),
    "trades": Method(adversarial=trades, own_terms=("L_kl",), attack_loss="kl"),
}
