"""Any Keras model as student and teacher: gradients, Keras's loop, saving, wrong use."""

import dataclasses
import doctest
import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import igam_tf
from igam_tf import train
from igam_tf.common.devices import mirrored
from igam_tf.common.errors import UserError
from igam_tf.experiments.recipes import FIELDS
from igam_tf.formulas import losses
from igam_tf.method.architectures import ARCHITECTURES, build_network
from igam_tf.method.networks import decayed_variables, features_of
from igam_tf.method.optimizers import Momentum
from igam_tf.method.settings import Settings
from igam_tf.storage.run_folder import load_model
from madry_models import MnistCNN, WideResNet

SHAPE = (32, 32, 3)
WEIGHTS = Settings(lambda_adv=0.5, lambda_diff=0.3, disc_every=1)
DIFFERENCE = dataclasses.replace(WEIGHTS, second_order="finite_difference", difference_length=1e-8)


def small(classes: int = 10, shape=SHAPE, **kwargs) -> keras.Sequential:
    """A network of one's own, on pixels in 0..255."""
    return keras.Sequential([
        keras.Input(shape), keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(4, 3, strides=4, activation="tanh"),
        keras.layers.Flatten(), keras.layers.Dense(classes, **kwargs),
    ])  # fmt: skip


def application(name: str, *, whole: bool = False) -> keras.Model:
    """A network of keras.applications: batch norm, and dropout where that is asked for.

    The whole of MobileNet, or its first blocks (of three kinds) under its last layers.
    """
    inner = keras.applications.MobileNet(
        input_shape=SHAPE, alpha=0.25, weights=None, classes=10, classifier_activation=None,
        dropout={"batch norm": 0.0, "dropout": 0.5}[name],
    )  # fmt: skip
    if not whole:
        h = inner.get_layer("conv_pw_2_relu").output
        h = keras.layers.GlobalAveragePooling2D(keepdims=True)(h)
        h = keras.layers.Dropout({"batch norm": 0.0, "dropout": 0.5}[name])(h)
        inner = keras.Model(inner.input, keras.layers.Conv2D(10, 1)(h))
    x = keras.Input(SHAPE)
    z = inner(keras.layers.Rescaling(1 / 127.5, -1.0)(x))
    return keras.Model(x, keras.layers.Reshape((10,), name="flat_logits")(z))


def batch(n: int = 8, dtype: str = "float32", shape=SHAPE) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.uniform(0, 255, (n, *shape)).astype(dtype), rng.integers(0, 10, n)


def make(student=None, settings: Settings = WEIGHTS, **kwargs) -> igam_tf.IGAM:
    disc = igam_tf.Discriminator((4, 8))
    return igam_tf.IGAM(
        student or small(), small(), disc, settings=settings, pixel_max=255.0, **kwargs
    )


WHOLE = pytest.mark.parametrize(
    "whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["first blocks", "whole"]
)

# --- gradients --------------------------------------------------------------------------------------


@WHOLE
@pytest.mark.parametrize("name", ["batch norm", "dropout"])
def test_gradients_of_keras_applications(name, whole, float64):
    """Exact against central differences, finite differences against exact; one dropout mask."""
    student = application(name, whole=whole)
    igam = make(student)
    x, y = batch(32, "float64")
    igam.compile()
    igam.prepare(x, y)
    x, y = tf.constant(x), tf.constant(y)
    seeds = [v for v in student.non_trainable_variables if v.name == "seed_generator_state"]
    assert bool(seeds) == (name == "dropout")
    start = [v.numpy() for v in seeds]

    def with_seeds_as_before(work):
        for v, value in zip(seeds, start, strict=True):
            v.assign(value)
        return work()

    grads, *_ = with_seeds_as_before(lambda: igam.student_gradients(x, y))

    def total() -> float:
        _, terms, _, _ = with_seeds_as_before(lambda: igam.student_gradients(x, y))
        value = igam.mean(terms["L_xent"]) + igam.decay(igam.kernels)
        value += 0.5 * igam.reduce_adv(terms["L_adv"]) + 0.3 * igam.reduce_diff(terms["L_diff"])
        return float(value)

    rng, h, values = np.random.default_rng(0), 1e-11, []
    direction = [rng.normal(size=v.shape) for v in igam.trained_variables]
    for sign in (1, -2):
        for v, d in zip(igam.trained_variables, direction, strict=True):
            v.assign_add(sign * h * d)
        values.append(total())
    slope = sum(float(np.sum(g * d)) for g, d in zip(grads, direction, strict=True))
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4)

    for v, d in zip(igam.trained_variables, direction, strict=True):
        v.assign_add(h * d)
    igam.settings = DIFFERENCE
    approximate, *_ = with_seeds_as_before(lambda: igam.student_gradients(x, y))
    found, expected = (np.concatenate([np.ravel(g) for g in gs]) for gs in (approximate, grads))
    assert np.linalg.norm(found - expected) < 1e-2 * np.linalg.norm(expected)


def test_a_finite_difference_leaves_averages_and_dropout_where_one_pass_does():
    one, other = application("dropout"), application("dropout")
    other.set_weights(one.get_weights())
    x, y = map(tf.constant, batch(4))
    igam = make(one, DIFFERENCE)
    igam.compile()
    igam.prepare(*batch(4))
    for a, b in zip(one.non_trainable_variables, other.non_trainable_variables, strict=True):
        b.assign(a)
    igam.student_gradients(x, y)
    other(x, training=True)
    for a, b in zip(one.non_trainable_variables, other.non_trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@WHOLE
@pytest.mark.parametrize("settings", [WEIGHTS, DIFFERENCE], ids=["exact", "finite difference"])
@pytest.mark.parametrize("name", ["batch norm", "dropout"])
def test_keras_applications_train(name, settings, whole):
    igam = make(application(name, whole=whole), settings)
    before = [v.numpy() for v in igam.network.trainable_variables]
    igam.compile("sgd")
    history = igam.fit(*batch(8), batch_size=4, verbose=0).history
    assert int(igam.optimizer.iterations) == 2
    assert np.isfinite([history[k][0] for k in ("loss", "L_xent", "L_adv", "L_diff")]).all()
    assert all(
        np.any(a != b) for a, b in zip(before, igam.network.trainable_variables, strict=True)
    )


@pytest.mark.parametrize(
    "second_order", ["finite_difference", pytest.param("exact", marks=pytest.mark.slow)]
)
def test_two_replicas_train_one_student(second_order):
    """With batch norm and dropout, discriminator's turns included; exact ones: `test_igam`."""
    with mirrored(["CPU:0", "CPU:1"]).scope():
        student = small()
        layers = [*student.layers[:-1], keras.layers.Dropout(0.2), student.layers[-1]]
        layers.insert(2, keras.layers.BatchNormalization())
        student = keras.Sequential([keras.Input(SHAPE), *layers])
        igam = make(student, dataclasses.replace(WEIGHTS, second_order=second_order))
        igam.compile("sgd", "sgd")
    data = tf.data.Dataset.from_tensor_slices(batch(16)).batch(8)
    history = igam.fit(data, epochs=2, verbose=0, validation_data=data).history
    assert np.isfinite(list(history.values())).all()
    assert int(igam.discriminator_optimizer.iterations.numpy()) == 4


# --- what Keras does not say ------------------------------------------------------------------------


def test_kernels_of_convolutions_and_dense_layers_decay():
    names = [v.path.split("/")[-1] for v in decayed_variables(small())]
    assert names == ["kernel", "kernel"]
    inner = application("batch norm")
    assert {v.name for v in decayed_variables(inner)} == {"kernel"}
    assert {v.name for v in decayed_variables(inner, "gamma|beta")} == {"gamma", "beta"}
    wide = WideResNet(8, 1)
    wide.build((None, *SHAPE))
    assert decayed_variables(wide) == wide.kernels  # in their own order
    with pytest.raises(UserError, match="whose path ends with 'scale' to decay"):
        decayed_variables(small(), "scale")


def test_weight_decay_is_that_of_the_kernels():
    igam = make(weight_decay=0.1)
    kernels = decayed_variables(igam.network)
    expected = 0.05 * sum(np.sum(np.square(k)) for k in kernels)
    assert float(igam.decay(igam.kernels)) == pytest.approx(expected, rel=1e-5)
    assert make(keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten()])).decay([]) == 0.0


class Own(keras.Model):
    """A subclassed model that calls its layers as it likes, and takes no `training`."""

    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(10)
        self.first = keras.layers.Dense(6, activation="relu")

    def call(self, x):
        return self.head(self.first(keras.ops.reshape(x, (-1, 3072))))


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_features_of_subclassed_and_nested_models(dtype):
    keras.config.set_dtype_policy(dtype)
    try:
        own = Own()
    finally:
        keras.config.set_dtype_policy("float32")
    x, _ = batch(2)
    own(x)
    features = features_of(own)(x)
    np.testing.assert_array_equal(features, own.first(keras.ops.reshape(x, (-1, 3072))))
    within = keras.Sequential([keras.Input(SHAPE), keras.layers.Rescaling(1.0), own])
    np.testing.assert_array_equal(features_of(within)(x), features)
    graph = tf.function(lambda x: features_of(within)(x, training=True))
    np.testing.assert_allclose(
        tf.cast(graph(x), tf.float32), tf.cast(features, tf.float32), rtol=2e-2, atol=2
    )


def test_features_of_a_named_layer():
    inner = application("batch norm")
    x, _ = batch(2)
    with pytest.raises(UserError, match="expected a dense layer"):  # its logits are a convolution
        features_of(inner)
    np.testing.assert_allclose(features_of(inner, "flat_logits")(x), inner(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="a layer called 'pool' in this Functional"):
        features_of(inner, "pool")


def test_a_teacher_of_any_network():
    teacher = igam_tf.Teacher(
        small(5, (28, 28, 1)),
        igam_tf.Compose([igam_tf.ChannelMean(), igam_tf.CenterCrop(28)]),
        num_classes=10,
    )
    tuner = igam_tf.FineTune(teacher)
    tuner.compile("adam")
    frozen = [v.numpy() for v in teacher.network.variables]
    tuner.fit(*batch(), verbose=0)
    assert teacher.logits_layer.kernel.shape == (4 * 7 * 7, 10)
    for before, after in zip(frozen, teacher.network.variables, strict=True):
        np.testing.assert_array_equal(before, after)
    igam = igam_tf.IGAM(small(), teacher, pixel_max=255.0)
    igam.compile("sgd")
    igam.fit(*batch(), verbose=0)
    assert igam.discriminator.convolutions[0].kernel.shape[2] == 1  # what the teacher can see


def test_students_by_name(tmp_path, monkeypatch):
    (tmp_path / "own_students.py").write_text(
        "import keras\n"
        "def net(shape, num_classes):\n"
        "    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(),\n"
        "                             keras.layers.Dense(num_classes)])\n"
        "def nothing(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    x, _ = batch(2)
    for name in ("wrn-8-1", "keras:MobileNetV3Small", "own_students:net"):
        assert build_network(name, SHAPE, 7)(x).shape == (2, 7)
    assert (
        build_network("own_students:net", SHAPE, 7, precision="mixed_bfloat16")(x).dtype
        == "bfloat16"
    )
    for name, sentence in {
        "resnet": r"expected a network wrn-<depth>-<width>, .*; received 'resnet'",
        "wrn-9-1": "depth 6n [+] 2",
        "keras:Nothing": "a name of keras.applications, ConvNeXtBase,",
        "keras:Xception": r"expected a network for images \[32, 32, 3\]; keras:Xception refuses them",
        "own_students:nothing": "own_students:nothing returns int",
        "own_students:none": "has no attribute 'none'",
        "nowhere:net": "No module named 'nowhere'",
    }.items():
        with pytest.raises(UserError, match=sentence):
            build_network(name, SHAPE, 7)


# --- Keras's loop -----------------------------------------------------------------------------------


def test_the_help_of_student_has_every_kind_of_name():
    text = FIELDS["student"].metadata["doc"]
    assert not [name for name in ARCHITECTURES if name not in text]


def test_nothing_but_student_and_teacher():
    """f_disc, hyperparameters and optimizers are the paper's."""
    igam = igam_tf.IGAM(small(), small(), pixel_max=255.0)
    igam.compile()
    x, y = batch(12)
    history = igam.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(4), epochs=2, verbose=0)
    assert len(history.history["L_adv"]) == 2
    assert igam.discriminator.channels == (16, 32, 64, 128, 256)
    assert igam.weight_decay == 2e-4
    for optimizer in (igam.optimizer, igam.discriminator_optimizer):
        assert isinstance(optimizer, Momentum)
        assert (float(optimizer.learning_rate), optimizer.momentum) == (pytest.approx(0.1), 0.9)
    assert int(igam.optimizer.iterations) == 6
    assert int(igam.discriminator_optimizer.iterations) == 1  # k = 10


def test_the_loss_is_eq_14_without_weight_decay():
    igam = make()
    igam.compile("sgd")
    h = {k: v[0] for k, v in igam.fit(*batch(), verbose=0).history.items()}
    assert h["loss"] == pytest.approx(h["L_xent"] + 0.5 * h["L_adv"] + 0.3 * h["L_diff"], rel=1e-5)


def test_what_is_not_measured_is_not_0():
    igam = make(settings=dataclasses.replace(WEIGHTS, igam_start=2))
    igam.compile("sgd")
    h = igam.fit(*batch(8), batch_size=4, epochs=2, verbose=0).history
    assert np.isnan([h["L_adv"][0], h["L_diff"][0]]).all()
    assert np.isfinite([h["L_adv"][1], h["L_diff"][1], *h["loss"]]).all()


def test_validation_is_that_of_the_student_alone():
    igam = make()
    igam.compile("sgd")
    x, y = batch(12)
    h = igam.fit(x, y, validation_data=(x[:6], y[:6]), verbose=0).history
    assert {name for name in h if name.startswith("val")} == {
        "val_loss", "val_L_xent", "val_accuracy"
    }  # fmt: skip
    z = igam.network(x[:6], training=False)
    assert h["val_loss"][0] == pytest.approx(np.mean(losses.xent(z, y[:6])), rel=1e-5)
    assert h["val_accuracy"][0] == pytest.approx(np.mean(np.argmax(z, 1) == y[:6]))
    found = igam.evaluate(x[:6], y[:6], verbose=0, return_dict=True)
    assert float(found["loss"]) == pytest.approx(h["val_loss"][0], rel=1e-5)
    np.testing.assert_allclose(igam.predict(x[:6], verbose=0), z, rtol=1e-5, atol=1e-6)


def test_early_stopping_and_checkpoints_by_robust_accuracy(tmp_path):
    igam = make()
    igam.compile("sgd")
    x, y = batch(12)
    look = igam_tf.RobustAccuracy(x[:6], y[:6], eps=8 / 255, attacks="clean,pgd3")
    stop = keras.callbacks.EarlyStopping("val_pgd3", mode="max", patience=1, baseline=2.0)
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", "val_pgd3", mode="max", save_best_only=True
    )
    data = {"validation_data": (x[:6], y[:6]), "epochs": 9, "verbose": 0}
    h = igam.fit(x, y, callbacks=[look, stop, best], **data).history
    assert len(h["val_pgd3"]) == 2  # never better than the baseline
    assert h["val_clean"][0] == pytest.approx(h["val_accuracy"][0])
    assert h["val_pgd3"][0] <= h["val_clean"][0]
    report = igam_tf.evaluate(
        igam.network, x[:6], y[:6], "pgd3", eps=8 / 255, step_size=2 / 255, pixel_max=255.0
    )
    assert report["results"]["pgd3"]["accuracy"] == pytest.approx(100 * h["val_pgd3"][0])
    assert keras.saving.load_model(tmp_path / "best.keras")(x).shape == (12, 10)


def test_a_saved_trainer_goes_on(tmp_path):
    igam = make()
    igam.compile("sgd", "adam")
    x, y = batch()
    igam.fit(x, y, verbose=0)
    igam.save(tmp_path / "trainer.keras")
    again = keras.saving.load_model(tmp_path / "trainer.keras")
    assert dataclasses.asdict(again.settings) == dataclasses.asdict(WEIGHTS)
    np.testing.assert_array_equal(again(x), igam(x))
    again.fit(x, y, verbose=0)
    igam.fit(x, y, verbose=0)
    assert int(again.optimizer.iterations) == 2
    for a, b in zip(again.state_variables, igam.state_variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_backup_and_restore_goes_on_to_the_bit(tmp_path):
    """Killed in the second epoch, with the discriminator's turns where they were."""

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def run(*callbacks):
        keras.utils.set_random_seed(1)
        settings = dataclasses.replace(WEIGHTS, disc_every=2, igam_start=1)
        igam = make(settings=settings)
        igam.compile(run_eagerly=True)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        chosen = (backup, *callbacks) if callbacks != (None,) else ()
        x, y = batch(12)
        igam.fit(x, y, batch_size=4, shuffle=False, epochs=2, verbose=0, callbacks=list(chosen))
        return [v.numpy() for v in igam.state_variables]

    expected = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(Kill())
    for a, b in zip(run(), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_student_that_is_saved_needs_nothing_of_ours(tmp_path):
    igam = make()
    igam.compile("sgd")
    igam.fit(*batch(), verbose=0)
    igam.network.save(tmp_path / "student.keras")
    x, _ = batch(2)
    np.testing.assert_array_equal(load_model(tmp_path / "student.keras")(x), igam(x))


def test_probabilities_are_undone_where_that_is_asked_for():
    igam = make(small(activation="softmax"), from_probabilities=True)
    igam.compile("sgd")
    igam.fit(*batch(), verbose=0)
    x, _ = batch(3)
    np.testing.assert_allclose(tf.nn.softmax(igam(x)), igam.network.base(x), rtol=1e-5)


def test_the_example_of_the_readme_runs(golden_dir, tmp_path, monkeypatch):
    """Ten lines: an own Sequential student, MadryLab's MNIST network as teacher."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import keras, igam_tf\n.*?)```", text, re.S)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mnist").symlink_to(golden_dir / "mnist" / "models")
    monkeypatch.chdir(tmp_path)
    x, y = batch(16)
    names = {"x_train": x, "y_train": y, "x_test": x[:4], "y_test": y[:4]}
    exec(compile(code, "README.md", "exec"), names)
    report = names["report"]["results"]
    assert {"clean", "fgsm", "pgd20", "worst_case"} == report.keys()


def test_a_run_with_a_student_of_ones_own(tmp_path, monkeypatch, command_of):
    """Trained, evaluated again from its folder, and its registered class found by another process."""
    (tmp_path / "own_registered.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('own')\n"
        "class Net(keras.Model):\n"
        "    def __init__(self, num_classes, **kwargs):\n"
        "        super().__init__(**kwargs)\n"
        "        self.num_classes = num_classes\n"
        "        self.scale = keras.layers.Rescaling(1 / 255)\n"
        "        self.convolution = keras.layers.Conv2D(4, 3, strides=4, activation='relu')\n"
        "        self.flatten = keras.layers.Flatten()\n"
        "        self.drop = keras.layers.Dropout(0.1)\n"
        "        self.head = keras.layers.Dense(num_classes)\n"
        "    def call(self, x, training=False):\n"
        "        h = self.flatten(self.convolution(self.scale(x)))\n"
        "        return self.head(self.drop(h, training=training))\n"
        "    def get_config(self):\n"
        "        return {**super().get_config(), 'num_classes': self.num_classes}\n"
        "def net(shape, num_classes):\n"
        "    return Net(num_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    command_of(train)(
        "--data=builtin", "--teacher=train", "--preset=smoke", "--student=own_registered:net",
        "--second_order=finite_difference", "--eval_attacks=clean,pgd2", "--workdir=run",
        "--num_validation=0", "--igam_start=0", "--disc_every=1", "--source=cifar10",
        "--teacher_network=own_registered:net", "--teacher_eval_examples=8",
    )  # fmt: skip
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["igam"]["results"]["clean"]["n"] == 32
    code = (
        "from igam_tf.evaluation.loading import find_model; load, path, run = find_model('run'); "
        "print(type(load(path)).__name__)"
    )
    python = [sys.executable, "-c", code]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["Net"], done.stderr


# --- the public names -------------------------------------------------------------------------------


CLASSES_AND_FUNCTIONS = sorted({*igam_tf.__all__} - {"__version__", "attacks", "UserError"})


@pytest.mark.filterwarnings("ignore:CUDA initialization")  # of a PyTorch without a driver
@pytest.mark.parametrize("name", CLASSES_AND_FUNCTIONS)
def test_the_example_of_a_public_name_runs(name, golden_dir, tmp_path, monkeypatch):
    if name == "from_torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mnist").symlink_to(golden_dir / "mnist" / "models")
    monkeypatch.chdir(tmp_path)
    thing = getattr(igam_tf, name)
    finder = doctest.DocTestFinder(recurse=False)
    (test,) = finder.find(
        thing, name, globs=vars(sys.modules[thing.__module__]) | {"igam_tf": igam_tf}
    )
    assert test.examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


def test_public_names_are_there():
    assert {*igam_tf.__all__} <= {*dir(igam_tf)}
    assert igam_tf.attacks.pgd.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        igam_tf.nothing  # noqa: B018


def test_a_name_loads_no_more_than_it_needs():
    code = (
        "import sys, json, igam_tf; before = 'tensorflow' in sys.modules; igam_tf.Settings; "
        "names = ('tensorflow_datasets', 'igam_tf.audit', 'igam_tf.method.igam'); import keras; "
        "known = keras.saving.get_registered_object('igam_tf>IGAM') is not None; "
        "print(json.dumps([known, before, *(name in sys.modules for name in names)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, False, False, False, False]


# --- wrong use --------------------------------------------------------------------------------------

X, Y = batch(8)


class Pair(keras.Model):
    def call(self, x):
        z = keras.ops.mean(x, (1, 2))
        return [z, z]


class Broken(keras.Model):
    def call(self, x):
        raise ValueError("the broken one")


def _fit(x=X, y=Y, student=None, teacher=None, pixel_max=255.0, **kwargs):
    igam = igam_tf.IGAM(student or small(), teacher or small(), pixel_max=pixel_max, **kwargs)
    igam.compile("sgd")
    igam.fit(x, y, verbose=0)


def _teacher():
    return igam_tf.Teacher(MnistCNN(), igam_tf.ChannelMean(), num_classes=10)


def _later(x, y):
    """A fault in the second batch."""
    return tf.data.Dataset.from_tensor_slices(
        (np.concatenate([X, x]), np.concatenate([Y, y]))
    ).batch(8)


def _finetune(teacher):
    tuner = igam_tf.FineTune(teacher)
    tuner.compile("adam")
    tuner.fit(X, Y, verbose=0)


WRONG = {
    "labels out of range": (
        lambda: _fit(y=Y + 5),
        r"labels in 0\.\.9, ",
    ),
    "negative labels": (
        lambda: _fit(y=Y - 20),
        r"labels in 0\.\.9, .*received -",
    ),
    "one-hot labels": (
        lambda: _fit(y=np.eye(10)[Y]),
        "labels .*float64",
    ),
    "float labels": (
        lambda: _fit(y=Y.astype("float32")),
        "labels .*float32",
    ),
    "wrong channels": (
        lambda: _fit(X[..., :1]),
        r"\[32, 32, 1\]; received a Sequential that fails",
    ),
    "no channels": (
        lambda: _fit(X[..., 0]),
        r"images .*\[8, 32, 32\]",
    ),
    "uint8": (lambda: _fit(X.astype("uint8")), "images .*uint8"),
    "softmax": (
        lambda: _fit(student=small(activation="softmax")),
        "logits; received probabilities",
    ),
    "a softmax teacher": (
        lambda: _fit(teacher=small(activation="softmax")),
        "teacher that returns logits; received prob",
    ),
    "a list": (lambda: _fit(student=Pair()), "logits .*a list"),
    "a model that fails": (
        lambda: _fit(student=Broken()),
        "Broken that fails on them: the broken one",
    ),
    "an unbuilt teacher": (
        lambda: _fit(teacher=_teacher()),
        r"Teacher .*FineTune",
    ),
    "no teacher": (
        lambda: igam_tf.IGAM(small(), pixel_max=255.0),
        r"teacher with method=igam",
    ),
    "other classes": (lambda: _fit(teacher=small(7)), r"10\] of the teacher.* 7\]"),
    "no pixel range": (
        lambda: _fit(pixel_max=None),
        "expected pixel_max, .*; received none, and this Seq",
    ),
    "a wrong pixel range": (
        lambda: _fit(pixel_max=1.0),
        r"pixels in 0\.\.1, ",
    ),
    "pixels of 0..1": (
        lambda: _fit(X / 255),
        "pixel_max=1.0",
    ),
    "NaN pixels": (lambda: _fit(X * np.nan), "NaN"),
    "no labels": (lambda: _fit(y=None), "images and labels; received images without labels"),
    "lengths": (lambda: _fit(y=Y[:5]), "8 and 5"),
    "no pairs": (
        lambda: _fit(tf.data.Dataset.from_tensors(X), None),
        r"expected pairs \(images, labels\); received",
    ),
    "nothing": (
        lambda: _fit(tf.data.Dataset.from_tensors((X, Y)).take(0), None),
        "expected batches of images; received an empty ",
    ),
    "a list of pairs": (
        lambda: _fit([(X, Y)], None),
        "expected arrays, or a tf.data.Dataset, .*; received a list",
    ),
    "a later label": (
        lambda: _fit(_later(X, Y + 10), None),
        r"labels within \[0, 10\), the classes; received",
    ),
    "a later NaN": (
        lambda: _fit(_later(X * np.nan, Y), None),
        "finite losses; L_xent is NaN or infinite",
    ),
    "sample weights": (
        lambda: make().fit(X, Y, sample_weight=Y),
        "expected images and labels alone; received sample_weight as well",
    ),
    "settings": (
        lambda: Settings(input_gradient="foo"),
        "input_gradient among xent, softmax; received 'foo'",
    ),
    "a number": (lambda: Settings(lambda_diff=-1), "lambda_diff of at least 0; received -1"),
    "a text": (lambda: Settings(lambda_adv="1"), "lambda_adv as a number; received '1'"),
    "a method": (
        lambda: _fit(settings=Settings(method="standard")),
        "matches input gradients .*; received 'standard'",
    ),
    "a student that is no model": (
        lambda: _fit(student=lambda x: x),
        "keras.Model .*a function",
    ),
    "a map that does not fit": (
        lambda: _finetune(_teacher()),
        "expected a map from images",
    ),
    "fine-tuning a network": (
        lambda: igam_tf.FineTune(small()),
        "an igam_tf.Teacher to fine-tune; received",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_one_sentence(name):
    call, sentence = WRONG[name]
    with pytest.raises(UserError, match=sentence) as caught:
        call()
    text = str(caught.value)
    assert text.startswith("expected ")
    assert "\n" not in text
