"""The loop's own reports: a loss that is not finite, and a discriminator that has won."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf.common.errors import UserError
from igam_tf.experiments.config import Config
from igam_tf.method.optimizers import Momentum
from igam_tf.method.trainer import ClassifierTrainer
from igam_tf.storage.run_folder import RunFolder, load_model
from igam_tf.training.loop import SaturationWatch, train
from madry_models import WideResNet


def _trainer() -> ClassifierTrainer:
    keras.utils.set_random_seed(0)
    network = WideResNet(8, 1)
    network.build((None, 8, 8, 3))
    trainer = ClassifierTrainer(network)
    trainer.compile(optimizer=Momentum(0.01, momentum=0.9))
    trainer.optimizer.build(trainer.trained_variables)
    return trainer


def _batches(nan_at: int):
    def batches(done: int) -> tf.data.Dataset:
        x = np.full((4, 8, 8, 3), 7.0, np.float32)
        steps = [x * np.nan if step == nan_at else x for step in range(done + 1, 9)]
        return tf.data.Dataset.from_tensor_slices(
            (np.stack(steps), np.zeros((len(steps), 4), np.int64))
        )

    return batches


def test_nan_stops_at_once_names_step_and_term_and_keeps_the_last_good_state(tmp_path):
    cadence = {"stage": "s", "steps": 8, "log_every": 2, "checkpoint_every": 2}
    with RunFolder(tmp_path / "run", Config()) as folder:
        with pytest.raises(UserError, match=r"stage s, step 6: L_xent is not finite.*ckpt-4"):
            train(_trainer(), _batches(nan_at=6), folder=folder, **cadence)
        trainer = _trainer()
        train(trainer, _batches(nan_at=0), folder=folder, **cadence)
    assert int(trainer.optimizer.iterations) == 8
    assert all(np.isfinite(v.numpy()).all() for v in trainer.state_variables)


def test_a_saturated_discriminator_is_reported_once(caplog):
    watch = SaturationWatch(patience=2)
    logging.getLogger("absl").propagate = True
    with caplog.at_level(logging.WARNING, logger="absl"):
        for step, accuracy in enumerate([1.0, 0.9, 1.0, 1.0, 1.0]):
            watch(step, {"disc_accuracy": accuracy, "L_adv": -0.01})
    assert caplog.text.count("the discriminator has saturated") == 1
    assert "step 3" in caplog.text


def test_a_vanishing_l_adv_is_saturation_and_plain_steps_are_not(caplog):
    watch = SaturationWatch(patience=1)
    with caplog.at_level(logging.WARNING, logger="absl"):
        watch(1, {"disc_accuracy": 0.0, "L_adv": 0.0})  # before igam_start: the term is off
        watch(2, {"L_xent": 1.0})
        assert not caplog.text
        watch(3, {"disc_accuracy": 0.99, "L_adv": -5e-4})
    assert "saturated" in caplog.text


def test_two_processes_in_one_folder(tmp_path):
    with (
        RunFolder(tmp_path / "run", Config()),
        pytest.raises(UserError, match="another process is working in"),
    ):
        RunFolder(tmp_path / "run", Config())
    RunFolder(tmp_path / "run", Config()).close()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"it holds other files and no config\.json"):
        RunFolder(tmp_path, Config())
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_an_unreadable_model_is_one_sentence(tmp_path):
    path = tmp_path / "student.keras"
    path.write_bytes(b"PK not really")
    with pytest.raises(UserError, match=r"expected a readable \.keras file"):
        load_model(path)
