"""Takes the first batch out of the data that Keras trains on: arrays, data sets, generators."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from igam_tf.common.errors import UserError


def with_first(
    x: Any, y: Any = None, *, labels: bool = True
) -> tuple[Any, tuple[np.ndarray, np.ndarray | None]]:
    """(the data to pass to Keras as x, the first (images, labels) in it).

    Args:
        x, y: arrays, or a tf.data.Dataset, PyDataset or other iterable of batches; a generator gets
            its first batch back.
        labels: whether labels are required; otherwise they are None.

    Raises:
        UserError: other data, or batches that are not pairs.
    """
    if hasattr(x, "__array__"):
        if labels and y is None:
            raise UserError("expected images and labels; received images without labels")
        if labels and not hasattr(y, "__array__"):
            raise UserError(
                f"expected labels as an array; received a {type(y).__name__}: take numpy.asarray(y)"
            )
        # Convert to tensors, because an array of another library is not a NumPy array.
        first = (x[:128], None if y is None else y[:128])
    else:
        x, first = _first_of(x)
        first = pair_in(first, labels=labels)
    images, y = first
    return x, (np.asarray(images), np.asarray(y) if labels else None)


def pair_in(batch: Any, *, labels: bool = True) -> tuple[Any, Any]:
    """(images, labels) of what an iterator gives; labels are None where they may be, and are, missing.

    Raises:
        UserError: it is no pair, and no triple without weights.
    """
    parts = batch if isinstance(batch, tuple | list) else (batch,)
    triple = len(parts) == 3 and parts[2] is None
    if not (len(parts) == 2 or triple or (len(parts) == 1 and not labels)):
        kind = f"{len(parts)} values" if len(parts) > 1 else f"a {type(batch).__name__}"
        remedy = ": leave out the weights, each image counts once" if len(parts) == 3 else ""
        raise UserError(f"expected pairs (images, labels); received {kind}{remedy}")
    return (*parts[:2], None)[:2]


def _first_of(batches: Any) -> tuple[Any, Any]:
    """(the same batches, the first one)."""
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
    # Keras accepts a generator, but no other iterator.
    return (batch for batch in itertools.chain([first], iterator)) if once else batches, first
