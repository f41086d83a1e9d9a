"""What the first batch of a training run is held against, before anything is trained."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from igam_tf.method.look import doubtful_outputs, refuse
from madry_models.errors import UserError


def first_batch(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """(images, labels) of the beginning of what `fit` was given; None where looking would use it up.

    Raises:
        UserError: a data set that does not give pairs.
    """
    if isinstance(x, tf.data.Dataset):
        x = next(iter(x.take(1)), None)
        if x is None:
            raise UserError("expected images to train on; received an empty tf.data.Dataset")
    elif isinstance(x, keras.utils.PyDataset):
        x = x[0]
    elif not isinstance(x, np.ndarray | tf.Tensor):
        return None
    elif y is None:
        raise UserError("expected images and labels; received images without labels")
    else:
        x = (x[:128], y[:128])
    if not isinstance(x, tuple | list) or len(x) != 2:
        raise UserError(
            f"expected pairs (images, labels); received a {type(x).__name__}"
            f"{f' of {len(x)}' if isinstance(x, tuple | list) else ''}"
        )
    return np.asarray(x[0]), np.asarray(x[1])


def check_batch(x: np.ndarray, y: np.ndarray, pixel_max: float | None) -> None:
    """Images [B,H,W,C] in 0..pixel_max (None: in any range) and labels [B].

    Raises:
        UserError: they are not.
    """
    if x.ndim != 4:
        raise UserError(f"expected images [B,H,W,C]; received the shape {list(x.shape)}")
    if not np.issubdtype(x.dtype, np.floating):
        raise UserError(
            f"expected images of a floating type, so that they have gradients; received {x.dtype}: "
            'convert them with x.astype("float32")'
        )
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise UserError(
            f"expected labels [B] of an integer type, not one-hot; received {y.dtype} {list(y.shape)}"
        )
    if len(x) != len(y) or not len(x):
        raise UserError(
            f"expected as many images as labels, at least one; received {len(x)} and {len(y)}"
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
