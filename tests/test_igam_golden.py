"""`--fidelity=release` against the original release's own steps, in float64 (golden/README.md)."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import GOLDEN

from igam_tf.experiments.recipes import recipe
from igam_tf.method.discriminator import Discriminator
from igam_tf.method.igam import IGAM
from igam_tf.method.optimizers import Momentum
from igam_tf.method.settings import Settings
from igam_tf.method.teacher import Teacher
from igam_tf.method.transforms import Identity
from madry_models import WideResNet
from madry_models.tf1_checkpoint import tf1_names

FILES = sorted(GOLDEN.glob("**/igam_steps_*.npz"))


def _wide_resnet(filters: list[int], num_classes: int, kind: str) -> WideResNet:
    assert filters == [16, filters[1], 2 * filters[1], 4 * filters[1]]
    input_layer = {"zero mean, unit l2 norm per image": "unit_norm"}.get(kind, "standardize")
    model = WideResNet(
        32, filters[1] // 16, num_classes=num_classes, input_layer=input_layer, dtype="float64"
    )
    model.build((None, 32, 32, 3))
    return model


def _trained_names(model, prefix: str = "") -> dict:
    names = tf1_names(model).items()
    return {prefix + name: v for name, v in names if "/moving_" not in name}


def _discriminator_names(model: Discriminator) -> dict:
    names = {}
    for i, (conv, norm) in enumerate(zip(model.convolutions, model.norms, strict=True)):
        bn = f"discriminator/BatchNorm{f'_{i}' if i else ''}"
        names |= {
            f"discriminator/conv{i}/DW": conv.kernel,
            f"discriminator/conv{i}/biases": conv.bias,
            f"{bn}/beta": norm.beta,
            f"{bn}/gamma": norm.gamma,
        }
    return names | {
        "discriminator/logit/DW": model.logits_layer.kernel,
        "discriminator/logit/biases": model.logits_layer.bias,
    }


class Recorded:
    """One golden file, and our IGAM in its initial state."""

    def __init__(self, path: Path):
        self.golden = golden = np.load(path)
        self.meta = meta = json.loads(str(golden["meta"]))
        student = _wide_resnet(meta["filters"], meta["num_classes"], meta["student_input"])
        source_classes = golden["init/logit/DW"].shape[1]
        network = _wide_resnet(meta["filters"], source_classes, meta["teacher_input"])
        teacher = Teacher(network, Identity(), num_classes=meta["num_classes"])
        teacher.build((None, 32, 32, 3))
        channels = [meta["disc_base_channels"] * 2**i for i in range(meta["disc_conv_layers"])]
        disc = Discriminator(
            channels, outputs=recipe("fidelity/release")["disc_outputs"][0], dtype="float64"
        )
        disc.build((None, 32, 32, 3))
        self.trained = _trained_names(student, "classifier/")
        self.trained |= _discriminator_names(disc)
        self.names = self.trained | _trained_names(network)
        self.names |= {
            "target_task_logit/DW": teacher.logits_layer.kernel,
            "target_task_logit/biases": teacher.logits_layer.bias,
        }
        for name, variable in self.names.items():
            variable.assign(golden[f"init/{name}"])
        release = recipe("fidelity/release").items()
        settings = {k: v for k, (v, _) in release if k in Settings.__dataclass_fields__}
        settings |= {
            "lambda_adv": meta["lambda_adv"],
            "lambda_diff": meta["lambda_diff"],
            "disc_every": meta["disc_update_every"],
            "igam_start": 0,
        }
        self.igam = IGAM(
            student, teacher, disc, settings=Settings(**settings), weight_decay=meta["weight_decay"]
        )
        momentum = lambda: Momentum(meta["learning_rate"], momentum=meta["momentum"])  # noqa: E731
        self.igam.compile(momentum(), momentum())

    def batch(self, step: int) -> tuple[tf.Tensor, tf.Tensor]:
        x = tf.constant(self.golden["x"][step], tf.float64)
        return x, tf.constant(self.golden["y"][step])


@pytest.fixture(params=FILES or [None], ids=lambda p: p.stem if p else "none")
def recorded(request, golden_dir) -> Iterator[Recorded]:
    if request.param is None:
        pytest.skip(f"no igam_steps_*.npz below {golden_dir}")
    before = keras.config.floatx()
    keras.config.set_floatx("float64")  # an optimizer keeps its learning rate in this precision
    try:
        yield Recorded(request.param)
    finally:
        keras.config.set_floatx(before)


def _relative(ours, golden) -> float:
    ours, golden = np.asarray(ours), np.asarray(golden)
    return float(np.max(np.abs(ours - golden)) / np.max(np.abs(golden)))


def test_golden_names_are_all_of_the_file(recorded):
    ours = {f"init/{name}" for name in recorded.names}
    theirs = {n for n in recorded.golden.files if n.startswith("init/") and "/moving_" not in n}
    assert ours == theirs


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_golden_steps(recorded, monkeypatch, compiled):
    """First gradients, every recorded number of every step, and the weights they end in.

    Step by step by default; that graphs do the same: `test_igam`.

    The recordings' tf.nn.moments takes the mean inside the variance for a constant.
    """
    monkeypatch.setattr("igam_tf.method.igam.whole_second_derivatives", contextlib.nullcontext)
    igam, golden = recorded.igam, recorded.golden
    by_id = {id(variable): name for name, variable in recorded.names.items()}
    student_gradients, seen = igam.student_gradients, []

    def watched(x, y):
        seen.append(student_gradients(x, y))
        return seen[-1]

    def step_of(phase):
        """A step that returns what `student_gradients` gave it; one trace instead of two."""
        step = lambda data: (igam.step_of_kind(data, phase), seen.pop())[1]  # noqa: E731
        return tf.function(step, autograph=False) if compiled else step

    monkeypatch.setattr(igam, "student_gradients", watched)
    step_of_phase = {phase: step_of(phase) for phase in ("student", "discriminator")}
    student_names = [by_id[id(v)] for v in igam.trained_variables]
    for step in range(recorded.meta["steps"]):
        x, y = recorded.batch(step)
        decay, disc_decay = (
            float(igam.decay(model.kernels)) for model in (igam.network, igam.discriminator)
        )
        grads, terms, logits, (j_s, j_t) = step_of_phase[igam.phase(step)]((x, y))
        if step == 0:
            assert _relative(j_s, golden["js0"]) < 1e-7
            assert _relative(j_t, golden["jt0"]) < 1e-7
            for name, grad in zip(student_names, grads, strict=True):
                assert _relative(grad, golden[f"grad0/{name}"]) < 1e-6, name
        xent = float(tf.reduce_mean(terms["L_xent"]))
        disc_xent = -float(igam.reduce_adv(terms["L_adv"]))
        diff = float(igam.reduce_diff(terms["L_diff"]))
        s = igam.settings
        total = xent - s.lambda_adv * disc_xent + s.lambda_diff * diff
        total += decay
        ours = {"xent": xent, "disc_xent": disc_xent, "diff": diff, "total": total}
        ours["acc"] = float(tf.reduce_mean(tf.cast(tf.argmax(logits, 1) == y, tf.float64)))
        ours["disc_acc"] = float(tf.reduce_mean(terms["disc_accuracy"]))
        ours["disc_loss"] = disc_xent + disc_decay
        for name, value in ours.items():
            assert value == pytest.approx(golden[f"rec/{name}"][step], rel=1e-7), (name, step)
    for name, variable in recorded.trained.items():
        start, end = golden[f"init/{name}"].astype(np.float64), golden[f"final/{name}"]
        change = np.linalg.norm(end - start)
        # A bias that feeds a batch norm has no gradient: its change is rounding.
        bound = 1e-6 * change if change > 1e-9 else 1e-9
        assert np.linalg.norm(variable.numpy() - end) <= bound, name
