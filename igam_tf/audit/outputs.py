"""Checks on logits and gradients, which need no attack (but `batch_norm`, which runs a short one).

Every check is a function AuditedModel -> Finding; `CHECKS` names them.
"""

import numpy as np
import tensorflow as tf

from igam_tf.attacks import AttackSpec
from igam_tf.audit.audited import REACH, REPEAT_TOLERANCE, REPEATS, AuditedModel
from igam_tf.audit.checks import (
    FAIL,
    HINT,
    LEAST_EXAMPLES,
    PASS,
    PROOF,
    WARN,
    Check,
    Finding,
    not_applicable,
    worst,
)
from igam_tf.formulas.gradients import cosine, flatten, input_gradient
from igam_tf.formulas.losses import xent
from igam_tf.method.networks import are_probabilities

# exp(-88) is the smallest normal float32: beyond that margin softmax has no gradient to give.
LARGEST_MARGIN = 88.0
# An image has no gradient where at least this share of its pixels has a gradient of exactly 0.
ALL_ZERO = 0.99
# In any well-trained network the softmax is saturated, so without a gradient, for a few examples.
ZERO_EXAMPLES_WARN, ZERO_EXAMPLES_FAIL = 0.05, 0.25
# Two unrelated directions in D dimensions have a cosine of 0 +- 1/sqrt(D): FAIL below UNRELATED /
# sqrt(D); WARN below a value that plainly trained networks reach too.
UNRELATED, COSINE_WARN = 2.0, 0.2
# To first order the loss changes by at most eps |J|_1 in the eps-ball; a linearity error of that size
# means that J says nothing about the loss in the ball (Qin et al. 2019).
LINEARITY_WARN = 1.0
# By its company an image's logits change by this share of their size and spread, beyond rounding in a
# narrow type, and for this share of the images: a network that reads its batch changes nearly all.
COMPANY_TOLERANCE, COMPANY_SHARE = 0.01, 0.05
# Accuracies by moving averages and by batch statistics that are further apart than this belong to two
# different networks. A batch of one is shown and not judged: no network is trained on such statistics.
MODES_WARN = 0.10
# Most images attacked at once on batch statistics, as all activations stay in memory: one activation
# of 256 CIFAR images in the wrn-32-10 is 256 x 32 x 32 x 160 floats, 168 MB.
LARGEST_BATCH = 256


def logits(s: AuditedModel) -> Finding:
    """Outputs are finite logits, not probabilities, and softmax of them does not saturate."""
    z = s.repeated_logits[0].astype(np.float64)
    if are_probabilities(z):
        return Finding(
            status=FAIL,
            figure="every output is positive and each image's add up to 1: these are probabilities",
        )
    top = np.sort(z, axis=1)
    margin = float(np.median(top[:, -1] - top[:, -2]))
    figure = (
        f"outputs in {z.min():.3g}..{z.max():.3g}; median distance of the two highest {margin:.3g}"
    )
    return Finding(
        status=FAIL if margin > LARGEST_MARGIN else PASS,
        figure=figure,
        data={"median_margin": margin},
    )


def deterministic(s: AuditedModel) -> Finding:
    """The same image has the same logits, every time."""
    classes = s.repeated_logits.argmax(2)
    flips = int((classes != classes[0]).any(0).sum())
    return Finding(
        status=FAIL if s.random else PASS,
        figure=f"largest change in {REPEATS} calls {s.repeat_change:.1e} of the logits' spread; "
        f"{flips} of {s.n} predictions change",
        data={"relative_change": s.repeat_change},
    )


def _gradients(s: AuditedModel, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(J of xent [B,H,W,C], xent [B]) at x, by a function that is traced once for each audited model."""
    if "gradient" not in s.tools:

        @tf.function(reduce_retracing=True)
        def gradient(x, y):
            def per_example(x):
                z = s.logits_fn(x)
                return xent(z, y), z

            return input_gradient(per_example, x)[:2]

        s.tools["gradient"] = gradient
    j, values = s.tools["gradient"](x, y)
    return j.numpy(), values.numpy()


def gradients(s: AuditedModel) -> Finding:
    """Input gradients of the loss are finite and not 0."""
    zeros, finite = [], []
    for batch in s.batches():
        j, _ = _gradients(s, s.images[batch], s.labels[batch])
        flat = j.reshape(len(batch), -1)
        zeros.append((flat == 0).mean(1))
        finite.append(np.isfinite(flat).all(1))
    zeros, finite = np.concatenate(zeros), np.concatenate(finite)
    without, bad = int((zeros >= ALL_ZERO).sum()), int((~finite).sum())
    status = PASS
    if without >= max(LEAST_EXAMPLES, ZERO_EXAMPLES_WARN * s.n):
        status = WARN
    if bad or without >= max(LEAST_EXAMPLES, ZERO_EXAMPLES_FAIL * s.n):
        status = FAIL
    return Finding(
        status=status,
        figure=f"{without} of {s.n} examples without a gradient ({100 * ALL_ZERO:g} % of it exactly "
        f"0), {bad} with NaN or infinity; share of exact zeros per example: median "
        f"{100 * np.median(zeros):.1f} %, highest {100 * zeros.max():.1f} %",
        data={"zero_share": [round(float(z), 4) for z in zeros]},
    )


def linearity(s: AuditedModel) -> Finding:
    """Near an image the loss is close to linear, and its gradient points the same way."""
    cosines, errors, dimensions = [], [], int(np.prod(s.images.shape[1:]))
    for batch in s.batches():
        x, y = s.images[batch], s.labels[batch]
        near = s.clip(x + s.noise(batch, 1))
        (j, here), (j_near, there) = _gradients(s, x, y), _gradients(s, near, y)
        moved = (j * (near - x)).reshape(len(batch), -1).sum(1)
        most = s.eps_pixels * np.abs(flatten(j)).sum(1)
        usable = (most > 0) & np.isfinite(most)
        angle = cosine(tf.constant(j), tf.constant(j_near)).numpy()
        usable &= np.isfinite(angle) & np.isfinite(there - here)
        cosines.append(angle[usable])
        errors.append(np.abs(there - here - moved)[usable] / most[usable])
    cosines, errors = np.concatenate(cosines), np.concatenate(errors)
    if len(cosines) < LEAST_EXAMPLES:
        return not_applicable("no gradients to compare: see the check on gradients")
    agreement, error = float(np.median(cosines)), float(np.median(errors))
    unrelated = UNRELATED / np.sqrt(dimensions)
    status = FAIL if agreement < unrelated else WARN if agreement < COSINE_WARN else PASS
    return Finding(
        status=worst([status, WARN if error > LINEARITY_WARN else PASS]),
        figure=f"median cos(J(x), J(x + d)) {agreement:.3f} (unrelated directions: within "
        f"+-{unrelated:.3f}); median linearity error {error:.3f} of eps |J|_1; d uniform in the "
        f"eps-ball, n = {len(cosines)}",
        data={"cosine": [round(float(c), 4) for c in cosines], "linearity_error": error},
    )


def batch_norm(s: AuditedModel) -> Finding:
    """An image's logits do not depend on its batch, and both batch-norm modes are about as accurate."""
    together = s.repeated_logits[0]
    changes = np.abs(together - s.clean_logits(1)).max(1) / (np.abs(together).max(1) + s.spread)
    company = int((changes > COMPANY_TOLERANCE).sum())
    steps = s.budget.batch_norm_steps
    step_size = max(s.step_size, REACH * s.eps / steps)
    cells, rows, found = [], [], {}
    largest = min(s.n, LARGEST_BATCH)
    sizes = sorted({1, min(100, largest), largest})
    for mode, size in [("inference", s.batch_size), *(("batch", b) for b in sizes)]:
        where = mode if mode == "inference" else f"batch statistics of {size}"
        names = [f"clean, {where}", f"pgd{steps}, {where}"]
        specs = AttackSpec(name=names[0]), s.pgd(names[1], steps=steps, step_size=step_size)
        pair = s.attack(*specs, batch_norm=mode, batch_size=size)
        rows += names
        found[where] = [row.accuracy for row in pair]
        cells.append(f"{where} {100 * pair[0].accuracy:.1f} / {100 * pair[1].accuracy:.1f}")
    judged = [pair for where, pair in found.items() if where != "batch statistics of 1"]
    apart = np.abs(np.array(judged) - found["inference"]).max()
    status = WARN if apart > MODES_WARN else PASS
    # Logits that change when the same batch is repeated are the business of `deterministic`.
    if company >= max(LEAST_EXAMPLES, COMPANY_SHARE * s.n) and not s.random:
        status = FAIL
    return Finding(
        status=status,
        figure=f"logits in inference mode, alone against in company: those of {company} of {s.n} images "
        f"change, by {np.median(changes):.1e} in the median; accuracy in %, clean / pgd{steps}: "
        + "; ".join(cells)
        + (f" (of all {s.n} at most {largest} at once)" if largest < s.n else ""),
        rows=tuple(rows),
        data={"modes": found, "company": company / s.n},
    )


CHECKS = {
    "logits": Check(
        title="Outputs are logits",
        threshold="finite; not all positive with a sum of 1; the two highest at most "
        f"{LARGEST_MARGIN:g} apart in the median (float32 softmax underflows there)",
        advice="Attack what softmax is fed with, divided by a constant if it is that large. A second "
        "softmax flattens every gradient.",
        judge=logits,
        weight=PROOF,
    ),
    "deterministic": Check(
        title="Outputs are deterministic",
        threshold=f"change of repeated logits at most {REPEAT_TOLERANCE:g} of their spread",
        advice="Turn the randomness off, or attack the expectation: average each gradient over many "
        "draws (EOT; Athalye et al. 2018) and score the average prediction.",
        judge=deterministic,
        weight=PROOF,
    ),
    "gradients": Check(
        title="Gradients are finite and not zero",
        threshold=f"none with NaN or infinity; examples without a gradient: WARN from "
        f"{100 * ZERO_EXAMPLES_WARN:g} %, FAIL from {100 * ZERO_EXAMPLES_FAIL:g} % (and "
        f"{LEAST_EXAMPLES})",
        advice="Find the operation that stops the gradient (rounding, argmax, saturation) and attack "
        "through a differentiable stand-in (BPDA; Athalye et al. 2018) or on a margin loss.",
        judge=gradients,
        weight=PROOF,
    ),
    "linearity": Check(
        title="Gradients hold in the neighbourhood",
        threshold=f"median cosine: WARN below {COSINE_WARN:g}, FAIL below {UNRELATED:g} / "
        f"sqrt(dimensions); median linearity error: WARN above {LINEARITY_WARN:g} of eps |J|_1",
        advice="One gradient tells little here: use many small steps, many restarts, gradients "
        "averaged over the neighbourhood, and believe the black-box checks.",
        judge=linearity,
        weight=HINT,
    ),
    "batch_norm": Check(
        title="Inference mode, image by image",
        threshold=f"logits alone and in company within {COMPANY_TOLERANCE:g} of their size, but for "
        f"{100 * COMPANY_SHARE:g} % of the images (and {LEAST_EXAMPLES}); WARN where accuracies of the "
        f"modes are more than {100 * MODES_WARN:g} points apart, batches of 1 aside",
        advice="Evaluate with moving averages (training=False). Figures on batch statistics belong "
        "to a batch, not to an image: do not quote them as robust accuracy.",
        judge=batch_norm,
        weight=PROOF,
    ),
}
