"""Keras's own ways to keep the most robust weights, and the stop at catastrophic overfitting."""

import doctest

import keras
import numpy as np
import pytest

import igam_tf
from igam_tf.common.errors import UserError
from igam_tf.training import callbacks

EPS, OVERFIT_FROM = 0.1, 2
Y = np.arange(16) % 2
X = (0.5 + 0.21 * (2 * Y - 1))[:, None, None, None] * np.ones((16, 2, 2, 1))
X = X.astype("float32")


class Waves(keras.Model):
    """Margin 2 sin(f (x - 1/2)) of the mean pixel x, all of them 0.21 from 1/2 at the right side.

    With f = 2 it grows with x within eps. With f = 2 pi / eps a step of eps is a whole wave, so FGSM
    returns to the value that it came from, and PGD, with steps of a quarter, finds the trough.
    """

    def __init__(self):
        super().__init__()
        self.f = self.add_weight(shape=(), initializer=keras.initializers.Constant(2.0))

    def call(self, x):
        z = keras.ops.sin(self.f * (keras.ops.mean(x, (1, 2, 3)) - 0.5))
        return keras.ops.stack([-z, z], 1)


class Overfits(keras.callbacks.Callback):
    """What training does to the network, at the begin of an epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch >= OVERFIT_FROM:
            self.model.f.assign(2 * np.pi / EPS)


def trained(*further, look=igam_tf.RobustAccuracy, **settings):
    model = Waves()
    model.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    look = look(X, Y, eps=EPS, attacks="fgsm,pgd20", pixel_max=1.0, **settings)
    each = [Overfits(), look, *further]
    history = model.fit(X, Y, epochs=5, callbacks=each, verbose=0).history
    return model, look, history


def test_the_checkpoint_behind_it_keeps_the_most_robust_weights(tmp_path):
    path = tmp_path / "best.weights.h5"
    best = {"monitor": "val_pgd20", "mode": "max", "save_best_only": True}
    keep = keras.callbacks.ModelCheckpoint(path, save_weights_only=True, **best)
    stop = keras.callbacks.EarlyStopping("val_pgd20", mode="max", patience=2)
    model, _, history = trained(keep, stop)
    assert history["val_fgsm"] == [1.0, 1.0, 1.0]  # patience ends it
    assert history["val_pgd20"] == [1.0, 1.0, 0.0]
    assert float(model.f) == pytest.approx(2 * np.pi / EPS)
    model.load_weights(path)
    assert float(model.f) == 2.0
    before = keras.callbacks.ModelCheckpoint(path, save_weights_only=True, **best)
    before.set_model(model)
    with pytest.warns(UserWarning, match="val_pgd20"):  # Keras's, where it stands before
        before.on_epoch_end(0, {"loss": 1.0})


@pytest.mark.parametrize(("every", "kept", "last"), [(1, 2.0, 2), (3, None, 2)])
def test_it_stops_where_fgsm_alone_fails(every, kept, last):
    model, stop, history = trained(look=igam_tf.OverfittingStop, every=every)
    assert stop.stopped_epoch == last
    assert len(history["loss"]) == last + 1
    assert (history["val_fgsm"][-1], history["val_pgd20"][-1]) == (1.0, 0.0)
    assert float(model.f) == pytest.approx(kept or 2 * np.pi / EPS)


def test_it_lets_a_training_end_that_is_in_order():
    model, stop, history = trained(look=igam_tf.OverfittingStop, gap=1.0)
    assert stop.stopped_epoch is None
    assert len(history["val_pgd20"]) == 5
    assert float(model.f) == pytest.approx(2 * np.pi / EPS)  # nothing is put back


def test_what_it_cannot_use_is_one_sentence():
    for settings, message in (
        ({"attacks": "pgd20"}, "fgsm among the attacks, and PGD as the last; received 'pgd20'"),
        ({"attacks": "pgd20,fgsm"}, "PGD as the last; received 'pgd20,fgsm'"),
        ({"attacks": ["pgd20", "fgsm"]}, "PGD as the last; received"),
        ({"gap": 20}, r"gap within 0\.\.1; received 20"),
        ({"eps": [0.1, 0.2]}, r"eps as a fraction of the pixel range, .*; received \[0.1, 0.2\]"),
    ):
        with pytest.raises(UserError, match=message):
            igam_tf.OverfittingStop(X, Y, **({"eps": EPS} | settings))


def test_the_examples_run():
    assert doctest.testmod(callbacks).failed == 0
