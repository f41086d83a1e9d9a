"""Networks inside the audited one, such as the base that a defence stands in front of.

A defence often holds the network that it defends, whose gradients hide nothing: what breaks that one is
tried on the whole.
"""

import contextlib
import functools
import inspect
import itertools
import types
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from igam_tf.audit.audited import AuditedModel
from igam_tf.common.private_api import calls_of, functional_of, layers_of
from igam_tf.evaluation.evaluate import logits_function
from igam_tf.evaluation.robust import LogitsFn
from igam_tf.formulas.statistics import wilson_interval
from igam_tf.method.networks import LogProbabilities, pixel_max_of
from igam_tf.method.preprocess import Preprocessed
from igam_tf.storage.journal import model_identity

_HOLDERS = (keras.layers.Layer, list, tuple, set, dict, types.FunctionType)
MOST = 4  # nested networks that are tried, those with the most parameters


class Source(NamedTuple):
    """A network on which adversarial examples are crafted.

    Attributes:
        logits_fn: x [B,H,W,C] in the audited model's pixel unit -> its logits [B,K].
        identity: of its weights, and of how it is fed.
    """

    logits_fn: LogitsFn
    identity: str


def whole_network(s: AuditedModel, model: keras.Model) -> Source:
    """A whole other network as a source, in its own pixel range."""
    ratio = pixel_max_of(model, default=s.split.spec.pixel_max) / s.pixel_max
    theirs = logits_function(model, "inference")
    return Source(lambda x: theirs(x * ratio), model_identity(model))


def nested_sources(s: AuditedModel) -> dict[str, Source]:
    """Name -> each network inside the audited one that classifies its images better than chance.

    It is fed as the audited model feeds it: by the linear map of the pixels' channels that comes
    nearest to what it receives there, which undoes another range, mean or order of channels.
    """
    found = sorted(_models_within(s.model), key=lambda model: -model.count_params())
    x, y = tf.constant(s.images[: s.batch_size]), s.labels[: s.batch_size]
    with calls_of(found) as calls, contextlib.ExitStack() as hooks:
        bridged = [part for part in layers_of(s.model) if hasattr(part, "networks_inside")]
        inside = [hooks.enter_context(part.networks_inside()) for part in bridged]
        s.model(x, training=False)
    inputs = {id(model): (args or [*kwargs.values()])[0] for model, args, kwargs, _ in calls}
    for model, received in itertools.chain(*inside):  # of PyTorch
        found.append(model)
        inputs[id(model)] = tf.constant(received)
    sources: dict[str, Source] = {}
    for model in found:
        weights, bias = _linear_map(x.numpy(), inputs.get(id(model)))
        if weights is None:
            ratio = (getattr(model, "pixel_max", None) or s.pixel_max) / s.pixel_max
            weights, bias = ratio * np.eye(x.shape[-1]), np.zeros(x.shape[-1])
        of = logits_function(model, "inference")
        logits_fn = functools.partial(
            lambda of, weights, bias, x: of(tf.tensordot(x, weights, 1) + bias),
            of, weights.astype(s.images.dtype), bias.astype(s.images.dtype),
        )  # fmt: skip
        if _classifies(logits_fn, x, y, s.split.spec.num_classes):
            name = f"{type(model).__name__} inside" + (f", {len(sources) + 1}" if sources else "")
            sources[name] = Source(logits_fn, f"{model_identity(model)} {weights} {bias}")
        if len(sources) == MOST:
            break
    return sources


def _models_within(model: keras.Model) -> list[keras.Model]:
    """Every other model that a model holds: in its layers, attributes, and functions' closures."""
    while isinstance(model, Preprocessed | LogProbabilities):  # ours, around the same network
        model = model.base
    seen, models, waiting = {id(model)}, [], [model]
    while waiting:
        part = waiting.pop()
        held: list[Any] = []
        if isinstance(part, keras.layers.Layer):
            held = [*layers_of(part), *vars(part).values()]
        elif isinstance(part, list | tuple | set):
            held = list(part)
        elif isinstance(part, dict):
            held = list(part.values())
        elif inspect.isfunction(part):
            held = list(inspect.getclosurevars(part).nonlocals.values())
        for value in held:
            if id(value) not in seen and isinstance(value, _HOLDERS):
                seen.add(id(value))
                waiting.append(value)
                models += [value] if isinstance(value, keras.Model) else []
    # A Sequential holds its own layers once more, as a functional model.
    twice = [id(functional_of(part)) for part in (model, *models)]
    return [part for part in models if part.built and id(part) not in twice]


def _linear_map(x: np.ndarray, received: Any) -> tuple[Any, Any]:
    """(weights [C,C], bias [C]) of received = x weights + bias, by least squares; (None, None) for none.

    None where what was received is no image like x, or a tensor of a graph.
    """
    if not tf.is_tensor(received) or not hasattr(received, "numpy") or received.shape != x.shape:
        return None, None
    pixels = x.reshape(-1, x.shape[-1]).astype(np.float64)
    with_one = np.concatenate([pixels, np.ones((len(pixels), 1))], 1)
    target = received.numpy().astype(np.float64).reshape(pixels.shape)
    fitted = np.linalg.lstsq(with_one, target, rcond=None)[0]
    return fitted[:-1], fitted[-1]


def _classifies(logits_fn: LogitsFn, x: tf.Tensor, y: np.ndarray, classes: int) -> bool:
    """Whether this is a classifier of these images, with finite outputs and above chance."""
    try:
        z = logits_fn(x)
    except Exception:  # a part may fail in any way on images that it was not made for
        return False
    if not tf.is_tensor(z) or z.shape != (len(y), classes) or not np.isfinite(z).all():
        return False
    return wilson_interval(int((np.argmax(z, 1) == y).sum()), len(y))[0] > 1 / classes
