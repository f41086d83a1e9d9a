"""Makes shuffled, augmented training batches from a `Split`.

A training batch is a pure function of (seed, step): a resumed run gets the same batches as an
uninterrupted one, with any number of threads.
"""

from __future__ import annotations

import numpy as np

from igam_tf.common.errors import UserError
from igam_tf.common.lazy import tf
from igam_tf.datasets.named import Augment, Split, to_pixels


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Number of batches in an epoch of `n` examples, including a last partial one."""
    return -(-n // batch_size)


def train_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    augment: Augment,
    num_steps: int,
    start_step: int = 0,
) -> tf.data.Dataset:
    """The batches of steps `start_step` ... `start_step + num_steps - 1`.

    Every epoch is a new permutation of the split; its last batch can be smaller.

    Returns:
        Batches x float32 [b, H, W, C] in [0, pixel_max], y int64 [b].

    Raises:
        UserError: the split or the batch is empty.
    """
    n = _checked_size(split, batch_size)
    steps, (height, width, _) = steps_per_epoch(n, batch_size), split.spec.image_shape

    def batch(step, images, labels):
        epoch, place = step // steps, step % steps
        positions = tf.range(place * batch_size, tf.minimum((place + 1) * batch_size, n))
        chosen = tf.random.experimental.index_shuffle(
            positions, tf.stack([tf.constant(seed, tf.int64), epoch]), n - 1
        )
        x, y = tf.gather(images, chosen), tf.gather(labels, chosen)
        geometry_key, noise_key = tf.unstack(tf.random.split([seed, step], 2))
        x = _crop_and_flip(x, geometry_key, augment)
        if augment.noise:
            noise = tf.random.stateless_uniform(
                tf.shape(x), noise_key, -augment.noise, augment.noise, alg="philox"
            )
            x = tf.clip_by_value(tf.cast(x, tf.float32) + noise, 0.0, 255.0)
        x = tf.ensure_shape(x, [None, height, width, split.spec.image_shape[2]])
        return to_pixels(tf.cast(x, tf.float32), split.spec.pixel_max), y

    return _batches(split, batch, range(start_step, start_step + num_steps))


def _batches(split: Split, batch, steps: range) -> tf.data.Dataset:
    with tf.device("CPU"):
        images, labels = tf.constant(split.images), tf.constant(split.labels)
    # AutoGraph would take longer to look for Python's control flow than all the rest of the tracing.
    drawn = tf.autograph.experimental.do_not_convert(lambda step: batch(step, images, labels))
    dataset = tf.data.Dataset.range(steps.start, steps.stop).map(
        drawn, num_parallel_calls=2, deterministic=True
    )
    return dataset.prefetch(4)


def _crop_and_flip(x, key, augment: Augment) -> tf.Tensor:
    """Zero pad, random crop to the original size, random mirror, as two gathers per batch."""
    b, (height, width) = tf.shape(x)[0], x.shape[1:3]
    choices = tf.constant([[2.0 * augment.pad + 1], [2.0 * augment.pad + 1], [2.0]])
    drawn = tf.random.stateless_uniform([3, b], key, alg="philox") * choices
    top, left, mirror = tf.unstack(tf.cast(drawn, tf.int32))
    if augment.pad:
        side = [augment.pad, augment.pad]
        x = tf.pad(x, [[0, 0], side, side, [0, 0]])
        x = tf.gather(x, top[:, None] + np.arange(height), axis=1, batch_dims=1)
    columns = left[:, None] + np.arange(width)
    if augment.flip:
        columns = tf.where(mirror[:, None] == 1, columns[:, ::-1], columns)
    if augment.pad or augment.flip:
        x = tf.gather(x, columns, axis=2, batch_dims=1)
    return x


def _checked_size(split: Split, batch_size: int) -> int:
    n = len(split.labels)
    if n < 1 or batch_size < 1:
        raise UserError(
            f"expected at least one image and a batch size of at least 1; received {n} images of "
            f"{split.spec.name}/{split.name} and batch size {batch_size}"
        )
    return n
