"""Private parts of Keras and TensorFlow: each is where `igam_tf.common.private_api` looks for it."""

import ast
import errno
import os
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf.common import private_api
from igam_tf.formulas.second_derivatives import whole_second_derivatives
from igam_tf.method.optimizers import Momentum

ROOT = Path(__file__).parents[1]
X = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")
SOURCES = [*(ROOT / "igam_tf").rglob("*.py"), *(ROOT / "madry_models").rglob("*.py")]


def _private(path: Path) -> list[str]:
    """Attributes of others than self that begin with one underscore, and private modules."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
            of = ast.unparse(node.value)
            found += (
                [] if of in ("self", "cls") or of.startswith("super(") else [f"{of}.{node.attr}"]
            )
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += re.findall(r"^(?:keras\.src|tensorflow\.python).*", node.module)
    return found


def test_no_other_file_reads_a_private_part():
    found = {path.stem: _private(path) for path in SOURCES if path.stem != "private_api"}
    assert not {name: parts for name, parts in found.items() if parts}


def nested() -> keras.Model:
    """A functional model around a Sequential and a wrapper."""
    inner = keras.Sequential(
        [keras.Input((6, 6, 3)), keras.layers.Conv2D(2, 3, name="inside"), keras.layers.Flatten()]
    )
    x = keras.Input((6, 6, 3))
    h = keras.layers.SpectralNormalization(keras.layers.Dense(3, name="wrapped"))(inner(x))
    return keras.Model(x, keras.layers.Dropout(0.5, seed=0)(h))


def test_every_layer_inside_a_layer():
    model = nested()
    names = [layer.name for layer in private_api.layers_of(model)]
    assert names[0] == model.name
    assert {"inside", "wrapped"} <= {*names}
    assert model not in private_api.layers_of(model, include_self=False)
    just = [type(layer).__name__ for layer in private_api.layers_just_inside(model)]
    assert just == ["InputLayer", "Sequential", "SpectralNormalization", "Dropout"]
    wrapper = model.layers[2]
    assert [layer.name for layer in private_api.layers_just_inside(wrapper)] == ["wrapped"]


def test_calls_of_layers_are_kept_and_their_own_come_back():
    model = nested()
    layers = private_api.layers_of(model, include_self=False)
    convolution = next(layer for layer in layers if layer.name == "inside")
    with private_api.calls_of(layers) as calls, private_api.calls_of([convolution]) as one:
        outputs = model(X)
    assert [layer.name for layer, *_ in one] == ["inside"]
    kept = [layer for layer, *_ in calls]
    assert convolution in kept
    assert calls[-1][3] is outputs
    np.testing.assert_array_equal(one[0][1][0], X)
    assert not any("call" in vars(layer) for layer in layers)


def test_random_generators_have_their_name():
    assert private_api.drops_at_random(nested())
    assert not private_api.drops_at_random(keras.Sequential([keras.Input((3,))]))


class Plain(keras.Model):
    """A subclassed model."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(2, dtype=self.dtype_policy)

    def call(self, x, training=False):
        return self.dense(keras.ops.reshape(x, (4, -1)))


@pytest.mark.parametrize("kind", ["sequential", "functional", "subclassed"])
def test_layers_compute_in_another_type(kind):
    keras.utils.set_random_seed(0)
    if kind == "subclassed":
        model = Plain(dtype="mixed_float16")
        model(X)
    else:
        x = keras.Input((6, 6, 3), dtype="float16")
        layers = [
            keras.layers.Flatten(dtype="mixed_float16"),
            keras.layers.Dense(2, dtype="mixed_float16"),
        ]
        model = (
            keras.Sequential([x, *layers])
            if kind == "sequential"
            else keras.Model(x, layers[1](layers[0](x)))
        )
    layers = private_api.layers_of(model)
    before = [layer.dtype_policy for layer in layers]
    narrow = [layer for layer in layers if layer.compute_dtype == "float16"]
    assert model(X).dtype == tf.float16
    with private_api.in_float32(narrow):
        wide = model(X)
    assert wide.dtype == tf.float32
    scope = keras.StatelessScope([(v, tf.cast(v.value, tf.float64)) for v in model.variables])
    with private_api.in_float64(model), scope:
        widest = model(tf.constant(X, tf.float64))
    assert widest.dtype == tf.float64
    np.testing.assert_allclose(wide, widest, atol=1e-2)
    assert [layer.dtype_policy for layer in layers] == before
    assert model(X).dtype == tf.float16
    assert (private_api.functional_of(model) is None) == (kind != "sequential")


def test_keras_keeps_the_logits_of_its_own_softmax_and_sigmoid():
    z = tf.constant([[1.0, 2.0]])
    for activation in ("softmax", "sigmoid"):
        kept = private_api.kept_logits(keras.layers.Activation(activation)(z))
        np.testing.assert_array_equal(kept, z)
    assert private_api.kept_logits(z) is None


class Watched(keras.Sequential):
    """Keeps what `evaluate` is called with."""

    def evaluate(self, *args, **kwargs):
        self.keywords = {*kwargs}
        return super().evaluate(*args, **kwargs)


class Added(keras.callbacks.Callback):
    """Tells that a higher val_share is better, and logs one."""

    def on_train_begin(self, logs=None):
        private_api.metrics_of(self.model).append(private_api.directions(up=["share"]))

    def on_epoch_end(self, epoch, logs=None):
        logs["val_share"] = 0.5


def test_keras_asks_directions_and_says_that_it_evaluates():
    model = Watched([keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    y = np.arange(4) % 2
    stop = keras.callbacks.EarlyStopping("val_share")
    model.fit(X, y, validation_data=(X, y), callbacks=[Added(), stop], verbose=0)
    assert bool(stop.monitor_op(2, 1))
    assert private_api.EVALUATED_BY_FIT in model.keywords


def test_a_mean_adds_up_in_total_and_count():
    mean = keras.metrics.Mean()
    mean.update_state([1.0, 4.0])
    assert (float(mean.total), float(mean.count)) == (5.0, 2.0)


def test_slots_are_those_of_their_variables():
    variables = [keras.Variable(np.zeros(n, "float32")) for n in (2, 3)]
    optimizer = Momentum(0.1, momentum=0.9)
    optimizer.build(variables)
    for variable, slot in zip(variables, optimizer.momentums, strict=True):
        assert private_api.slot_of(optimizer, optimizer.momentums, variable) is slot


def test_kernels_have_their_name():
    for layer in (
        keras.layers.Dense(2),
        keras.layers.Conv2D(2, 3),
        keras.layers.DepthwiseConv2D(3),
    ):
        layer.build((None, 6, 6, 3))
        assert [v.name.endswith("kernel") for v in layer.trainable_variables] == [True, False]


@pytest.mark.parametrize(
    ("place", "run"),
    [
        (
            private_api.place_of_moments,
            lambda x: keras.layers.BatchNormalization()(x, training=True),
        ),
        (private_api.place_of_moments, lambda x: keras.layers.GroupNormalization(3)(x)),
        (private_api.place_of_resize_bilinear_grad, lambda x: tf.image.resize(x, (3, 3))),
    ],
    ids=["batch norm", "group norm", "resize"],
)
def test_the_libraries_call_what_is_put_in_their_place(place, run, monkeypatch):
    where, name = place()
    own, calls = getattr(where, name), []
    monkeypatch.setattr(where, name, lambda *a, **k: (calls.append(a), own(*a, **k))[1])
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = run(x)
    tape.gradient(y, x)
    assert calls


def test_a_half_type_keeps_the_range_of_its_moments():
    """Squares beyond 65504 of numbers whose variance is small; TensorFlow's own computes wider, too."""
    x = tf.constant([[300.0], [302.0]], tf.float16)
    own = tf.nn.moments(x, [0])
    with whole_second_derivatives():
        found = tf.nn.moments(x, [0])
    for a, b in zip(found, own, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()


def test_texts_of_errors(tmp_path):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        tf.debugging.check_numerics(tf.constant([np.nan]), "L_adv")
    assert private_api.not_finite(error.value) == "L_adv"
    assert private_api.label_outside(error.value) is None
    z, labels = tf.zeros((1, 3)), tf.constant([7])
    with pytest.raises(tf.errors.InvalidArgumentError) as error, tf.device("CPU"):
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels, z)
    assert private_api.label_outside(error.value) == ("7", "[0, 3)")
    assert private_api.not_finite(error.value) is None
    assert private_api.aborted_by(error.value) is None
    absent = str(tmp_path / "absent" / "file")
    with pytest.raises(tf.errors.NotFoundError) as error:
        tf.io.read_file(absent)
    reason = os.strerror(errno.ENOENT)
    assert private_api.file_and_reason(error.value, [reason]) == (absent, reason)
    assert private_api.file_and_reason(error.value, [os.strerror(errno.ENOSPC)]) is None
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.raw_ops.ResizeArea(images=x, size=(3, 3))
    with pytest.raises(LookupError) as error:
        tape.gradient(y, x)
    assert private_api.missing_gradient(error.value) == "ResizeArea"
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError) as error:
        model(tf.zeros((1, 4)))
    assert "incompatible" in private_api.reason_of(error.value)
    path = tmp_path / "code.keras"
    keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x)]).save(path)
    with pytest.raises(ValueError) as error:
        keras.saving.load_model(path, safe_mode=True)
    assert "Lambda" in private_api.reason_of_loading(error.value)
    assert len(private_api.reason_of_loading(error.value)) < 300


def test_names_that_are_no_promise():
    """Public, but not documented, or experimental."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert model.distribute_strategy is tf.distribute.get_strategy()
    assert model.make_train_function() is None
    assert callable(model.train_function)
    assert int(tf.random.experimental.index_shuffle(0, [1, 2], max_index=4)) in range(5)
    tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    assert hasattr(tf.distribute.Strategy, "experimental_local_results")
    assert hasattr(tf.distribute.Strategy, "experimental_distribute_values_from_function")
