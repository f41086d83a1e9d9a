"""Adds the second derivatives that TensorFlow lacks; the exact update through J_s needs them.

The gradient of resizing is linear in its input, so its own gradient is resizing again. TensorFlow
has none of these gradients: for most it raises an error, for bilinear resizing it returns 0.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

import tensorflow as tf

from igam_tf.common.private_api import place_of_moments, place_of_resize_bilinear_grad


def _register(of: str) -> Callable[[Callable], None]:
    """Registers the gradient of the TensorFlow operation of that name, if it has none."""

    def register(gradient: Callable) -> None:
        with contextlib.suppress(KeyError):
            tf.RegisterGradient(of)(gradient)

    return register


def _size(images: tf.Tensor) -> tf.Tensor:
    return tf.shape(images)[1:3]


def _sampling(op: tf.Operation) -> dict[str, bool]:
    return {name: op.get_attr(name) for name in ("align_corners", "half_pixel_centers")}


@_register("ResizeNearestNeighborGrad")
def _nearest(op, u):
    size = _size(op.inputs[0])
    return tf.raw_ops.ResizeNearestNeighbor(images=u, size=size, **_sampling(op)), None


@_register("ResizeBicubicGrad")
def _bicubic(op, u):
    return tf.raw_ops.ResizeBicubic(images=u, size=_size(op.inputs[0]), **_sampling(op)), None


@_register("ScaleAndTranslateGrad")  # antialias, lanczos, gaussian, ...
def _scale_and_translate(op, u):
    grads, _, scale, translation = op.inputs
    kernel = {name: op.get_attr(name) for name in ("kernel_type", "antialias")}
    of_grads = tf.raw_ops.ScaleAndTranslate(
        images=u, size=_size(grads), scale=scale, translation=translation, **kernel
    )
    return of_grads, None, None, None


@_register("CropAndResizeGradImage")
def _crop_and_resize(op, u):
    grads, boxes, box_ind, _ = op.inputs
    of_grads = tf.raw_ops.CropAndResize(
        image=u, boxes=boxes, box_ind=box_ind, crop_size=_size(grads), method=op.get_attr("method")
    )
    of_boxes = tf.raw_ops.CropAndResizeGradBoxes(grads=grads, image=u, boxes=boxes, box_ind=box_ind)
    return of_grads, of_boxes, None, None


@_register("MaxPoolGradWithArgmax")
def _max_pool_with_argmax(op, u):
    _, grad, argmax = op.inputs
    rows = 1 if op.get_attr("include_batch_in_index") else tf.shape(u)[0]
    flat = (tf.reshape(t, [rows, -1]) for t in (u, argmax))
    return None, tf.reshape(tf.gather(*flat, batch_dims=1), tf.shape(grad)), None


@_register("SoftsignGrad")
def _softsign(op, u):
    gradients, h = op.inputs
    of_h = -2 * tf.sign(h) * u * gradients / (1 + tf.abs(h)) ** 3
    return tf.raw_ops.SoftsignGrad(gradients=u, features=h), of_h


def _resize_bilinear_grad(grads, original_image, name=None, **sampling):
    """TensorFlow's function of that name, with the right gradient with respect to `grads`."""

    @tf.custom_gradient
    def of(grads):
        def gradient(u):
            return tf.raw_ops.ResizeBilinear(images=u, size=_size(grads), **sampling)

        resized = tf.raw_ops.ResizeBilinearGrad(
            grads=grads, original_image=original_image, name=name, **sampling
        )
        return resized, gradient

    return of(grads)


def _moments(x, axes, shift=None, keepdims=False, name=None):
    """Mean and variance as in `tf.nn.moments`, with every derivative of the variance."""
    wide = tf.cast(x, tf.float32) if x.dtype.size < 4 else x
    mean = tf.reduce_mean(wide, axes, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(wide, mean), axes, keepdims=keepdims)
    mean = mean if keepdims else tf.squeeze(mean, axes)
    return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)


# (module, name, its replacement within `whole_second_derivatives`)
_WHOLE = [
    (*place_of_moments(), _moments),
    (*place_of_resize_bilinear_grad(), _resize_bilinear_grad),
]
_OF_TENSORFLOW = [(where, name, getattr(where, name)) for where, name, _ in _WHOLE]
_lock, _users = threading.Lock(), 0


def _put(functions: list) -> None:
    for where, name, function in functions:
        setattr(where, name, function)


@contextlib.contextmanager
def whole_second_derivatives() -> Iterator[None]:
    """Context in which normalisation and bilinear resizing can be differentiated twice.

    `tf.nn.moments`, which Keras's normalisation layers call, treats the mean inside the variance as
    a constant, and TensorFlow's gradient of bilinear resizing has the gradient 0. First derivatives
    are right all the same, but second ones lack a part, and so does the update through J_s. This
    context corrects both. Replicas are threads, so it takes a lock.
    """
    global _users
    with _lock:
        _users += 1
        _put(_WHOLE)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _put(_OF_TENSORFLOW)
