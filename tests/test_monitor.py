"""Validation while training, against closed forms of a linear network."""

import numpy as np
import pytest
import tensorflow as tf

from igam_tf import datasets
from igam_tf.training.monitor import CLEAN, ROBUST, Monitor, grid

WEIGHT = 1e-4  # of each pixel in the logit of class 1: small, or cross-entropy saturates


@pytest.fixture(scope="module")
def split():
    """Eight grey images of class 1, one eps from each other."""
    spec = datasets.SPECS["cifar10"]
    grey = np.uint8(128 + 8 * np.arange(-3, 5))[:, None, None, None]  # eps is 8 of 255
    images = np.broadcast_to(grey, (8, *spec.image_shape))
    return datasets.Split(images, np.ones(8, np.int64), spec, "builtin", "validation")


def network(threshold):
    def call(x, training):
        logit = WEIGHT * tf.reduce_sum(x - threshold, (1, 2, 3))
        return tf.stack([tf.zeros_like(logit), logit], 1)

    return call


@pytest.mark.parametrize(
    ("threshold", "clean", "robust"), [(128.5, 50.0, 37.5), (0.0, 100.0, 100.0), (255.0, 0.0, 0.0)]
)
def test_accuracies_are_those_of_the_closed_form(split, threshold, clean, robust):
    """The last has no image left to attack."""
    scalars = Monitor(network(threshold), split, num_examples=8)(0, None)
    assert scalars == {CLEAN: clean, ROBUST: robust}


def test_grid_has_a_row_for_each_image_and_zero_in_the_middle():
    x = tf.fill([2, 3, 3, 1], 0.25)
    j = tf.reshape(tf.range(-9.0, 9.0), [2, 3, 3, 1])
    picture = grid(x, j, tf.zeros_like(j)).numpy()
    assert picture.shape == (1, 6, 9, 1)
    assert (picture[0, :, :3] == 0.25).all()
    assert (picture[0, :, 6:] == 0.5).all()
    np.testing.assert_allclose(picture[0, [0, 3, 5], [3, 3, 5], 0], [0.0, 0.5, 1.0])
