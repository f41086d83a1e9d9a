"""Checks that compare attacks on the same examples, for signs of masked gradients.

Athalye et al. (2018) and Carlini et al. (2019) list these signs: one step beats many, a black box
beats a white box, noise does as well as an attack, unbounded attacks fail. Every check is a function
AuditedModel -> Finding; `CHECKS` names them.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

import madry_models
from igam_tf.attacks import AttackSpec, pgd
from igam_tf.attacks.inputs import LogitsFn
from igam_tf.audit.audited import AttackResult, AuditedModel, differentiable, joint
from igam_tf.audit.checks import (
    FAIL,
    HINT,
    LEAST_EXAMPLES,
    NOT_APPLICABLE,
    PASS,
    PROOF,
    TUNING,
    WARN,
    Check,
    Finding,
    judge_excess,
    not_applicable,
    worst,
)
from igam_tf.common.lazy import tf
from igam_tf.datasets import fraction_text
from igam_tf.formulas.losses import xent
from igam_tf.formulas.statistics import excess, wilson_interval

# Shares of the examples by which the second attack may beat the first on an honest network, one
# whose gradients are not masked.
# One step, a black box or noise wins only by the luck of its start.
CHANCE = 0.01
# Twice the steps: WARN from one point, FAIL beyond five points, which no converged attack gains.
STEPS_TOLERANCE = 0.05
# Restarts and step sizes move PGD by one or two points on adversarially trained networks (Madry et
# al. 2018; Croce and Hein 2020, tables of APGD against PGD); five are beyond that.
TUNING_TOLERANCE = 0.05
# Margin losses and AutoAttack take 2 to 5 points more than PGD on xent from honest networks, and 10
# to 20 from those that rescale their logits (Croce and Hein 2020; Tramèr et al. 2020): the gap of
# an honest network is normal, and is read off the figures, not off the status.
LOSS_TOLERANCE = 0.08
# Examples that noise breaks, as a share of those that white-box attacks break, if these are enough.
NOISE_WARN, NOISE_FAIL, NOISE_LEAST = 0.5, 0.8, 10
# So many examples that Square breaks, and random points do not, tell whether gradients are worth more.
SQUARE_LEAST = 10
# At half the pixel range every image can become the same grey.
LARGEST_EPS = 0.5
EPS_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
STEP_FACTORS = (0.25, 0.5, 2.0, 4.0)
_AS = "robust images (95 % interval)"


def _percent(result: AttackResult) -> str:
    low, high = wilson_interval(int(result.robust.sum()), len(result.robust))
    return f"{100 * result.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _text(results: dict[str, AttackResult]) -> str:
    return "; ".join(f"{name} {_percent(result)}" for name, result in results.items())


def _compared(
    reference: dict[str, AttackResult], suspects: dict[str, AttackResult], tolerance: float
) -> Finding:
    """Whether any suspect beats all of the reference together."""
    rows = tuple(dict.fromkeys([*reference, *suspects]))
    robust = joint(reference)
    left, names = int(robust.sum()), ", ".join(reference)
    if left == 0:
        return not_applicable(f"no image is robust to {names}, so nothing can be masked", rows)
    if left < LEAST_EXAMPLES:
        return not_applicable(
            f"only {left} of {len(robust)} images are robust to {names}, too few to compare", rows
        )
    found = {name: excess(robust, row.robust) for name, row in suspects.items()}
    strongest = max(found, key=lambda name: found[name].net)
    together = names if len(reference) == 1 else f"{len(reference)} white-box attacks together"
    shown = {together: AttackResult(robust, {})} | suspects
    return Finding(
        status=worst([judge_excess(e, tolerance) for e in found.values()]),
        figure=f"{found[strongest].sentence(strongest, together)}; {_AS}: {_text(shown)}",
        rows=rows,
    )


def _default(s: AuditedModel) -> dict[str, AttackResult]:
    return {f"pgd{s.budget.steps[0]}": s.default}


def _against_default(s: AuditedModel, tolerance: float, *specs: AttackSpec) -> Finding:
    """Whether any of these attacks beats the default one; they run if that leaves an example right."""
    others = specs if s.default.robust.any() else ()
    return _compared(_default(s), s.results_of(*others), tolerance)


def iterative(s: AuditedModel) -> Finding:
    """Many steps are at least as strong as one."""
    spec = s.named("fgsm")[0]
    return _compared(_default(s), {"fgsm": s.attack(spec)[0]}, CHANCE)


def steps(s: AuditedModel) -> Finding:
    """More steps break more examples, and the last doubling hardly any: the attack has converged."""
    rows = s.pgd_by_steps()
    names, ladder = list(rows), list(rows.values())
    data = {"steps": list(s.budget.steps), "accuracy": [row.accuracy for row in ladder]}
    gain = excess(ladder[-2].robust, ladder[-1].robust)
    statuses = [judge_excess(gain, STEPS_TOLERANCE)]
    if gain.net >= max(LEAST_EXAMPLES, CHANCE * s.n):
        statuses.append(WARN)
    for shorter, longer in itertools.pairwise(ladder):
        statuses.append(judge_excess(excess(longer.robust, shorter.robust), CHANCE))
    return Finding(
        status=worst(statuses),
        figure=f"{gain.sentence(names[-1], names[-2])}; {_AS}: {_text(rows)}",
        rows=tuple(names),
        data=data,
    )


def restarts(s: AuditedModel) -> Finding:
    """One random start is nearly as good as several."""
    name = f"pgd{s.budget.steps[0]} x {s.budget.restarts} restarts"
    return _against_default(s, TUNING_TOLERANCE, s.pgd(name, restarts=s.budget.restarts))


def step_size(s: AuditedModel) -> Finding:
    """No other step size is much stronger than the default one."""
    base = f"pgd{s.budget.steps[0]}"
    specs = [
        s.pgd(f"{base} step {s.step_size / s.eps * factor:.3g} eps", step_size=s.step_size * factor)
        for factor in STEP_FACTORS
    ]
    return _against_default(s, TUNING_TOLERANCE, *specs)


def losses(s: AuditedModel) -> Finding:
    """Margin losses are not much stronger than the cross-entropy."""
    if not s.default.robust.any():
        return _compared(_default(s), _default(s), LOSS_TOLERANCE)
    others = {name: row for name, row in s.losses().items() if name not in _default(s)}
    return _compared(_default(s), others, LOSS_TOLERANCE)


def ensemble(s: AuditedModel) -> Finding:
    """Attacks that choose their own step size are not much stronger than PGD on any of the losses."""
    return _compared(s.pgd_by_steps() | s.losses(), s.ensemble(), LOSS_TOLERANCE)


def eps(s: AuditedModel) -> Finding:
    """Accuracy falls as eps grows, and reaches chance at half the pixel range."""
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
    results = {"clean": s.clean, **_default(s), **s.results_of(*specs)}
    curve = dict(sorted(results.items(), key=lambda item: item[1].settings["eps"]))
    statuses, rises = [], []
    for (small, at_small), (large, at_large) in itertools.pairwise(curve.items()):
        rise = excess(at_large.robust, at_small.robust)
        statuses.append(judge_excess(rise, CHANCE))
        if statuses[-1] != PASS:
            rises.append(f"{rise.net} more images are robust to {large} than to {small}")
    last = list(curve.values())[-1]
    chance = 1 / s.split.spec.num_classes
    low, _ = wilson_interval(int(last.robust.sum()), s.n)
    statuses.append(FAIL if low > chance else PASS)
    return Finding(
        status=worst(statuses),
        figure=("; ".join(rises) or "accuracy never rises with eps")
        + f"; at eps {fraction_text(LARGEST_EPS)} it is {_percent(last)}, and chance is "
        f"{100 * chance:g} %; {_AS}: {_text(curve)}",
        rows=tuple(curve),
        data={
            "eps": [row.settings["eps"] for row in curve.values()],
            "accuracy": [row.accuracy for row in curve.values()],
            "chance": chance,
        },
    )


# --- without this network's gradients ------------------------------------------------------------


def square(s: AuditedModel) -> Finding:
    """Square, which reads logits only, breaks hardly any example that the white-box attacks do not."""
    white = s.white_box()
    if not joint(white).any():
        return _compared(white, {}, CHANCE)
    name = f"square, {s.budget.queries} queries"
    spec = AttackSpec(
        name=name, kind="square", eps=s.eps, steps=s.budget.queries, restarts=1, loss="cw",
        random_start=True,
    )  # fmt: skip
    row = s.attack(spec)[0]
    found = _compared(white, {name: row}, CHANCE)
    searched = int((s.clean.robust & ~row.robust & _at_random_points(s)[1].robust).sum())
    tie = searched >= SQUARE_LEAST and excess(joint(white), row.robust).net >= 0
    if tie and found.status == PASS:
        return dataclasses.replace(found, status=WARN)
    return found


def transfer(s: AuditedModel) -> Finding:
    """Other networks' adversarial examples break hardly any example that white-box attacks do not."""
    from igam_tf.audit.nested import nested_sources, whole_network

    white = s.white_box()
    if not joint(white).any():
        return _compared(white, {}, CHANCE)
    sources = {name: whole_network(s, model) for name, model in s.sources.items()}
    sources |= nested_sources(s)
    if not sources:
        return not_applicable(
            "this network has no other inside it, and none is given: --transfer_from=<path>,... "
            "names some"
        )
    rows = {}
    for name, source in sources.items():
        title = f"pgd{s.budget.steps[0]} on {name}"
        craft = _crafted_on(s, source.logits_fn)
        rows[title] = s.result_of(
            title,
            lambda _, x, y, craft=craft: _right(s, craft(x, y), y),
            identity=source.identity,
            kind="transfer",
            step_size=s.step_size,
            steps=s.budget.steps[0],
            restarts=1,
            loss="xent",
            gradient="of another network",
            on=name,
        )
    return _compared(white, rows, CHANCE)


def _crafted_on(s: AuditedModel, theirs: LogitsFn):
    """x, y -> adversarial examples of these logits."""
    eps, step = s.eps_pixels, np.float32(s.step_size * s.pixel_max)

    @tf.function(reduce_retracing=True, autograph=False)
    def craft(x, y):
        return pgd(
            differentiable(theirs), x, y, eps=eps, step_size=step,
            steps=s.budget.steps[0], loss=xent, bounds=(0.0, s.pixel_max),
        )  # fmt: skip

    return craft


def _right(s: AuditedModel, x: np.ndarray | tf.Tensor, y: np.ndarray) -> np.ndarray:
    return s.logits(tf.convert_to_tensor(x)).numpy().argmax(1) == y


def _at_random_points(s: AuditedModel) -> tuple[str, AttackResult]:
    """(name, result) of points drawn at random: half uniform in the ball, half its corners."""
    tries = s.budget.random_points

    def right(indices: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        robust = np.ones(len(y), bool)
        for k in range(tries):
            d = s.noise(indices, "random points", k)
            d = np.sign(d) * s.eps_pixels if k % 2 else d
            robust &= _right(s, s.clip(x + d), y)
        return robust

    name = f"{tries} random points"
    return name, s.result_of(
        name, right, kind="random search", steps=tries, restarts=1, points=tries
    )  # fmt: skip


def noise(s: AuditedModel) -> Finding:
    """Random points break far fewer examples than attacks, and hardly any that these do not."""
    white = s.white_box()
    if not joint(white).any():
        return _compared(white, {}, CHANCE)
    name, row = _at_random_points(s)
    found = _compared(white, {name: row}, CHANCE)
    by_attack = s.clean.robust & ~joint(white)
    both, broken = int((by_attack & ~row.robust).sum()), int(by_attack.sum())
    share, low = both / max(broken, 1), 0.0
    if broken >= NOISE_LEAST:  # of fewer, most are near the boundary anyway
        low, _ = wilson_interval(both, broken)
    near = FAIL if low >= NOISE_FAIL else WARN if low >= NOISE_WARN else PASS
    if found.status == NOT_APPLICABLE and near == PASS:
        return found
    shared = "white-box attacks break no image"
    if broken:
        shared = (
            f"random points break {both} of the {broken} images that white-box attacks break "
            f"({100 * share:.0f} %)"
        )
    return Finding(
        status=worst([found.status, near]),
        figure=f"{shared}; {found.figure}",
        rows=found.rows,
        data={"share": share},
    )


# --- through the input layer ----------------------------------------------------------------------


def normalisations(network: madry_models.WideResNet) -> dict[str, LogitsFn]:
    """The network's logits, with two gradients of the layer that standardises its input.

    "exact" differentiates the image's mean and deviation. "constant" (straight-through) takes the
    layer for a multiplication by a constant, so that the attack also tries changes of brightness and
    contrast, which the layer undoes.
    """
    from madry_models.wide_resnet import normalize_images

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


def adaptive(s: AuditedModel) -> Finding:
    """Neither gradient of the input normalisation makes the attack much stronger."""
    if not isinstance(s.model, madry_models.WideResNet):
        return not_applicable(
            f"this {type(s.model).__name__} has no input normalisation that the check knows "
            "(standardize or unit_norm of a WideResNet)"
        )
    if not s.default.robust.any():
        return _compared(_default(s), _default(s), TUNING_TOLERANCE)
    rows = {}
    for name, logits_fn in normalisations(s.model).items():
        title = f"pgd{s.budget.steps[0]}, {name} normalisation"
        spec = s.pgd(title)
        rows[title] = s.attack(
            spec, through=differentiable(logits_fn), variant=f"{name} normalisation"
        )[0]
    return _compared(_default(s), rows, TUNING_TOLERANCE)


def _more(suspect: str, reference: str, tolerance: float, fail: float | None = None) -> str:
    return (
        f"WARN if {suspect} breaks {100 * tolerance:g} % of the images (at least {LEAST_EXAMPLES}) "
        f"more than {reference}, FAIL if the 95 % interval of this paired difference is wholly "
        f"above {100 * (fail or tolerance):g} %"
    )


_BY_CHANCE = "In theory the difference is 0: the weaker attack can be stronger only by chance."
_MASKED = (
    "The gradients are masked: attack a differentiable stand-in of what hides them (BPDA, EOT; "
    "Athalye et al. 2018), and quote the worst case."
)
_TUNED = (
    "On adversarially trained networks this changes PGD's figure by 1 or 2 points (Madry et al. "
    "2018; Croce and Hein 2020)."
)
_STRONGER = (
    "On networks without masking these attacks take 2 to 5 points more than PGD on the "
    "cross-entropy, which is normal; on those that rescale their logits, 10 to 20 (Croce and Hein "
    "2020; Tramèr et al. 2020)."
)
CHECKS = {
    "iterative": Check(
        title="PGD is at least as strong as FGSM",
        meaning="One step does not break more images than many steps.",
        threshold=_more("FGSM", "PGD", CHANCE),
        reason=_BY_CHANCE,
        advice="Lower the step size and raise the number of steps; if one step stays stronger, the "
        "gradient changes along the way. " + _MASKED,
        judge=iterative,
        needs_gradient=True,
        weight=HINT,
    ),
    "steps": Check(
        title="Accuracy falls with steps and converges",
        meaning="More steps break more images, until nothing changes.",
        threshold=_more("the longest PGD", "the second longest", CHANCE, fail=STEPS_TOLERANCE)
        + f"; {_more('a shorter PGD', 'the next longer one', CHANCE)}",
        reason="A converged attack gains nothing from more steps; in the paper's own tables "
        "accuracy falls by over 5 points.",
        advice="Give PGD more steps (--budget=full) until its figure no longer changes, and quote "
        "that one.",
        judge=steps,
        needs_gradient=True,
        weight=TUNING,
    ),
    "restarts": Check(
        title="Restarts add little",
        meaning="One random start is nearly as good as several.",
        threshold=_more("PGD with restarts", "PGD with one start", TUNING_TOLERANCE),
        reason=_TUNED,
        advice="Quote the figure with restarts: on a bumpy loss surface single starts stop early.",
        judge=restarts,
        needs_gradient=True,
        weight=TUNING,
    ),
    "step_size": Check(
        title="The step size is well chosen",
        meaning="Other step sizes are not much stronger than this one.",
        threshold=_more("another step size", "this one", TUNING_TOLERANCE),
        reason=_TUNED,
        advice="Set --step_size as in the strongest row, or trust APGD, which chooses its own.",
        judge=step_size,
        needs_gradient=True,
        weight=TUNING,
    ),
    "losses": Check(
        title="The loss is not saturated",
        meaning="PGD on the margin losses cw and dlr is not much stronger than on the "
        "cross-entropy.",
        threshold=_more("a margin loss", "the cross-entropy", LOSS_TOLERANCE),
        reason=_STRONGER,
        advice="The gradients of the cross-entropy are poor here (large or rescaled logits): quote "
        "the figures on cw and dlr.",
        judge=losses,
        needs_gradient=True,
        weight=TUNING,
    ),
    "ensemble": Check(
        title="AutoAttack is not much stronger than PGD",
        meaning="Attacks that choose their own step size (APGD, or all of AutoAttack) are not much "
        "stronger than PGD on any loss.",
        threshold=_more("one of these attacks", "all PGDs together", LOSS_TOLERANCE),
        reason=_STRONGER,
        advice="PGD's figures are too high: quote AutoAttack's (Croce and Hein 2020).",
        judge=ensemble,
        weight=TUNING,
    ),
    "eps": Check(
        title="Accuracy falls with eps, to chance",
        meaning="Accuracy never rises with eps, and at half the pixel range it is at chance.",
        threshold=f"{_more('an eps', 'the next larger one', CHANCE)}; FAIL if at eps "
        f"{LARGEST_EPS:g} the 95 % interval is above chance",
        reason=f"{_BY_CHANCE} At half the pixel range every image can become the same grey.",
        advice="An attack that may turn any image grey and still fails is broken, and so are its "
        "figures at smaller eps. " + _MASKED,
        judge=eps,
        weight=PROOF,
    ),
    "square": Check(
        title="Square is weaker than white-box attacks",
        meaning="Square, which uses only logits, breaks no image that white-box attacks do not, "
        "and fewer than they.",
        threshold=f"{_more('Square', 'all white-box attacks together', CHANCE)}; WARN if Square "
        f"breaks {SQUARE_LEAST} images or more that random points do not, and white-box attacks "
        "break no more than Square",
        reason=f"{_BY_CHANCE} Gradients are worth more than a few hundred queries; near the "
        "boundary any attack breaks an image.",
        advice="Gradients should be worth more than a few queries of a random search. If they are "
        "not, run Square with more queries (--budget=standard). " + _MASKED,
        judge=square,
        weight=PROOF,
    ),
    "transfer": Check(
        title="Transfer is not stronger than white-box attacks",
        meaning="Adversarial examples of other networks, and of every network inside this one, "
        "break no image that white-box attacks do not (a run's teacher is included).",
        threshold=_more("a network's examples", "all white-box attacks together", CHANCE),
        reason=_BY_CHANCE,
        advice=_MASKED,
        judge=transfer,
        weight=PROOF,
    ),
    "noise": Check(
        title="Noise is far weaker than the attacks",
        meaning="Random points break no image that white-box attacks do not, and far fewer than "
        "they.",
        threshold=f"{_more('noise', 'all white-box attacks together', CHANCE)}; of {NOISE_LEAST} "
        f"or more images that these break, WARN if the 95 % interval of the share that noise "
        f"breaks too is above {100 * NOISE_WARN:g} %, FAIL if it is above {100 * NOISE_FAIL:g} %",
        reason=f"{_BY_CHANCE} If noise breaks the same images, the attacks do no more than noise "
        "(Athalye et al. 2018).",
        advice="The attacks do hardly more than their random starts. " + _MASKED,
        judge=noise,
        weight=HINT,
    ),
    "adaptive": Check(
        title="The input normalisation hides nothing",
        meaning="PGD changes little if the input normalisation is differentiated exactly, or taken "
        "as constant.",
        threshold=_more("one of the two gradients", "PGD", TUNING_TOLERANCE),
        reason=_TUNED,
        advice="Quote the stronger of the two (Tramèr et al. 2020: attacks must be adapted to the "
        "defence).",
        judge=adaptive,
        weight=TUNING,
    ),
}
