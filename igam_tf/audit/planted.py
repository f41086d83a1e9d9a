"""The planted-boundary test ("binarization test"): does PGD find adversarial examples known to exist?

Zimmermann, Brendel, Tramèr and Carlini, "Increasing Confidence in Adversarial Robustness Evaluations"
(NeurIPS 2022). For one image at a time the logits layer is replaced by a linear readout of two
classes, which is fitted on the network's features to tell points inside the eps-ball from one point on
its surface. So an adversarial example exists, and an attack that misses it is too weak, however robust
the network is. A boundary that random points cross tells nothing of an attack, nor does one that Square,
which needs no gradient, does not find either: such a needle is the test's own failure.
"""

from __future__ import annotations

import numpy as np

from igam_tf.attacks import apgd, pgd, square
from igam_tf.attacks.spec import STEPS
from igam_tf.audit.audited import AuditedModel, differentiable
from igam_tf.audit.checks import (
    FAIL,
    HINT,
    LEAST_EXAMPLES,
    PASS,
    WARN,
    Check,
    Finding,
    not_applicable,
)
from igam_tf.common.errors import UserError
from igam_tf.common.lazy import tf
from igam_tf.datasets import fraction_text
from igam_tf.formulas.statistics import wilson_interval

SUCCESS = 0.95  # least success rate of a sound attack, by Zimmermann et al.
INNER = 0.9  # radius of the inner points, as a share of eps
CLOSENESS = 0.99  # place of the boundary on the way from the inner points, 0, to the planted one, 1
CORNERS = 5  # surface points tried until a boundary parts one from the inner points
_RIDGE = 1e-3  # ridge as a share of the features' mean variance, as some features never change


def readout(inner: np.ndarray, outer: np.ndarray) -> tuple[np.ndarray, float] | None:
    """A boundary between inner points and one outer point: (w [F], b), or None if there is none.

    w is Fisher's direction; features . w + b is at most about -1 inside and above 0 at the outer point.

    Args:
        inner: features of the inner points, [N,F].
        outer: features of the outer point, [F].
    """
    inner, outer = inner.astype(np.float64), outer.astype(np.float64)
    centred, towards = inner - inner.mean(0), outer - inner.mean(0)
    # (covariance + ridge) w = towards up to a factor, solved among the N points instead of F features.
    gram = centred @ centred.T
    ridge = _RIDGE * np.trace(gram) / len(outer) + np.finfo(float).tiny
    w = towards - centred.T @ np.linalg.solve(gram + ridge * np.eye(len(inner)), centred @ towards)
    highest, planted = (inner @ w).max(), outer @ w
    # Anything less is the rounding of float32 features, not a boundary.
    if not planted - highest > 1e-4 * (np.abs(inner @ w).max() + np.abs(planted)):
        return None
    scale = 1 / (CLOSENESS * (planted - highest))
    return w * scale, -(highest * scale + 1)


def planted(s: AuditedModel) -> Finding:
    """PGD crosses the boundaries planted within eps of the images."""
    from igam_tf.method.networks import features_of

    try:
        plain_features = features_of(s.model)
        plain_features(tf.constant(s.images[:1]))  # only a call shows that some models have none
    except UserError as error:
        return not_applicable(str(error))
    n = min(s.n, s.budget.planted_images)
    features = tf.function(
        differentiable(lambda x: tf.cast(plain_features(x), tf.float32)),
        reduce_retracing=True, autograph=False,
    )  # fmt: skip
    steps, restarts = s.budget.steps[-1], s.budget.restarts
    step = np.float32(s.step_size * s.pixel_max * s.budget.steps[0] / steps)

    @tf.function(reduce_retracing=True, autograph=False)
    def attack(x, w, b, noise):
        """The highest value of the readouts [B] that PGD finds."""

        def value(x):
            return tf.reduce_sum(features(x) * w, 1) + b

        x_adv = pgd(
            lambda x: value(x)[:, None], x, tf.zeros_like(b, tf.int32), loss=lambda z, _: z[:, 0],
            eps=s.eps_pixels, step_size=step, steps=steps, bounds=(0.0, s.pixel_max), noise=noise,
        )  # fmt: skip
        return value(x_adv)

    def both(x, w, b):
        """The readout [B] as logits of two classes, of which the image is in the first."""
        value = tf.reduce_sum(features(x) * w, 1) + b
        return tf.stack([-value, value], 1)

    common = {"eps": s.eps_pixels, "bounds": (0.0, s.pixel_max)}

    @tf.function(reduce_retracing=True, autograph=False)
    def by_gradient(x, w, b, noise):
        """Whether APGD crosses one image's boundary; [1,...], [1,F], [1], [1,...] -> [1]."""
        y = tf.zeros(1, tf.int32)
        x_adv = apgd(lambda x: both(x, w, b), x, y, loss="cw", noise=noise, **common)
        return both(x_adv, w, b)[:, 1] > 0

    @tf.function(reduce_retracing=True, autograph=False)
    def without_gradient(x, w, b):
        """Whether Square does."""
        y, queries = tf.zeros(1, tf.int32), s.budget.queries
        x_adv = square(lambda x: both(x, w, b), x, y, queries=queries, seed=s.seed, **common)
        return both(x_adv, w, b)[:, 1] > 0

    kept, readouts, easy = [], [], 0
    for i in range(n):
        if fitted := _plant(s, features, i):
            readout_of, crossed = fitted
            easy += crossed
            if not crossed:
                kept.append(i)
                readouts.append(readout_of)
    unused = (
        f"left out of {n} images: {easy}, as random points cross their boundary, and "
        f"{n - len(kept) - easy}, as they have none"
    )
    if len(kept) < LEAST_EXAMPLES:
        return not_applicable(f"too few boundaries: {unused}")
    kept = np.array(kept)
    w = np.stack([w for w, _ in readouts]).astype(np.float32)
    b = np.array([b for _, b in readouts], np.float32)
    found = np.zeros(len(kept), bool)
    for begin in range(0, len(kept), s.batch_size):
        part = slice(begin, begin + s.batch_size)
        for restart in range(restarts):
            noise = s.noise(kept[part], "planted starts of pgd", restart)
            found[part] |= attack(s.images[kept[part]], w[part], b[part], noise).numpy() > 0
    by_pgd, others = int(found.sum()), 0
    for k in np.flatnonzero(~found):
        one = s.images[kept[k : k + 1]], w[k : k + 1], b[k : k + 1]
        noise = (s.noise(kept[k : k + 1], "planted starts of apgd", i) for i in range(restarts))
        starts = (start / s.eps_pixels for start in noise)
        found[k] = any(bool(by_gradient(*one, start)) for start in starts)
        # What Square does not find either is hard to find, whatever the gradients.
        others += not found[k] and bool(without_gradient(*one))
    hits, total = int(found.sum()), int(found.sum()) + others
    figure = (
        f"PGD finds {by_pgd} of {len(kept)} planted boundaries, APGD finds {hits - by_pgd} more, "
        f"and Square finds {others} more ({steps} and {STEPS} steps, {restarts} restarts, "
        f"{s.budget.queries} queries; eps {fraction_text(s.eps)}, {s.budget.inner_points} inner "
        f"points); {unused}"
    )
    if total < LEAST_EXAMPLES:
        return not_applicable(f"too few boundaries: {figure}")
    (low, high), (_, high_of_pgd) = (wilson_interval(k, total) for k in (hits, by_pgd))
    missed = total - hits >= max(LEAST_EXAMPLES, (1 - SUCCESS) * total)
    return Finding(
        status=FAIL if high < SUCCESS else WARN if missed or high_of_pgd < SUCCESS else PASS,
        figure=f"gradient attacks find {100 * hits / total:.1f} % of what they and Square find (95 "
        f"% interval {100 * low:.1f} to {100 * high:.1f}); {figure}",
        data={
            "found": hits,
            "by_pgd": by_pgd,
            "by_square": others,
            "planted": len(kept),
            "easy": easy,
        },
    )


def _plant(s: AuditedModel, features, index: int):
    """((w, b), whether a random point is beyond the boundary) for one image; None if there is none."""
    rng = s.generator("planted points", index)
    x, count = s.images[index], s.budget.inner_points

    def of(d: np.ndarray) -> np.ndarray:
        points = s.clip(x + d * s.eps_pixels)
        parts = range(0, len(points), s.batch_size)
        return np.concatenate([features(points[i : i + s.batch_size]) for i in parts])

    def uniform() -> np.ndarray:
        return rng.uniform(-1, 1, (count, *x.shape))

    inner = of(np.concatenate([INNER * uniform(), np.zeros((1, *x.shape))]))
    for corner in of(rng.choice([-1.0, 1.0], (CORNERS, *x.shape))):
        if fitted := readout(inner, corner):
            w, b = fitted
            return fitted, bool((of(uniform()) @ w + b > 0).any())
    return None


CHECKS = {
    "planted": Check(
        title="The attack finds planted boundaries",
        meaning="Gradient attacks cross decision boundaries that are planted within eps, on the "
        "network's own features, in 95 % of the cases in which they or Square cross them "
        "(Zimmermann et al. 2022).",
        threshold=f"PGD and APGD must find {100 * SUCCESS:g} % of what they and Square find: WARN "
        f"if they find less (by {LEAST_EXAMPLES} or more), FAIL if the 95 % interval is below; "
        "WARN if that of PGD alone is below",
        reason="Zimmermann et al. ask this of an attack. Boundaries that random points cross, or "
        "that Square does not cross either, say nothing of gradients and do not count.",
        advice="The attack is too weak to be trusted: it misses adversarial examples that a random "
        "search finds. Use more steps and restarts, and read the checks on gradients.",
        judge=planted,
        weight=HINT,
    )
}
