"""The challenges' networks: parity with the originals, derivatives, dtypes, saving."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import GOLDEN

from igam_tf.common.errors import UserError
from madry_models import MnistCNN, WideResNet
from madry_models.tf1_checkpoint import from_tf1_checkpoint, tf1_names
from madry_models.wide_resnet import normalize_images

GOLDEN_FILES = sorted(GOLDEN.rglob("golden.npz")) or [None]


@pytest.fixture(scope="module", params=GOLDEN_FILES, ids=lambda p: p and p.parent.name)
def golden(request, golden_dir):
    """(the checkpoint's folder, the file's arrays, its meta, x in the network's pixel range)."""
    assert request.param, f"no golden.npz below {golden_dir}"
    arrays = dict(np.load(request.param))
    meta = json.loads(str(arrays["meta"]))
    x = arrays["x"].reshape(arrays["noise"].shape) * (meta["pixel_range"][1] / 255)
    return request.param.parent / "models" / "adv_trained", arrays, meta, x


@pytest.fixture(scope="module")
def attacked(golden):
    """(model in float64, its compiled x -> (logits, xent, gradient of the summed xent))."""
    model = from_tf1_checkpoint(golden[0], dtype="float64")
    y = tf.constant(golden[1]["y"])

    @tf.function(autograph=False)
    def attack_step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = model(x, training=False)
            xent = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        return logits, xent, tape.gradient(xent, x)

    return model, attack_step


def assert_close(actual, expected, relative):
    """Same shape and dtype; largest difference, against the largest expected value."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


def test_golden_logits_xent_and_input_gradients_in_float64(golden, attacked):
    logits, xent, gradient = (t.numpy() for t in attacked[1](tf.constant(golden[3])))
    assert_close(logits, golden[1]["logits"], 1e-7)
    np.testing.assert_allclose(xent, golden[1]["xent"], rtol=1e-7, atol=1e-12)
    assert_close(gradient, golden[1]["input_grad"], 1e-7)


@pytest.mark.slow  # test_attacks_golden goes the same way in less
def test_golden_pgd_trajectory_in_float64(golden, attacked):
    _, arrays, meta, x_0 = golden
    low, high = meta["pixel_range"]
    x, trace = np.clip(x_0 + arrays["noise"], low, high), []
    for step in range(1, meta["steps"] + 1):
        gradient = attacked[1](tf.constant(x))[2].numpy()
        x = x + meta["step_size"] * np.sign(gradient)
        x = np.clip(np.clip(x, x_0 - meta["eps"], x_0 + meta["eps"]), low, high)
        if step in meta["trace_after"]:
            trace.append(attacked[1](tf.constant(x))[1].numpy())
    np.testing.assert_allclose(trace, arrays["trace_xent"], rtol=1e-7, atol=1e-12)
    assert_close(attacked[1](tf.constant(x))[0].numpy(), arrays["pgd_logits"], 1e-7)
    assert_close(x, arrays["pgd_x"], 1e-12)


def test_golden_logits_in_float32(golden):
    model = from_tf1_checkpoint(golden[0])
    logits = model(golden[3], training=False).numpy()
    assert logits.dtype == np.float32
    assert_close(logits, golden[1]["logits"].astype("float32"), 1e-4)


def test_parameter_counts():
    small = MnistCNN()
    small.build((None, 28, 28, 1))
    assert small.count_params() == 832 + 51264 + 3212288 + 10250
    full = WideResNet(32, 10)
    full.build((None, None, None, 3))
    trained = sum(int(np.prod(v.shape)) for v in full.trainable_variables)
    # First kernel, groups of five units, the batch norms' scale and offset, dense layer.
    kernels = 27 * 16 + 9 * (
        16 * 160 + 9 * 160**2 + 160 * 320 + 9 * 320**2 + 320 * 640 + 9 * 640**2
    )
    norms = 2 * (16 + 9 * 160 + 160 + 9 * 320 + 320 + 9 * 640 + 640)
    assert trained == kernels + norms + 640 * 10 + 10 == 45_901_914
    assert len(full.kernels) == 32
    assert sum("/moving_" in name for name in tf1_names(full)) == 2 * 31


def test_initial_values():
    small, wide = MnistCNN(), WideResNet(8, 4)
    small.build((None, 28, 28, 1))
    wide.build((None, 32, 32, 3))
    hidden = small.hidden_layer.kernel.numpy()
    assert hidden.std() == pytest.approx(0.1 * 0.8796, rel=1e-2)  # truncated at two deviations
    assert np.abs(hidden).max() <= 0.2
    np.testing.assert_array_equal(small.hidden_layer.bias.numpy(), np.float32(0.1))
    first, second = (wide.units[2].convolution2.kernel.numpy(), wide.units[2].convolution1.kernel)
    assert first.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=1e-2)
    assert second.numpy().std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=1e-2)
    dense = wide.logits_layer.kernel.numpy()
    assert np.abs(dense).max() == pytest.approx(np.sqrt(3 / 256), rel=1e-2)
    assert not wide.logits_layer.bias.numpy().any()


@pytest.mark.parametrize(
    "model",
    [
        lambda: MnistCNN(7, dtype="float64"),
        lambda: WideResNet(8, 1, num_classes=3, input_layer="unit_norm", synchronized=True),
        lambda: WideResNet(14, 2, dtype="mixed_bfloat16"),
    ],
    ids=["mnist", "wide", "mixed"],
)
# Keras 3.15 reads variables in a way that numpy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_keras_file_round_trip(model, tmp_path):
    model = model()
    shape = (2, 28, 28, 1) if isinstance(model, MnistCNN) else (2, 16, 24, 3)
    x = np.random.default_rng(0).uniform(0, model.pixel_max, shape)
    model(x, training=True)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert again.get_config() == model.get_config()
    np.testing.assert_array_equal(again(x, training=False), model(x, training=False))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("float32", "float32"), ("float64", "float64"), ("mixed_bfloat16", "float32")],
)
@pytest.mark.parametrize("network", [MnistCNN, lambda **kw: WideResNet(8, 1, **kw)])
def test_logits_are_the_logits_layer_of_the_features_and_never_narrow(network, policy, expected):
    model = network(dtype=policy)
    shape = (2, 28, 28, 1)
    x = tf.constant(np.random.default_rng(0).uniform(0, model.pixel_max, shape))
    logits = model(x, training=False)
    assert logits.dtype == expected
    features = model.features(x, training=False)
    assert features.shape == (2, 1024 if model.pixel_max == 1 else 64)
    np.testing.assert_array_equal(model.logits_layer(features), logits)
    assert {v.dtype for v in model.variables} == {expected}


def test_dtype_follows_the_global_policy():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        model = WideResNet(8, 1)
    finally:
        keras.config.set_dtype_policy(before)
    model.build((None, 8, 8, 3))
    assert {v.dtype for v in model.variables} == {"float64"}


def test_uint8_images_of_any_size():
    model = WideResNet(8, 1)
    for height, width in ((32, 32), (64, 64), (9, 7)):
        x = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
        logits = model(x, training=False)
        assert logits.shape == (3, 10)
        np.testing.assert_allclose(logits, model(x.astype("float32"), training=False), atol=1e-6)


def images(*shape, high=255.0):
    return tf.constant(np.random.default_rng(1).uniform(0, high, shape))


def test_input_layers_values():
    x = images(3, 8, 6, 3)
    standard = normalize_images(x, "standardize")
    assert_close(
        standard.numpy().astype("float32"),
        tf.image.per_image_standardization(tf.cast(x, "float32")).numpy(),
        1e-5,
    )
    unit = normalize_images(x, "unit_norm").numpy().reshape(3, -1)
    np.testing.assert_allclose(unit.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-12)
    # A deviation below 1/sqrt(N) is divided by 1/sqrt(N): here N = 4, x - mean = -0.1, 0, 0, 0.1.
    faint = tf.reshape(tf.constant([7.0, 7.1, 7.1, 7.2], "float64"), (1, 2, 2, 1))
    np.testing.assert_allclose(
        normalize_images(faint, "standardize").numpy().ravel(), [-0.2, 0, 0, 0.2], atol=1e-12
    )


@pytest.mark.parametrize("input_layer", ["standardize", "unit_norm"])
def test_input_layers_derivatives_against_finite_differences(input_layer):
    x, weights = images(1, 3, 3, 2), images(1, 3, 3, 2, high=1.0)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(normalize_images(x, input_layer) * weights)
        return tape.gradient(value, x)

    for function in (lambda x: normalize_images(x, input_layer), gradient):
        theory, numeric = tf.test.compute_gradient(function, [x], delta=1e-3)
        assert_close(theory[0], numeric[0], 1e-6)


@pytest.mark.parametrize(
    "network",
    [
        MnistCNN,
        lambda **kw: WideResNet(8, 1, **kw),
        lambda **kw: WideResNet(8, 1, input_layer="unit_norm", **kw),
    ],
    ids=["mnist", "standardize", "unit_norm"],
)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constant_images_have_finite_first_and_second_derivatives(network, training, dtype):
    model = network(dtype=dtype)
    x = np.random.default_rng(0).uniform(0, model.pixel_max, (3, 28, 28, 1))
    x[0], x[1] = 0, model.pixel_max / 2
    x = tf.constant(x, dtype)
    model.build(x.shape)
    kernels = [k.value for k in model.kernels]
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            logits = model(x, training=training)
            xent = tf.nn.sparse_softmax_cross_entropy_with_logits([1, 2, 3], logits)
        j = inner.gradient(xent, x)
        penalty = tf.reduce_sum(tf.square(j))
    second = outer.gradient(penalty, [x, *kernels])
    for tensor in (j, *second):
        assert np.isfinite(tensor).all()
    assert all(np.abs(k).max() > 0 for k in second[1:])


def test_constant_image_gradient_by_hand():
    # Below the floor the layer is sqrt(N) (x - mean), and so is its transpose.
    x, weights = tf.fill((1, 2, 2, 1), tf.constant(9.0, "float64")), images(1, 2, 2, 1)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(normalize_images(x, "standardize") * weights)
    np.testing.assert_allclose(tape.gradient(value, x), 2 * (weights - tf.reduce_mean(weights)))


@pytest.mark.parametrize("network", [MnistCNN, lambda **kw: WideResNet(8, 1, **kw)])
def test_kernel_derivative_of_input_gradients_against_finite_differences(network):
    model = network(dtype="float64")
    x = images(2, 8, 8, 1, high=model.pixel_max)
    model.build(x.shape)
    kernel = model.kernels[1]
    direction = np.random.default_rng(2).normal(size=kernel.shape)

    def penalty():
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = model(x, training=False)
            xent = tf.nn.sparse_softmax_cross_entropy_with_logits([1, 2], logits)
        return tf.reduce_sum(tf.square(tape.gradient(xent, x))) * model.pixel_max**2

    with tf.GradientTape() as tape:
        value = penalty()
    theory = np.sum(tape.gradient(value, kernel.value) * direction)
    start, delta = kernel.numpy(), 1e-8  # small enough to cross no kink
    kernel.assign(start + delta * direction)
    above = penalty()
    kernel.assign(start - delta * direction)
    assert float(above - penalty()) / (2 * delta) == pytest.approx(theory, rel=1e-4)


@pytest.mark.parametrize("synchronized", [False, True])
def test_training_chooses_batch_statistics_and_moves_the_averages(synchronized):
    model = WideResNet(8, 1, synchronized=synchronized, dtype="float64")
    x = images(4, 8, 8, 3)
    inference = model(x, training=False)
    norm = model.units[0].activation1.norm
    assert not norm.moving_mean.numpy().any()  # inference moves nothing
    batch = model(x, training=True)
    h = model.first_convolution(normalize_images(x, "standardize")).numpy()
    # decay 0.9: 0.9 * start + 0.1 * batch
    np.testing.assert_allclose(norm.moving_mean, 0.1 * h.mean((0, 1, 2)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(norm.moving_variance, 0.9 + 0.1 * h.var((0, 1, 2)), rtol=1e-9)
    assert np.abs(batch - inference).max() > 1e-3
    # On batch statistics the value does not depend on the averages.
    np.testing.assert_allclose(model(x, training=True), batch, rtol=1e-12)


def test_only_the_first_unit_shares_its_activation_with_the_shortcut():
    model = WideResNet(14, 3)
    assert [unit.shared_activation for unit in model.units] == [True] + [False] * 5
    assert [unit.stride for unit in model.units] == [1, 1, 2, 1, 2, 1]
    assert [unit.filters for unit in model.units] == [48, 48, 96, 96, 192, 192]


def test_shortcut_pools_and_pads_channels_on_both_sides():
    model = WideResNet(8, 1, dtype="float64")
    h = images(1, 4, 4, 16)
    unit = model.units[1]
    unit.build(h.shape)
    unit.convolution2.kernel.assign(np.zeros(unit.convolution2.kernel.shape))
    shortcut = unit(h, training=False).numpy()
    pooled = h.numpy().reshape(1, 2, 2, 2, 2, 16).mean((2, 4))
    np.testing.assert_allclose(shortcut[..., 8:24], pooled, rtol=1e-12)
    assert not shortcut[..., :8].any()
    assert not shortcut[..., 24:].any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 30}, "depth 6n.2.* 30"),
        ({"depth": 2}, "received 2"),
        ({"width": 0}, "width of .* 0"),
        ({"input_layer": "none"}, "input_layer .*'none'"),
        ({"num_classes": 0}, "num_classes .* 0"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(UserError, match=message):
        WideResNet(**wrong)


@pytest.mark.parametrize("name", ["leaky_relu", "silu", "gelu"])
def test_activation_by_name(name):
    wide = WideResNet(8, 1, activation=name)
    wide.build((None, 8, 8, 3))
    h = np.linspace(-3, 3, 7, dtype="float32").reshape(1, 1, 1, 7)
    expected = {
        "leaky_relu": np.maximum(h, 0.1 * h),
        "silu": h / (1 + np.exp(-h)),
        "gelu": h * (1 + np.vectorize(math.erf)(h / 2**0.5)) / 2,
    }[name]
    activations = {u.activation1.activation for u in wide.units} | {wide.last_activation.activation}
    (activation,) = activations
    np.testing.assert_allclose(activation(tf.constant(h)), expected, atol=1e-6)
    again = WideResNet.from_config(wide.get_config())
    assert again.activation == name
    assert ("activation" in wide.get_config()) == (name != "leaky_relu")
    with pytest.raises(UserError, match=r"activation .*'relu'"):
        WideResNet(8, 1, activation="relu")
