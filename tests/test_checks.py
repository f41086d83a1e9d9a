"""What every refusal of a user's mistake has in common."""

import sys
import types

import pytest

import igam_tf
from igam_tf.method.architectures import from_function


def test_a_users_mistake_is_a_value_error():
    assert issubclass(igam_tf.UserError, ValueError)


def test_a_refusal_within_a_users_function_is_told_as_it_is(monkeypatch):
    def build():
        raise igam_tf.UserError("expected depth 10; received 11")

    monkeypatch.setitem(sys.modules, "own_models", types.SimpleNamespace(build=build))
    with pytest.raises(igam_tf.UserError, match=r"^expected depth 10; received 11$"):
        from_function("own_models:build")
