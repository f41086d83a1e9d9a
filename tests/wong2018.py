"""The provably robust networks of Wong et al. 2018 in `../shared/models/wong2018`, as ports."""

from pathlib import Path

import keras
import numpy as np

from igam_tf.pytorch.weights import load_port

FOLDER = Path(__file__).parents[2] / "shared" / "models" / "wong2018"
EPS = {"mnist_eps0.1": 0.1, "mnist_small_eps0.3": 0.3, "cifar_small_8px": 8 / 255}


def network(name: str) -> keras.Model:
    """Images [B,H,W,C] in 0..1 -> logits [B,10]."""
    images = "cifar" if name.startswith("cifar") else "mnist"
    return load_port(FOLDER / f"{name}.npz", f"wong-small-{images}")


def masks() -> dict[str, np.ndarray]:
    """Which of the first 500 test images the authors' AutoAttack leaves, [500] bool of each network."""
    return dict(np.load(FOLDER / "autoattack_first500.npz"))
