"""Checks of the user's input, before anything is computed.

Every error is one sentence: "expected <what>; received <what came>: <what to do>".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from igam_tf.common.errors import UserError
from igam_tf.common.lazy import keras, tf
from igam_tf.common.private_api import raised_within, reason_of

NORM_TEXT = {"linf": "l-inf", "l2": "l2", "l1": "l1"}


def eps_unit(norm: str) -> str:
    """The unit of eps and step_size in a report."""
    return f"{NORM_TEXT[norm]}, fraction of the pixel range"


def expect(ok: Any, what: str, received: Any, remedy: str = "") -> None:
    """Raises a UserError in the form above unless `ok`."""
    if not ok:
        raise UserError(f"expected {what}; received {received}" + (f": {remedy}" if remedy else ""))


def _shape(t: Any) -> list | None:
    """Shape of an array or tensor; None if a graph does not know the number of axes."""
    shape = tf.TensorShape(t.shape)
    return None if shape.rank is None else shape.as_list()


def _text(t: Any) -> str:
    """Type and shape: "int64 [8, 10]"."""
    shape = _shape(t)
    return f"{getattr(t.dtype, 'name', t.dtype)} {'of unknown shape' if shape is None else shape}"


# --- numbers --------------------------------------------------------------------------------------


def check_batch_size(value: int) -> None:
    """How many images are attacked at once: a whole number above 0."""
    fits = isinstance(value, Integral) and value > 0
    expect(fits, "batch_size as a whole number above 0", repr(value))


def check_pixel_max(value: float) -> None:
    """Checks the highest pixel value of a model's input, which is above 0."""
    fits = isinstance(value, Real) and np.isfinite(value) and value > 0
    expect(fits, "pixel_max above 0, such as 1 or 255", repr(value))


def check_eps(eps: float | None, norm: str, shape: Sequence[int] = ()) -> None:
    """Checks a radius as a fraction of the pixel range: above 0, and too small to allow every image.

    Args:
        eps: radius; None means the data set's own, which is for l-inf.
        norm: "linf", "l2" or "l1".
        shape: of an image, if it is known.
    """
    expect(norm in NORM_TEXT, f"a norm among {', '.join(NORM_TEXT)}", repr(norm))
    if eps is None:
        expect(
            norm == "linf", f"--eps with --norm={norm}", "none, and a data set's own is for l-inf"
        )
        return
    pixels = np.prod(shape) if shape else np.inf
    most = {"linf": 1.0 if shape else np.inf, "l2": np.sqrt(pixels), "l1": pixels}[norm]
    below = f" and at most {most:g} in {NORM_TEXT[norm]}" if shape else ""
    fits = isinstance(eps, Real) and 0 < eps <= most and np.isfinite(eps)
    what = f"eps as a fraction of the pixel range, such as 8/255, above 0{below}"
    expect(fits, what, repr(eps))


def radii_of(eps: Any) -> list:
    """The radii in one, or in a list, tuple or array of several."""
    return list(eps) if isinstance(eps, list | tuple | np.ndarray) else [eps]


def check_radii(eps: Any, norm: str) -> None:
    """Checks one radius or several: each as `check_eps` does, and none twice."""
    radii = radii_of(eps)
    expect(radii, "eps, one or several", "none of it")
    for radius in radii:
        check_eps(radius, norm)
    expect(len({*radii}) == len(radii), "each eps once", radii)


# --- images and labels ----------------------------------------------------------------------------


def check_images(x: np.ndarray, pixel_max: float | None, *, uint8: bool = False) -> None:
    """Checks images [n,H,W,C], n > 0, of a floating type in 0..pixel_max (None: in any range).

    Args:
        x: the images.
        pixel_max: highest pixel value.
        uint8: whether uint8 images in 0..255 are allowed as well.
    """
    expect(x.ndim == 4 and len(x), "images [n,H,W,C], at least one", f"the shape {list(x.shape)}")
    if uint8 and x.dtype == np.uint8:
        return
    floating = np.issubdtype(x.dtype, np.floating)
    remedy = "" if uint8 else 'convert them with x.astype("float32")'
    expect(floating, f"images of a floating type{' or uint8' if uint8 else ''}", x.dtype, remedy)
    check_pixels(x, pixel_max)


def channels_last(shape: Sequence) -> str:
    """What to do with images whose channels come first, as the end of a sentence; "" for others.

    Example:
        >>> channels_last((3, 32, 32)), channels_last((32, 32, 3))
        (': x.transpose(0, 2, 3, 1) puts the channels last', '')
    """
    first = len(shape) == 3 and shape[0] in (1, 3) and shape[1] == shape[2] not in (1, 3)
    return ": x.transpose(0, 2, 3, 1) puts the channels last" if first else ""


def check_pixels(x: np.ndarray, pixel_max: float | None, *, some: bool = False) -> None:
    """Checks that pixels are finite, in 0..pixel_max (None: in any range), and not those of 0..1.

    Args:
        x: images of a floating type.
        pixel_max: highest pixel value.
        some: whether these are only a part of the images, and so can all be dark.
    """
    expect(np.isfinite(x).all(), "finite pixels", "NaN or infinity")
    if pixel_max is None:
        return
    low, high = float(x.min()), float(x.max())
    what = f"pixels in 0..{pixel_max:g}, as pixel_max says"
    expect(low >= 0 and high <= pixel_max, what, f"{low:g}..{high:g}")
    unit = not some and low < high <= 1 < pixel_max
    expect(not unit, what, f"{low:g}..{high:g}", "set pixel_max=1.0 if the range is 0..1")


def check_labels(
    y: Any, *, n: int | None = None, classes: int | None = None, what: str = "labels [B]"
) -> None:
    """Checks labels [B], an array or tensor of any integer type.

    Args:
        y: the labels.
        n: number of images; None if not known.
        classes: labels are in 0 to classes - 1; None if not known.
        what: the sentence's name of them.
    """
    shape, dtype = _shape(y), getattr(y.dtype, "as_numpy_dtype", y.dtype)
    rank = None if shape is None else len(shape)
    remedy = ""
    if rank == 2:
        remedy = "take y[:, 0]" if shape[1] == 1 else "take y.argmax(1)"
    elif rank == 1 and np.issubdtype(dtype, np.floating):
        remedy = 'convert them with y.astype("int64")'
    integers = rank == 1 and np.issubdtype(dtype, np.integer)
    expect(integers, f"{what} of an integer type, not one-hot", _text(y), remedy)
    if n is not None:
        expect(len(y) == n > 0, "as many images as labels, at least one", f"{n} and {len(y)}")
    if classes is not None:
        least, most = y.min(), y.max()
        remedy = "two classes need two logits" if classes == 1 else ""
        within = f"labels in 0..{classes - 1}, the network's classes"
        expect(0 <= least <= most < classes, within, f"{least}..{most}", remedy)


# --- models and logits ----------------------------------------------------------------------------


def check_model(model: Any, what: str, kind: type | None = None) -> None:
    """Checks that this is a Keras model, or a layer if that is allowed; the sentence calls it `what`."""
    remedy = "put what it computes into the call(self, x, training=False) of a keras.Model"
    if any(part.__module__.startswith("torch.") for part in type(model).__mro__):
        remedy = "igam_tf.from_torch makes one of a PyTorch network"
    expect(
        isinstance(model, kind or keras.layers.Layer),
        f"a keras.Model as the {what}", f"a {type(model).__name__}", remedy,
    )  # fmt: skip


def check_logits(z: Any, of: str, *, n: int | None = None, classes: int | None = None) -> None:
    """Checks logits [B,K], one array or tensor of a floating type.

    Args:
        z: the model's output.
        of: the sentence's name of the model, such as "the student".
        n, classes: expected B and K; None allows any.
    """
    what = f"logits [{n or 'B'},{classes or 'K'}] of {of}, one tensor of a floating type"
    kind = f"a {type(z).__name__}"
    if isinstance(z, dict | list | tuple):
        expect(False, what, f"{kind} of {len(z)} outputs", "return the one that classifies")
    expect(hasattr(z, "shape") and hasattr(z, "dtype"), what, kind)
    shape = _shape(z) or []
    fits = len(shape) == 2 and n in (None, shape[0]) and classes in (None, shape[1])
    expect(fits and tf.as_dtype(z.dtype).is_floating, what, _text(z))


def logits_of(
    model: keras.Model | Callable[[tf.Tensor], tf.Tensor],
    x: np.ndarray,
    what: str,
    classes: int | None = None,
) -> np.ndarray:
    """Logits [n,K] of a model on images; builds the model if it is not built yet.

    Args:
        model: any Keras model, in inference mode; or x -> logits.
        x: images [n,H,W,C] in the model's pixel range.
        what: the error's name of the model, such as "student".
        classes: expected K; None allows any.

    Raises:
        UserError: the model fails on such images, or does not return one row [K] for each.
    """
    try:
        x = tf.convert_to_tensor(x)
        z = model(x, training=False) if isinstance(model, keras.Model) else model(x)
    except UserError as error:  # without what Keras writes around it
        raise UserError(reason_of(error)) from error
    except Exception as error:  # on such images a model can fail in any way
        kind = getattr(model, "__name__", type(model).__name__)
        raise UserError(
            f"expected a {what} for images {list(x.shape[1:])}; received a {kind} that "
            f"fails on them: {reason_of(error)}{channels_last(x.shape[1:])}"
        ) from error
    check_logits(z, f"the {what}", n=len(x), classes=classes)
    return np.asarray(z)


@contextlib.contextmanager
def told_alone(where: str = "") -> Iterator[None]:
    """Context that raises the UserError of a Python function within a graph as it was.

    Raises:
        UserError: `where`, then its sentence, without what TensorFlow writes around it.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if told := raised_within(error):
            raise UserError(f"{where}{told}") from error
        raise


def traced(function: Any, *signature: tf.TensorSpec) -> Any:
    """The one graph of a tf.function that calls a model, as a function.

    Raises:
        UserError: it cannot be traced; or, when called, of a Python function within it.
    """
    try:
        graph = function.get_concrete_function(*signature)
    except UserError:
        raise
    except Exception as error:  # in a graph a model can fail in any way
        reason = reason_of(Exception(str(error).rsplit(f"{type(error).__name__}: ")[-1]))
        raise UserError(
            "expected a model that works within tf.function, as attacks call it; received one that "
            f"fails there: {reason}"
        ) from error

    def called(*arguments: Any) -> Any:
        with told_alone():
            return graph(*arguments)

    return called
