"""Introspection of Keras models.

Which variables have weight decay, what the last dense layer reads, whether the outputs are logits:
each has a default for Sequential, functional and subclassed models. The networks of the challenges
define these themselves.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import keras
import numpy as np
import tensorflow as tf

from igam_tf.common import private_api
from igam_tf.common.checks import check_pixel_max
from igam_tf.common.errors import UserError
from igam_tf.common.private_api import calls_of, layers_just_inside, layers_of
from igam_tf.formulas.losses import at_least_float32
from madry_models.network import Network

_SMALLEST = 1.2e-38  # the smallest normal float32
# Probabilities that were rounded to float16 still sum to 1 within this.
SUM_TOLERANCE = 1e-3


def decayed_variables(model: keras.Model, pattern: str | None = None) -> list:
    """The variables with weight decay: by default the kernels of convolutions and dense layers.

    Args:
        model: built.
        pattern: regular expression that a trainable variable's path ends with, such as "kernel|gamma".

    Raises:
        UserError: no variable matches the pattern.
    """
    if pattern is None:
        if isinstance(getattr(type(model), "kernels", None), property):  # of madry_models
            return model.kernels
        return [v for v in model.trainable_variables if v.name.endswith("kernel")]
    found = [v for v in model.trainable_variables if re.search(rf"(?:{pattern})$", v.path)]
    if not found:
        paths = ", ".join(v.path for v in model.trainable_variables[:4])
        raise UserError(
            f"expected a trainable variable whose path ends with {pattern!r} to decay; received "
            f"{paths}, ..."
        )
    return found


def inference_only(model: keras.Model) -> bool:
    """Whether a model holds a network without a training mode, such as one of PyTorch."""
    return any(getattr(layer, "inference_only", False) for layer in layers_of(model))


def pixel_max_of(
    model: keras.Model, given: float | None = None, default: float | None = None
) -> float:
    """Highest pixel value of a model's input: as given, else the model's attribute, else `default`.

    Raises:
        UserError: there is none of them, or it is not above 0.
    """
    found = (given, getattr(model, "pixel_max", None), default)
    value = next((value for value in found if value is not None), None)
    if value is None:
        raise UserError(
            "expected pixel_max, the highest pixel value of the student's input, such as 1.0 or "
            f"255.0; received none, and this {type(model).__name__} does not say it"
        )
    check_pixel_max(value)
    return float(value)


# --- features -------------------------------------------------------------------------------------


def _layers_within(model: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """All layers, also in wrappers, but not in TimeDistributed, which splits the image."""
    for layer in layers_just_inside(model):
        yield layer
        if not isinstance(layer, keras.layers.TimeDistributed):
            yield from _layers_within(layer)


def features_of(model: keras.Model, layer: str = "") -> Callable[..., tf.Tensor]:
    """(x [B,H,W,C], training=False) -> the features [B,F] of any Keras model.

    A network of a challenge has its own; so has a model with `igam_features(x, training=)`.
    Otherwise they are the input of the dense layer that is called last, or the output of the named
    layer.

    Args:
        model: Sequential, functional or subclassed; layers of models inside it count as well.
        layer: name of a layer whose output [B,F] are the features.

    Raises:
        UserError: there is no dense layer, or no layer of this name; when called, the layer is not
            used, or its features are not [B,F].
    """
    if isinstance(model, LogProbabilities):
        return features_of(model.base, layer)
    own = model.features if isinstance(model, Network) else getattr(model, "igam_features", None)
    if not layer and callable(own):
        return lambda x, training=False: own(x, training=training)
    kind = type(model).__name__
    candidates = [
        part
        for part in _layers_within(model)
        if (part.name == layer if layer else isinstance(part, keras.layers.Dense))
    ]
    if not candidates:
        wanted = (
            f"a layer called {layer!r}"
            if layer
            else "a dense layer, or igam_features(x, training=),"
        )
        raise UserError(f"expected {wanted} in this {kind}; received none")

    def features(x: tf.Tensor, training: bool = False) -> tf.Tensor:
        with calls_of(candidates) as seen:
            logits = model(x, training=training)
        if not seen:
            raise UserError(f"expected this {kind} to call its layer {candidates[-1].name!r}")
        last, args, kwargs, outputs = seen[-1]
        found = outputs if layer else (args or [*kwargs.values()])[0]
        if not layer and outputs.shape[-1] != logits.shape[-1]:
            raise UserError(
                f"expected a dense layer that returns the {logits.shape[-1]} logits of this {kind}; the "
                f"last one, {last.name!r}, returns {outputs.shape[-1]} values"
            )
        if len(found.shape) != 2:
            raise UserError(
                f"expected features [B,F] of this {kind}; received the shape {list(found.shape)}"
            )
        return found

    return features


# --- precision ------------------------------------------------------------------------------------


def float16_layers(
    model: keras.layers.Layer, types: Sequence[str] = ("float16",)
) -> list[keras.layers.Layer]:
    """The layers of a model, including itself, that compute in float16 (or in one of `types`)."""
    return [part for part in layers_of(model) if part.compute_dtype in types]


def in_float32(
    model: keras.layers.Layer, types: Sequence[str] = ("float16",)
) -> AbstractContextManager[None]:
    """Context in which these layers compute in float32, with the same weights.

    float16 has no gradients below 6e-8 and no numbers above 65504, so an attack that fails in
    float16 does not show robustness. A function traced in this context stays in float32.
    """
    return private_api.in_float32(float16_layers(model, types))


# --- probabilities and logits ---------------------------------------------------------------------


def _before_last(outputs: tf.Tensor) -> tf.Tensor | None:
    """The logits [B,K] that the last softmax or sigmoid was applied to; None if they are not found.

    Keras keeps them with the outputs of its own functions; a graph has them for every softmax.
    """
    found = outputs
    while (logits := private_api.kept_logits(found)) is None:
        op = getattr(found, "op", None)  # eager tensors have no `op`
        if op is None or op.type not in ("Softmax", "Sigmoid", "Identity", "Cast"):
            return None
        found = op.inputs[0]
        if op.type in ("Softmax", "Sigmoid"):
            return found
    return logits


class LogProbabilities(keras.Model):
    """The logits of a model that returns probabilities.

    A last softmax or sigmoid is removed. If none is found, the logits are log p if the outputs of
    an image sum to 1, and log p - log(1 - p) otherwise. These have no gradient where rounding makes
    p 0, or a sigmoid's output 1.

    Args:
        base: returns probabilities [B,K], either of exclusive classes or of each class separately.
    """

    def __init__(self, base: keras.Model):
        super().__init__(autocast=False)
        self.base = base
        self.pixel_max = getattr(base, "pixel_max", None)
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] -> logits [B,K]."""
        outputs = self.base(x, training=training)
        logits = _before_last(outputs)
        if logits is not None:
            return logits
        p = at_least_float32(outputs)
        smallest = tf.constant(_SMALLEST, p.dtype)
        log_p, log_rest = (tf.math.log(tf.maximum(t, smallest)) for t in (p, 1 - p))
        of_classes = tf.abs(tf.reduce_sum(p, axis=1, keepdims=True) - 1) < SUM_TOLERANCE
        return tf.where(of_classes, log_p, log_p - log_rest)

    def get_config(self) -> dict:
        """The base model's, for `model_identity`."""
        return self.base.get_config()


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether every row of [n,K] outputs is a distribution over the classes.

    Example:
        >>> are_probabilities(np.array([[0.25, 0.75]])), are_probabilities(np.array([[2.0, -1.0]]))
        (True, False)
    """
    return bool((outputs >= 0).all() and np.abs(outputs.sum(1) - 1).max() < SUM_TOLERANCE)
