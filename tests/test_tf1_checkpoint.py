"""Reading the original checkpoints: strict both ways, whatever the `checkpoint` file says."""

import shutil
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf.common.errors import UserError
from madry_models import MnistCNN, WideResNet
from madry_models.convert import convert
from madry_models.tf1_checkpoint import (
    checkpoint_prefix,
    from_tf1_checkpoint,
    load_tf1_checkpoint,
    tf1_names,
)

# Keras 3.15 reads variables in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def value_of(name, shape):
    """Some values that depend on the name alone, so that they need not be kept."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return np.square(rng.standard_normal(shape, dtype=np.float32))


def save_tf1(folder, shapes, step=100):
    """Writes a checkpoint with TensorFlow 1's own Saver; returns its prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        for name, shape in shapes.items():
            variable = v1.get_variable(name, shape, initializer=v1.zeros_initializer())
            variable.load(value_of(name, shape), session)
        v1.get_variable("global_step", initializer=np.int64(step)).load(step, session)
        prefix = v1.train.Saver().save(session, str(folder / "checkpoint"), global_step=step)
    return prefix


def shapes_of(model):
    return {name: tuple(variable.shape) for name, variable in tf1_names(model).items()}


def thin(**kwargs):
    model = WideResNet(8, 1, **kwargs)
    model.build((None, 32, 32, 3))
    return model


@pytest.fixture
def shapes():
    """Names and shapes of a small network with its optimizer slots."""
    shapes = shapes_of(thin())
    slots = {f"{name}/Momentum": shapes[name] for name in shapes if "/moving_" not in name}
    return {**shapes, **slots}


def assert_loaded(model):
    for name, variable in tf1_names(model).items():
        np.testing.assert_array_equal(variable.numpy(), value_of(name, variable.shape), name)


@pytest.mark.parametrize("size", [(14, 1), pytest.param((32, 10), marks=pytest.mark.slow)])
def test_network_round_trips_through_a_tf1_saver(tmp_path, size):
    model = WideResNet(*size)
    model.build((None, 32, 32, 3))
    shapes = shapes_of(model)
    slots = {f"{name}/Momentum": shapes[name] for name in shapes if "/moving_" not in name}
    save_tf1(tmp_path / "models" / "secret", {**shapes, **slots}, step=80000)
    load_tf1_checkpoint(model, tmp_path / "models" / "secret")
    assert_loaded(model)


def test_mnist_network_with_adam_slots(tmp_path):
    model = MnistCNN(dtype="float64")
    model.build((None, 28, 28, 1))
    shapes = shapes_of(model)
    assert list(shapes) == ["Variable", *(f"Variable_{i}" for i in range(1, 8))]
    slots = {f"{n}/{slot}": s for n, s in shapes.items() for slot in ("Adam", "Adam_1")}
    save_tf1(tmp_path, {**shapes, **slots, "beta1_power": (), "beta2_power": ()})
    load_tf1_checkpoint(model, tmp_path)
    assert_loaded(model)
    assert model.hidden_layer.kernel.dtype == "float64"


def test_table_names_every_variable_once():
    model = thin()
    table = tf1_names(model)
    moving = {id(v) for name, v in table.items() if "/moving_" in name}
    assert {id(v) for v in table.values()} - moving == {id(v) for v in model.trainable_variables}
    assert {id(v) for v in table.values()} == {id(v) for v in model.variables}
    assert "unit_1_0/shared_activation/BatchNorm/moving_mean" in table
    assert "unit_2_0/residual_only_activation/BatchNorm/beta" in table


def test_network_is_recognised(tmp_path):
    original = WideResNet(14, 2, num_classes=7)
    original.build((None, 32, 32, 3))
    save_tf1(tmp_path, shapes_of(original))
    model = from_tf1_checkpoint(tmp_path, input_layer="unit_norm", dtype="float64")
    received = (model.depth, model.width, model.num_classes, model.input_layer)
    assert received == (14, 2, 7, "unit_norm")
    assert model.compute_dtype == "float64"
    assert_loaded(model)


def test_neither_network(tmp_path):
    save_tf1(tmp_path, {"vgg/weights": (3,)})
    with pytest.raises(UserError, match=r"network of the challenges.*received vgg/weights"):
        from_tf1_checkpoint(tmp_path)


def test_missing_left_over_and_wrong_shape_are_named_and_nothing_is_loaded(tmp_path, shapes):
    del shapes["unit_2_0/sub1/conv1/DW"]
    shapes["logit/biases"] = (11,)
    shapes["logit/extra"] = (2,)
    shapes["input/init_conv/DW/RMSProp"] = (2,)
    save_tf1(tmp_path, shapes)
    model = thin()
    before = [v.numpy() for v in model.variables]
    with pytest.raises(UserError) as error:
        load_tf1_checkpoint(model, tmp_path)
    assert "missing unit_2_0/sub1/conv1/DW" in str(error.value)
    assert "left over logit/extra" in str(error.value)
    assert "left over input/init_conv/DW/RMSProp" in str(error.value)
    assert "logit/biases has shape (11,) where the model has (10,)" in str(error.value)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_a_long_list_of_faults_is_cut(tmp_path):
    save_tf1(tmp_path, {"logit/DW": (64, 10)})
    with pytest.raises(UserError, match=r"missing input/init_conv/DW.*and \d\d more\.$"):
        load_tf1_checkpoint(thin(), tmp_path)


def test_checkpoint_of_the_other_network(tmp_path, shapes):
    save_tf1(tmp_path, shapes)
    model = MnistCNN()
    model.build((None, 28, 28, 1))
    with pytest.raises(UserError, match=r"does not fit MnistCNN: missing Variable;"):
        load_tf1_checkpoint(model, tmp_path)


def test_foreign_path_in_the_checkpoint_file(tmp_path, shapes):
    for step in (90, 1000):
        save_tf1(tmp_path, shapes, step=step)
    state = tmp_path / "checkpoint"
    for line, expected in {
        'model_checkpoint_path: "/home/someone/models/secret/checkpoint-90"': 90,
        r'model_checkpoint_path: "C:\\models\\checkpoint-90"': 90,
        'model_checkpoint_path: "checkpoint-90"': 90,
        'model_checkpoint_path: "/home/someone/checkpoint-7"': 1000,  # absent: the newest
        "<!DOCTYPE html>": 1000,
    }.items():
        state.write_text(f'{line}\nall_model_checkpoint_paths: "checkpoint-1000"\n')
        assert checkpoint_prefix(tmp_path) == tmp_path / f"checkpoint-{expected}"
    state.unlink()
    assert checkpoint_prefix(str(tmp_path)) == tmp_path / "checkpoint-1000"
    load_tf1_checkpoint(thin(), tmp_path / "checkpoint-90")


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint in .*expected checkpoint-<step>\.index"):
        load_tf1_checkpoint(thin(), tmp_path)
    with pytest.raises(UserError, match="no such folder or prefix"):
        load_tf1_checkpoint(thin(), tmp_path / "absent")
    (tmp_path / "secret.zip").write_text("<html>")
    with pytest.raises(UserError, match="a file, not a folder"):
        load_tf1_checkpoint(thin(), tmp_path / "secret.zip")


@pytest.mark.parametrize(
    "damage", ["truncated data", "no data", "html data", "html index", "empty"]
)
def test_damaged_files(tmp_path, shapes, damage):
    prefix = save_tf1(tmp_path, shapes)
    data, index = (tmp_path / f"checkpoint-100.{e}" for e in ("data-00000-of-00001", "index"))
    if damage == "truncated data":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif damage == "no data":
        data.unlink()
    elif damage == "empty":
        index.write_bytes(b"")
    else:
        (data if "data" in damage else index).write_text("<html>not found</html>")
    model = thin()
    before = [v.numpy() for v in model.variables]
    with pytest.raises(UserError, match=f"cannot read .*checkpoint {prefix}, .*damaged") as error:
        load_tf1_checkpoint(model, tmp_path)
    assert "\n" not in str(error.value)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_truncated_index(tmp_path, shapes):
    save_tf1(tmp_path, shapes)
    index = tmp_path / "checkpoint-100.index"
    index.write_bytes(index.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot read checkpoint"):
        from_tf1_checkpoint(tmp_path)


def test_convert(tmp_path, shapes, golden_dir):
    source = golden_dir / "cifar10_thin" / "models" / "adv_trained"
    output = tmp_path / "new" / "teacher.keras"
    with pytest.raises(
        UserError, match=rf"expected --output={output} to be writable; No such file"
    ):
        convert("/no/checkpoint", output)  # before anything is loaded
    output.parent.mkdir()
    assert convert(source, output) <= 1e-5
    model = keras.saving.load_model(output)
    x = np.random.default_rng(3).uniform(0, 255, (2, 32, 32, 3))
    np.testing.assert_array_equal(
        model(x, training=False), from_tf1_checkpoint(source)(x, training=False)
    )
    assert [p.name for p in output.parent.iterdir()] == ["teacher.keras"]
    before = output.read_bytes()
    with pytest.raises(UserError, match="exists"):
        convert(source, output)
    assert output.read_bytes() == before
    with pytest.raises(UserError, match=r"ending in \.keras"):
        convert(source, tmp_path / "teacher.h5")


def test_convert_writes_nothing_if_the_file_differs(tmp_path, monkeypatch, golden_dir):
    other = WideResNet(8, 1)
    other.build((None, 32, 32, 3))
    monkeypatch.setattr(keras.saving, "load_model", lambda path: other)
    with pytest.raises(UserError, match="a difference of"):
        convert(golden_dir / "cifar10_thin" / "models" / "adv_trained", tmp_path / "m.keras")
    assert not list(tmp_path.iterdir())


def test_convert_command(tmp_path, golden_dir):
    folder = tmp_path / "copy"
    shutil.copytree(golden_dir / "mnist" / "models" / "adv_trained", folder)
    output = tmp_path / "m.keras"
    flags = [f"--checkpoint={folder}", f"--output={output}"]
    command = [sys.executable, "-m", "madry_models.convert", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "largest difference of logits after reloading: 0" in done.stdout
    assert output.is_file()
