"""Second derivatives that TensorFlow lacks, against the same map as a matrix."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf.formulas.second_derivatives import whole_second_derivatives

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
    for function in (of_matching, tf.function(of_matching))[: 2 if "bilinear" in name else 1]:
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
