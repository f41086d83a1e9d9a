"""All private parts of Keras and TensorFlow that the project uses; no other file uses one.

Tested with keras 3.12.1 and 3.15.1, and tensorflow 2.18.0 and 2.21.0. tests/test_private_api.py
fails if a part changes.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from igam_tf.common.lazy import keras, tf

# --- layers ---------------------------------------------------------------------------------------


def layers_of(layer: keras.layers.Layer, *, include_self: bool = True) -> list[keras.layers.Layer]:
    """Every layer inside a layer, at any depth; Keras lists only those of models."""
    return list(layer._flatten_layers(include_self=include_self))


def layers_just_inside(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers that a layer holds directly."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


_thread = threading.local()  # the open contexts of `calls_of` of each thread; replicas are threads
_lock = threading.Lock()
_watchers: dict[int, int] = {}  # id of a layer -> number of contexts that watch it
_own_calls: dict[int, Any] = {}  # id of a watched layer -> `call` in its __dict__ before, or None


@contextlib.contextmanager
def calls_of(layers: Sequence[keras.layers.Layer]) -> Iterator[list[tuple]]:
    """Context that records this thread's calls of the layers: (layer, args, kwargs, outputs).

    They are in the order in which they end. A layer's own `call` is restored when the last context
    that watches it ends.
    """
    calls: list[tuple] = []
    outer = getattr(_thread, "open", [])
    _thread.open = [*outer, ({id(layer) for layer in layers}, calls)]
    with _lock:
        for layer in layers:
            if id(layer) not in _watchers:
                _watch(layer)
            _watchers[id(layer)] = _watchers.get(id(layer), 0) + 1
    try:
        yield calls
    finally:
        _thread.open = outer
        with _lock:
            for layer in layers:
                _watchers[id(layer)] -= 1
                if not _watchers[id(layer)]:
                    _unwatch(layer)


def _watch(layer: keras.layers.Layer) -> None:
    call, _own_calls[id(layer)] = layer.call, layer.__dict__.get("call")

    def watched(*args, **kwargs):
        outputs = call(*args, **kwargs)
        for wanted, calls in getattr(_thread, "open", []):
            if id(layer) in wanted:
                calls.append((layer, args, kwargs, outputs))
        return outputs

    layer.__dict__["call"] = watched  # bypasses Keras, which tracks attributes


def _unwatch(layer: keras.layers.Layer) -> None:
    del _watchers[id(layer)], layer.__dict__["call"]
    own = _own_calls.pop(id(layer))
    if own is not None:
        layer.__dict__["call"] = own


def drops_at_random(model: keras.Model) -> bool:
    """Whether a model has a layer with a Keras random generator, such as dropout."""
    return any(v.name == "seed_generator_state" for v in model.non_trainable_variables)


# --- types ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _set(values: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Context that sets attributes; setting `layer.dtype_policy` would change other layers too."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in values]
    try:
        for owner, name, value in values:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


def in_float32(layers: Sequence[keras.layers.Layer]) -> contextlib.AbstractContextManager[None]:
    """Context in which layers compute in float32, with the same weights."""

    class ComputedInFloat32(keras.DTypePolicy):
        """Gives the variables' dtype, so that Keras casts them."""

        def __init__(self, variables: str):
            super().__init__("float32")
            self._of_variables = variables

        @property
        def variable_dtype(self) -> str:
            """The dtype of the variables."""
            return self._of_variables

    return _set(
        [(part, "_dtype_policy", ComputedInFloat32(part.variable_dtype)) for part in layers]
    )


def in_float64(model: keras.Model) -> contextlib.AbstractContextManager[None]:
    """Context in which every layer computes in float64, with variables that are passed in float64."""
    layers, policy = layers_of(model), keras.DTypePolicy("float64")
    # Models cast their inputs to the dtype of their input layers.
    functional = [getattr(layer, "_functional", layer) for layer in layers]  # of a Sequential
    inputs = [t for part in functional for t in getattr(part, "_inputs", None) or ()]
    inputs += [layer for layer in layers if isinstance(layer, keras.layers.InputLayer)]
    narrow = [(t, "_dtype", "float64") for t in inputs if "float" in t.dtype]
    return _set([*((layer, "_dtype_policy", policy) for layer in layers), *narrow])


def functional_of(model: keras.Model) -> keras.Model | None:
    """The functional model inside a built Sequential; else None."""
    return getattr(model, "_functional", None)


def kept_logits(outputs: tf.Tensor) -> tf.Tensor | None:
    """The logits that Keras keeps with the outputs of its own softmax and sigmoid; else None."""
    return getattr(outputs, "_keras_logits", None)


# --- training -------------------------------------------------------------------------------------

# `fit` passes this keyword where it calls `evaluate` on its validation data.
EVALUATED_BY_FIT = "_use_cached_eval_dataset"


def directions(*, up: Sequence[str] = (), down: Sequence[str] = ()) -> Any:
    """A metric that tells Keras's callbacks in which direction a logged name is better."""
    return _directions()(up, down)


@functools.cache
def _directions() -> type:
    from keras.src.trainers.compile_utils import MetricsList

    class Directions(MetricsList):
        """Measures nothing; Keras looks for directions only in compiled metrics."""

        def __init__(self, up, down):
            super().__init__([SimpleNamespace(name=name, _direction="up") for name in up])
            self.metrics += [SimpleNamespace(name=name, _direction="down") for name in down]

        def reset_state(self):
            """Nothing to do."""

        def result(self) -> dict:
            """No figure."""
            return {}

    return Directions


def metrics_of(model: keras.Model) -> list:
    """The list of a model's metrics in Keras; callbacks find metrics that are added to it."""
    return model._metrics


def slot_of(
    optimizer: keras.optimizers.Optimizer, slots: list[keras.Variable], variable: keras.Variable
) -> keras.Variable:
    """The slot of a variable within `update_step`, where each replica can have its own."""
    return slots[optimizer._get_variable_index(variable)]


# --- functions that are looked up when they are called ---------------------------------------------


def place_of_moments() -> tuple[Any, str]:
    """(module, name) of the function that Keras's normalisation layers call for mean and variance."""
    return tf.nn, "moments"


def place_of_resize_bilinear_grad() -> tuple[Any, str]:
    """(module, name) of the function that computes TensorFlow's gradient of bilinear resizing."""
    from tensorflow.python.ops import gen_image_ops

    return gen_image_ops, "resize_bilinear_grad"


# --- texts of errors ------------------------------------------------------------------------------

_PLAIN = re.compile(r"\x1b\[[0-9;]*m|\{\{.*?\}\} ?")  # colours, and names of graph nodes


def reason_of(error: Exception) -> str:
    """The line of a Keras or TensorFlow error that gives the reason.

    Keras's own first line is only "Exception encountered when calling Sequential.call()."; the
    reason is below it.

    Example:
        >>> reason_of(ValueError("Exception encountered when calling A.call().\\n\\nwrong shape"))
        'wrong shape'
    """
    lines = [_PLAIN.sub("", line).strip() for line in str(error).splitlines()]
    told = [
        line
        for line in lines
        if line and not line.startswith(("Exception encountered", "Arguments received", "•"))
    ]
    return told[0] if told else type(error).__name__


def reason_of_loading(error: Exception) -> str:
    """The first sentence of the innermost error of `keras.saving.load_model`, which is very long."""
    return str(error).rsplit("Exception encountered: ")[-1].split(". ")[0]


def missing_gradient(error: LookupError) -> str:
    """The operation for which TensorFlow has no gradient."""
    return str(error).strip().rsplit(":", 1)[-1].strip()


def not_finite(error: tf.errors.OpError) -> str | None:
    """The message of `tf.debugging.check_numerics`, if it raised the error."""
    found = re.search(r"(\w+) : Tensor had", error.message)
    return found[1] if found else None


def raised_within(error: tf.errors.OpError) -> str | None:
    """The sentence of a UserError of a Python function that a graph called; None without one."""
    found = re.search(r"\bUserError: (.+)", error.message)
    return found[1] if found else None


def label_outside(error: tf.errors.OpError) -> tuple[str, str] | None:
    """(label, range of the classes) if a cross-entropy had a label outside the classes; else None."""
    found = re.search(
        r"label value of (-?\d+) which is outside the valid range of (\[.*?\))", error.message
    )
    return (found[1], found[2]) if found else None


def file_and_reason(error: Exception, reasons: Iterable[str]) -> tuple[str, str] | None:
    """(file, reason) of a TensorFlow file system error with one of these reasons; else None."""
    found = re.search(rf"(\S+); ({'|'.join(reasons)})", str(error))
    return (found[1], found[2]) if found else None


def aborted_by(error: tf.errors.OpError) -> str | None:
    """Why the collective operations between workers were aborted; None if they were not."""
    found = re.search("Collective ops is aborted by: (.+)", error.message)
    return found[1] if found else None
