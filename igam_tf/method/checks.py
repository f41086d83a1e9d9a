"""What the first batch of a training run is held against, before anything is trained."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from igam_tf.common.errors import UserError
from igam_tf.method.look import doubtful_outputs, refuse


def looked_at(
    x: Any, y: Any = None, *, labels: bool = True
) -> tuple[Any, tuple[np.ndarray, np.ndarray | None]]:
    """What Keras is to be given for x, and its first (images, labels).

    Args:
        x, y: arrays, or a tf.data.Dataset, PyDataset or other iterable of batches; a generator is put
            together again.
        labels: whether there must be labels; else None stands for them.

    Raises:
        UserError: something else, or batches that are not pairs.
    """
    if hasattr(x, "__array__"):
        if labels and y is None:
            raise UserError("expected images and labels; received images without labels")
        if labels and not hasattr(y, "__array__"):
            raise UserError(
                f"expected labels as an array; received a {type(y).__name__}: take numpy.asarray(y)"
            )
        # As tensors: an array of another library is none of numpy's.
        first = (x[:128], None if y is None else y[:128])
    else:
        x, first = _first_of(x)
        first = first if isinstance(first, tuple | list) else (first,)
        triple = len(first) == 3 and first[2] is None
        if not (len(first) == 2 or triple or (len(first) == 1 and not labels)):
            kind = f"{len(first)} values" if len(first) > 1 else f"a {type(first[0]).__name__}"
            raise UserError(f"expected pairs (images, labels); received {kind}")
    images, y = (*first[:2], None)[:2]
    return x, (np.asarray(images), np.asarray(y) if labels else None)


def _first_of(batches: Any) -> tuple[Any, Any]:
    """(the same batches, the first of them)."""
    if isinstance(batches, keras.utils.PyDataset):
        return batches, batches[0]
    if not isinstance(batches, Iterable) or isinstance(batches, tuple | list | dict):
        raise UserError(
            "expected arrays, or a tf.data.Dataset, PyDataset or generator of pairs (images, labels); "
            f"received a {type(batches).__name__}"
        )
    once, iterator = isinstance(batches, Iterator), iter(batches)
    first = next(iterator, None)
    if first is None:
        raise UserError(
            f"expected batches of images; received an empty {type(batches).__name__.lstrip('_')}"
        )
    # As a generator, which is what Keras takes.
    return (batch for batch in itertools.chain([first], iterator)) if once else batches, first


def check_images(x: np.ndarray, pixel_max: float | None) -> None:
    """Images [B,H,W,C] in 0..pixel_max (None: in any range).

    Raises:
        UserError: they are not.
    """
    if x.ndim != 4 or not len(x):
        raise UserError(f"expected images [B,H,W,C]; received the shape {list(x.shape)}")
    if not np.issubdtype(x.dtype, np.floating):
        raise UserError(
            f"expected images of a floating type, so that they have gradients; received {x.dtype}: "
            'convert them with x.astype("float32")'
        )
    check_pixels(x, pixel_max)


def check_pixels(x: np.ndarray, pixel_max: float | None) -> None:
    """Finite pixels in 0..pixel_max (None: in any range) that are not those of 0..1.

    Raises:
        UserError: they are not.
    """
    if not np.isfinite(x).all():
        raise UserError("expected finite pixels; received NaN or infinity")
    if pixel_max is None:
        return
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > pixel_max:
        raise UserError(
            f"expected pixels in 0..{pixel_max:g}, as pixel_max says; received {low:g}..{high:g}"
        )
    if high <= 1 < pixel_max and high > low:
        raise UserError(
            f"expected pixels in 0..{pixel_max:g}, as pixel_max says; none of the images is "
            f"above {high:g}: is the range 0..1, with pixel_max=1.0?"
        )


def check_labels(y: np.ndarray) -> None:
    """Labels [B] of any integer type.

    Raises:
        UserError: they are not; what to do about columns, one-hot rows and floats is told.
    """
    if y.ndim == 1 and np.issubdtype(y.dtype, np.integer):
        return
    remedy = ""
    if y.ndim == 2 and y.shape[1] == 1:
        remedy = ": take y[:, 0]"
    elif y.ndim == 2:
        remedy = ": take y.argmax(1)"
    elif y.ndim == 1 and np.issubdtype(y.dtype, np.floating):
        remedy = ': convert them with y.astype("int64")'
    raise UserError(
        f"expected labels [B] of an integer type, not one-hot; received {y.dtype} {list(y.shape)}"
        + remedy
    )


def check_batch(x: np.ndarray, y: np.ndarray, pixel_max: float | None) -> None:
    """Images [B,H,W,C] in 0..pixel_max (None: in any range) and as many labels [B].

    Raises:
        UserError: they are not.
    """
    check_images(x, pixel_max)
    check_labels(y)
    if len(x) != len(y):
        raise UserError(f"expected as many images as labels; received {len(x)} and {len(y)}")


def check_logits(z: np.ndarray, y: np.ndarray) -> None:
    """Logits [n,K] of an untrained network, and labels [n] below K.

    Raises:
        UserError: probabilities, values that are not finite, or labels that are no classes.
    """
    refuse(doubtful_outputs(z), "not_finite", "probabilities")
    if not 0 <= y.min() <= y.max() < z.shape[1]:
        raise UserError(
            f"expected labels in 0..{z.shape[1] - 1}, the network's classes; received "
            f"{y.min()}..{y.max()}"
        )
