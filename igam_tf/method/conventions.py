"""The inputs that a network can expect instead of pixels in 0..pixel_max; see `preprocess`."""

import contextlib
import re

import numpy as np

from igam_tf.common.errors import UserError

# Name -> mean and standard deviation of each channel, in pixels of 0..1; whether the order is BGR.
CONVENTIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...], bool]] = {
    "0..1": ((0.0,), (1.0,), False),
    "0..255": ((0.0,), (1 / 255,), False),
    "-1..1": ((0.5,), (0.5,), False),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False),
    "caffe": ((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,), True),
}
FORMS = (
    f"{', '.join(CONVENTIONS)}, or mean=0.5,0.5,0.5/std=0.2,0.2,0.2 in pixels of 0..1; /bgr at "
    "the end reverses the channels first"
)
_NUMBERS = re.compile(r"mean=([^/]+)/std=([^/]+)")


def contradiction(preprocess: str, pixel_max: float) -> str:
    """The sentence that refuses --preprocess together with --pixel_max."""
    return (
        "expected --preprocess or --pixel_max, which both say what the model takes; received "
        f"--preprocess={preprocess} and --pixel_max={pixel_max:g}"
    )


def parsed(convention: str, name: str = "preprocess") -> tuple[np.ndarray, np.ndarray, bool]:
    """(mean, deviation, whether BGR) of an input convention; [1] or [C], in pixels of 0..1.

    An error calls it `name`.

    Raises:
        UserError: another form, numbers that are not finite, or a deviation that is not above 0.

    Example:
        >>> parsed("mean=0.5/std=0.25")
        (array([0.5]), array([0.25]), False)
    """
    text = str(convention)
    turned, text = text.endswith("/bgr"), text.removesuffix("/bgr")
    if text in CONVENTIONS:
        mean, std, bgr = CONVENTIONS[text]
        return np.array(mean), np.array(std), bgr or turned
    if found := _NUMBERS.fullmatch(text):
        with contextlib.suppress(ValueError):
            means, deviations = (
                np.array([float(v) for v in part.split(",")]) for part in found.groups()
            )
            fits = len(means) == len(deviations) or 1 in (len(means), len(deviations))
            if fits and np.isfinite([*means, *deviations]).all() and (deviations > 0).all():
                return means, deviations, turned
    raise UserError(f"expected {name} as one of {FORMS}; received {convention!r}")
