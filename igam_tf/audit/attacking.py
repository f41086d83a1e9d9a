"""Lines that compare attacks on the same examples: the signs of masked gradients.

Athalye et al. (2018) and Carlini et al. (2019) list them: one step beats many, black box beats white
box, noise does as well as an attack, unbounded attacks fail. Every line is a function Subject ->
Finding; `CHECKS` names them.
"""

import itertools

import keras
import numpy as np
import tensorflow as tf

from igam_tf.attacks import AttackSpec, pgd
from igam_tf.audit.lines import (
    FAIL,
    LEAST_EXAMPLES,
    PASS,
    WARN,
    Check,
    Finding,
    judge_excess,
    not_applicable,
    worst,
)
from igam_tf.audit.subject import Row, Subject, attached, joint
from igam_tf.evaluation.evaluate import LogitsFn, fraction_text, logits_function
from igam_tf.evaluation.inputs import pixel_range
from igam_tf.formulas.losses import xent
from igam_tf.formulas.statistics import excess, wilson_interval
from igam_tf.system.journal import model_identity
from madry_models import WideResNet
from madry_models.wide_resnet import normalize_images

# Shares of the examples by which the second attack may beat the first in an honest network.
# One step, a black box or noise: nothing but the luck of the start.
LUCK = 0.01
# Twice the steps: WARN from one point, FAIL beyond five, which no converged attack shows.
STEPS_TOLERANCE = 0.05
# Restarts and step sizes move PGD by one or two points on adversarially trained networks (Madry et
# al. 2018; Croce and Hein 2020, tables of APGD against PGD); five are beyond that.
TUNING_TOLERANCE = 0.05
# Margin losses and AutoAttack take 2 to 5 points more than PGD on xent from honest networks, and 10
# to 20 from those that rescale their logits (Croce and Hein 2020; Tramèr et al. 2020): the gap of
# an honest network is normal, and is read off the figures, not off the status.
LOSS_TOLERANCE = 0.08
# Share of the attack's damage that noise does as well.
NOISE_WARN, NOISE_FAIL = 0.5, 0.8
# At half the pixel range every image can become the same grey.
LARGEST_EPS = 0.5
EPS_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
STEP_FACTORS = (0.25, 0.5, 2.0, 4.0)
_AS = "accuracy (95 % interval)"


def _percent(row: Row) -> str:
    low, high = wilson_interval(int(row.standing.sum()), len(row.standing))
    return f"{100 * row.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _text(rows: dict[str, Row]) -> str:
    return "; ".join(f"{name} {_percent(row)}" for name, row in rows.items())


def _compared(reference: dict[str, Row], suspects: dict[str, Row], tolerance: float) -> Finding:
    """Whether any suspect beats all of the reference together."""
    rows = tuple(dict.fromkeys([*reference, *suspects]))
    if not joint(reference).any():
        return not_applicable(
            "nothing that could be found: " + ", ".join(reference) + " leave no example standing",
            rows,
        )
    left = int(joint(reference).sum())
    if left < LEAST_EXAMPLES:
        return not_applicable(
            f"{left} of {len(joint(reference))} images left by {', '.join(reference)}, nothing can be "
            "told",
            rows,
        )
    found = {name: excess(joint(reference), row.standing) for name, row in suspects.items()}
    strongest = max(found, key=lambda name: found[name].net)
    shown = reference
    if len(reference) > 1:
        together = f"{len(reference)} white-box attacks together"
        shown = {together: Row(joint(reference), {})}
    return Finding(
        status=worst([judge_excess(e, tolerance) for e in found.values()]),
        figure=f"{strongest} breaks {found[strongest]} compared with {next(iter(shown))}; {_AS}: "
        + _text(shown | suspects),
        rows=rows,
    )


def _default(s: Subject) -> dict[str, Row]:
    return {f"pgd{s.budget.steps[0]}": s.default}


def iterative(s: Subject) -> Finding:
    """Many steps are at least as strong as one."""
    spec = s.named("fgsm")[0]
    return _compared(_default(s), {"fgsm": s.attack(spec)[0]}, LUCK)


def steps(s: Subject) -> Finding:
    """More steps break more, until they break no more."""
    rows = s.ladder()
    names, ladder = list(rows), list(rows.values())
    data = {"steps": list(s.budget.steps), "accuracy": [row.accuracy for row in ladder]}
    gain = excess(ladder[-2].standing, ladder[-1].standing)
    statuses = [judge_excess(gain, STEPS_TOLERANCE)]
    if gain.net >= max(LEAST_EXAMPLES, LUCK * s.n):
        statuses.append(WARN)
    for shorter, longer in itertools.pairwise(ladder):
        statuses.append(judge_excess(excess(longer.standing, shorter.standing), LUCK))
    return Finding(
        status=worst(statuses),
        figure=f"{names[-1]} breaks {gain} compared with {names[-2]}; {_AS}: " + _text(rows),
        rows=tuple(names),
        data=data,
    )


def restarts(s: Subject) -> Finding:
    """One random start is nearly as good as several."""
    name = f"pgd{s.budget.steps[0]} x {s.budget.restarts} restarts"
    if not s.default.standing.any():
        return _compared(_default(s), _default(s), TUNING_TOLERANCE)
    row = s.attack(s.pgd(name, restarts=s.budget.restarts))[0]
    return _compared(_default(s), {name: row}, TUNING_TOLERANCE)


def step_size(s: Subject) -> Finding:
    """No other step size is much stronger than the default one."""
    if not s.default.standing.any():
        return _compared(_default(s), _default(s), TUNING_TOLERANCE)
    base = f"pgd{s.budget.steps[0]}"
    specs = [
        s.pgd(f"{base} step {s.step_size / s.eps * factor:.3g} eps", step_size=s.step_size * factor)
        for factor in STEP_FACTORS
    ]
    rows = dict(zip((spec.name for spec in specs), s.attack(*specs), strict=True))
    return _compared(_default(s), rows, TUNING_TOLERANCE)


def losses(s: Subject) -> Finding:
    """Margin losses are not much stronger than the cross-entropy."""
    if not s.default.standing.any():
        return _compared(_default(s), _default(s), LOSS_TOLERANCE)
    others = {name: row for name, row in s.losses().items() if name not in _default(s)}
    return _compared(_default(s), others, LOSS_TOLERANCE)


def ensemble(s: Subject) -> Finding:
    """Attacks without parameters are not much stronger than PGD on the losses above."""
    return _compared(s.ladder() | s.losses(), s.ensemble(), LOSS_TOLERANCE)


def eps(s: Subject) -> Finding:
    """A larger ball breaks more, and a ball of half the pixel range leaves only chance."""
    base = s.budget.steps[0]
    radii = sorted({min(s.eps * f, LARGEST_EPS) for f in EPS_FACTORS} | {LARGEST_EPS})
    specs = [
        s.pgd(
            f"pgd{base} eps {fraction_text(radius)}",
            eps=radius,
            step_size=s.step_size * radius / s.eps,
        )
        for radius in radii
        if radius != s.eps
    ]
    rows = {"clean": s.clean, **_default(s)}
    rows |= dict(zip((spec.name for spec in specs), s.attack(*specs), strict=True))
    curve = dict(sorted(rows.items(), key=lambda item: item[1].settings["eps"]))
    statuses, rises = [], []
    for (small, at_small), (large, at_large) in itertools.pairwise(curve.items()):
        rise = excess(at_large.standing, at_small.standing)
        statuses.append(judge_excess(rise, LUCK))
        if statuses[-1] != PASS:
            rises.append(f"{large} leaves {rise.net} more standing than {small}")
    last = list(curve.values())[-1]
    chance = 1 / s.split.spec.num_classes
    low, _ = wilson_interval(int(last.standing.sum()), s.n)
    statuses.append(FAIL if low > chance else PASS)
    return Finding(
        status=worst(statuses),
        figure=("; ".join(rises) or "never rises")
        + f"; at eps {fraction_text(LARGEST_EPS)} {_percent(last)} against chance "
        f"{100 * chance:g} %; {_AS}: {_text(curve)}",
        rows=tuple(curve),
        data={
            "eps": [row.settings["eps"] for row in curve.values()],
            "accuracy": [row.accuracy for row in curve.values()],
            "chance": chance,
        },
    )


# --- without this network's gradients ------------------------------------------------------------


def square(s: Subject) -> Finding:
    """Square, which reads logits only, finds nothing that the white box does not."""
    white = s.white_box()
    if not joint(white).any():
        return _compared(white, {}, LUCK)
    name = f"square, {s.budget.queries} queries"
    spec = AttackSpec(
        name=name, kind="square", eps=s.eps, steps=s.budget.queries, restarts=1, loss="cw",
        random_start=True,
    )  # fmt: skip
    return _compared(white, {name: s.attack(spec)[0]}, LUCK)


def transfer(s: Subject) -> Finding:
    """Other networks' adversarial examples do not beat this one's own."""
    if not s.sources:
        return not_applicable("no other network given; name some with --transfer_from=<path>,...")
    white = s.white_box()
    if not joint(white).any():
        return _compared(white, {}, LUCK)
    rows = {}
    for name, source in s.sources.items():
        title = f"pgd{s.budget.steps[0]} on {name}"
        craft, identity = _crafted_on(s, source)
        rows[title] = s.judged(
            title,
            lambda _, x, y, craft=craft: _right(s, craft(x, y), y),
            identity=identity,
            kind="transfer",
            step_size=s.step_size,
            steps=s.budget.steps[0],
            restarts=1,
            loss="xent",
            gradient="of another network",
            on=name,
        )
    return _compared(white, rows, LUCK)


def _crafted_on(s: Subject, source: keras.Model):
    """(x, y -> adversarial examples of another network, in this one's pixel unit; its identity)."""
    ratio = pixel_range(source, s.split.spec) / s.pixel_max
    theirs = logits_function(source, "inference")
    eps, step = s.eps_pixels, np.float32(s.step_size * s.pixel_max)

    @tf.function(reduce_retracing=True)
    def craft(x, y):
        return pgd(
            attached(lambda x: theirs(x * ratio)), x, y, eps=eps, step_size=step,
            steps=s.budget.steps[0], loss=xent, bounds=(0.0, s.pixel_max),
        )  # fmt: skip

    return craft, model_identity(source)


def _right(s: Subject, x: np.ndarray | tf.Tensor, y: np.ndarray) -> np.ndarray:
    return s.logits(tf.convert_to_tensor(x)).numpy().argmax(1) == y


def noise(s: Subject) -> Finding:
    """Points drawn at random do far less harm than an attack, and find nothing that it does not."""
    white = s.white_box()
    if not joint(white).any():
        return _compared(white, {}, LUCK)
    tries = s.budget.random_points

    def right(indices: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Half of the points uniform in the ball, half of them its corners."""
        standing = np.ones(len(y), bool)
        for k in range(tries):
            d = s.noise(indices, 2, k)
            d = np.sign(d) * s.eps_pixels if k % 2 else d
            standing &= _right(s, s.clip(x + d), y)
        return standing

    name = f"{tries} random points"
    row = s.judged(name, right, kind="random search", steps=tries, restarts=1, points=tries)
    found = _compared(white, {name: row}, LUCK)
    clean = s.clean.standing.sum()
    by_noise, by_attack = clean - row.standing.sum(), clean - joint(_default(s)).sum()
    share = by_noise / by_attack if by_attack else 0.0
    near = PASS
    if by_noise >= LEAST_EXAMPLES:
        near = FAIL if share >= NOISE_FAIL else WARN if share >= NOISE_WARN else PASS
    return Finding(
        status=worst([found.status, near]),
        figure=f"noise breaks {by_noise}, pgd{s.budget.steps[0]} {by_attack} of {clean} examples "
        f"({100 * share:.0f} %); {found.figure}",
        rows=found.rows + tuple(_default(s)),
        data={"share": share},
    )


# --- through the input layer ----------------------------------------------------------------------


def normalisations(network: WideResNet) -> dict[str, LogitsFn]:
    """The network's own values with two gradients of its input layer.

    "exact" differentiates mean and deviation, "constant" (straight-through) does not, so that it sees
    what the network would gain by a change of mean or contrast that the layer takes away again.
    """

    def exact(x: tf.Tensor) -> tf.Tensor:
        return normalize_images(x, network.input_layer)

    def constant(x: tf.Tensor) -> tf.Tensor:
        axes = list(range(1, x.shape.rank))
        centred = x - tf.reduce_mean(x, axes, keepdims=True)
        squared = tf.reduce_sum(tf.square(centred), axes, keepdims=True)
        scale = tf.math.rsqrt(tf.maximum(squared, 1.0))
        if network.input_layer == "standardize":
            scale *= tf.sqrt(tf.cast(tf.reduce_prod(tf.shape(x)[1:]), x.dtype))
        scale = tf.stop_gradient(scale)
        # The value is exactly the layer's, the gradient that of a multiplication.
        return x * scale + tf.stop_gradient(exact(x) - x * scale)

    def behind(layer: LogitsFn) -> LogitsFn:
        return lambda x: network.logits_layer(network.features_of_normalized(layer(x)))

    return {"exact": behind(exact), "constant": behind(constant)}


def adaptive(s: Subject) -> Finding:
    """No treatment of the input normalisation makes the attack much stronger."""
    if not isinstance(s.model, WideResNet):
        return not_applicable(
            f"this {type(s.model).__name__} has no input layer that is known here "
            "(standardize or unit_norm of a WideResNet)"
        )
    if not s.default.standing.any():
        return _compared(_default(s), _default(s), TUNING_TOLERANCE)
    rows = {}
    for name, logits_fn in normalisations(s.model).items():
        title = f"pgd{s.budget.steps[0]}, {name} normalisation"
        spec = s.pgd(title)
        rows[title] = s.attack(spec, through=attached(logits_fn), variant=f"{name} normalisation")[
            0
        ]
    return _compared(_default(s), rows, TUNING_TOLERANCE)


def _more(tolerance: float) -> str:
    return (
        f"WARN where the paired difference is at least {100 * tolerance:g} % of the examples (and "
        f"{LEAST_EXAMPLES}); FAIL where its whole 95 % interval is above that"
    )


_MASKED = (
    "The gradients are masked: attack a differentiable stand-in of what hides them (BPDA, EOT; "
    "Athalye et al. 2018), and quote the worst case."
)
CHECKS = {
    "iterative": Check(
        title="PGD is at least as strong as FGSM",
        threshold=_more(LUCK),
        advice="Lower the step size and raise the number of steps; if one step stays stronger, the "
        "gradient changes along the way. " + _MASKED,
        judge=iterative,
    ),
    "steps": Check(
        title="Accuracy falls with steps and converges",
        threshold=f"longest against second longest: WARN from {100 * LUCK:g} % of the examples, FAIL "
        f"where the 95 % interval is above {100 * STEPS_TOLERANCE:g} %; more steps never weaker "
        f"({_more(LUCK)})",
        advice="Give PGD more steps (--budget=full) until the figure stands still, and quote that one.",
        judge=steps,
    ),
    "restarts": Check(
        title="Restarts add little",
        threshold=_more(TUNING_TOLERANCE),
        advice="Quote the figure with restarts; a bumpy loss surface stops single starts.",
        judge=restarts,
    ),
    "step_size": Check(
        title="The step size is well chosen",
        threshold=_more(TUNING_TOLERANCE),
        advice="Attack with --step_size as in the strongest row, or trust APGD, which chooses it.",
        judge=step_size,
    ),
    "losses": Check(
        title="The loss is not saturated",
        threshold=_more(LOSS_TOLERANCE),
        advice="The cross-entropy gives poor gradients here (large or rescaled logits): quote the "
        "margin losses cw and dlr.",
        judge=losses,
    ),
    "ensemble": Check(
        title="AutoAttack is not much stronger than PGD",
        threshold=_more(LOSS_TOLERANCE),
        advice="PGD's figures are too high: quote AutoAttack's (Croce and Hein 2020).",
        judge=ensemble,
    ),
    "eps": Check(
        title="Accuracy falls with eps, to chance",
        threshold=f"monotone ({_more(LUCK)}); at eps {LARGEST_EPS:g} the interval reaches chance",
        advice="An attack that may turn any image grey and fails is broken: nothing it says at "
        "smaller eps counts. " + _MASKED,
        judge=eps,
    ),
    "square": Check(
        title="Square is not stronger than white box",
        threshold=_more(LUCK),
        advice=_MASKED,
        judge=square,
    ),
    "transfer": Check(
        title="Transfer is not stronger than white box",
        threshold=_more(LUCK),
        advice=_MASKED,
        judge=transfer,
    ),
    "noise": Check(
        title="Noise is far weaker than the attack",
        threshold=f"share of PGD's damage that noise does: WARN from {100 * NOISE_WARN:g} %, FAIL "
        f"from {100 * NOISE_FAIL:g} %; against all white-box attacks: {_more(LUCK)}",
        advice="PGD does hardly more than its random start. " + _MASKED,
        judge=noise,
    ),
    "adaptive": Check(
        title="The input normalisation hides nothing",
        threshold=_more(TUNING_TOLERANCE),
        advice="Quote the stronger of the two gradients (Tramèr et al. 2020: attacks must be adapted "
        "to the defence).",
        judge=adaptive,
    ),
}
