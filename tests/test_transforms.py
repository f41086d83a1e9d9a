"""Every affine map against its explicit matrix: A x + b forwards, A^T g backwards (eq. 15-17)."""

import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf.common.devices import mirrored
from igam_tf.common.errors import UserError
from igam_tf.experiments.recipes import transfers
from igam_tf.experiments.resolve import described_transform, resolve
from igam_tf.formulas.gradients import input_gradient
from igam_tf.method import transforms
from igam_tf.method.maps import MAPS
from igam_tf.method.optimizers import Momentum
from igam_tf.method.teacher import FineTune, Teacher
from igam_tf.method.trainer import training_step
from igam_tf.method.transforms import (
    CenterCrop,
    CenterPad,
    ChannelMean,
    ChannelRepeat,
    Compose,
    Identity,
    RandomPad,
    Resize,
    Scale,
    TransposeConvolution,
    map_between,
    resize_matrix,
)
from madry_models import WideResNet

SHAPE = (6, 6, 3)
B = 5


def _transpose_convolution() -> TransposeConvolution:
    """One with weights that nothing is special about."""
    layer, rng = TransposeConvolution(dtype="float64"), np.random.default_rng(5)
    layer.build((None, *SHAPE))
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    return layer


def _random_pad() -> RandomPad:
    """One whose key stays the same."""
    layer = RandomPad(9)
    layer.draw_from(lambda: tf.constant([3, 4]))
    return layer


MAPS_BY_NAME = {
    "identity": Identity(),
    "scale": Scale(1 / 255),
    "mean": ChannelMean(),
    "crop": CenterCrop(4),
    "odd crop": CenterCrop(3),
    "grey crop": Compose([ChannelMean(), CenterCrop(4), Scale(1 / 255)]),
    "pad": CenterPad(12),
    "odd pad": CenterPad(9),
    "rectangular crop": CenterCrop((4, 3)),
    "rectangular pad": CenterPad((9, 12)),
    "rectangular resize": Resize((4, 9)),
    "mean repeated": Compose([ChannelMean(), ChannelRepeat(4)]),
    "random pad": _random_pad(),
    "random pad in a chain": Compose([ChannelMean(), _random_pad()]),
    "resize down": Resize(3),
    "resize to a part": Resize(4),
    "resize up": Resize(12),
    "resize up by a part": Resize(10),
    "legacy resize up": Resize(12, "legacy"),
    "transpose convolution": _transpose_convolution(),
    "transpose convolution in a chain": Compose([_transpose_convolution(), Scale(1 / 255)]),
}


def _matrices(layer, shape=SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """A [B,d',d] and b [B,d'] of each image of a batch, column by column from unit vectors."""
    n = int(np.prod(shape))
    at = lambda x: layer(tf.constant(np.tile(x, (B, 1)).reshape(B, *shape))).numpy()  # noqa: E731
    b = at(np.zeros(n)).reshape(B, -1)
    columns = [at(unit).reshape(B, -1) - b for unit in np.eye(n)]
    return np.stack(columns, axis=-1), b


def _matrix(layer, shape=SHAPE) -> np.ndarray:
    """A of a linear map that is the same for every image."""
    a, b = _matrices(layer, shape)
    assert (a == a[0]).all()
    assert (b == 0).all()
    return a[0]


@pytest.mark.parametrize("name", MAPS_BY_NAME)
def test_forward_and_gradient_are_the_matrix_and_its_transpose(name):
    layer, rng = MAPS_BY_NAME[name], np.random.default_rng(1)
    a, b = _matrices(layer)
    x = rng.normal(size=(B, *SHAPE))
    ours = layer(tf.constant(x)).numpy()
    assert ours.dtype == np.float64
    expected = np.einsum("bij,bj->bi", a, x.reshape(B, -1)) + b
    np.testing.assert_allclose(ours.reshape(B, -1), expected, rtol=1e-12, atol=1e-13)
    g = rng.normal(size=ours.shape)
    weighted = lambda z, g: tf.reduce_sum(z * g, (1, 2, 3))  # noqa: E731
    j, _, _ = input_gradient(layer, tf.constant(x), g, weighted)
    expected = np.einsum("bij,bi->bj", a, g.reshape(B, -1))
    np.testing.assert_allclose(j.numpy().reshape(B, -1), expected, rtol=1e-12, atol=1e-13)


def test_the_matrices_are_those_of_the_paper():
    crop = _matrix(CenterCrop(4))
    assert crop.shape == (4 * 4 * 3, 6 * 6 * 3)
    assert (crop.sum(1) == 1).all()
    assert set(np.unique(crop)) == {0, 1}  # the identity without the rows cut away
    mean = _matrix(ChannelMean())
    assert (np.sort(mean, 1)[:, -3:] == 1 / 3).all()
    assert ((mean > 0).sum(1) == 3).all()
    pad = _matrix(CenterPad(9))
    inside = pad.any(1)
    np.testing.assert_array_equal(pad[inside], np.eye(6 * 6 * 3))  # the identity between zero rows
    assert (~inside).sum() == (9 * 9 - 6 * 6) * 3
    assert (np.sort(_matrix(Resize(3)), 1)[:, -4:] == 1 / 4).all()  # 2x2 average pooling


def test_crop_is_central():
    x = tf.reshape(tf.range(36.0), (1, 6, 6, 1))
    assert CenterCrop(2)(x).numpy().ravel().tolist() == [14, 15, 20, 21]


def test_padding_is_central_with_the_larger_half_below():
    y = CenterPad(5)(tf.ones((1, 2, 2, 1)))[0, :, :, 0].numpy()
    assert (y.sum(0) == [0, 2, 2, 0, 0]).all()
    assert (y.sum(1) == [0, 2, 2, 0, 0]).all()


# --- resizing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 8, 9, 12, 24])
def test_resize_is_tensorflows(size):
    x = np.random.default_rng(3).uniform(0, 255, (2, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(
        Resize(size)(tf.constant(x)), tf.image.resize(x, (size, size)), rtol=1e-5
    )
    if size > 6:  # R12: TensorFlow 1's resize_bilinear
        legacy = tf.raw_ops.ResizeBilinear(
            images=x, size=(size, size), align_corners=False, half_pixel_centers=False
        )
        np.testing.assert_allclose(Resize(size, "legacy")(tf.constant(x)), legacy, rtol=1e-5)


def test_half_the_size_is_average_pooling_and_bilinear_at_once():
    x = np.random.default_rng(4).uniform(0, 255, (2, 8, 8, 3)).astype(np.float32)
    ours = Resize(4)(tf.constant(x))
    np.testing.assert_allclose(ours, tf.nn.avg_pool2d(x, 2, 2, "VALID"), rtol=1e-6)
    np.testing.assert_allclose(ours, tf.image.resize(x, (4, 4)), rtol=1e-6)
    np.testing.assert_array_equal(ours, Resize(4, "legacy")(tf.constant(x)))
    third = Resize(2)(tf.constant(x[:, :6, :6]))
    np.testing.assert_allclose(third, tf.nn.avg_pool2d(x[:, :6, :6], 3, 3, "VALID"), rtol=1e-6)


def test_resize_matrix_by_hand():
    assert doctest.testmod(transforms, optionflags=doctest.ELLIPSIS).failed == 0
    np.testing.assert_array_equal(resize_matrix(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    np.testing.assert_array_equal(
        resize_matrix(2, 4, "legacy"), [[1, 0], [0.5, 0.5], [0, 1], [0, 1]]
    )


# --- random offsets ------------------------------------------------------------------------------


def _offsets(padded) -> list[tuple[int, int]]:
    """Where the image of ones begins, per image."""
    return [tuple(np.argwhere(image)[0][:2]) for image in np.asarray(padded)]


def test_every_place_is_equally_likely():
    layer, n = RandomPad(8), 9 * 2000
    layer.draw_from(lambda: tf.constant([0, 1]))
    y = layer(tf.ones((n, 6, 6, 1))).numpy()
    assert (y.sum((1, 2, 3)) == 36).all()
    count = np.unique(_offsets(y), axis=0, return_counts=True)[1]
    assert len(count) == 9
    assert abs(count - 2000).max() < 4.5 * np.sqrt(2000 * 8 / 9)


def test_random_offsets_come_from_seed_and_step_and_end_with_the_training():
    """One key: J_t and all that is made of it; the next step, another; afterwards, the centre."""
    network = WideResNet(8, 1)
    network.build((None, 32, 32, 3))
    teacher = Teacher(network, Compose([RandomPad(32)]), num_classes=2)
    teacher.build((None, 16, 16, 3))
    x, optimizer = tf.ones((64, 16, 16, 3)), Momentum(0.1)
    optimizer.build([])
    places = lambda: _offsets(teacher.transform(x))  # noqa: E731
    compiled = tf.function(training_step()(lambda: teacher.transform(x)))
    drawn = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        optimizer.iterations.assign(step)
        with teacher.offsets_of(optimizer, seed), training_step():
            drawn.append(places())
            assert places() == drawn[-1]
            if seed == 0:
                assert _offsets(compiled()) == drawn[-1]
    assert drawn[3] == drawn[0]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    assert len(set(drawn[0])) > 32
    assert set(places()) == {(8, 8)}
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(teacher))
    assert set(_offsets(again.transform(x))) == {(8, 8)}


def test_replicas_draw_different_offsets():
    strategy = mirrored(["CPU:0", "CPU:1"])
    with strategy.scope():
        network = WideResNet(8, 1)
        network.build((None, 32, 32, 3))
        teacher = Teacher(network, RandomPad(32), num_classes=2)
        teacher.build((None, 16, 16, 3))
        optimizer = Momentum(0.1)
        optimizer.build(teacher.trained_variables)
        drawn = training_step()(teacher.transform)
        with teacher.offsets_of(optimizer, 0):
            step = tf.function(lambda: strategy.run(drawn, (tf.ones((8, 16, 16, 3)),)))
            one, other = strategy.experimental_local_results(step())
            outside = drawn(tf.ones((8, 16, 16, 3)))
            assert set(_offsets(teacher.transform(tf.ones((8, 16, 16, 3))))) == {(8, 8)}
    assert _offsets(one) != _offsets(other)
    assert _offsets(outside) == _offsets(one)


# --- the trained map -----------------------------------------------------------------------------


def _teacher() -> Teacher:
    keras.utils.set_random_seed(0)
    network = WideResNet(8, 1)
    network.build((None, 12, 12, 3))
    teacher = Teacher(network, Compose([TransposeConvolution()]), num_classes=4)
    teacher.build((None, *SHAPE))
    return teacher


def test_stage_1_trains_the_transpose_convolution_with_the_logits_alone():
    teacher, rng = _teacher(), np.random.default_rng(6)
    tuner = FineTune(teacher, weight_decay=2e-4)
    tuner.compile(keras.optimizers.Adam(1e-2))
    tuner.optimizer.build(tuner.trained_variables)
    assert len(tuner.trained_variables) == 4
    assert len(teacher.kernels) == 1
    trained = {id(v) for v in tuner.trained_variables}
    x, y = rng.uniform(0, 255, (8, *SHAPE)).astype(np.float32), np.arange(8) % 4
    before = [v.numpy() for v in teacher.variables]
    first = float(tuner.train_step((tf.constant(x), tf.constant(y)))["L_xent"])
    for _ in range(30):
        tuner.reset_metrics()
        last = float(tuner.train_step((tf.constant(x), tf.constant(y)))["L_xent"])
    assert last < 0.9 * first
    for variable, value in zip(teacher.variables, before, strict=True):
        assert np.array_equal(variable.numpy(), value) == (id(variable) not in trained)
    assert {id(v) for v in tuner.state_variables} > trained


def test_a_teacher_with_a_trained_map_round_trips(tmp_path):
    teacher, rng = _teacher(), np.random.default_rng(7)
    for variable in teacher.trained_variables:
        variable.assign(rng.normal(size=variable.shape))
    teacher.save(tmp_path / "teacher.keras")
    again = keras.saving.load_model(tmp_path / "teacher.keras", compile=False)
    assert len(again.trained_variables) == 4
    for ours, saved in zip(again.variables, teacher.variables, strict=True):
        np.testing.assert_array_equal(ours, saved)
    x = tf.random.stateless_uniform((2, *SHAPE), (0, 1), 0, 255)
    np.testing.assert_array_equal(again(x, training=False), teacher(x, training=False))


# --- maps by name ----------------------------------------------------------------------------------


def test_grey_crop_of_the_paper_row():
    x = np.zeros((1, 32, 32, 3), np.float32)
    x[0, 2, 2] = (255, 0, 255)
    _, between = described_transform(resolve({"source": "mnist", "target": "cifar10"}))
    y = between(tf.constant(x)).numpy()
    assert y.shape == (1, 28, 28, 1)
    assert y[0, 0, 0, 0] == pytest.approx(2 / 3)
    assert y.sum() == pytest.approx(2 / 3)


def test_legacy_resizing_belongs_to_the_release():
    chosen = {"source": "tiny_imagenet", "target": "cifar10", "transform": "resize"}
    for more, sampling in (
        ({}, "half_pixel"),
        ({"fidelity": "release"}, "legacy"),
        ({"up_resize": "legacy"}, "legacy"),
    ):
        assert described_transform(resolve(chosen | more))[1].maps[0].sampling == sampling


@pytest.mark.parametrize(
    ("target", "source", "kinds", "words"),
    [
        ((32, 32, 3), (28, 28, 1), ["ChannelMean", "CenterCrop"],
         "mean of 3 channels, 28x28 of 32x32 pixels cropped from the centre"),
        ((28, 28, 1), (32, 32, 3), ["ChannelRepeat", "CenterPad"],
         "channel repeated 3 times, 28x28 pixels padded with zeros to 32x32"),
        ((32, 32, 3), (64, 64, 3), ["Resize"], "32x32 pixels resized to 64x64"),
        ((30, 24, 3), (28, 28, 3), ["CenterCrop", "CenterPad"],
         "28x24 of 30x24 pixels cropped from the centre, 28x24 pixels padded with zeros to 28x28"),
        ((20, 24, 1), (48, 16, 1), ["Resize"], "20x24 pixels resized to 48x16"),
        ((16, 20, 3), (20, 16, 3), ["CenterCrop", "CenterPad"],
         "16x16 of 16x20 pixels cropped from the centre, 16x16 pixels padded with zeros to 20x16"),
        ((32, 32, 3), (32, 32, 3), [], "as it is"),
    ],
)  # fmt: skip
def test_a_map_between_any_two_shapes(target, source, kinds, words):
    found, between = map_between(target, source)
    assert found == words
    assert [type(m).__name__ for m in between.maps] == kinds
    x = tf.random.stateless_uniform((2, *target), [0, 1])
    assert between(x).shape == (2, *source)
    assert between.compute_output_shape((2, *target)) == (2, *source)
    again = Compose.from_config(between.get_config())
    np.testing.assert_array_equal(again(x), between(x))


def test_maps_between_colours_that_differ_are_refused():
    with pytest.raises(UserError, match="or one on either side; received 4 and 3"):
        map_between((8, 8, 4), (8, 8, 3))


def test_a_repeated_channel_sums_the_gradients_of_its_copies():
    x = tf.constant([[[[2.0], [5.0]]]])
    g = tf.constant([[[[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = ChannelRepeat(3)(x)
        total = tf.reduce_sum(y * g)
    np.testing.assert_array_equal(y, [[[[2, 2, 2], [5, 5, 5]]]])
    np.testing.assert_array_equal(tape.gradient(total, x), [[[[111], [222]]]])
    with pytest.raises(UserError, match="3 channels"):
        ChannelRepeat(3)(tf.zeros((1, 2, 2, 3)))


@pytest.mark.parametrize("name", MAPS_BY_NAME)
def test_a_map_knows_the_shape_of_its_images(name):
    layer = MAPS_BY_NAME[name]
    assert layer.compute_output_shape((2, *SHAPE)) == layer(tf.zeros((2, *SHAPE))).shape


def test_every_map_has_a_row():
    assert {key[2] for key in transfers()} == set(MAPS)


@pytest.mark.parametrize("name", ["identity", "pad", "random pad", "resize up", "resize down",
                                  "transpose convolution"])  # fmt: skip
def test_what_discards_nothing_hides_nothing(name):
    j = tf.constant(np.random.default_rng(8).normal(size=(2, *SHAPE)))
    np.testing.assert_array_equal(MAPS_BY_NAME[name].teacher_view(j), j)


def test_visible_hides_what_the_map_discards():
    """All J_t = A^T g look to f_disc as the g they come from, whatever the border and the colours."""
    layer = Compose([ChannelMean(), CenterCrop(4)])
    g = np.random.default_rng(2).normal(size=(2, 4, 4, 1))
    j_t = (g.reshape(2, -1) @ _matrix(layer)).reshape(2, *SHAPE)
    np.testing.assert_allclose(layer.teacher_view(tf.constant(j_t)), g, rtol=1e-12)


def test_too_small_an_image_is_refused():
    with pytest.raises(UserError, match=r"28x28.* 6x6"):
        CenterCrop(28)(tf.zeros((1, *SHAPE)))


@pytest.mark.parametrize("layer", [CenterPad(4), RandomPad(4)])
def test_too_large_an_image_is_refused(layer):
    with pytest.raises(UserError, match=r"4x4.* 6x6"):
        layer(tf.zeros((1, *SHAPE)))


def test_an_unknown_sampling_is_refused():
    with pytest.raises(UserError, match=r"half_pixel, legacy.*'corners'"):
        Resize(12, "corners")


@pytest.mark.parametrize("name", [n for n in MAPS_BY_NAME if not n.startswith(("trans", "random"))])
def test_serialisation(name):
    layer = MAPS_BY_NAME[name]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    x = tf.random.stateless_uniform((1, *SHAPE), (0, 1))
    np.testing.assert_array_equal(layer(x), again(x))
