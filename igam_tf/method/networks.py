"""What the project needs to know of any Keras model, and Keras does not say.

Which variables decay, what the last dense layer reads, whether the outputs are logits: each has a
default that holds for Sequential, functional and subclassed models alike. The networks of the
challenges answer for themselves.
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
# Rows of probabilities that went through float16 still add up to 1 within this.
SUM_TOLERANCE = 1e-3


def decayed_variables(model: keras.Model, pattern: str | None = None) -> list:
    """The variables under weight decay: by default the kernels of convolutions and dense layers.

    Args:
        model: built.
        pattern: regular expression that a trainable variable's path ends with, such as "kernel|gamma".

    Raises:
        UserError: a pattern that no variable has.
    """
    if pattern is None:
        if isinstance(getattr(type(model), "kernels", None), property):  # ours tell, in their order
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


def pixel_max_of(
    model: keras.Model, given: float | None = None, default: float | None = None
) -> float:
    """Highest pixel value of a model's input: as given, else as the model tells, else `default`.

    Raises:
        UserError: none of them, or a number that is not above 0.
    """
    found = (given, getattr(model, "pixel_max", None), default)
    value = next((value for value in found if value is not None), None)
    if value is None:
        raise UserError(
            "expected pixel_max, the highest pixel value of the student's input, such as 1.0 or 255.0; "
            f"received none, and this {type(model).__name__} does not tell"
        )
    check_pixel_max(value)
    return float(value)


# --- features -------------------------------------------------------------------------------------


def _layers_within(model: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Those of wrappers too; not of TimeDistributed, whose layer sees a part of each image at a time."""
    for layer in layers_just_inside(model):
        yield layer
        if not isinstance(layer, keras.layers.TimeDistributed):
            yield from _layers_within(layer)


def features_of(model: keras.Model, layer: str = "") -> Callable[..., tf.Tensor]:
    """(x [B,H,W,C], training=False) -> the features [B,F] of any Keras model.

    Those of a challenge's network, or by `model.igam_features(x, training=)` where a model has that;
    else the input of the dense layer that is called last, or the output of the layer that is named.

    Args:
        model: Sequential, functional or subclassed; layers of models inside it count too.
        layer: name of a layer whose output [B,F] is taken.

    Raises:
        UserError: no dense layer, or none of that name; when called, a layer that is not reached, or
            features that are not [B,F].
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
    """The layers of a model, itself among them, that compute in float16, or in one of these types."""
    return [part for part in layers_of(model) if part.compute_dtype in types]


def in_float32(
    model: keras.layers.Layer, types: Sequence[str] = ("float16",)
) -> AbstractContextManager[None]:
    """Context in which those layers compute in float32, with the same weights.

    float16 holds no gradient below 6e-8 and no number above 65504: what an attack does not find
    there is no robustness. What is traced in the context stays so.
    """
    return private_api.in_float32(float16_layers(model, types))


# --- probabilities and logits ---------------------------------------------------------------------


def _before_last(outputs: tf.Tensor) -> tf.Tensor | None:
    """The logits that a last softmax or sigmoid was given, [B,K]; None where it cannot be found.

    Keras keeps them with what its own functions return; a graph knows them of every softmax.
    """
    found = outputs
    while (logits := private_api.kept_logits(found)) is None:
        op = getattr(found, "op", None)  # there is none without a graph
        if op is None or op.type not in ("Softmax", "Sigmoid", "Identity", "Cast"):
            return None
        found = op.inputs[0]
        if op.type in ("Softmax", "Sigmoid"):
            return found
    return logits


class LogProbabilities(keras.Model):
    """The logits of a model that returns probabilities.

    A last softmax or sigmoid is taken off. Where there is none to be found, these are log p where the
    outputs of an image add up to 1, and log p - log(1 - p) where they do not. Then there is no
    gradient where p is 0, or a sigmoid's 1, in the type that the model computes in.

    Args:
        base: returns probabilities [B,K]: of classes, or each for itself.
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
