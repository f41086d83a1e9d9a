"""Checks on logits and gradients, which need no attack (but `batch_norm`, which runs a short one).

Every check is a function AuditedModel -> Finding; `CHECKS` names them.
"""

import numpy as np

from igam_tf.attacks import AttackSpec
from igam_tf.audit.audited import REPEAT_TOLERANCE, REPEATS, TRAVEL, AuditedModel
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
)
from igam_tf.formulas.gradients import cosine

# Logits differ; where this share of the images has one lowest value, in several classes, it is a floor.
CUT_FAIL = 0.25
# An image has no gradient where at least this share of its pixels has a gradient of exactly 0.
ALL_ZERO = 0.99
# In any well-trained network the softmax is saturated, so without a gradient, for a few examples.
ZERO_EXAMPLES_WARN, ZERO_EXAMPLES_FAIL = 0.05, 0.25
# Two unrelated directions in D dimensions have a cosine of 0 +- 1/sqrt(D): FAIL below UNRELATED /
# sqrt(D); WARN below a value that plainly trained networks reach too.
UNRELATED, COSINE_WARN = 2.0, 0.2
# By its company an image's logits change by this share of their size and spread, beyond rounding in a
# narrow type, and for this share of the images: a network that reads its batch changes nearly all.
BATCH_TOLERANCE, BATCH_SHARE = 0.01, 0.05
# Accuracies by moving averages and by batch statistics that are further apart than this belong to two
# different networks. A batch of one is shown and not judged: no network is trained on such statistics.
MODES_WARN = 0.10
# Most images attacked at once on batch statistics, as all activations stay in memory: one activation
# of 256 CIFAR images in the wrn-32-10 is 256 x 32 x 32 x 160 floats, 168 MB.
LARGEST_BATCH = 256


def logits(s: AuditedModel) -> Finding:
    """Outputs are finite logits, not probabilities, and softmax of them does not saturate."""
    from igam_tf.method.look import doubtful_outputs

    z = s.repeated_logits[0].astype(np.float64)
    if wrong := doubtful_outputs(z):
        return Finding(status=FAIL, figure=wrong.sentence)
    top = np.sort(z, axis=1)
    margin = float(np.median(top[:, -1] - top[:, -2]))
    # The lowest value of all is many images' and classes' own where logarithms were cut off there.
    cut = z == z.min()
    images, classes = int(cut.any(1).sum()), int(cut.any(0).sum())
    floor = images >= max(LEAST_EXAMPLES, CUT_FAIL * s.n) and classes > 1
    return Finding(
        status=FAIL if floor else PASS,
        figure=f"outputs are between {z.min():.3g} and {z.max():.3g}; the lowest value occurs in "
        f"{images} of {s.n} images and {classes} of {z.shape[1]} classes; the median distance of "
        f"the two highest outputs is {margin:.3g}",
        data={"median_margin": margin},
    )


def deterministic(s: AuditedModel) -> Finding:
    """The same image has the same logits, every time."""
    classes = s.repeated_logits.argmax(2)
    flips = int((classes != classes[0]).any(0).sum())
    return Finding(
        status=FAIL if s.random else PASS,
        figure=f"in {REPEATS} calls logits change by at most {s.repeat_change:.2g} of their "
        f"spread, and {flips} of {s.n} predictions change",
        data={"relative_change": s.repeat_change},
    )


def gradients(s: AuditedModel) -> Finding:
    """Input gradients of the loss are finite and not 0."""
    zeros = s.zero_gradients
    finite = zeros[~np.isnan(zeros)]
    without, bad = int((finite >= ALL_ZERO).sum()), s.n - len(finite)
    status = PASS
    if without >= max(LEAST_EXAMPLES, ZERO_EXAMPLES_WARN * s.n):
        status = WARN
    if bad or without >= max(LEAST_EXAMPLES, ZERO_EXAMPLES_FAIL * s.n):
        status = FAIL
    return Finding(
        status=status,
        figure=f"{without} of {s.n} images have no gradient (at least {100 * ALL_ZERO:g} % of its "
        f"values are exactly 0); {bad} have NaN or infinity in it"
        + (
            f"; of the finite gradients, {100 * np.median(finite):.1f} % of the values are exactly "
            f"0 in the median image, and at most {100 * finite.max():.1f} %"
            if len(finite)
            else ""
        ),
        data={"zero_share": [None if np.isnan(z) else round(float(z), 4) for z in zeros]},
    )


def linearity(s: AuditedModel) -> Finding:
    """Near an image the gradient of its loss points the same way."""
    cosines, dimensions = [], int(np.prod(s.images.shape[1:]))
    for batch in s.batches():
        x, y = s.images[batch], s.labels[batch]
        here, there = (s.gradient(p, y) for p in (x, s.clip(x + s.noise(batch, "neighbours"))))
        usable = ~(here.none | there.none | here.not_finite | there.not_finite).numpy()
        cosines.append(cosine(here.gradient, there.gradient).numpy()[usable])
    cosines = np.concatenate(cosines)
    if len(cosines) < LEAST_EXAMPLES:
        return not_applicable("there are no gradients to compare: see the check gradients")
    agreement, unrelated = float(np.median(cosines)), UNRELATED / np.sqrt(dimensions)
    return Finding(
        status=FAIL if agreement < unrelated else WARN if agreement < COSINE_WARN else PASS,
        figure=f"the median cosine of J(x) and J(x + d) is {agreement:.3f}, with d uniform in the "
        f"eps-ball, n = {len(cosines)} (unrelated directions: within +-{unrelated:.3f})",
        data={"cosine": [round(float(c), 4) for c in cosines]},
    )


def batch_norm(s: AuditedModel) -> Finding:
    """An image's logits do not depend on its batch; both batch-norm modes are about as accurate."""
    from igam_tf.method.networks import inference_only

    together = s.repeated_logits[0]
    changes = np.abs(together - s.clean_logits(1)).max(1) / (np.abs(together).max(1) + s.spread)
    company = int((changes > BATCH_TOLERANCE).sum())
    steps = s.budget.batch_norm_steps
    step_size = max(s.step_size, TRAVEL * s.eps / steps)
    cells, rows, found = [], [], {}
    largest = min(s.n, LARGEST_BATCH)
    sizes = sorted({1, min(100, largest), largest})
    sizes = [] if inference_only(s.model) else sizes
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
    if company >= max(LEAST_EXAMPLES, BATCH_SHARE * s.n) and not s.random:
        status = FAIL
    return Finding(
        status=status,
        figure=f"in inference mode, {company} of {s.n} images have other logits alone than in a "
        f"batch (the median change is {np.median(changes):.2g}); accuracy in %, clean / pgd{steps}: "
        + "; ".join(cells)
        + (f" (at most {largest} of the {s.n} images at once)" if largest < s.n else ""),
        rows=tuple(rows),
        data={"modes": found, "company": company / s.n},
    )


CHECKS = {
    "logits": Check(
        title="Outputs are logits",
        meaning="Outputs are finite logits, no probabilities, and not cut off at a floor.",
        threshold="FAIL if an output is NaN or infinite, if the outputs are probabilities or look "
        f"like a sigmoid's, or if {100 * CUT_FAIL:g} % of the images share one lowest value, in "
        "several classes",
        reason="The sums of probabilities are 1 within 0.001 even in float16; those of logits are "
        "not. Many images have the same lowest output only where something cuts it off.",
        advice="Attack the input of the softmax: a second softmax, or a floor below logarithms, "
        "flattens gradients.",
        judge=logits,
        weight=PROOF,
    ),
    "deterministic": Check(
        title="Outputs are deterministic",
        meaning="The same image gives the same logits every time.",
        threshold=f"FAIL if repeated logits differ by more than {REPEAT_TOLERANCE:g} of their "
        "spread",
        reason="Sums in another order move float32 logits by some 1e-6 of their spread.",
        advice="Turn the randomness off, or attack the expectation: average each gradient over "
        "many draws (EOT; Athalye et al. 2018) and score the average prediction.",
        judge=deterministic,
        weight=PROOF,
    ),
    "gradients": Check(
        title="Gradients are finite and not zero",
        meaning="The loss has an input gradient at the images, which is finite and not exactly 0.",
        threshold="FAIL if a gradient has NaN or infinity in it; images without a gradient: WARN "
        f"from {100 * ZERO_EXAMPLES_WARN:g} %, FAIL from {100 * ZERO_EXAMPLES_FAIL:g} % (at "
        f"least {LEAST_EXAMPLES} images)",
        reason="The softmax of a confident network without masking sometimes underflows.",
        advice="Find the operation that stops the gradient (rounding, argmax, saturation). Attack "
        "through a differentiable stand-in for it (BPDA; Athalye et al. 2018), or on a margin "
        "loss.",
        judge=gradients,
        weight=PROOF,
    ),
    "linearity": Check(
        title="Gradients hold in the neighbourhood",
        meaning="The input gradient near an image points the same way as the one at the image (Qin "
        "et al. 2019).",
        threshold=f"WARN if the median cosine is below {COSINE_WARN:g}, FAIL if it is below "
        f"{UNRELATED:g} / sqrt(dimensions)",
        reason="Unrelated directions have a cosine of 0 +- 1 / sqrt(dimensions).",
        advice="One gradient says little here: use many small steps, many restarts and gradients "
        "averaged over the neighbourhood, and trust the black-box checks.",
        judge=linearity,
        weight=HINT,
    ),
    "batch_norm": Check(
        title="Logits do not depend on the batch",
        meaning="An image has the same logits alone and in a full batch, and moving averages are "
        "about as accurate as the statistics of a large batch.",
        threshold=f"FAIL if the logits of {100 * BATCH_SHARE:g} % of the images (at "
        f"least {LEAST_EXAMPLES}) change by over {100 * BATCH_TOLERANCE:g} % of their size between "
        f"a batch of 1 and a full batch; WARN if the accuracies of the modes are over "
        f"{100 * MODES_WARN:g} points apart (batches of 1 are shown and not judged)",
        reason="This tells an influence of the batch from rounding. Good moving averages are near "
        "the statistics of a large batch, never of a single image.",
        advice="Evaluate with moving averages (training=False). A figure on batch statistics "
        "belongs to a batch, not to an image: do not quote it as robust accuracy.",
        judge=batch_norm,
        weight=PROOF,
    ),
}
