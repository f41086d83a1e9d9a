"""What every refusal of a user's mistake has in common."""

import doctest
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

import igam_tf
from igam_tf.common import checks
from igam_tf.method.architectures import from_function


def test_a_users_mistake_is_a_value_error():
    assert issubclass(igam_tf.UserError, ValueError)


def test_a_refusal_within_a_users_function_is_told_as_it_is(monkeypatch):
    def build():
        raise igam_tf.UserError("expected depth 10; received 11")

    monkeypatch.setitem(sys.modules, "own_models", types.SimpleNamespace(build=build))
    with pytest.raises(igam_tf.UserError, match=r"^expected depth 10; received 11$"):
        from_function("own_models:build")


X, Y = np.full((2, 3, 3, 1), 0.5, "float32"), np.array([0, 1])
WRONG = {
    "pixel range": (lambda: checks.check_pixel_max(0.0), "0.0"),
    "radius": (lambda: checks.check_eps(8, "linf", (3, 3, 1)), "8/255.* 8$"),
    "radius in l2": (lambda: checks.check_eps(4, "l2", (3, 3, 1)), "3 in l2.* 4$"),
    "no radius in l2": (lambda: checks.check_eps(None, "l2"), "--eps"),
    "axes": (lambda: checks.check_images(X[0], 1.0), r"\[3, 3, 1\]"),
    "no images": (lambda: checks.check_images(X[:0], 1.0), r"\[0, 3, 3, 1\]"),
    "bytes": (lambda: checks.check_images(X.astype("uint8"), 255.0), "uint8: .*astype"),
    "integers": (lambda: checks.check_images(X.astype(int), 255.0, uint8=True), "int64"),
    "range": (lambda: checks.check_pixels(2 * X - 0.5, 0.25), r"0\.\.0\.25.* 0\.5\.\.0\.5"),
    "dark": (lambda: checks.check_pixels(X + Y.reshape(2, 1, 1, 1) / 8, 255.0), "pixel_max=1.0"),
    "NaN": (lambda: checks.check_pixels(X * np.nan, None), "NaN"),
    "lengths": (lambda: checks.check_labels(Y, n=3), "3 and 2"),
    "classes": (lambda: checks.check_labels(Y, classes=1), r"0\.\.1: two classes need two logits"),
    "outputs": (lambda: checks.check_logits((X, X), "the student"), "a tuple of 2 outputs"),
    "no array": (lambda: checks.check_logits(1.0, "the student"), "the student.*a float"),
    "width": (lambda: checks.check_logits(X[:, 0, :, 0], "it", classes=2), r"\[B,2\].*\[2, 3\]"),
    "no model": (lambda: checks.check_model(len, "teacher"), "teacher.*call"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_every_check_refuses_in_one_form(name):
    call, figures = WRONG[name]
    with pytest.raises(igam_tf.UserError, match=figures) as refused:
        call()
    assert str(refused.value).startswith("expected ")
    assert "; received " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_right_passes():
    checks.check_pixel_max(1.0)
    checks.check_eps(3.0, "l2", X.shape[1:])
    checks.check_images(X, 1.0)
    checks.check_pixels(X + Y.reshape(2, 1, 1, 1) / 8, 255.0, some=True)
    checks.check_labels(Y.astype("uint8"), n=2, classes=2)
    checks.check_logits(X[:, 0, :, 0], "it", n=2, classes=3)


def test_the_example_runs():
    assert doctest.testmod(checks).failed == 0


def test_a_network_of_pytorch_is_told_the_bridge():
    network = type("Net", (), {"__module__": "torch.nn"})()
    x, y = np.zeros((4, 8, 8, 1), np.float32), np.zeros(4, np.int64)
    for call in (
        lambda: igam_tf.evaluate(network, x, y, "clean", eps=0.1, pixel_max=1.0),
        lambda: igam_tf.audit_model(network, x, y, eps=0.1, pixel_max=1.0),
        lambda: igam_tf.Teacher(network, num_classes=10),
        lambda: igam_tf.trainer("standard", network, pixel_max=1.0),
    ):
        with pytest.raises(igam_tf.UserError, match=r"received a Net: igam_tf\.from_torch"):
            call()


def test_a_sentence_within_a_graph_is_told_alone():
    def failing(x):
        raise igam_tf.UserError("expected rain; received sun")

    graph = checks.traced(
        tf.function(lambda x: tf.numpy_function(failing, [x], tf.float32)), tf.TensorSpec([])
    )
    with pytest.raises(igam_tf.UserError, match=r"^expected rain; received sun$"):
        graph(tf.constant(1.0))
