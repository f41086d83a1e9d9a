"""Checks whether the attacks of a table contradict each other, or a missing one contradicts them."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from igam_tf.attacks import AttackSpec
from igam_tf.attacks.spec import TARGETS
from igam_tf.formulas.statistics import excess
from igam_tf.method.look import Doubt
from igam_tf.storage.journal import MASK_KEY, mask_of_text

LEAST_EXAMPLES = 3  # fewer images can change with the seed
LEAST_STEPS = 20  # least steps of a PGD that is compared: shorter ones are expected to be weaker
# The share of the images by which an iterative attack may be weaker, beyond chance: than one step,
# than another attack, and all iterative attacks together than Square, which uses no gradient.
BY_ONE_STEP, BY_ANOTHER, BY_SQUARE = 0.0, 0.10, 0.02
BY_RATIO = 0.02  # share of all images by which the table may be weaker than a targeted attack
MOST_TARGETED = 100  # most images on which that one is tried
LEAST_TRAVEL = 0.5  # least sum of a PGD's steps, in eps; MadryLab's PGD-20 on MNIST has 0.67


def disagreements(results: dict[str, dict]) -> Doubt | None:
    """The doubt that the rows of a report's results raise together: their largest contradiction.

    A PGD is compared if its steps reach from the image to the border of the ball. Attacks towards a
    given class are not compared: they are meant to break less.

    Args:
        results: name of each attack -> its row, see `igam_tf.evaluation.evaluate.evaluate`.
    """
    rows = {n: row for n, row in results.items() if row.get("loss") and not row.get("aim")}
    masks = {name: mask_of_text(row[MASK_KEY]) for name, row in rows.items()}
    kinds = {name: "one step" if row["steps"] == 1 else row["kind"] for name, row in rows.items()}
    judged = [
        name
        for name, row in rows.items()
        if kinds[name] == "apgd"
        or (
            kinds[name] == "pgd"
            and row["steps"] >= LEAST_STEPS
            and row["steps"] * row["step_size"] >= row["eps"]
        )
    ]
    if not judged:
        return _short(rows)
    found = []
    iterative = np.logical_and.reduce([masks[name] for name in judged])
    for other, kind in kinds.items():
        if kind == "square":
            both = iterative & masks[other]
            found.append((excess(iterative, both), BY_SQUARE, " and ".join(judged), other))
            continue
        most = BY_ONE_STEP if kind == "one step" else BY_ANOTHER
        found += [(excess(masks[name], masks[other]), most, name, other) for name in judged]
    found = [each for each in found if each[0].net >= LEAST_EXAMPLES and each[0].low > each[1]]
    if not found:
        return None
    over, _, name, other = max(found, key=lambda each: each[0].net)
    lowest = min(rows, key=lambda name: rows[name]["accuracy"])
    return Doubt(
        code="attacks_disagree",
        sentence=f"{over.sentence(other, name)}. On a network whose gradients are not masked "
        "the difference is smaller.",
        remedy=f"Trust no figure above that of {lowest}, and that one only after "
        "--attacks=autoattack and igam_tf.audit have run.",
    )


def _short(rows: dict[str, dict]) -> Doubt | None:
    """The doubt if no PGD can reach half way to the border of the ball, and no other attack ran."""
    reach = {n: row["steps"] * row["step_size"] for n, row in rows.items() if row["steps"] > 1}
    if not reach or any(row["kind"] != "pgd" for row in rows.values()):
        return None
    name = max(reach, key=lambda name: reach[name])
    if reach[name] >= LEAST_TRAVEL * rows[name]["eps"]:
        return None
    share = reach[name] / rows[name]["eps"]
    return Doubt(
        code="short_steps",
        sentence=f"All steps of {name} together reach {share:.2g} times eps: this is too short "
        "to search the ball.",
        remedy="Set more steps, or a larger --step_size, such as 2.5 times eps / steps.",
    )


def weak_loss(
    specs: Sequence[AttackSpec],
    left: np.ndarray,
    attack: Callable[[AttackSpec, np.ndarray], np.ndarray],
    classes: int,
) -> Doubt | None:
    """The doubt if attacks on cross-entropy and margin miss images that a targeted one breaks.

    Cross-entropy is weak if a network's confidence is below its accuracy, and for some bounded
    outputs; both losses are weak for outputs that grow exponentially, where the highest outweighs
    all others; and both can stop short of a class that is not the likeliest on their way. The longest
    attack runs again on at most MOST_TARGETED of the robust images, with the targeted DLR loss,
    towards each of the TARGETS likeliest classes.

    Args:
        specs: the attacks of the table.
        left: mask [n] bool of the images that are robust to all of them.
        attack: (spec, indices [m]) -> robust mask [m] bool.
        classes: number of classes; of three, the DLR loss has no targets, and of two there is the
            margin alone.

    Sources: Gowal et al. 2019 (MultiTargeted); Croce and Hein 2020, eq. 7.
    """
    long = [s for s in specs if s.steps > 1 and s.kind != "square" and not s.aim]
    loss, how = ("dlr", " on the DLR loss") if classes > 2 else ("cw", " on the margin")
    tried = {spec.loss for spec in specs if spec.kind != "square"} - {None}
    if not long or tried - {"xent", "cw"} or loss in tried:
        return None
    chosen = np.flatnonzero(left)[:MOST_TARGETED]
    longest = max(long, key=lambda spec: spec.steps)
    targets, remedy = 0, "Add apgd or autoattack to --attacks"
    if classes > 3:
        targets, how = min(TARGETS, classes - 1), " towards one class after another"
    else:
        remedy += f", or set --loss={loss}"
    again = dataclasses.replace(
        longest, name=f"{longest.name}{how}", loss=loss, targets=targets, restarts=1
    )
    broken = int((~attack(again, chosen)).sum()) if len(chosen) else 0
    if broken < LEAST_EXAMPLES or broken / len(chosen) * left.mean() <= BY_RATIO:
        return None
    return Doubt(
        code="weak_loss",
        sentence=f"{again.name} breaks {broken} of {len(chosen)} images that are robust to these "
        "attacks.",
        remedy=f"{remedy}.",
    )
