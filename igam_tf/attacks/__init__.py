"""Attacks: pure functions of a `logits_fn` (x -> logits), in any pixel range, that change no variable.

Every attack takes (logits_fn, x, y, *, eps, bounds, ...) in the pixel unit of x and returns x_adv, of
the shape and dtype of x, within eps of x and within the bounds. Randomness comes in as tensors, so
an attack is a function of its arguments alone; without them APGD and Square draw theirs from a seed.
numpy arrays serve as well as tensors. Restarts, and the worst case over attacks, are computed by
`igam_tf.evaluation.evaluate`.

    pgd     Madry et al. 2018; fgsm is one step of it
    apgd    Croce and Hein 2020: chooses its own step size
    fab     Croce and Hein 2020: nearest point, of a target class or of any
    square  Andriushchenko et al. 2020: logits alone, no gradient

All of them in l-inf and in l2; all but PGD in l1 too (Croce and Hein 2021).
"""

from igam_tf.attacks.apgd import apgd
from igam_tf.attacks.attack_losses import LOSSES, dlr_targeted, loss_named
from igam_tf.attacks.fab import fab
from igam_tf.attacks.kinds import KINDS, SHOWN, attack_names, attack_specs, random_inputs
from igam_tf.attacks.norms import NORMS
from igam_tf.attacks.pgd import pgd
from igam_tf.attacks.spec import BATCH_NORMS, AttackSpec
from igam_tf.attacks.square import square

__all__ = [
    "BATCH_NORMS", "KINDS", "LOSSES", "NORMS", "SHOWN", "AttackSpec", "apgd", "attack_names",
    "attack_specs", "dlr_targeted", "fab", "loss_named", "pgd", "random_inputs", "square",
]  # fmt: skip
