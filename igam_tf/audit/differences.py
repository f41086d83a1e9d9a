"""Is the gradient the function's own? What autodiff says of a margin against central differences of it.

A layer may have a gradient that is smooth, finite and wrong: straight-through estimates, a custom
gradient, a `stop_gradient` on a part of the way. All white-box attacks follow it astray together, and
nothing that compares one gradient with another can tell.
"""

from __future__ import annotations

import numpy as np

from igam_tf.attacks.attack_losses import cw_margin
from igam_tf.audit.audited import AuditedModel
from igam_tf.audit.checks import (
    FAIL,
    LEAST_EXAMPLES,
    PASS,
    PROOF,
    WARN,
    Check,
    Finding,
    not_applicable,
)
from igam_tf.common.lazy import tf
from igam_tf.formulas.gradients import input_gradient
from igam_tf.formulas.statistics import wilson_interval

# Half the length of a difference, as a share of the pixel range. A point counts as off where no
# length agrees: rounding spoils the short ones, the corners of a ReLU network the long ones.
LENGTHS = (1e-4, 3e-4, 1e-3, 4e-3)
# Types whose rounding is more than such short differences show, with their epsilons; and longer ones.
NARROW = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
NARROW_LENGTHS = (4e-3, 1.6e-2, 6.4e-2)
# Points of the eps-ball, from noise uniform in it: attacks pass far from the image, and end at corners.
POINTS = {
    "in the half ball": lambda noise, eps: noise / 2,
    "in the ball": lambda noise, eps: noise,
    "at its corners": lambda noise, eps: np.sign(noise) * eps,
}
DIRECTIONS = 8  # random ones of +-1 for each pixel, beside the sign of the gradient
# A point is off where what the gradient misses is this share of the larger of the two. Honest networks
# have at most 5 % of such points, wrong gradients 55 % and more, k winners that take all 20 %; and what
# is wrong for some classes alone, as many as these.
OFF = 0.35
OFF_WARN, OFF_FAIL = 0.08, 0.3
ROUNDING = 4.0  # of a difference of two margins, in units of the type's epsilon of the logits


def relative_error(slopes: np.ndarray, said: np.ndarray, slack: np.ndarray) -> np.ndarray:
    """By how much J misses the slopes of its function, at the length that suits it best; [B].

    0: it says what the function does; 1: one of them is 0, or they are unrelated; 2: of opposite sign.

    Args:
        slopes: central differences by length, direction and example, [L,R,B].
        said: J along these directions, [R,B].
        slack: rounding of each slope, [L,B].

    Returns:
        Root mean square over the directions, as a share of the larger one; NaN where both are 0, or
        rounding alone could be what would be OFF.

    Example:
        >>> slopes = np.array([[[1.0, 0.0, 3.0, 0.0]]])
        >>> relative_error(slopes, np.array([[1.0, 2.0, -3.0, 0.0]]), np.zeros((1, 4)))
        array([ 0.,  1.,  2., nan])
    """
    missed = np.maximum(np.abs(slopes - said) - slack[:, None], 0)

    def size(v: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(v, dtype=np.float64).mean(-2))

    largest = np.maximum(size(slopes), size(said))
    told = (largest > 0) & (OFF * largest >= slack)
    share = np.divide(size(missed), largest, out=np.full(largest.shape, np.nan), where=told)
    return np.fmin.reduce(share, axis=0)


def _epsilon(graph: tf.Graph) -> float:
    """The epsilon of the narrowest type of floats in a graph, and in the functions that it calls."""
    content = graph.as_graph_def()
    nodes = [*content.node, *(n for f in content.library.function for n in f.node_def)]
    types = {value.type for node in nodes for value in node.attr.values()}
    narrow = {tf.as_dtype(name).as_datatype_enum: epsilon for name, epsilon in NARROW.items()}
    return max([float(np.finfo(np.float32).eps), *(narrow[t] for t in types & narrow.keys())])


def finite_difference(s: AuditedModel) -> Finding:
    """Along the gradient's sign, and along random directions, the margin does what the gradient says."""
    from igam_tf.method.networks import in_float32

    if s.random:
        return not_applicable(
            "the same image gives other logits each time: see the check deterministic"
        )

    def logits_fn(x):
        with in_float32(s.model, tuple(NARROW)):  # whose steps are not the layers' doing
            return s.logits_fn(x)

    @tf.function(reduce_retracing=True, autograph=False)
    def margin_of(x, y):
        return cw_margin(logits_fn(x), y)

    @tf.function(reduce_retracing=True, autograph=False)
    def gradient_of(x, y):
        return input_gradient(logits_fn, x, y, cw_margin)

    first = next(s.batches())
    eps = _epsilon(gradient_of.get_concrete_function(s.images[first], s.labels[first]).graph)
    shares = NARROW_LENGTHS if eps in NARROW.values() else LENGTHS
    room = shares[-1] * s.pixel_max  # to the ends of the pixel range, where a network may clip
    lengths = np.float32(shares) * np.float32(s.pixel_max)

    def errors_at(point) -> np.ndarray:
        """The relative error at a point near each image, [n]; NaN where the margin is flat."""
        errors = []
        for batch in s.batches():
            y = s.labels[batch]
            x = s.images[batch] + point(s.noise(batch, "points of differences"), s.eps_pixels)
            x = np.clip(x, room, s.pixel_max - room).astype(s.images.dtype)
            j, _, z = (np.asarray(tf.cast(t, tf.float32)) for t in gradient_of(x, y))
            slack = ROUNDING * eps * np.abs(z).max(1) / lengths[:, None]

            def error(directions, x=x, y=y, j=j, slack=slack):
                slopes = [
                    [
                        (margin_of(x + h * d, y) - margin_of(x - h * d, y)) / (2 * h)
                        for d in directions
                    ]
                    for h in lengths
                ]
                said = [(j * d).reshape(len(j), -1).sum(1) for d in directions]
                return relative_error(np.array(slopes), np.array(said), slack)

            random = [
                np.sign(s.noise(batch, "directions of differences", k)) for k in range(DIRECTIONS)
            ]
            errors.append(np.fmax(error([np.sign(j)]), error(random)))
        return np.concatenate(errors)

    found = {where: errors_at(point) for where, point in POINTS.items()}
    told = {where: errors[np.isfinite(errors)] for where, errors in found.items()}
    told = {where: errors for where, errors in told.items() if len(errors) >= LEAST_EXAMPLES}
    data = {
        where: [None if np.isnan(e) else round(float(e), 4) for e in errors]
        for where, errors in found.items()
    }
    if not told:
        return not_applicable(
            f"the margin is flat near almost all of the {s.n} images, or rounding hides its changes"
        )
    where = max(told, key=lambda where: (told[where] > OFF).mean())
    errors = told[where]
    n, off = len(errors), int((errors > OFF).sum())
    low, high = wilson_interval(off, n)
    status = WARN if off >= max(LEAST_EXAMPLES, OFF_WARN * n) else PASS
    return Finding(
        status=FAIL if status == WARN and low > OFF_FAIL else status,
        figure=f"at {off} of {n} points {where} the gradient is wrong by over {100 * OFF:g} % "
        f"({100 * off / n:.1f} % of the points, 95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f}); the median error is {np.median(errors):.3f}; these points are the "
        f"worst of: {', '.join(told)}; central differences of "
        f"{', '.join(f'{h:g}' for h in shares)} of the pixel range along sign J and {DIRECTIONS} "
        f"random directions, of which the best length counts; {s.n - n} of {s.n} points are left "
        "out, where the margin is flat or rounding hides its changes",
        data={"relative_error": data},
    )


CHECKS = {
    "finite_difference": Check(
        title="Gradients are those of the function",
        meaning="Near the image, in the eps-ball and at its corners the margin changes as its "
        "gradient J says, along sign J and along random directions.",
        threshold=f"a point is wrong if J misses over {100 * OFF:g} % of the change at every "
        f"length, beyond rounding; WARN from {100 * OFF_WARN:g} % wrong points of a kind (at "
        f"least {LEAST_EXAMPLES}), FAIL if their 95 % interval is above {100 * OFF_FAIL:g} %",
        reason="Of 100 points of a kind, networks without masking have at most 5 wrong ones, k "
        "winners that take all have 20, and straight-through, custom and cut gradients have 55 to "
        "100.",
        advice="Some layer has a gradient that is not its own (straight-through estimate, "
        "stop_gradient, custom gradient), and every gradient attack follows it. Attack what is "
        "behind that layer (BPDA; Athalye et al. 2018), transfer from it, and use Square with more "
        "queries.",
        judge=finite_difference,
        weight=PROOF,
    )
}
