"""`pgd` against the challenges' own attack, in float64, on every golden network."""

import json

import numpy as np
import pytest
import tensorflow as tf
from conftest import GOLDEN

from igam_tf.attacks import pgd
from igam_tf.attacks.attack_losses import xent
from madry_models.tf1_checkpoint import from_tf1_checkpoint

FILES = sorted(GOLDEN.rglob("golden.npz"))


@pytest.mark.parametrize("path", FILES or [None], ids=lambda p: p.parent.name if p else "none")
def test_golden_pgd(path, golden_dir):
    """From the recorded noise to the recorded end; half the images, for time."""
    assert path, f"no golden.npz below {golden_dir}"
    golden = np.load(path)
    meta = json.loads(str(golden["meta"]))
    low, high = meta["pixel_range"]
    model = from_tf1_checkpoint(path.parent / "models" / "adv_trained", dtype="float64")
    x = golden["x"].reshape(golden["noise"].shape) / (255 / high)
    half = len(x) // 2
    x, y, noise = (tf.constant(t[:half]) for t in (x, golden["y"], golden["noise"]))

    @tf.function(autograph=False)
    def attack(x, y, noise):
        logits_fn = lambda x: model(x, training=False)  # noqa: E731
        settings = {"eps": meta["eps"], "step_size": meta["step_size"], "steps": meta["steps"]}
        x_adv = pgd(logits_fn, x, y, loss=xent, bounds=(low, high), noise=noise, **settings)
        return x_adv, xent(logits_fn(x_adv), y)

    x_adv, values = attack(x, y, noise)
    np.testing.assert_allclose(x_adv, golden["pgd_x"][:half], rtol=1e-7, atol=1e-9 * high)
    assert meta["trace_after"][-1] == meta["steps"]
    np.testing.assert_allclose(values, golden["trace_xent"][-1, :half], rtol=1e-7, atol=1e-12)
