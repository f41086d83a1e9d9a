"""Checks that the second derivatives for the exact update through J_s exist and are right.

TensorFlow computes d<v, J_s>/dtheta if it can differentiate the gradient of every layer once more.
If it cannot, it raises a LookupError or, worse, returns 0. The order of the two derivatives does
not matter, so a difference of two ordinary gradients gives the same value:

    d<v, J_s>/dtheta = d/dh grad_theta L(x + h v)   at h = 0

Both are computed in float64, with h so small that no ReLU switches, and on images with some noise,
so that no two pixels are equal.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from igam_tf.common.private_api import (
    calls_of,
    drops_at_random,
    in_float64,
    layers_of,
    missing_gradient,
    reason_of,
)
from igam_tf.formulas.gradients import connected
from igam_tf.formulas.second_derivatives import whole_second_derivatives

IMAGES = 4  # images that are used
FEW, LARGE = 2, 10_000_000  # images for a network with more parameters than that
NOISE = 0.1  # share of the pixel range that is noise
# h, in pixels of 0..1. The first difference that agrees with the exact derivative or with the
# previous difference counts; larger h are for layers that round to float32.
STEPS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
CONSISTENT = 3e-4  # largest relative difference at which two neighbouring h agree
RIGHT = 1e-3  # largest error of the exact derivative in float64
RIGHT_IN_FLOAT32 = 0.3
SMALL = 1e-3  # share of the largest gradient of a variable, below which the error is not relative

# Errors of a custom gradient, or of one written in Python, when it is differentiated.
_FAILED = (NotImplementedError, tf.errors.OpError)

Tensors = list[tf.Tensor]
# (x, sources) -> [B]; the first derivative is with respect to x, the second to the sources.
Values = Callable[[Tensors, Tensors], tf.Tensor]


def missing_second_derivative(
    network: keras.Model,
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    x: np.ndarray,
    y: np.ndarray,
    pixel_max: float,
) -> str | None:
    """Says what of d<v, J_s>/dtheta is missing or wrong, else None. No variable changes.

    Args:
        network: a built network; it is called in training mode with fixed random numbers.
        loss: (logits [B,K], y [B]) -> [B]; J_s is its input gradient.
        x, y: images [n,H,W,C] in 0..pixel_max, of which the first few are used, and labels [n].

    Raises:
        UserError: the loss has no gradient with respect to x.
    """
    rng, n = np.random.default_rng(0), FEW if network.count_params() > LARGE else IMAGES
    noise = pixel_max * rng.uniform(size=x[:n].shape)
    at, labels = ((1 - NOISE) * x[:n] + NOISE * noise).astype(x.dtype), tf.constant(y[:n])
    images, wide = [tf.constant(at)], [tf.constant(at, tf.float64)]
    v = [tf.constant(pixel_max * rng.normal(size=at.shape))]
    variables = network.trainable_variables
    total, theta = lambda z: loss(z, labels), _state(variables)
    values = _values_of(network, variables, total)
    try:
        found = _exact(values, images, v, theta)
    except LookupError as error:
        return f"{_where(network, images, False)} has none ({missing_gradient(error)})"
    except _FAILED as error:
        _gradient(values, images, theta)  # raises if the first derivative is missing too
        return f"that of {_where(network, images, False)} fails ({reason_of(error)})"
    try:
        with in_float64(network):
            values64 = _values_of(network, variables, total, wide=True)
            exact, difference = _both(values64, wide, v, _state(variables, wide=True))
            if difference is not None and _error(exact, difference) > RIGHT:
                return f"that of {_where(network, wide, True)} is wrong or missing"
    except Exception as error:  # a network can fail in any way in another dtype
        logging.debug("no second derivatives in float64: %s", error)
        difference = None
    narrow = any(layer.compute_dtype in ("float16", "bfloat16") for layer in layers_of(network))
    if difference is None:
        wrong = None if narrow else _orders_differ(values, images, v, theta)
        if wrong is None:
            logging.warning(
                "the second derivatives of this %s could not be checked", type(network).__name__
            )
    else:
        # In float32 dropout draws other masks than in float64, and a saturated softmax has no
        # gradient.
        drawn = drops_at_random(network)
        comparable = not narrow and not drawn and any(np.any(f) for f in found)
        wrong = comparable and _error(found, exact) > RIGHT_IN_FLOAT32
    return f"that of {_where(network, images, False)} is wrong or missing" if wrong else None


# --- derivatives ------------------------------------------------------------------------------------


def _in_replica(function: Callable[[], Any]) -> Any:
    """The function's value on the first replica; synchronised layers need all replicas to run."""
    found: list = []
    tf.distribute.get_strategy().run(lambda: found.append(function()))
    return found[0]


def _dot(a: Tensors, b: Tensors) -> tf.Tensor:
    return tf.add_n([tf.reduce_sum(p * tf.cast(q, p.dtype)) for p, q in zip(a, b, strict=True)])


def _exact(values: Values, x: Tensors, v: Tensors, sources: Tensors) -> Tensors:
    """d<v, d values / dx> / d sources, by double back-propagation."""

    def of() -> Tensors:
        with whole_second_derivatives(), tf.GradientTape() as outer:
            outer.watch(sources)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(x)
                total = values(x, sources)
            j = [connected(j) for j in inner.gradient(total, x)]
            along = _dot(j, v)
        found = outer.gradient(along, sources, unconnected_gradients="zero")
        return [tf.convert_to_tensor(g) for g in found]

    return _in_replica(of)


def _gradient(values: Values, x: Tensors, sources: Tensors) -> Tensors:
    def of() -> Tensors:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            total = values(x, sources)
        found = tape.gradient(total, sources, unconnected_gradients="zero")
        return [tf.convert_to_tensor(g) for g in found]

    return _in_replica(of)


def _both(
    values: Values, x: Tensors, v: Tensors, sources: Tensors
) -> tuple[Tensors, Tensors | None]:
    """(`_exact`, a central difference that agrees with it or with another difference, or None)."""
    exact = last = _exact(values, x, v, sources)
    for h in STEPS:
        ahead, behind = (
            _gradient(values, [a + s * h * b for a, b in zip(x, v, strict=True)], sources)
            for s in (1, -1)
        )
        difference = [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)]
        if _error(last, difference) < CONSISTENT:
            return exact, difference
        last = difference
    return exact, None


def _error(found: Tensors, expected: Tensors) -> float:
    """Largest l2 error of a source's gradient, relative to its norm and a share of the largest."""
    sizes = [float(np.linalg.norm(e)) for e in expected]
    off = [
        float(np.linalg.norm(np.asarray(f, np.float64) - np.asarray(e)))
        for f, e in zip(found, expected, strict=True)
    ]
    least = SMALL * max(sizes, default=0.0) or float(np.finfo(float).tiny)
    return max((o / (s + least) for o, s in zip(off, sizes, strict=True)), default=0.0)


def _orders_differ(values: Values, x: Tensors, v: Tensors, sources: Tensors) -> bool | None:
    """Whether the two orders, d/d sources of <v, d/dx> and <v, d/dx> of d/d sources, differ.

    Both are compared along one direction. This needs no finite difference and so no float64, but
    does not find a part that both orders lack. None: the second order needs a gradient of a
    gradient that TensorFlow does not have, and that training does not use.
    """
    rng = np.random.default_rng(1)
    d = [tf.constant(rng.normal(size=t.shape) * (np.std(t) or 1e-2), t.dtype) for t in sources]

    def of() -> tuple[Tensors, tf.Tensor]:
        with whole_second_derivatives(), tf.GradientTape(persistent=True) as outer:
            outer.watch([*x, *sources])
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch([*x, *sources])
                total = values(x, sources)
            first = inner.gradient(total, [*x, *sources], unconnected_gradients="zero")
            along_x, along_sources = _dot(first[: len(x)], v), _dot(first[len(x) :], d)
        terms = outer.gradient(along_x, sources, unconnected_gradients="zero")
        other = outer.gradient(along_sources, x, unconnected_gradients="zero")
        return [_dot([t], [e]) for t, e in zip(terms, d, strict=True)], _dot(other, v)

    try:
        terms, other = _in_replica(of)
    except LookupError:
        return None
    size = max(sum(abs(float(t)) for t in terms), abs(float(other)))
    return abs(float(other) - sum(map(float, terms))) > RIGHT_IN_FLOAT32 * size


# --- networks ---------------------------------------------------------------------------------------


def _state(variables: list, *, wide: bool = False) -> Tensors:
    """The values of variables; with `wide`, floating ones are in float64."""
    values = [tf.identity(v.value) for v in variables]
    return [tf.cast(t, tf.float64) if wide and t.dtype.is_floating else t for t in values]


def _values_of(
    layer: keras.layers.Layer,
    variables: list,
    total: Callable[[Any], tf.Tensor],
    *,
    wide: bool = False,
    call: Callable | None = None,
) -> Values:
    """`total` of the outputs at x, with the sources as values of the variables."""
    state = list(zip(layer.variables, _state(layer.variables, wide=wide), strict=True))

    def values(x: Tensors, sources: Tensors) -> tf.Tensor:
        scope = keras.StatelessScope()
        for pair in (*state, *zip(variables, sources, strict=True)):
            scope.add_update(pair)  # in its own dtype
        with scope:
            return total(call(x) if call else layer(x[0], training=True))

    return values


# --- which layer ------------------------------------------------------------------------------------


def _where(network: keras.Model, x: Tensors, wide: bool) -> str:
    """Names the first layer that lacks a second derivative when it is tested alone."""
    theta = _state(network.trainable_variables, wide=wide)
    values = _values_of(network, network.trainable_variables, lambda z: z, wide=wide)

    def calls() -> list[tuple]:
        with calls_of(layers_of(network, include_self=False)) as found:
            values(x, theta)
        return found

    for layer, args, kwargs, _ in _in_replica(calls):
        if _lacks(layer, args, kwargs, wide):
            return f"its layer {layer.name!r}, a {type(layer).__name__},"
    return "one of its layers"


def _lacks(layer: keras.layers.Layer, args: tuple, kwargs: dict, wide: bool) -> bool:
    """Whether d sum(g layer(z)) / dz cannot be differentiated by z, g and the weights."""
    flat = tf.nest.flatten((args, kwargs))
    places = [i for i, t in enumerate(flat) if tf.is_tensor(t) and t.dtype.is_floating]
    z = [flat[i] for i in places]
    rng = np.random.default_rng(2)

    def normal(like: Tensors) -> Tensors:
        return [tf.constant(rng.normal(size=t.shape), t.dtype) for t in like]

    def call(z: Tensors) -> Tensors:
        filled = list(flat)
        for i, t in zip(places, z, strict=True):
            filled[i] = t
        args_, kwargs_ = tf.nest.pack_sequence_as((args, kwargs), filled)
        outputs = tf.nest.flatten(layer(*args_, **kwargs_))
        return [t for t in outputs if tf.is_tensor(t) and t.dtype.is_floating]

    weights = layer.trainable_variables

    def values(x: Tensors, sources: Tensors) -> tf.Tensor:
        moved = [a + b for a, b in zip(x, sources[: len(x)], strict=True)]
        g, w = sources[len(x) : len(sources) - len(weights)], sources[len(sources) - len(weights) :]
        of = _values_of(layer, weights, lambda out: _dot(out, g), wide=wide, call=call)
        return of(moved, w)

    theta = _state(weights, wide=wide)
    try:
        outputs = _values_of(layer, weights, lambda out: out, wide=wide, call=call)(z, theta)
    except Exception:  # a layer that cannot be called alone is skipped
        return False
    try:
        sources = [*map(tf.zeros_like, z), *normal(outputs), *theta]
        if not wide:
            _exact(values, z, normal(z), sources)
            return bool(_orders_differ(values, z, normal(z), sources))
        exact, difference = _both(values, z, normal(z), sources)
        return difference is not None and _error(exact, difference) > RIGHT
    except (LookupError, *_FAILED):
        return True
    except Exception:
        return False
