"""Attacks: pure functions of a `logits_fn` (x -> logits), in any pixel range, that change no variable.

Every attack takes (logits_fn, x, y, *, eps, bounds, ...) in the pixel unit of x and returns x_adv, of
the shape and dtype of x, within eps of x and within the bounds. Randomness comes in as `noise`, so
an attack is a function of its arguments alone; restarts and worst cases are `igam_tf.evaluation`'s.
"""

from igam_tf.attacks.losses import LOSSES, loss_named
from igam_tf.attacks.pgd import pgd
from igam_tf.attacks.spec import AttackSpec, attack_names, attack_specs

__all__ = ["LOSSES", "AttackSpec", "attack_names", "attack_specs", "loss_named", "pgd"]
