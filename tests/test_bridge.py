"""PyTorch networks as Keras models: the same numbers as PyTorch, and one sentence where it ends."""

import sys
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
import wong2018

import igam_tf
from igam_tf import datasets
from igam_tf.attacks import attack_specs
from igam_tf.evaluation.evaluate import logits_function
from igam_tf.evaluation.robust import robust_flags
from igam_tf.formulas.gradients import input_gradient
from igam_tf.formulas.losses import xent
from igam_tf.pytorch.bridge import TorchModel
from igam_tf.storage.journal import model_identity

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn = torch.nn
# A PyTorch that is built for CUDA says once that there is no driver.
pytestmark = pytest.mark.filterwarnings("ignore:CUDA initialization")

SHAPE = (8, 8, 3)


def convolutional() -> nn.Module:
    """A network with batch norm, whose averages are not the batch's, and a last nn.Linear."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)
    )
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2.0)
    return net


class Written(nn.Module):
    """Ends as `forward` says."""

    def __init__(self, forward):
        super().__init__()
        self.base, self._end = convolutional(), forward

    def forward(self, x):
        """[B,3,8,8] -> what the function makes of the logits."""
        return self._end(self.base(x))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(7, *SHAPE)).astype("float32")


LABELS = np.arange(7) % 5


def of_torch(module: nn.Module, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(logits, gradient of the cross-entropy with respect to x, [B,H,W,C]) from PyTorch alone."""
    dtype = next(module.parameters()).dtype
    images = torch.from_numpy(x).to(dtype).requires_grad_()
    z = module.eval()(images.permute(0, 3, 1, 2).contiguous())
    loss = nn.functional.cross_entropy(z, torch.from_numpy(LABELS), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    return z.detach().float().numpy(), gradient.float().numpy()


def of_model(model: keras.Model, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The same over the bridge."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = model(x, training=False)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, z)
    return z, tape.gradient(loss, x)


# --- against PyTorch itself --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [convolutional(), Written(torch.square), convolutional().double()],
    ids=["conv", "no last Linear", "float64"],
)
@pytest.mark.parametrize("graph", [False, True])
def test_logits_and_gradients_are_those_of_pytorch(module, graph, images):
    model = igam_tf.from_torch(module.train(), SHAPE)
    assert not module.training
    call = tf.function(of_model) if graph else of_model
    for found, expected in zip(
        call(model, tf.constant(images)), of_torch(module, images), strict=True
    ):
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_a_graph_knows_the_shapes():
    model = igam_tf.from_torch(convolutional(), SHAPE)

    @tf.function(input_signature=[tf.TensorSpec([None, *SHAPE])])
    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = model(x)
        return z, tape.gradient(z, x)

    z, j = both.get_concrete_function().structured_outputs
    assert (z.shape.as_list(), j.shape.as_list()) == ([None, 5], [None, *SHAPE])


def test_images_with_channels_last_and_another_range(images):
    class Last(nn.Module):
        def forward(self, x):
            x -= 0.5  # it writes into its input
            return x.mean((1, 2))

    model = igam_tf.from_torch(Last(), SHAPE, channels_first=False, preprocess="-1..1")
    before = images.copy()
    expected = (2 * images - 1 - 0.5).mean((1, 2))
    np.testing.assert_allclose(model(images), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(images, before)
    assert model.pixel_max == 1.0
    scaled = igam_tf.from_torch(
        Last(), SHAPE, channels_first=False, preprocess="0..1", pixel_max=255.0
    )
    np.testing.assert_allclose(scaled(255 * images), (images - 0.5).mean((1, 2)), atol=1e-6)


def test_the_gradient_of_each_pass_is_of_the_same_random_numbers(images):
    """Twice the noise's own factor: the gradient of <1, x * r> is r, and its logits are sums of x r."""

    class Random(nn.Module):
        def forward(self, x):
            return (x * torch.rand_like(x)).sum((2, 3))

    model = igam_tf.from_torch(Random(), SHAPE)
    x = tf.constant(images)

    @tf.function
    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = model(x)
        return z, tape.gradient(z, x)

    for call in (both, both.python_function):
        (z, j), (again, _) = call(x), call(x)
        np.testing.assert_allclose(z, tf.reduce_sum(x * j, (1, 2)), rtol=1e-5)
        assert np.abs(z - again).max() > 1e-3


def test_a_pass_is_run_once_for_its_gradient(images):
    calls = []

    def counted(z):
        calls.append(len(z))
        return z

    model = igam_tf.from_torch(Written(counted), SHAPE)
    graph = tf.function(of_model)
    x = tf.constant(images)
    for call in (of_model, graph):
        call(model, x)
        calls.clear()
        call(model, x)
        assert calls == [7]

    @tf.function
    def steps(x):  # as an attack takes them
        for _ in tf.range(3):
            x += tf.sign(of_model(model, x)[1])
        return x

    calls.clear()
    steps(x)
    assert calls == [7] * 3
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        z = model(x)
    first, second = tape.gradient(z, x), tape.gradient(z, x)  # of a pass that is gone
    np.testing.assert_array_equal(first, second)


def test_a_buffer_in_float64_leaves_the_images_in_float32(images):
    module = convolutional()
    module.register_buffer("seconds", torch.ones((), dtype=torch.float64))
    model = igam_tf.from_torch(module, SHAPE)
    np.testing.assert_allclose(model(images), of_torch(module, images)[0], rtol=1e-5, atol=1e-6)


def test_what_fails_later_is_one_sentence(images):
    """In a graph, where TensorFlow writes pages around it, too: as an attack calls it, and as fit."""

    def failing(z):
        if len(z) == 3:  # the second batch
            raise RuntimeError("out of memory\nat some place")
        return z

    model = igam_tf.from_torch(Written(failing), SHAPE)
    tuner = igam_tf.FineTune(igam_tf.Teacher(model, num_classes=5))
    tuner.compile("adam")
    clean = dict(eps=0.1, pixel_max=1.0, batch_size=4)
    specs = attack_specs(["fgsm"], eps=0.1, step_size=0.1, restarts=1, loss="xent", num_classes=5)
    logits_fn = logits_function(model, "inference")
    attacked = dict(attacks=specs, pixel_max=1.0, seed=0, batch_size=4)
    attacked |= dict(batch_norm="inference", progress=False)
    said = "^expected a PyTorch network for 3 images; this Written fails: out of memory$"
    for call in (
        partial(igam_tf.evaluate, model, images, LABELS, "clean", **clean),
        partial(robust_flags, logits_fn, images, LABELS, **attacked),
        partial(tuner.fit, images, LABELS, batch_size=4, verbose=0),
    ):
        with pytest.raises(igam_tf.UserError, match=said):
            call()


def test_a_network_cut_off_from_its_input_has_no_gradient(images):
    model = igam_tf.from_torch(Written(torch.Tensor.detach), SHAPE)
    assert of_model(model, tf.constant(images))[1] is None
    with pytest.raises(igam_tf.UserError, match="expected logits that are differentiable in x"):
        input_gradient(model, tf.constant(images), tf.constant(LABELS), xent)


def test_the_features_are_what_the_last_linear_reads(images):
    module = convolutional()
    model = igam_tf.from_torch(module, SHAPE, preprocess="imagenet")
    features = model.igam_features(tf.constant(images))
    assert features.shape.as_list() == [7, 96]
    last = module[-1]
    z = features @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    np.testing.assert_allclose(z, model(images), rtol=1e-5, atol=1e-5)


def test_the_features_are_those_of_the_logits_as_they_were_read(images):
    """Another head is called after them, and their memory is used again."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.other = nn.Linear(192, 5), nn.Linear(9, 5)

        def forward(self, x):
            h = x.flatten(1) * 2
            z = self.main(h)
            h.zero_()
            self.told = self.other(h[:, :9])
            return z

    model = igam_tf.from_torch(Heads().requires_grad_(False), SHAPE)
    features = model.igam_features(tf.constant(images))
    np.testing.assert_array_equal(features, 2 * images.transpose(0, 3, 1, 2).reshape(7, 192))


# --- in the project ------------------------------------------------------------------------------------


def test_evaluate_attacks_it_as_the_same_network_in_keras(images):
    """With square, which needs no gradient, and apgd, whose loop is a graph."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    kernel = torch.randn(5, 8, 8, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        module[1].weight.copy_(kernel.permute(0, 3, 1, 2).reshape(5, 192))
    same = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(5)])
    same.set_weights([kernel.reshape(5, 192).numpy().T, module[1].bias.detach().numpy()])
    y = np.argmax(same(images), 1)
    settings = dict(attacks="clean,apgd-ce,square", eps=0.01, pixel_max=1.0)
    ours, theirs = (
        igam_tf.evaluate(model, images, y, **settings)
        for model in (igam_tf.from_torch(module, SHAPE), same)
    )
    assert ours == theirs
    assert ours["results"]["clean"]["accuracy"] == 100


def test_it_teaches(images):
    teacher = igam_tf.Teacher(igam_tf.from_torch(convolutional(), SHAPE), num_classes=5)
    tuner = igam_tf.FineTune(teacher)
    tuner.compile("adam", steps_per_execution=2)
    tuner.fit(images, LABELS, batch_size=4, verbose=0)
    layers = keras.layers
    student = keras.Sequential(
        [keras.Input(SHAPE), layers.Conv2D(4, 3, 2, "same", activation="silu"), layers.Flatten(),
         layers.Dense(5)]
    )  # fmt: skip
    igam = igam_tf.IGAM(student, teacher, pixel_max=1.0)
    igam.compile("adam")
    history = igam.fit(images, LABELS, batch_size=4, verbose=0).history
    assert np.isfinite([*history.values()]).all()
    j_t = igam.target_gradient(tf.constant(images), tf.constant(LABELS))
    x = torch.from_numpy(images).requires_grad_()
    module = teacher.network.module
    kernel, bias = map(torch.from_numpy, teacher.logits_layer.get_weights())
    z = module[:-1](x.permute(0, 3, 1, 2)) @ kernel + bias
    nn.functional.cross_entropy(z, torch.from_numpy(LABELS), reduction="sum").backward()
    expected = igam._unit * x.grad.numpy()
    np.testing.assert_allclose(j_t, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_several_threads_call_it(images):
    """More passes at once than wait for their gradients."""
    model = igam_tf.from_torch(convolutional(), SHAPE)
    x = tf.stack([tf.constant(images) * k for k in range(1, 13)])
    many = tf.function(
        lambda x: tf.map_fn(lambda x: of_model(model, x)[1], x, parallel_iterations=8)
    )
    for found, each in zip(many(x), x, strict=True):
        np.testing.assert_allclose(found, of_model(model, each)[1], rtol=1e-5, atol=1e-7)
    data = tf.data.Dataset.from_tensor_slices(x).map(lambda x: model(x), num_parallel_calls=4)
    for found, each in zip(data, x, strict=True):
        np.testing.assert_array_equal(found, model(each))


def test_a_journal_tells_its_weights_apart(images):
    module = convolutional()
    model = igam_tf.from_torch(module, SHAPE)
    before = model_identity(model)
    assert before == model_identity(igam_tf.from_torch(convolutional(), SHAPE))
    assert before != model_identity(igam_tf.from_torch(convolutional(), SHAPE, preprocess="0..1"))
    with torch.no_grad():
        module[1].running_mean[0] += 1
    assert before != model_identity(model)


def test_an_audit_attacks_the_network_inside_a_defence(images):
    """Its rounding hides the gradients of a base that takes pixels in -1..1."""

    class Defence(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
            with torch.no_grad():
                self.base[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 192))
                self.base[1].bias.zero_()

        def forward(self, x):
            return self.base(2 * torch.round(255 * x) / 255 - 1)

    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = rng.uniform(0, 0.4, (40, *SHAPE)) + 0.5 * y[:, None, None, None]
    x = x.astype("float32")
    model = igam_tf.from_torch(Defence(), SHAPE)
    report = igam_tf.audit_model(model, x, y, eps=0.4, pixel_max=1.0, checks="transfer")
    (row,) = (row for name, row in report["rows"].items() if "TorchModel inside" in name)
    assert row["accuracy"] == 0
    assert report["checks"]["transfer"]["status"] == "FAIL"


# --- what it cannot do -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Written(lambda z: {"logits": z}), r"expected logits \[2,K\] of this Written, one tensor; "
         "received a dict of 1 outputs: wrap it in a module"),
        (Written(lambda z: z[0]), r"received torch.float32 \[5\]"),
        (Written(lambda z: z.argmax(1)), r"received torch.int64 \[2\]"),
        (convolutional().half(), "expected a PyTorch network of float32 or float64 weights; "
         r"received torch.float16: call its float\(\) first"),
        (nn.Linear(7, 5), r"expected a PyTorch network for images \[8, 8, 3\], given to it as "
         r"\[C,H,W\], channels_first; this Linear fails: mat1 and mat2"),
        (Written(torch.squeeze), r"logits \[1,K\] of one image from this Written; received \[5\]: k"),
        (Written(lambda z: z.sigmoid().mul_(z.sigmoid_())), "whose logits PyTorch differentiates; t"
         "his Written fails: one of the variables needed for gradient computation has been modi"),
        (Written(torch.Tensor.to_sparse), "this Written fails: can't convert Sparse layout"),
        (convolutional().to("meta"), "received the device meta: load them first"),
        (keras.layers.Dense(2), "expected a torch.nn.Module; received a Dense"),
    ],
)  # fmt: skip
def test_a_network_that_it_cannot_call(module, said):
    with pytest.raises(igam_tf.UserError, match=said):
        igam_tf.from_torch(module, SHAPE)


def test_wrong_arguments():
    with pytest.raises(igam_tf.UserError, match=r"expected image_shape \(H, W, C\)"):
        igam_tf.from_torch(convolutional(), (None, 8, 3))
    with pytest.raises(igam_tf.UserError, match=r"last, .* \(3, 8, 8\): set \(8, 8, 3\)"):
        igam_tf.from_torch(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), (3, 8, 8))
    with pytest.raises(igam_tf.UserError, match="expected pixel_max above 0"):
        igam_tf.from_torch(convolutional(), SHAPE, pixel_max=0)


def test_images_in_the_order_of_pytorch(images):
    """Flattened, they would have other logits, and no error."""
    first = images.transpose(0, 3, 1, 2)
    flat = igam_tf.from_torch(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), SHAPE)
    keras_model = keras.Sequential(
        [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5)]
    )
    keras_model(images)
    told = r"\[.*3, 8, 8\].*: x.transpose\(0, 2, 3, 1\) puts the channels last$"
    for model in (flat, keras_model):
        igam = igam_tf.IGAM(keras_model, model, pixel_max=1.0)
        igam.compile("adam")
        tuner = igam_tf.FineTune(igam_tf.Teacher(model, num_classes=5))
        tuner.compile("adam")
        for call in (
            partial(igam_tf.evaluate, model, first, LABELS, "clean", eps=0.1, pixel_max=1.0),
            partial(igam_tf.audit_model, model, first, LABELS, eps=0.1, pixel_max=1.0),
            partial(igam.fit, first, LABELS),
            partial(tuner.fit, first, LABELS),
        ):
            with pytest.raises(igam_tf.UserError, match=told):
                call()


def test_second_derivatives_and_students_are_refused(images):
    model, x = igam_tf.from_torch(convolutional(), SHAPE), tf.constant(images)

    def second(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(tf.square(of_model(model, x)[1]))
        return tape.gradient(total, x)

    for call in (second, tf.function(second)):
        with pytest.raises(igam_tf.UserError, match="expected first derivatives of a PyTorch netw"):
            call(x)
    for method in ("igam", "standard"):
        other = (model,) if method == "igam" else ()
        trainer = igam_tf.trainer(method, model, *other, pixel_max=1.0)
        trainer.compile("adam")
        with pytest.raises(igam_tf.UserError, match="PyTorch holds its weights; make it the netw"):
            trainer.fit(images, LABELS, verbose=0)


def test_training_mode_is_refused(images):
    module = convolutional()
    model = igam_tf.from_torch(module, SHAPE)
    with pytest.raises(igam_tf.UserError, match="a PyTorch network in evaluation mode; received t"):
        model(images, training=True)
    module.train()
    with pytest.raises(Exception, match="it is in training mode: call its eval"):
        model(images)


def test_several_devices_are_refused(images):
    model = igam_tf.from_torch(convolutional(), SHAPE)
    cpus = tf.config.list_logical_devices("CPU")
    if len(cpus) < 2:
        pytest.skip("one logical CPU")
    said = "one device for a PyTorch network; received"
    with (
        tf.distribute.MirroredStrategy([c.name for c in cpus[:2]]).scope(),
        pytest.raises(igam_tf.UserError, match=said),
    ):
        model(images)


def test_a_keras_file_is_refused(tmp_path):
    model = igam_tf.from_torch(convolutional(), SHAPE)
    teacher = igam_tf.Teacher(model, num_classes=3)
    teacher.build((None, *SHAPE))
    for part in (model, teacher):
        with pytest.raises(igam_tf.UserError, match="file cannot hold: save it with"):
            part.save(tmp_path / "a.keras")


def test_new_logits_need_a_last_linear(images):
    for module, said in (
        (Written(lambda z: torch.cat([z, z], 1)), r"returns \[5\] values, and it has 10 logits"),
        (
            nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()),
            "this Sequential calls no torch.nn.Linear",
        ),
    ):
        teacher = igam_tf.Teacher(igam_tf.from_torch(module, SHAPE), num_classes=3)
        with pytest.raises(igam_tf.UserError, match=said):
            teacher(images)


def test_without_pytorch_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(igam_tf.UserError, match=r"expected PyTorch.*pip install -e \.\[torch\]"):
        TorchModel(object())


# --- networks of others --------------------------------------------------------------------------------


def wong(name: str) -> keras.Model:
    """A network of Wong et al. 2018 in PyTorch, over the bridge: images in 0..1 -> logits."""
    arrays = np.load(wong2018.FOLDER / f"{name}.npz")
    size, channels = (32, 3) if name.startswith("cifar") else (28, 1)
    module = nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (size // 4) ** 2, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    module.load_state_dict({key: torch.from_numpy(arrays[key]) for key in arrays})
    convention = "mean=0.485,0.456,0.406/std=0.225,0.225,0.225" if channels == 3 else None
    return igam_tf.from_torch(module, (size, size, channels), preprocess=convention)


needs_wong = pytest.mark.skipif(
    not wong2018.FOLDER.is_dir(), reason=f"no networks of others: {wong2018.FOLDER} is absent"
)


def first_images(data_dir, name: str, n: int) -> datasets.Split:
    """The first n test images of the network's task."""
    dataset = "cifar10" if name.startswith("cifar") else "mnist"
    folder = str(data_dir / "tensorflow_datasets")
    return datasets.load(dataset, "test", source="tfds", data_dir=folder).take(slice(n), "test")


def left(model: keras.Model, name: str, attack: str, split: datasets.Split) -> np.ndarray:
    """Which images an attack leaves, [n] bool."""
    eps = wong2018.EPS[name]
    specs = attack_specs([attack], eps=eps, step_size=eps / 4, restarts=1, loss="xent")
    return robust_flags(
        logits_function(model, "inference"), split.images, split.labels,
        attacks=specs, pixel_max=1.0, seed=0, batch_size=500, batch_norm="inference", progress=False,
    )[attack]  # fmt: skip


@needs_wong
@pytest.mark.parametrize("attack", ["pgd10", "apgd-ce"])
def test_an_attack_leaves_the_images_that_it_leaves_of_the_keras_network(attack, data_dir):
    name = "cifar_small_8px"
    split = first_images(data_dir, name, 60)
    ported, bridged = (
        left(model, name, attack, split) for model in (wong2018.network(name), wong(name))
    )
    assert 0 < ported.sum() < 60
    np.testing.assert_array_equal(bridged, ported)


@needs_wong
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", wong2018.EPS)
def test_autoattack_leaves_the_images_that_the_original_leaves(name, data_dir):
    """Image 178 of the CIFAR network falls to some of Square's random numbers, see test_wong2018.py."""
    found = left(wong(name), name, "autoattack", first_images(data_dir, name, 500))
    differ = set(np.flatnonzero(found != wong2018.masks()[name]))
    assert differ <= ({178} if name == "cifar_small_8px" else set())


@needs_wong
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", wong2018.EPS)
def test_no_check_of_an_audit_fails(name, data_dir):
    split = first_images(data_dir, name, 200)
    report = igam_tf.audit_model(
        wong(name), split.images, split.labels, eps=wong2018.EPS[name], pixel_max=1.0
    )
    assert [check for check, found in report["checks"].items() if found["status"] == "FAIL"] == []
    assert "training=True" not in str(report["checks"])
