"""Checks the arguments of an attack: a function of images, and arrays or tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from igam_tf.attacks.norms import check_norm
from igam_tf.common.checks import check_labels, check_logits, expect
from igam_tf.common.lazy import tf

LogitsFn = Callable[["tf.Tensor"], "tf.Tensor"]


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
    expect(callable(logits_fn), "a function of x -> logits", f"a {type(logits_fn).__name__}")
    x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
    expect(
        x.dtype in (tf.float32, tf.float64),
        "images x of float32 or float64, in which the ball is searched", x.dtype.name,
        "cast them, and cast x within logits_fn where the model needs another type",
    )  # fmt: skip
    check_labels(y)
    unit = "in the pixel unit of x"
    if not tf.is_tensor(eps):
        fits = np.all(np.isfinite(eps) & np.greater_equal(eps, 0))
        expect(fits, f"eps of at least 0, {unit}", repr(eps))
    if not tf.is_tensor(steps):
        expect(steps >= least, f"at least {least} steps", repr(steps))
    if not any(map(tf.is_tensor, bounds)):
        expect(bounds[0] < bounds[1], "bounds (lowest, highest pixel value)", repr(bounds))
        most = bounds[1] - bounds[0]
        if norm == "linf" and not tf.is_tensor(eps):
            what = f"eps of at most {most:g}, the pixel range of the bounds, {unit}"
            expect(np.max(eps) <= most * (1 + 1e-6), what, repr(eps))

    def logits(x: tf.Tensor) -> tf.Tensor:
        z = logits_fn(x)
        check_logits(z, "logits_fn")
        return tf.convert_to_tensor(z)

    return logits, x, tf.cast(y, tf.int64)


def known_size(x: tf.Tensor, name: str) -> int:
    """How many images, where random numbers have to be drawn for each.

    Raises:
        UserError: unknown, for x is an input of a graph.
    """
    expect(x.shape[0] is not None, f"{name}, or images x of a known number", x.shape)
    return x.shape[0]
