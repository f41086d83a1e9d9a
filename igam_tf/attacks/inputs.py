"""What a caller may hand to an attack: arrays or tensors."""

import numpy as np
import tensorflow as tf

from igam_tf.attacks.norms import check_norm
from madry_models.errors import UserError


def checked(
    x, y, *, eps, bounds: tuple[float, float], norm: str, steps: int | tf.Tensor, least: int = 1
) -> tuple[tf.Tensor, tf.Tensor]:
    """(x, y) as tensors; numbers that are known already are checked.

    Raises:
        UserError: images that are not floating, labels that are not [B] of integers, a negative eps,
            fewer steps than `least`, bounds that are none, or another norm.
    """
    check_norm(norm)
    x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
    if not x.dtype.is_floating:
        raise UserError(f"expected images x of a floating type; received {x.dtype.name}")
    if y.shape.rank != 1 or not y.dtype.is_integer:
        raise UserError(
            f"expected labels y [B] of an integer type; received {y.dtype.name} {y.shape}"
        )
    if not tf.is_tensor(eps) and not (eps >= 0 and np.isfinite(eps)):
        raise UserError(f"expected eps of at least 0, in the pixel unit of x; received {eps!r}")
    if not tf.is_tensor(steps) and steps < least:
        raise UserError(f"expected at least {least} steps; received {steps!r}")
    if not any(map(tf.is_tensor, bounds)) and not bounds[0] < bounds[1]:
        raise UserError(f"expected bounds (lowest, highest pixel value); received {bounds!r}")
    return x, y


def known_size(x: tf.Tensor, name: str) -> int:
    """How many images, where random numbers have to be drawn for each.

    Raises:
        UserError: unknown, for x is an input of a graph.
    """
    if x.shape[0] is None:
        raise UserError(f"expected {name}, or images x of a known number; received {x.shape}")
    return x.shape[0]
