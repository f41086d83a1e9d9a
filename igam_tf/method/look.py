"""The look before every figure: what makes the figures of a model doubtful, with the remedy.

Outputs, chance, randomness, gradients, and whether another input convention or another order of the
classes suits the model better: on at most `LOOKED_AT` images, with no attack.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from igam_tf.attacks.attack_losses import cw_margin
from igam_tf.attacks.draws import for_each, in_ball
from igam_tf.common.checks import logits_of, traced
from igam_tf.common.errors import UserError
from igam_tf.formulas.statistics import mcnemar, paired_t, wilson_interval
from igam_tf.method.networks import (
    SUM_TOLERANCE,
    LogProbabilities,
    are_probabilities,
    float16_layers,
    in_float32,
)
from igam_tf.method.preprocess import Preprocess, Preprocessed

LOOKED_AT = 200
LogitsFn = Callable[[tf.Tensor], tf.Tensor]

# Outputs of two calls that differ by more than this share of their spread are random: a sum in another
# order changes float32 logits by some 1e-6 of it.
RANDOM = 1e-4
# Outputs of an image that change by more than this share of their spread with the rest of its batch
# depend on it; ten times as much in float16 and bfloat16. Chosen on CPUs, not tried on a GPU.
OF_BATCH = 0.02
# Share of the images that may lack a gradient (the lower end of its interval: honest ReLU networks have
# 1.5 % that are dead), or be classified otherwise in float16, unmarked: a figure moves by little more.
MOVABLE = 0.01
# Pixels that have no gradient at a random start may hold so large a share of that at the border of the
# ball, in the median image: ReLU networks reach 4 %, a ReLU on the pixels themselves 17 %.
BLIND = 0.1
# Another convention, or order of classes, is told from this p on (all alternatives together), where so
# many nats of log-loss, or so large a share of the images, are gained.
SIGNIFICANT, NATS, GAIN = 0.01, 0.01, 0.03
# Forms of the logits among which `log_loss` finds the one that fits the labels: how large the logits are
# from which on their logarithm counts, and factors, both of the highest logit.
_COMPRESSIONS, _FACTORS = (10.0, 1e3), np.geomspace(1e-3, 1e3, 71)
# Inputs that differ by no more than this share of their range are one convention.
SAME = 1e-3
# Outputs within 0..1 whose highest is at least this are those of sigmoids; logits may be as small as
# they like, but then they are small throughout.
SIGMOID = 0.3
# What reaches a network's first layer with weights has a range of this width: 0..1, -1..1, 0..255 and
# standardised pixels do.
NARROWEST, WIDEST = 0.1, 300.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doubt:
    """A reason not to trust the figures of a report.

    Attributes:
        code: its kind, in one word for other programs.
        sentence: what was found, with its figures.
        remedy: what to do.
    """

    code: str
    sentence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.sentence} {self.remedy}"


def doubtful_lines(report: dict) -> list[str]:
    """A line for each of a report's `doubts`."""
    return [f"DOUBTFUL: {Doubt(**doubt)}" for doubt in report["doubts"]]


def as_json(doubts: Sequence[Doubt]) -> list[dict[str, str]]:
    """What a report holds under `doubts`."""
    return [dataclasses.asdict(doubt) for doubt in doubts]


def refuse(doubt: Doubt | None, *codes: str) -> None:
    """Raises a UserError of a doubt of these kinds; of any kind where none is named."""
    if doubt and (not codes or doubt.code in codes):
        raise UserError(str(doubt))


def look(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    *,
    pixel_max: float,
    classes: int,
    eps: float | None = None,
    norm: str = "linf",
    seed: int = 0,
    batch_size: int = 100,
    function: Callable[[keras.Model], LogitsFn] = lambda model: lambda x: model(x, training=False),
    logits: np.ndarray | None = None,
    whole: bool = False,
    class_order: Sequence[int] | None = None,
) -> list[Doubt]:
    """What makes the figures of a model on these images doubtful; nothing, where they can be trusted.

    Args:
        model: [B,H,W,C] in 0..pixel_max -> logits [B,K].
        x: images [n,H,W,C] in 0..pixel_max, all of which are looked at; LOOKED_AT are enough.
        y: labels [n].
        pixel_max: highest pixel value of the model's input.
        classes: K that is expected.
        eps: radius of the attacks, as a fraction of the pixel range; None: no attack takes a gradient.
        norm: of eps.
        seed: of the random points.
        batch_size: images at once.
        function: the logits of a model, in the mode that the figures are measured in.
        logits: of x, [n,K], where they are known already.
        whole: whether the images of a batch are meant to see each other.
        class_order: the order in which y are already, see `igam_tf.evaluate`.

    Raises:
        UserError: the model fails on such images, or does not return [B,K].
    """
    logits_fn = function(model)

    def outputs(fn: LogitsFn, x: np.ndarray) -> np.ndarray:
        parts = [x[i : i + batch_size] for i in range(0, len(x), batch_size)]
        return np.concatenate([logits_of(fn, part, "model", classes) for part in parts])

    z = outputs(logits_fn, x) if logits is None else logits
    if wrong := doubtful_outputs(z):
        return [wrong]
    base = model.base if isinstance(model, Preprocessed) else model
    now = x if base is model else model.preprocess(x).numpy()
    if isinstance(base, LogProbabilities):
        p = outputs(function(base.base), now)
        if p.min() < -SUM_TOLERANCE or p.max() > 1 + SUM_TOLERANCE:
            return [_no_probabilities(p)]
    narrow = float16_layers(model, ("float16", "bfloat16"))
    most = OF_BATCH * (10 if narrow else 1)
    found = [
        misplaced_range(model, pixel_max),
        _unsteady(logits_fn, x[:batch_size], z[:batch_size], whole=whole, most=most),
    ]
    if float16_layers(model):
        own = outputs(lambda x: model(x, training=False), x)
        with in_float32(model):
            found.append(_narrow(own, outputs(lambda x: model(x, training=False), x)))
    right, n = z.argmax(1) == y, len(y)
    if wilson_interval(int(right.sum()), n)[0] <= 1 / classes:
        found.append(_at_chance(right, classes, pixel_max))
    if not any(
        doubt and doubt.code == "random" for doubt in found
    ):  # more contrast drowns the noise
        of_input = partial(outputs, function(base))
        found.append(_other_convention(of_input, x / x.dtype.type(pixel_max), y, z, now))
    found.append(_other_order(z.argmax(1), y, classes, class_order))
    if eps is not None:
        found += _gradients(
            logits_fn, x[right], y[right],
            n=n, pixel_max=pixel_max, eps=eps, norm=norm, seed=seed, batch_size=batch_size,
        )  # fmt: skip
    return [doubt for doubt in found if doubt]


# --- outputs --------------------------------------------------------------------------------------


def doubtful_outputs(z: np.ndarray) -> Doubt | None:
    """Outputs [n,K] that are no logits: not finite, probabilities, or those of sigmoids."""
    if bad := int((~np.isfinite(z).all(1)).sum()):
        sentence = f"expected finite logits; received NaN or infinity for {bad} of {len(z)} images."
        remedy = "Look for a division by 0, a logarithm of 0, or a type that is too narrow."
        return Doubt(code="not_finite", sentence=sentence, remedy=remedy)
    if z.shape[1] > 1 and are_probabilities(z):
        return Doubt(
            code="probabilities",
            sentence="expected logits; received probabilities, each image's outputs are "
            "positive and add up to 1:",
            remedy="leave out the softmax, or set from_probabilities, which takes their logarithm.",
        )
    if z.shape[1] > 1 and z.min() >= 0 and SIGMOID <= z.max() <= 1:
        return Doubt(
            code="sigmoid",
            sentence=f"All outputs lie in 0..1 ({z.min():.3g} to {z.max():.3g}) and do not add "
            "up to 1: they look like a sigmoid's, not like logits.",
            remedy="Leave out the sigmoid, whose derivative vanishes where the network is "
            "sure, or set from_probabilities, which undoes it.",
        )
    return None


def _no_probabilities(p: np.ndarray) -> Doubt:
    """Outputs [n,K] that cannot be probabilities, where from_probabilities says that they are."""
    return Doubt(
        code="probabilities",
        sentence="expected probabilities, as from_probabilities says; received outputs from "
        f"{p.min():.3g} to {p.max():.3g}:",
        remedy="leave out from_probabilities.",
    )


def spread_of(z: np.ndarray) -> np.ndarray:
    """Twice the distance of the highest logit from the median one, [n,K] -> [n].

    A class that a network rules out, by a logit of -1e9, does not count.

    Example:
        >>> spread_of(np.array([[3.0, 1.0, -1e9]])), spread_of(np.array([[3.0, 1.0]]))
        (array([4.]), array([2.]))
    """
    return 2 * (z.max(1) - np.median(z, axis=1))


def _change(z: np.ndarray, again: np.ndarray) -> tuple[float, int]:
    """(largest change of logits [n,K] as a share of their spread, predictions that change)."""
    spread = float(np.median(spread_of(z))) or 1.0
    return float(np.abs(again - z).max()) / spread, int((z.argmax(1) != again.argmax(1)).sum())


def _unsteady(
    logits_fn: LogitsFn, x: np.ndarray, z: np.ndarray, *, whole: bool, most: float
) -> Doubt | None:
    """Whether the logits of an image differ between two calls, or by what else is in its batch.

    Args:
        logits_fn: the network.
        x: one batch of images, [B,H,W,C].
        z: its logits, [B,K].
        whole: whether images of a batch are meant to see each other.
        most: change of logits by the batch that is none, see `OF_BATCH`.
    """
    if not whole and len(x) > 1:  # backwards, a few and the rest: one look at both
        parts = np.split(x[::-1], [min(3, len(x) // 2)])
        other = np.concatenate([logits_of(logits_fn, part, "model") for part in parts])[::-1]
        if _change(z, other)[0] <= RANDOM:
            return None
    change, flips = _change(z, logits_of(logits_fn, x, "model"))
    if change > RANDOM:
        return Doubt(
            code="random",
            sentence=f"The network is random: between two calls its logits change by "
            f"{change:.2g} of their spread, and {flips} of {len(z)} predictions change. Each "
            "figure is of one random draw for each image and attack, not of the average "
            "prediction.",
            remedy="Turn the randomness off, or average the logits over many draws, or set "
            "--attacks=autoattack-rand, which averages 20 gradients in each step.",
        )
    if whole or len(x) == 1:
        return None
    change, flips = _change(z, other)
    if change <= most:
        return None
    return Doubt(
        code="batch",
        sentence="What the network says of an image depends on the batch that it is in: in "
        f"another, its logits change by {change:.2g} of their spread, and {flips} of {len(z)} "
        "predictions change. The figures change with the batch size.",
        remedy="Look for batch normalization that is called with training=True, a mean over "
        "the batch, or noise of a fixed seed.",
    )


def _narrow(own: np.ndarray, wide: np.ndarray) -> Doubt | None:
    """Whether a float16 model predicts something else than its weights in float32; logits [n,K] each."""
    n, differ = len(own), int((own.argmax(1) != wide.argmax(1)).sum())
    if differ <= MOVABLE * n:
        return None
    return Doubt(
        code="float16",
        sentence=f"In float16 the model gives {differ} of {n} clean images another class than "
        "in float32, in which it is attacked and scored.",
        remedy="Look for numbers above 65504 or below 6e-8, or use the model in float32 too.",
    )


def _at_chance(right: np.ndarray, classes: int, pixel_max: float) -> Doubt:
    hits, n = int(right.sum()), len(right)
    low, _ = wilson_interval(hits, n)
    return Doubt(
        code="chance",
        sentence=f"Clean accuracy is not above chance: {hits} of {n} images are right (95 % "
        f"interval from {100 * low:.1f} %), and chance is {100 / classes:.1f} %.",
        remedy=f"If the model does not expect pixels in 0..{pixel_max:g}, set pixel_max or "
        "preprocess; if it was trained on other classes, take the data set that it was trained on.",
    )


# --- inputs ---------------------------------------------------------------------------------------


def misplaced_range(model: keras.Model, pixel_max: float) -> Doubt | None:
    """A built model that begins with Rescaling or Normalization for another range than 0..pixel_max.

    A subclassed model does not tell what it calls first, and is not judged.
    """
    width, names = pixel_max, []
    for layer in _in_order(model):
        if isinstance(layer, Preprocess):
            factor = np.abs(layer.factor)
        elif isinstance(layer, keras.layers.Rescaling):
            factor = np.abs(layer.scale)
        elif isinstance(layer, keras.layers.Normalization) and not layer.invert:
            if getattr(layer, "variance", None) is None:  # nothing has been adapted to yet
                break
            factor = 1 / np.maximum(np.sqrt(layer.variance), keras.backend.epsilon())
        elif layer.weights or isinstance(layer, keras.Model | keras.layers.Activation):
            break
        else:
            continue
        names.append(layer.name)
        width = width * float(np.mean(factor))
    if not names or NARROWEST <= width <= WIDEST:
        return None
    other = 255.0 if width < NARROWEST else 1.0
    return Doubt(
        code="input_range",
        sentence=f"The model begins with {' and '.join(map(repr, names))}, which turns pixels "
        f"in 0..{pixel_max:g} into a range of width {width:.2g}: it is made for another range.",
        remedy=f"Set pixel_max={other:g}, or preprocess=0..{other:g}.",
    )


def _in_order(model: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """The layers of Sequential and functional models, inside each other too, in the order of calls."""
    if isinstance(model, Preprocessed):
        yield model.preprocess
    if isinstance(model, Preprocessed | LogProbabilities):
        yield from _in_order(model.base)
    elif isinstance(model, keras.Sequential) or hasattr(model, "operations"):
        for layer in model.layers:
            yield from _in_order(layer)
    else:
        yield model


CIFAR = "mean=0.4914,0.4822,0.4465/std=0.247,0.2435,0.2616"
_ALTERNATIVES = {
    1: ("0..1", "0..255", "-1..1", "mean=0.1307/std=0.3081"),
    3: (
        "0..1", "0..255", "-1..1", "imagenet", CIFAR, "0..1/bgr", "0..255/bgr", "-1..1/bgr",
        "caffe",
    ),
}  # fmt: skip


def log_loss(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cross-entropy of each label [n] in nats, of logits [n,K] in the form that fits the labels best.

    Another input may make a network more or less sure of all it says, and its outputs may be a
    growing function of logits, such as exp: the factor (temperature scaling, Guo et al. 2017) and
    the logarithm for large ones take that away.

    Example:
        >>> z, y = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]]), np.array([0, 1, 0])
        >>> round(float(log_loss(z, y).mean()), 2), round(float(log_loss(9 * z, y).mean()), 2)
        (0.64, 0.64)
    """
    z = z.astype(np.float64) - np.median(z, axis=1, keepdims=True)
    z /= np.median(z.max(1)) or 1.0
    losses = []
    for w in (z, *(np.arcsinh(c * z) / np.arcsinh(c) for c in _COMPRESSIONS)):
        w = w - w.max(1, keepdims=True)
        at_y = w[np.arange(len(y)), y]
        losses += [np.log(np.exp(f * w).sum(1)) - f * at_y for f in _FACTORS]
    return min(losses, key=np.mean)


def _other_convention(
    logits_of_input: Callable[[np.ndarray], np.ndarray],
    u: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    now: np.ndarray,
) -> Doubt | None:
    """Whether the labels are likelier where the network's input follows another convention.

    Args:
        logits_of_input: the network's own input [n,H,W,C] -> logits [n,K].
        u: images in 0..1.
        y: labels [n].
        z: logits [n,K] as the network is called.
        now: what the network takes as it is called, [n,H,W,C].
    """

    def hits(z: np.ndarray) -> int:
        return int((z.argmax(1) == y).sum())

    here, n = log_loss(z, y), len(y)
    if here.mean() < NATS:  # nothing is to be gained
        return None
    names = _ALTERNATIVES.get(u.shape[-1], _ALTERNATIVES[1][:3])
    likelier = []
    for name in names:
        other = Preprocess(name)(u).numpy()
        if np.abs(other - now).max() <= SAME * np.ptp(now):
            continue
        z_there = logits_of_input(other)
        if hits(z_there) < hits(z):
            continue
        there = log_loss(z_there, y)
        gain = here - there
        if gain.mean() >= NATS and paired_t(gain) <= SIGNIFICANT / len(names):
            likelier.append((there, z_there, name))
    if not likelier:
        return None
    best, z_there, name = min(likelier, key=lambda found: found[0].mean())
    alike = [
        other for l, _, other in likelier if other != name and paired_t(l - best) > SIGNIFICANT
    ]
    there, as_called = 100 * hits(z_there) / n, 100 * hits(z) / n
    remedy = f"Set --preprocess={name}; in Python preprocess={name!r}."
    if alike:
        remedy += f" Or {' or '.join(alike)}, if it was trained so: these images do not tell."
    return Doubt(
        code="input_convention",
        sentence=f"The model takes another input: {there:.1f} % of {n} clean images are right "
        f"with --preprocess={name}, {as_called:.1f} % as it is called, and the labels have a "
        f"log-loss of {best.mean():.2f} instead of {here.mean():.2f} nats, each with the logits "
        "fitted to them.",
        remedy=remedy,
    )


def _other_order(
    predicted: np.ndarray, y: np.ndarray, classes: int, now: Sequence[int] | None
) -> Doubt | None:
    """Whether labels and outputs are in another order: learned on one half, seen on the other.

    now: the order that the labels have been put into, if they have.
    """
    right, n = predicted == y, len(y)
    named = y.copy()  # of each image, the label by the order that the other half gives
    for half in (slice(0, None, 2), slice(1, None, 2)):
        of = _order(predicted[half], y[half], classes)
        rest = slice(1 - (half.start or 0), None, 2)
        named[rest] = of[y[rest]]
    there = predicted == named
    gained, lost = int((there & ~right).sum()), int((right & ~there).sum())
    if gained - lost < max(1, GAIN * n) or mcnemar(gained, lost) > SIGNIFICANT:
        return None
    now = range(classes) if now is None else now
    found = _order(predicted, y, classes)[list(now)].tolist()
    moved = [f"{label} as {out}" for label, out in enumerate(found) if out != now[label]]
    shown = ", ".join(moved[:10]) + (", ..." if len(moved) > 10 else "")
    return Doubt(
        code="class_order",
        sentence=f"Labels and outputs have different orders of classes: "
        f"{100 * there.mean():.1f} % of {n} clean images are right if the classes are "
        f"exchanged (label {shown}), and {100 * right.mean():.1f} % if they are not.",
        remedy=f"Set --class_order={','.join(map(str, found))}; in Python class_order={found}.",
    )


def _order(predicted: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """Label -> output, [K]: the largest cells of the confusion matrix first, each class once."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (y, predicted), 2)
    np.fill_diagonal(counts, counts.diagonal() + 1)  # of two as large, the one as it comes
    order, free = np.arange(classes), np.ones((2, classes), bool)
    for cell in np.argsort(-counts, axis=None, kind="stable"):
        label, output = divmod(int(cell), classes)
        if free[0, label] and free[1, output]:
            order[label], free[0, label], free[1, output] = output, False, False
    return order


# --- gradients ------------------------------------------------------------------------------------


def _gradients(
    logits_fn: LogitsFn,
    x: np.ndarray,
    y: np.ndarray,
    *,
    n: int,
    pixel_max: float,
    eps: float,
    norm: str,
    seed: int,
    batch_size: int,
) -> list[Doubt]:
    """Images of n whose margin has no gradient, or one that is not finite, at x or beside it.

    And whether pixels without one, beside x, have one at the border of the ball.

    Args:
        x, y: the images that are right.
        n: how many were looked at.
    """
    none, broken, blind = np.zeros(len(y), bool), np.zeros(len(y), bool), np.zeros(len(y))
    # In a graph, as the attacks: there the logits that a softmax was given are known.
    spec = tf.TensorSpec([None, *x.shape[1:]], x.dtype)
    logits_fn = traced(tf.function(logits_fn, autograph=False), spec)
    draw = lambda g: {"noise": in_ball(g, x.shape[1:], np.float32, norm)}  # noqa: E731
    # Of one pixel: in l2 and l1 what is left to each where an attack moves one in 16.
    moved = np.prod(x.shape[1:]) / 16
    far = pixel_max * eps / {"linf": 1, "l2": np.sqrt(moved), "l1": moved}[norm]
    for begin in range(0, len(y), batch_size):
        part = slice(begin, begin + batch_size)
        noise = for_each(draw, range(len(y))[part], seed=seed)["noise"]
        moves = (0 * noise, noise * eps * pixel_max, far, -far)
        j = np.stack([
            _slopes(logits_fn, np.clip(x[part] + move, 0, pixel_max).astype(x.dtype), y[part])
            for move in moves
        ])  # fmt: skip
        here, border = j[:2], np.nan_to_num(np.abs(j[2:].astype(np.float64)))
        none[part] = (here == 0).all(2).any(0)
        broken[part] = ~np.isfinite(here).all((0, 2))
        unseen = (border * (here[1] == 0)).sum(2)
        blind[part] = np.max(unseen / np.maximum(border.sum(2), np.finfo(float).tiny), axis=0)
    found = []
    for code, images, what in (
        ("no_gradient", none, "no gradient, not even of their margin"),
        ("nan_gradient", broken, "a gradient with NaN or infinity in it"),
    ):
        count = int(images.sum())
        if wilson_interval(count, n)[0] <= MOVABLE:
            continue
        found.append(
            Doubt(
                code=code,
                sentence=f"{count} of {n} images have {what}, at the image or at a random point of "
                "the ball: gradient attacks cannot move them.",
                remedy="Find the operation that stops the gradient (rounding, argmax, saturation, "
                "a root at 0) and attack through a differentiable stand-in for it. "
                "--attacks=square needs no gradient, and igam_tf.audit says more.",
            )
        )
    if not found and len(y) and np.median(blind) > BLIND:
        found.append(
            Doubt(
                code="blind_pixels",
                sentence=f"In the median image {100 * np.median(blind):.0f} % of the gradient at "
                "the border of the ball is on pixels that have no gradient at a random start: "
                "gradient attacks never move these pixels.",
                remedy="Look for a threshold on pixels (clipping, a ReLU on the input) and attack "
                "what is behind it. --attacks=square needs no gradient.",
            )
        )
    return found


def _slopes(logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The gradient of each image's margin, [B,D]; 0 where there is none."""
    x = tf.constant(x)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        margin = cw_margin(logits_fn(x), tf.constant(y))
    j = tape.gradient(margin, x, unconnected_gradients="zero")
    return np.asarray(j).reshape(len(y), -1)
