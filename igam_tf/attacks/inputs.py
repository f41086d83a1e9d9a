"""What a caller may hand to an attack: a function of images, and arrays or tensors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from igam_tf.attacks.norms import check_norm
from igam_tf.common.errors import UserError

LogitsFn = Callable[[tf.Tensor], tf.Tensor]


def checked(
    logits_fn: Callable[[tf.Tensor], Any],
    x,
    y,
    *,
    eps,
    bounds: tuple[float, float],
    norm: str,
    steps: int | tf.Tensor,
    least: int = 1,
) -> tuple[LogitsFn, tf.Tensor, tf.Tensor]:
    """(logits_fn, x, y), the latter as tensors, y int64; numbers that are known already are checked.

    Raises:
        UserError: images that are not float32 or float64, labels that are not [B] of integers, a
            negative eps, one that in l-inf is more than the pixel range, fewer steps than `least`,
            bounds that are none, or another norm; when logits_fn is called, outputs that are not [B,K].
    """
    check_norm(norm)
    if not callable(logits_fn):
        raise UserError(
            f"expected a function of x -> logits; received a {type(logits_fn).__name__}"
        )
    x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
    if x.dtype not in (tf.float32, tf.float64):
        raise UserError(
            f"expected images x of float32 or float64, in which the ball is searched; received "
            f"{x.dtype.name}: cast them, and cast x within logits_fn where the model needs another type"
        )
    if y.shape.rank != 1 or not y.dtype.is_integer:
        remedy = ""
        if y.shape.rank == 2:
            remedy = ": take y[:, 0]" if y.shape[1] == 1 else ": take y.argmax(1) of one-hot labels"
        raise UserError(
            f"expected labels y [B] of an integer type; received {y.dtype.name} {y.shape}{remedy}"
        )
    if not tf.is_tensor(eps) and not (eps >= 0 and np.isfinite(eps)):
        raise UserError(f"expected eps of at least 0, in the pixel unit of x; received {eps!r}")
    if not tf.is_tensor(steps) and steps < least:
        raise UserError(f"expected at least {least} steps; received {steps!r}")
    if not any(map(tf.is_tensor, bounds)):
        if not bounds[0] < bounds[1]:
            raise UserError(f"expected bounds (lowest, highest pixel value); received {bounds!r}")
        most = bounds[1] - bounds[0]
        if norm == "linf" and not tf.is_tensor(eps) and eps > most * (1 + 1e-6):
            raise UserError(
                f"expected eps of at most {most:g}, the pixel range of the bounds, in the pixel unit of "
                f"x; received {eps!r}"
            )
    return _checked_logits(logits_fn), x, tf.cast(y, tf.int64)


def _checked_logits(logits_fn: Callable[[tf.Tensor], Any]) -> LogitsFn:
    def logits(x: tf.Tensor) -> tf.Tensor:
        z = logits_fn(x)
        if isinstance(z, dict | list | tuple):
            raise UserError(
                f"expected logits [B,K], one tensor; received a {type(z).__name__} of {len(z)} outputs: "
                "let logits_fn return the one that classifies"
            )
        z = tf.convert_to_tensor(z)
        if z.shape.rank != 2 or not z.dtype.is_floating:
            raise UserError(
                f"expected logits [B,K] of a floating type; received {z.dtype.name} {z.shape}"
            )
        return z

    return logits


def known_size(x: tf.Tensor, name: str) -> int:
    """How many images, where random numbers have to be drawn for each.

    Raises:
        UserError: unknown, for x is an input of a graph.
    """
    if x.shape[0] is None:
        raise UserError(f"expected {name}, or images x of a known number; received {x.shape}")
    return x.shape[0]
