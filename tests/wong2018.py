"""The provably robust networks of Wong et al. 2018 in `../shared/models/wong2018`, ported to Keras."""

from pathlib import Path

import keras
import numpy as np

FOLDER = Path(__file__).parents[2] / "shared" / "models" / "wong2018"
EPS = {"mnist_eps0.1": 0.1, "mnist_small_eps0.3": 0.3, "cifar_small_8px": 8 / 255}


def network(name: str) -> keras.Model:
    """Images [B,H,W,C] in 0..1 -> logits [B,10]."""
    layers = keras.layers
    arrays = np.load(FOLDER / f"{name}.npz")
    size, channels = (32, 3) if name.startswith("cifar") else (28, 1)
    model = keras.Sequential([keras.Input((size, size, channels))])
    if channels == 3:
        mean = (0.485, 0.456, 0.406)
        model.add(layers.Rescaling(1 / 0.225, [-m / 0.225 for m in mean]))
    for filters in (16, 32):  # padding 1 as PyTorch's; Keras's "same" pads alike for even sizes
        model.add(layers.Conv2D(filters, 4, 2, padding="same", activation="relu"))
    model.add(layers.Permute((3, 1, 2)))  # flattened in the order channel, row, column
    model.add(layers.Flatten())
    model.add(layers.Dense(100, activation="relu"))
    model.add(layers.Dense(10))
    weights = []
    for i in (0, 2, 5, 7):
        kernel = arrays[f"{i}.weight"]
        weights += [kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T]
        weights += [arrays[f"{i}.bias"]]
    model.set_weights(weights)
    return model


def masks() -> dict[str, np.ndarray]:
    """Which of the first 500 test images the authors' AutoAttack leaves, [500] bool of each network."""
    return dict(np.load(FOLDER / "autoattack_first500.npz"))
