"""Every affine map against its explicit matrix: A x + b forwards, A^T g backwards (eq. 15-17)."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf.experiments import MAPS
from igam_tf.gradients import input_gradient
from igam_tf.transforms import CenterCrop, ChannelMean, Compose, Identity, Scale

MAPS_BY_NAME = {
    "identity": Identity(),
    "scale": Scale(1 / 255),
    "mean": ChannelMean(),
    "crop": CenterCrop(4),
    "odd crop": CenterCrop(3),
    "grey crop": Compose([ChannelMean(), CenterCrop(4), Scale(1 / 255)]),
}
SHAPE = (6, 6, 3)


def _matrix(layer, shape=SHAPE) -> np.ndarray:
    """Column i is the image of the i-th unit vector."""
    n = int(np.prod(shape))
    units = tf.constant(np.eye(n).reshape(n, *shape))
    return layer(units).numpy().reshape(n, -1).T


@pytest.mark.parametrize("name", MAPS_BY_NAME)
def test_forward_and_gradient_are_the_matrix_and_its_transpose(name):
    layer, rng = MAPS_BY_NAME[name], np.random.default_rng(1)
    a = _matrix(layer)
    x = rng.normal(size=(5, *SHAPE))
    ours = layer(tf.constant(x)).numpy()
    np.testing.assert_allclose(ours.reshape(5, -1), x.reshape(5, -1) @ a.T, rtol=1e-12)
    g = rng.normal(size=ours.shape)
    values = lambda x: (tf.reduce_sum(layer(x) * g, (1, 2, 3)), x)  # noqa: E731
    j, _, _ = input_gradient(values, tf.constant(x))
    np.testing.assert_allclose(j.numpy().reshape(5, -1), g.reshape(5, -1) @ a, rtol=1e-12)


def test_the_matrices_are_those_of_the_paper():
    crop = _matrix(CenterCrop(4))
    assert crop.shape == (4 * 4 * 3, 6 * 6 * 3)
    assert (crop.sum(1) == 1).all()
    assert set(np.unique(crop)) == {0, 1}  # the identity without the rows cut away
    mean = _matrix(ChannelMean())
    assert (np.sort(mean, 1)[:, -3:] == 1 / 3).all()
    assert ((mean > 0).sum(1) == 3).all()


def test_crop_is_central():
    x = tf.reshape(tf.range(36.0), (1, 6, 6, 1))
    assert CenterCrop(2)(x).numpy().ravel().tolist() == [14, 15, 20, 21]


def test_grey_crop_of_the_paper_row():
    class Source:
        image_shape, pixel_max = (28, 28, 1), 1.0

    class Target:
        image_shape, pixel_max = (32, 32, 3), 255.0

    x = np.zeros((1, 32, 32, 3), np.float32)
    x[0, 2, 2] = (255, 0, 255)
    y = MAPS["grey_crop"](Source, Target)(tf.constant(x)).numpy()
    assert y.shape == (1, 28, 28, 1)
    assert y[0, 0, 0, 0] == pytest.approx(2 / 3)
    assert y.sum() == pytest.approx(2 / 3)


def test_visible_hides_what_the_map_discards():
    """All J_t = A^T g look to f_disc as the g they come from, whatever the border and the colours."""
    layer = Compose([ChannelMean(), CenterCrop(4)])
    g = np.random.default_rng(2).normal(size=(2, 4, 4, 1))
    j_t = (g.reshape(2, -1) @ _matrix(layer)).reshape(2, *SHAPE)
    np.testing.assert_allclose(layer.visible(tf.constant(j_t)), g, rtol=1e-12)


def test_too_small_an_image_is_refused():
    with pytest.raises(ValueError, match=r"at least 28x28 pixels. Received: 6x6"):
        CenterCrop(28)(tf.zeros((1, *SHAPE)))


@pytest.mark.parametrize("name", MAPS_BY_NAME)
def test_serialisation(name):
    layer = MAPS_BY_NAME[name]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    x = tf.random.stateless_uniform((1, *SHAPE), (0, 1))
    np.testing.assert_array_equal(layer(x), again(x))
