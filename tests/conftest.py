"""Shared fixtures: where the golden files and the small real data sets are."""

import contextlib
import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from igam_tf.datasets import builtin

# As many test processes as cores: threads of their own would only wait for each other.
tf.config.threading.set_intra_op_parallelism_threads(1)
# Four logical CPUs, so that MirroredStrategy can be tested; everything else runs on the first.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)

_SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = Path(os.environ.get("IGAM_GOLDEN", _SHARED / "golden"))
DATA = Path(os.environ.get("IGAM_DATA", _SHARED / "data"))


def pytest_collection_finish() -> None:
    """Leaves a million objects of the libraries out of what every collection of garbage looks at."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


_draw = builtin.draw


@functools.cache
def _drawn(name: str, split: str, seed: int, num: int) -> tuple[np.ndarray, np.ndarray]:
    arrays = _draw(name, split, seed, num=num)
    for array in arrays:
        array.flags.writeable = False
    return arrays


def _draw_many_once(name: str, split: str, seed: int, *, num: int | None = None):
    """The built-in images; hundreds of them, which take a second, are drawn once for all tests."""
    num = num or builtin.SIZES[split]
    return (_drawn if num >= 500 else _draw)(name, split, seed, num=num)


builtin.draw = _draw_many_once


@pytest.fixture(autouse=True, scope="module")
def _seeded_module():
    """What is shared within a file starts from the same weights in every run."""
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def _seeded():
    """And so does each test, whichever ran before it."""
    keras.utils.set_random_seed(0)


@pytest.fixture
def step_by_step() -> Iterator[None]:
    """Runs functions without graphs, whose tracing takes most of the time of a short training."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden files: {GOLDEN} is absent (set IGAM_GOLDEN)")
    return GOLDEN


@pytest.fixture(scope="session")
def data_dir() -> Path:
    if not (DATA / "tensorflow_datasets").is_dir():
        pytest.skip(f"no real data: {DATA}/tensorflow_datasets is absent (set IGAM_DATA)")
    return DATA


@contextlib.contextmanager
def commands():
    """Gives what makes of an entry point's module a function of flags; leaves no flag behind."""
    before = set(flags.FLAGS)

    def of(module):
        module.define_flags()
        return lambda *arguments: module.main(flags.FLAGS([module.__name__, *arguments]))

    try:
        yield of
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


def run_here(module, *arguments: str):
    """Runs a program once in this process."""
    with commands() as command_of:
        return command_of(module)(*arguments)


def small_student(shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A network whose steps are traced in a second, on pixels in 0..255."""
    layers = keras.layers
    return keras.Sequential([
        keras.Input(shape), layers.Rescaling(1 / 255), layers.Conv2D(8, 3, 2, activation="tanh"),
        layers.Conv2D(8, 3, 2, activation="tanh"), layers.GlobalAveragePooling2D(),
        layers.Dense(num_classes),
    ])  # fmt: skip


@pytest.fixture
def command_of():
    """Makes of an entry point's module a function of flags; leaves no flag behind."""
    with commands() as of:
        yield of


@pytest.fixture
def float64():
    """Keras in float64: layers, what it casts batches to, what optimizers keep learning rates in."""
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)
