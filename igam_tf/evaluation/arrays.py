"""Images and labels in memory, from arrays, data sets, generators and other iterables of batches."""

from collections.abc import Iterable, Iterator
from numbers import Integral
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from igam_tf.common.checks import expect
from igam_tf.common.errors import UserError
from igam_tf.method.first_batch import pair_in

Data = np.ndarray | Iterable[Any]


def in_memory(
    images: Data, labels: np.ndarray | None = None, num_examples: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(images [n,...], labels [n,...]) as arrays, in the order in which they come.

    Args:
        images: an array; or, without `labels`, batches of pairs: a tf.data.Dataset, PyDataset, or
            other iterable.
        labels: of an array of images.
        num_examples: n, the first of them; None means all. Data that do not tell their length, such
            as generators, need it.

    Raises:
        UserError: they are something else, come with weights, or are fewer than `num_examples`.
    """
    n, kind = num_examples, type(images).__name__.lstrip("_")
    counted = n is None or (isinstance(n, Integral) and n > 0)
    expect(counted, "num_examples as a whole number above 0", repr(n))
    if labels is None and not hasattr(images, "__array__"):
        images, labels = _gathered(images, n, kind)
    elif isinstance(images, tf.data.Dataset | keras.utils.PyDataset | Iterator):
        what = f"no labels beside a {kind} of pairs (images, labels)"
        expect(False, what, f"a {type(labels).__name__}", "name the arguments after it")
    expect(labels is not None, "images and labels", "images without labels")
    try:
        images, labels = np.asarray(images), np.asarray(labels)
    except ValueError as error:  # rows of unlike lengths
        raise UserError(f"expected arrays of images and labels; {error}") from error
    if n is None:
        return images, labels
    expect(n <= len(images), f"num_examples of at most {len(images)}, all images there are", n)
    return images[:n], labels[:n]


def _gathered(batches: Any, n: int | None, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The first batches, in one, until there are n examples."""
    of_pairs = isinstance(batches, Iterable) and not isinstance(batches, str | dict)
    forms = "arrays, or a tf.data.Dataset, PyDataset or other iterable of pairs (images, labels)"
    expect(of_pairs or isinstance(batches, keras.utils.PyDataset), forms, f"a {kind}")
    length = _length(batches)
    expect(
        length is not None or n is not None,
        "num_examples with data that do not tell their length", f"a {kind} alone",
    )  # fmt: skip
    if isinstance(batches, keras.utils.PyDataset):
        batches = map(batches.__getitem__, range(length))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0
    for batch in batches:
        x, y = map(np.asarray, pair_in(batch))
        whole = x.ndim == 4 and y.ndim and len(x) == len(y)
        first_x, first_y = found[0] if found else (x, y)
        alike = x.shape[1:] == first_x.shape[1:] and y.shape[1:] == first_y.shape[1:]
        expect(
            whole and alike, "batches of images [B,H,W,C] of one size, and of as many labels",
            f"images {list(x.shape)} and labels {list(y.shape)}",
            "" if y.ndim else "batch them, a tf.data.Dataset by .batch(100)",
        )  # fmt: skip
        found.append((x, y))
        count += len(x)
        if n is not None and count >= n:
            break
    expect(found, "batches of images", f"an empty {kind}")
    images, labels = map(np.concatenate, zip(*found, strict=True))
    return images, labels


def _length(batches: Any) -> int | None:
    """Number of batches; None where it is not known, or infinite."""
    if isinstance(batches, keras.utils.PyDataset):
        return batches.num_batches
    try:
        return len(batches)
    except TypeError:
        return None
