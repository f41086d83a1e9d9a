"""Second derivatives that TensorFlow lacks, and the look for those that nobody has."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf.common.errors import UserError
from igam_tf.common.private_api import layers_of
from igam_tf.formulas import losses, second_derivatives
from igam_tf.formulas.second_derivatives import whole_second_derivatives
from igam_tf.method.adversarial import PGDTraining
from igam_tf.method.igam import IGAM
from igam_tf.method.second_order import missing_second_derivative
from igam_tf.method.settings import Settings
from madry_models import MnistCNN, WideResNet

SHAPE = (4, 5, 1)
BOXES = tf.constant([[0.1, 0.2, 0.9, 0.7], [0.05, 0.02, 0.6, 0.95], [0.3, 0.13, 0.8, 0.9]])


def resize(method, size, **kwargs):
    return lambda x: tf.image.resize(x, size, method, **kwargs)


def corners(op, **flags):
    return lambda x: op(images=x, size=[7, 4], **flags)


def crop_and_resize(method):
    """One box for every image."""
    return lambda x: tf.image.crop_and_resize(
        x, tf.repeat(BOXES[:1], len(x), 0), tf.range(len(x)), (4, 3), method
    )


# Linear in images [B,4,5,1].
MAPS = {
    **{f"{m} up": resize(m, (9, 7)) for m in ("bilinear", "nearest", "bicubic")},
    **{f"{m} down": resize(m, (3, 4)) for m in ("bilinear", "nearest", "bicubic", "lanczos3")},
    **{f"{m} mixed": resize(m, (3, 11)) for m in ("lanczos5", "gaussian", "mitchellcubic")},
    "bilinear antialias": resize("bilinear", (3, 4), antialias=True),
    "bicubic antialias": resize("bicubic", (3, 4), antialias=True),
    "bilinear legacy": corners(tf.raw_ops.ResizeBilinear),
    "bilinear corners": corners(tf.raw_ops.ResizeBilinear, align_corners=True),
    "nearest corners": corners(tf.raw_ops.ResizeNearestNeighbor, align_corners=True),
    "bicubic corners": corners(tf.raw_ops.ResizeBicubic, align_corners=True),
    "crop_and_resize": crop_and_resize("bilinear"),
    "crop_and_resize nearest": crop_and_resize("nearest"),
    "Resizing": keras.layers.Resizing(8, 4),
    "Resizing cropped": keras.layers.Resizing(4, 4, crop_to_aspect_ratio=True),
    "Resizing antialias": keras.layers.Resizing(3, 3, antialias=True),
    **{
        f"UpSampling2D {m}": keras.layers.UpSampling2D(2, interpolation=m)
        for m in ("nearest", "bilinear", "bicubic")
    },
}  # fmt: skip


def of_matching(f, x, w, v):
    """d<v, dL/dx>/d(x, w) for L = sum w sin f(x)."""
    with whole_second_derivatives(), tf.GradientTape() as outer:
        outer.watch([x, w])
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(w * tf.sin(tf.cast(f(x), w.dtype)))
        value = tf.reduce_sum(v * inner.gradient(loss, x))
    return outer.gradient(value, [x, w])


@pytest.mark.parametrize("name", MAPS)
def test_resizing_is_differentiated_twice_as_its_matrix_is(name):
    f, rng = MAPS[name], np.random.default_rng(0)
    rows = np.asarray(f(tf.constant(np.eye(np.prod(SHAPE), dtype=np.float32).reshape(-1, *SHAPE))))
    x, v = rng.normal(size=(2, 3, *SHAPE))
    w = rng.normal(size=(3, *rows.shape[1:]))
    expected = of_matching(
        lambda x: tf.tensordot(x, rows.reshape(*SHAPE, *rows.shape[1:]).astype(float), 3),
        *map(tf.constant, (x, w, v)),
    )
    for function in (of_matching, tf.function(of_matching, autograph=False))[
        : 2 if "bilinear" in name else 1
    ]:
        found = function(f, *(tf.constant(t, tf.float32) for t in (x, w, v)))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def central(value, at, h):
    """d value / d at along a fixed direction, and that direction."""
    d = tf.constant(np.random.default_rng(1).normal(size=at.shape), at.dtype)
    return (value(at + h * d) - value(at - h * d)) / (2 * h), d


def check(loss, x, w, v, h, rel):
    """d<v, dL/dx>/dw along a direction against a central difference of <v, dL/dx>."""

    def value(w):
        with tf.GradientTape() as inner:
            inner.watch(x)
            total = loss(x, w)
        return tf.reduce_sum(v * inner.gradient(total, x))

    with whole_second_derivatives(), tf.GradientTape() as outer:
        outer.watch(w)
        at = value(w)
    difference, d = central(value, w, h)
    assert float(tf.reduce_sum(outer.gradient(at, w) * d)) == pytest.approx(
        float(difference), rel=rel
    )


def test_softsign():
    x, w, v = tf.random.stateless_normal((3, 2, 5), (0, 1), dtype=tf.float64)
    check(lambda x, w: tf.reduce_sum(tf.nn.softsign(w * x) ** 2), x, w, v, 1e-6, 1e-7)


@pytest.mark.parametrize("batch_in_index", [False, True])
def test_max_pool_with_argmax(batch_in_index):
    x, v = tf.random.stateless_normal((2, 3, 4, 6, 2), (0, 1), dtype=tf.float64)
    w = tf.random.stateless_normal((3, 2, 3, 2), (0, 2), dtype=tf.float64)

    def loss(x, w):
        pooled, _ = tf.nn.max_pool_with_argmax(
            x, 2, 2, "VALID", include_batch_in_index=batch_in_index
        )
        return tf.reduce_sum(tf.sin(w * pooled))

    check(loss, x, w, v, 1e-6, 1e-7)


def test_boxes_of_crop_and_resize():
    """In float32, whose operation has no other type for boxes."""
    x, v = tf.random.stateless_normal((2, 3, *SHAPE), (0, 1))

    def loss(x, boxes):
        return tf.reduce_sum(tf.sin(tf.image.crop_and_resize(x, boxes, [2, 0, 1], (4, 3))))

    check(loss, x, BOXES, v, 1e-3, 1e-2)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32])
@pytest.mark.parametrize("keepdims", [False, True])
def test_moments_are_those_of_tensorflow_in_narrow_types(dtype, keepdims):
    x = tf.cast(tf.random.stateless_normal((64, 5), (0, 1)) * 200, dtype)
    expected = tf.nn.moments(tf.cast(x, tf.float64), [0], keepdims=keepdims)
    with whole_second_derivatives():
        found = tf.nn.moments(x, [0], keepdims=keepdims)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert a.shape == b.shape
        b = tf.cast(tf.cast(b, dtype), tf.float64)
        np.testing.assert_allclose(tf.cast(a, tf.float64), b, rtol=1e-2 if dtype.size < 4 else 1e-4)


def test_tensorflow_is_as_it_was_outside_of_the_context():
    before = tf.nn.moments
    with whole_second_derivatives(), whole_second_derivatives():
        assert tf.nn.moments is not before
    assert tf.nn.moments is before


# --- the look at the first batch --------------------------------------------------------------------


@keras.saving.register_keras_serializable("test")
class Function(keras.layers.Layer):
    """One of `FUNCTIONS`, by name."""

    def call(self, x):
        return FUNCTIONS[self.name](x)


@tf.custom_gradient
def _constant_slope(x):
    slope = tf.stop_gradient(tf.sigmoid(x))
    return tf.nn.softplus(x), lambda g: g * slope


FUNCTIONS = {
    "a_part": lambda x: x + 0.05 * _constant_slope(x),
    "straight_through": tf.custom_gradient(lambda x: (tf.round(8 * x) / 8, lambda g: g)),
    "lrn": tf.nn.local_response_normalization,
    "checkpoint": lambda x: tf.recompute_grad(lambda v: tf.tanh(v) * v)(x),
    "python": lambda x: tf.ensure_shape(tf.py_function(tf.tanh, [x], x.dtype), x.shape),
    "slope": _constant_slope,
    "stopped": tf.stop_gradient,
    "rounded": tf.round,
    "area": lambda x: tf.image.resize(x, (3, 3), "area"),
}


def student(*layers, shape=(6, 6, 3)) -> keras.Sequential:
    keras.utils.set_random_seed(0)
    body = [keras.layers.Flatten(), keras.layers.Dense(4)]
    return keras.Sequential([keras.Input(shape), *layers, *body])


def batch(n=6, shape=(6, 6, 3)):
    rng = np.random.default_rng(0)
    return rng.uniform(size=(n, *shape)).astype("float32"), np.arange(n) % 4


def trainer(network, **settings) -> IGAM:
    settings = {"method": "gradient_penalty", "lambda_diff": 1.0} | settings
    igam = IGAM(network, settings=Settings(**settings), pixel_max=1.0)
    igam.compile("sgd")
    return igam


def conv(channels=4, **kwargs):
    return keras.layers.Conv2D(channels, 3, padding="same", **kwargs)


@pytest.mark.parametrize(
    "name", ["lrn", "slope", "a_part", "straight_through", "checkpoint", "python"]
)
def test_a_layer_without_a_second_derivative_is_named(name):
    network = student(conv(), keras.layers.ReLU(), Function(name=name), conv())
    with pytest.raises(
        UserError, match=rf"layer '{name}'.*second_order=finite_difference"
    ) as error:
        trainer(network).fit(*batch(), verbose=0)
    assert "\n" not in str(error.value)
    trainer(network, second_order="finite_difference").fit(*batch(), verbose=0)


@pytest.mark.parametrize("inside", [False, True])
def test_a_derivative_that_is_taken_for_zero_is_seen(monkeypatch, inside):
    """TensorFlow's own, as if nothing were mended."""
    monkeypatch.setattr(second_derivatives, "_WHOLE", [])
    resize = keras.layers.UpSampling2D(2, interpolation="bilinear", name="resize")
    layers = [conv(activation="relu"), resize] if inside else [resize, conv(activation="relu")]
    with pytest.raises(UserError, match="layer 'resize', a UpSampling2D, is wrong or missing"):
        trainer(student(*layers, conv())).fit(*batch(), verbose=0)
    if inside:
        with pytest.raises(UserError, match="'norm', a BatchNormalization, is wrong"):
            trainer(student(conv(), keras.layers.BatchNormalization(name="norm"), conv())).fit(
                *batch(), verbose=0
            )


@pytest.mark.parametrize("second_order", ["exact", "finite_difference"])
@pytest.mark.parametrize("name", ["stopped", "rounded", "area"])
def test_a_student_without_a_gradient_in_x_is_refused(name, second_order):
    with pytest.raises(UserError, match="expected logits that are differentiable in x") as error:
        trainer(student(Function(name=name)), second_order=second_order).fit(*batch(), verbose=0)
    assert "\n" not in str(error.value)
    igam = trainer(student(Function(name=name)), second_order=second_order)
    if name != "area":
        with pytest.raises(UserError, match="differentiable in x"):
            igam.train_step(tuple(map(tf.constant, batch())))


@pytest.mark.parametrize("name", ["stopped", "area"])
def test_a_network_that_cannot_be_attacked_is_not_trained_on_attacks(name):
    pgd = PGDTraining(
        student(Function(name=name)), eps=0.1, step_size=0.1, steps=1, seed=0, pixel_max=1.0
    )
    pgd.compile("sgd")
    with pytest.raises(UserError, match="expected logits that are differentiable in x"):
        pgd.fit(*batch(), verbose=0)


def test_a_resized_student_is_matched_as_the_same_map_as_a_matrix():
    x, y = batch()
    resized = student(keras.layers.Resizing(4, 4), conv(activation="silu"))
    basis = np.eye(36, dtype=np.float32).reshape(36, 6, 6, 1)
    matrix = tf.reshape(resized.layers[0](basis), (6, 6, 4, 4))
    dense = student(
        keras.layers.Lambda(lambda x: tf.einsum("bhwc,hwst->bstc", x, matrix)),
        conv(activation="silu"),
    )
    dense.set_weights(resized.get_weights())
    data = tuple(map(tf.constant, (x, y)))
    (a, *_), (b, *_), (off, *_) = (
        trainer(network, lambda_diff=weight).student_gradients(*data)
        for network, weight in ((resized, 1.0), (dense, 1.0), (dense, 0.0))
    )
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert max(np.abs(one - none).max() for one, none in zip(b, off, strict=True)) > 0.01


def noisy() -> keras.Sequential:
    keras.utils.set_random_seed(1)  # of the layers' seeds
    layers = keras.layers
    return student(
        layers.GaussianNoise(0.1),
        conv(activation="relu"),
        layers.BatchNormalization(),
        layers.Dropout(0.3),
        layers.MaxPooling2D(2),
    )


def test_looking_changes_nothing():
    x, y = batch()
    runs = []
    for looks in (0, 2):
        network = noisy()
        igam = trainer(network)
        before = [v.numpy() for v in network.variables]
        for _ in range(looks):
            igam.check_derivatives(x, y)
        policies = {layer.dtype_policy.name for layer in layers_of(network)}
        assert policies == {"float32"}
        assert network.input_dtype == network.inputs[0].dtype == "float32"
        for v, old in zip(network.variables, before, strict=True):
            np.testing.assert_array_equal(v, old)
        for _ in range(2):
            igam.train_step(tuple(map(tf.constant, (x, y))))
        drawn = keras.random.normal((3,))
        runs.append([*[v.numpy() for v in network.variables], drawn.numpy()])
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_teacher_stays_and_the_student_moves_once_with_the_settings_of_the_release():
    x, y = map(tf.constant, batch())
    settings = Settings(teacher_batch_norm="batch", disc_gradients="recomputed", disc_every=1)
    network, teacher, other = noisy(), noisy(), noisy()
    igam = IGAM(network, teacher, settings=settings, pixel_max=1.0)
    igam.compile("sgd", "sgd")
    igam.make_players(x.shape[1:])
    before = [v.numpy() for v in teacher.variables]
    other(x, training=True)
    igam.step_of_kind((x, y), "discriminator")
    for v, old in zip(teacher.variables, before, strict=True):
        np.testing.assert_array_equal(v, old)
    for a, b in zip(network.non_trainable_variables, other.non_trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


# --- honest students: none of them is refused -------------------------------------------------------


class Subclassed(keras.Model):
    """Raw operations, and a variable that Keras does not know."""

    def __init__(self, *, cast=False, noise=0.0, raw=False):
        super().__init__()
        self.conv, self.norm = conv(), keras.layers.BatchNormalization()
        self.dense, self.cast, self.noise = keras.layers.Dense(4), cast, noise
        self.raw = [tf.Variable(tf.ones((4,)))] if raw else []

    def call(self, x, training=False):
        """[B,6,6,3] -> [B,4]."""
        x = tf.cast(x, tf.float32) if self.cast else x
        h = self.conv(x + self.noise * tf.random.normal(tf.shape(x), dtype=x.dtype))
        h = tf.nn.max_pool2d(tf.nn.relu(self.norm(h, training=training)), 2, 2, "SAME")
        h = h * self.raw[0] if self.raw else h
        z = self.dense(tf.reshape(h, [tf.shape(h)[0], -1]))
        return tf.cast(z, tf.float32) if self.cast else z


def attention() -> keras.Model:
    image = keras.Input((6, 6, 3))
    h = keras.layers.Reshape((9, 8))(conv(8)(image)[:, ::2, ::2])
    h = h + keras.layers.MultiHeadAttention(2, 4, dropout=0.1)(h, h)
    h = keras.layers.LayerNormalization()(h)
    return keras.Model(
        image,
        keras.layers.Dense(4)(
            keras.layers.GlobalAveragePooling1D()(keras.layers.LSTM(4, return_sequences=True)(h))
        ),
    )


def residual() -> keras.Model:
    """With a kernel of zeros, as in many residual networks."""
    image = keras.Input((6, 6, 3))
    h = conv(activation="relu")(keras.layers.Rescaling(2.0, -1.0)(image))
    h = h + conv(kernel_initializer="zeros")(
        keras.layers.ReLU()(keras.layers.BatchNormalization()(h))
    )
    return keras.Model(
        image, keras.layers.Dense(4, kernel_initializer="zeros")(keras.layers.Flatten()(h))
    )


def policy(name):
    def make():
        keras.config.set_dtype_policy(name)
        layers = (conv(), keras.layers.BatchNormalization(), keras.layers.ReLU())
        return student(*layers, keras.layers.MaxPooling2D(2), conv(activation="relu"))

    return make


HONEST = {
    "mlp": lambda: student(keras.layers.Flatten(), keras.layers.Dense(16, "leaky_relu")),
    "noisy": noisy,
    **{
        name: lambda layer=layer: student(conv(), layer(), conv(activation="relu"))
        for name, layer in {
            "silu": lambda: keras.layers.Activation("silu"),
            "softsign": lambda: keras.layers.Activation("softsign"),
            "prelu": keras.layers.PReLU,
            "layer norm": keras.layers.LayerNormalization,
            "group norm": lambda: keras.layers.GroupNormalization(2),
            "unit norm": keras.layers.UnitNormalization,
            "separable": lambda: keras.layers.SeparableConv2D(4, 3),
            "depthwise": lambda: keras.layers.DepthwiseConv2D(3),
            "transpose": lambda: keras.layers.Conv2DTranspose(4, 3, 2),
            "average": lambda: keras.layers.AveragePooling2D(2),
            "spectral": lambda: keras.layers.SpectralNormalization(conv()),
            "bilinear": lambda: keras.layers.UpSampling2D(2, interpolation="bilinear"),
            "bicubic": lambda: keras.layers.UpSampling2D(2, interpolation="bicubic"),
            "antialias": lambda: keras.layers.Resizing(4, 4, antialias=True),
        }.items()
    },
    "attention": attention,
    "residual": residual,
    "subclassed": Subclassed,
    "casts": lambda: Subclassed(cast=True),
    "draws": lambda: Subclassed(noise=0.1),
    "raw variable": lambda: Subclassed(raw=True),
    **{name: policy(name) for name in ("mixed_bfloat16", "mixed_float16", "bfloat16", "float64")},
}
QUICK = {"noisy", "casts", "bilinear", "mixed_float16"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in HONEST],
)
def test_honest_students_are_not_refused(name):
    before = keras.config.dtype_policy()
    try:
        network = HONEST[name]()
        x, y = batch()
        network(x)
        found = missing_second_derivative(network, losses.xent, x, y, 1.0)
    finally:
        keras.config.set_dtype_policy(before)
    assert found is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape", "pixel_max"),
    [
        (MnistCNN, (28, 28, 1), 1.0),
        (lambda: WideResNet(8, 1), (12, 12, 3), 255.0),
        (lambda: WideResNet(8, 1, dtype="mixed_bfloat16", activation="silu"), (12, 12, 3), 255.0),
        (lambda: WideResNet(8, 1, dtype="float64"), (12, 12, 3), 255.0),
        *(
            (
                lambda name=name: getattr(keras.applications, name)(
                    input_shape=(32, 32, 3),
                    weights=None,
                    classes=4,
                    classifier_activation=None,
                ),
                (32, 32, 3),
                255.0,
            )
            for name in ("MobileNetV2", "EfficientNetB0")
        ),
    ],
    ids=["mnist", "wrn", "wrn silu bfloat16", "wrn float64", "mobilenet", "efficientnet"],
)
def test_honest_networks_are_not_refused(make, shape, pixel_max):
    keras.utils.set_random_seed(0)
    network, (x, y) = make(), batch(4, shape)
    network.build((None, *shape))
    assert missing_second_derivative(network, losses.xent, pixel_max * x, y, pixel_max) is None
