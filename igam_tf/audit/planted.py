"""The planted-boundary test ("binarization test"): does PGD find adversarial examples known to exist?

Zimmermann, Brendel, Tramèr and Carlini, "Increasing Confidence in Adversarial Robustness Evaluations"
(NeurIPS 2022). For one image at a time the logits layer is replaced by a linear readout of two
classes, which is fitted on the network's features to tell points inside the eps-ball from one point on
its surface. So an adversarial example exists, and an attack that misses it is too weak, however robust
the network is.
"""

import numpy as np
import tensorflow as tf

from igam_tf.attacks import pgd
from igam_tf.audit.audited import AuditedModel, attached
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
from igam_tf.evaluation.evaluate import fraction_text
from igam_tf.formulas.statistics import wilson_interval
from igam_tf.method.networks import features_of
from madry_models.errors import UserError

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
    centred = inner - inner.mean(0)
    covariance = centred.T @ centred / len(inner)
    ridge = _RIDGE * np.trace(covariance) / len(outer) + np.finfo(float).tiny
    w = np.linalg.lstsq(covariance + ridge * np.eye(len(outer)), outer - inner.mean(0), rcond=None)[
        0
    ]
    highest, planted = (inner @ w).max(), outer @ w
    # Anything less is the rounding of float32 features, not a boundary.
    if not planted - highest > 1e-4 * (np.abs(inner @ w).max() + np.abs(planted)):
        return None
    scale = 1 / (CLOSENESS * (planted - highest))
    return w * scale, -(highest * scale + 1)


def planted(s: AuditedModel) -> Finding:
    """PGD crosses the boundaries planted within eps of the images."""
    try:
        plain_features = features_of(s.model)
        plain_features(
            tf.constant(s.images[:1])
        )  # not every model shows before a call that it has none
    except UserError as error:
        return not_applicable(str(error))
    n = min(s.n, s.budget.planted_images)
    features = tf.function(attached(plain_features), reduce_retracing=True)
    steps, restarts = s.budget.steps[-1], s.budget.restarts
    step = np.float32(s.step_size * s.pixel_max * s.budget.steps[0] / steps)

    @tf.function(reduce_retracing=True)
    def attack(x, w, b, noise):
        """The highest value of the readouts [B] that PGD finds."""

        def value(x):
            return tf.reduce_sum(features(x) * w, 1) + b

        x_adv = pgd(
            lambda x: value(x)[:, None], x, tf.zeros_like(b, tf.int32), loss=lambda z, _: z[:, 0],
            eps=s.eps_pixels, step_size=step, steps=steps, bounds=(0.0, s.pixel_max), noise=noise,
        )  # fmt: skip
        return value(x_adv)

    kept, readouts, by_chance = [], [], []
    for i in range(n):
        fitted = _plant(s, features, i)
        if fitted:
            (w, b), chance = fitted
            kept.append(i)
            readouts.append((w, b))
            by_chance.append(chance)
    if not kept:
        return not_applicable(f"no boundary can be planted around any of {n} images")
    if len(kept) < LEAST_EXAMPLES:
        return not_applicable(
            f"boundaries can be planted around {len(kept)} of {n} images, nothing can be told"
        )
    kept = np.array(kept)
    w = np.stack([w for w, _ in readouts]).astype(np.float32)
    b = np.array([b for _, b in readouts], np.float32)
    found = np.zeros(len(kept), bool)
    for begin in range(0, len(kept), s.batch_size):
        part = slice(begin, begin + s.batch_size)
        for restart in range(restarts):
            noise = s.noise(kept[part], 4, restart)
            found[part] |= attack(s.images[kept[part]], w[part], b[part], noise).numpy() > 0
    hits, share = int(found.sum()), float(found.mean())
    low, high = wilson_interval(hits, len(kept))
    status = PASS if share >= SUCCESS else WARN if high >= SUCCESS else FAIL
    return Finding(
        status=status,
        figure=f"found {hits} of {len(kept)} planted boundaries, {100 * share:.1f} % (95 % interval "
        f"{100 * low:.1f} to {100 * high:.1f}), by {steps} steps of PGD with {restarts} restarts, eps "
        f"{fraction_text(s.eps)}; {s.budget.inner_points} inner points; random points find "
        f"{100 * np.mean(by_chance):.1f} % each; {n - len(kept)} of {n} images could not be used",
        data={"found": hits, "planted": len(kept), "random_share": float(np.mean(by_chance))},
    )


def _plant(s: AuditedModel, features, index: int):
    """((w, b), share of random points beyond the boundary) for one image; None if there is none."""
    rng = np.random.default_rng([s.seed, 3, index])
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
            return fitted, float((of(uniform()) @ w + b > 0).mean())
    return None


CHECKS = {
    "planted": Check(
        title="The attack finds planted boundaries",
        threshold=f"success rate at least {SUCCESS:g}; FAIL where its 95 % interval is below that",
        advice="The attack is too weak to be believed, for it misses adversarial examples that exist "
        "by construction: more steps and restarts, then read the checks on gradients.",
        judge=planted,
        weight=HINT,
    )
}
