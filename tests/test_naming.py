"""A functional model by `module:function` and as `.keras` file: every program gives the same figures."""

import json

import keras
import numpy as np
import pytest

from igam_tf import datasets, eval_pgd
from igam_tf.audit import __main__ as audit_program
from igam_tf.datasets import SPECS, Split
from igam_tf.figures import __main__ as figures_program

MODULE = """
import keras, numpy as np

def net():
    x = keras.Input((28, 28, 1))
    h = keras.layers.Flatten()(x)
    model = keras.Model(x, keras.layers.Dense(10)(keras.layers.Dense(8, activation="tanh")(h)))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.05, w.shape) for w in model.get_weights()])
    return model
"""


@pytest.fixture
def names(tmp_path, monkeypatch):
    """The two names of one model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "functional_nets.py").write_text(MODULE)
    import functional_nets

    functional_nets.net().save(tmp_path / "net.keras")

    def load(name, split, *, source, data_dir, seed):
        images = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 1), np.uint8)
        return Split(images, np.arange(8) % 10, SPECS["mnist"], "builtin", split)

    monkeypatch.setattr(datasets, "load", load)
    return "functional_nets:net", "net.keras"


def _same(found) -> None:
    by_function, by_file = found
    assert by_function == by_file


def test_eval_pgd(names, command_of, tmp_path):
    command, found = command_of(eval_pgd), []
    for i, name in enumerate(names):
        file = tmp_path / f"{i}.json"
        command(
            f"--model={name}", "--dataset=mnist", "--data=builtin", "--attacks=clean,fgsm,pgd3",
            "--pixel_max=1", f"--json={file}",
        )  # fmt: skip
        found.append(json.loads(file.read_text())["results"])
    _same(found)


def test_audit(names, command_of, tmp_path):
    command, found = command_of(audit_program), []
    for i, name in enumerate(names):
        command(
            f"--model={name}", "--dataset=mnist", "--data=builtin", "--workdir", str(tmp_path / str(i)),
            "--checks=logits,deterministic,gradients,iterative,planted",
        )  # fmt: skip
        report = json.loads((tmp_path / str(i) / "report.json").read_text())
        found.append((report["checks"], report["headline"]))
    _same(found)


def test_figures(names, command_of, tmp_path):
    keras.utils.set_random_seed(0)
    command, found = command_of(figures_program), []
    for i, name in enumerate(names):
        command(
            f"--runs=net={name}", "--dataset=mnist", "--data=builtin", "--figures=alignment",
            "--num_examples=8", "--num_drawn=2", f"--output={tmp_path / str(i)}",
        )  # fmt: skip
        found.append(json.loads((tmp_path / str(i) / "figures.json").read_text())["figures"])
    _same(found)
