"""What is known about each data set before any image is read, and how images are held in memory."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from madry_models.errors import UserError


@dataclass(frozen=True)
class DatasetSpec:
    """A data set and its threat model.

    Attributes:
        name: the tfds name.
        image_shape: (H, W, C).
        num_classes: number of labels.
        pixel_max: the models' pixel range is [0, pixel_max]; it belongs to the model/data pair.
        eps: l-inf radius of the field's threat model, as a fraction of the pixel range.
        step_size: step of the PGD that goes with it, as a fraction of the pixel range.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    pixel_max: float
    eps: float
    step_size: float


# eps and steps: the MadryLab challenges (MNIST 40 x 0.01 in 0.3, CIFAR-10 steps of 2/255 in 8/255);
# the paper keeps CIFAR-10's for CIFAR-100 and Tiny-ImageNet.
SPECS = {
    spec.name: spec
    for spec in (
        DatasetSpec("mnist", (28, 28, 1), 10, pixel_max=1.0, eps=0.3, step_size=0.01),
        DatasetSpec("cifar10", (32, 32, 3), 10, pixel_max=255.0, eps=8 / 255, step_size=2 / 255),
        DatasetSpec("cifar100", (32, 32, 3), 100, pixel_max=255.0, eps=8 / 255, step_size=2 / 255),
        DatasetSpec(
            "tiny_imagenet", (64, 64, 3), 200, pixel_max=255.0, eps=8 / 255, step_size=2 / 255
        ),
    )
}


@dataclass(frozen=True, eq=False)
class Split:
    """All images of a split, in memory.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        spec: the data set it stands for.
        source: "tfds" or "builtin".
        name: "train", "test" or "validation".
    """

    images: np.ndarray
    labels: np.ndarray
    spec: DatasetSpec
    source: str
    name: str

    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of images and labels, for run folders."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images))
        digest.update(np.ascontiguousarray(self.labels))
        return digest.hexdigest()[:16]

    def take(self, indices: np.ndarray, name: str) -> "Split":
        """The split of these examples, under another name."""
        return replace(self, images=self.images[indices], labels=self.labels[indices], name=name)


def hold_out(split: Split, num_validation: int, seed: int) -> tuple[Split, Split]:
    """(train, validation): a random, disjoint, seeded division of a *training* split.

    Raises:
        UserError: nothing would be left to train on.
    """
    n = len(split.labels)
    if not 0 <= num_validation < n:
        raise UserError(
            f"expected between 0 and {n - 1} validation images, to be held out of the {n} of "
            f"{split.spec.name}/{split.name}; received {num_validation}"
        )
    order = np.random.default_rng(seed).permutation(n)
    validation, train = np.sort(order[:num_validation]), np.sort(order[num_validation:])
    return split.take(train, split.name), split.take(validation, "validation")
