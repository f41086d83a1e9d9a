"""The paper's transfers, as published (Appendix A), and what the release does differently."""

import dataclasses
from typing import Any

from igam_tf.datasets import DatasetSpec, steps_per_epoch
from igam_tf.method.settings import PUBLISHED_TO_MEAN_UNIT

FINETUNE_EPOCHS = 100  # of the paper's FT-*


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """What the paper says of one transfer (Appendix A; epochs of fine-tuning: §5).

    Attributes:
        finetune_epochs: stage 1.
        lambda_adv, lambda_diff: as published.
        disc_channels: of f_disc's convolutions.
        disc_every: k.
        release_noise: half-width of the release's noise on training images, 0..255 (R10).
    """

    finetune_epochs: int
    lambda_adv: float
    lambda_diff: float
    disc_channels: tuple[int, ...]
    disc_every: int
    release_noise: float = 0.0

    def as_published(self, train_images: int, method: str) -> dict[str, Any]:
        """The row as settings; epochs, 200 for the student, become steps of 128 images."""
        epoch = steps_per_epoch(train_images, 128)
        epochs = FINETUNE_EPOCHS if method == "finetune" else self.finetune_epochs
        return {
            "finetune_steps": epochs * epoch,
            "train_steps": 200 * epoch,
            "lambda_adv": self.lambda_adv,
            "lambda_diff": self.lambda_diff * PUBLISHED_TO_MEAN_UNIT,
            "disc_channels": self.disc_channels,
            "disc_every": self.disc_every,
        }

    def as_released(self, method: str) -> dict[str, Any]:
        """What the released code has in its place: lambda_diff in its own unit, and R1 to R12."""
        own = {"lambda_diff": self.lambda_diff, "pixel_noise": self.release_noise} | RELEASE
        return {k: v for k, v in own.items() if (k, method) != ("finetune_steps", "finetune")}


_LARGE, _SMALL = (16, 32, 64, 128, 256), (8, 16, 32, 64)

# (source, target, transform) -> its row; the first of a pair is its default.
TRANSFERS: dict[tuple[str, str, str], Transfer] = {
    # A.1, Table 1: IGAM-MNIST
    ("mnist", "cifar10", "grey_crop"): Transfer(
        finetune_epochs=10, lambda_adv=1.0, lambda_diff=100.0, disc_channels=_LARGE, disc_every=10
    ),
    # A.1, Table 2: IGAM-Upsize, -Pad, -RandomPad, -TransposeConv
    ("tiny_imagenet", "cifar10", "resize"): Transfer(
        finetune_epochs=6, lambda_adv=5.0, lambda_diff=10.0, disc_channels=_SMALL, disc_every=5
    ),
    ("tiny_imagenet", "cifar10", "pad"): Transfer(
        finetune_epochs=6, lambda_adv=2.0, lambda_diff=20.0, disc_channels=_SMALL, disc_every=5
    ),
    ("tiny_imagenet", "cifar10", "random_pad"): Transfer(
        finetune_epochs=6, lambda_adv=1.0, lambda_diff=10.0, disc_channels=_SMALL, disc_every=5
    ),
    ("tiny_imagenet", "cifar10", "transpose_conv"): Transfer(
        finetune_epochs=6, lambda_adv=1.0, lambda_diff=10.0, disc_channels=_SMALL, disc_every=5
    ),
    # A.2, Table 3: IGAM-MNIST, IGAM-CIFAR10
    ("mnist", "cifar100", "grey_crop"): Transfer(
        finetune_epochs=10, lambda_adv=0.1, lambda_diff=200.0, disc_channels=_LARGE, disc_every=5
    ),
    ("cifar10", "cifar100", "identity"): Transfer(
        finetune_epochs=6, lambda_adv=2.0, lambda_diff=10.0, disc_channels=_LARGE, disc_every=10,
        release_noise=8.0,
    ),
    # A.3, Figure 5: IGAM-CIFAR10-Resize, -Crop, IGAM-CIFAR100-Resize, -Crop
    ("cifar10", "tiny_imagenet", "resize"): Transfer(
        finetune_epochs=5, lambda_adv=0.1, lambda_diff=200.0, disc_channels=_SMALL, disc_every=5
    ),
    ("cifar10", "tiny_imagenet", "crop"): Transfer(
        finetune_epochs=5, lambda_adv=2.0, lambda_diff=50.0, disc_channels=_SMALL, disc_every=5
    ),
    ("cifar100", "tiny_imagenet", "resize"): Transfer(
        finetune_epochs=5, lambda_adv=0.1, lambda_diff=200.0, disc_channels=_SMALL, disc_every=5
    ),
    ("cifar100", "tiny_imagenet", "crop"): Transfer(
        finetune_epochs=5, lambda_adv=0.5, lambda_diff=200.0, disc_channels=_SMALL, disc_every=5
    ),
    # Not in the paper: a teacher of the very task, with what Table 3 has for IGAM-CIFAR10
    ("cifar10", "cifar10", "identity"): Transfer(
        finetune_epochs=6, lambda_adv=2.0, lambda_diff=10.0, disc_channels=_LARGE, disc_every=10
    ),
}  # fmt: skip


def without_a_row(source: DatasetSpec, target: DatasetSpec) -> Transfer:
    """What a transfer that the paper does not have takes in its place.

    The weights are IGAM-MNIST's but for lambda_adv = 1, k is 5, and f_disc has as many convolutions of
    stride 2, at most 5, as leave the smaller side of what it sees more than one pixel.
    """
    side = min(*source.image_shape[:2], *target.image_shape[:2])
    return Transfer(
        finetune_epochs=6,
        lambda_adv=1.0,
        lambda_diff=100.0,
        disc_channels=_LARGE[: max(1, (side - 1).bit_length())],
        disc_every=5,
    )


def few_images(target: DatasetSpec) -> dict[str, int]:
    """Images held out and evaluated: 1000, but a tenth of the training and all test images at most."""
    return {
        "num_validation": min(1000, target.train_images // 10),
        "eval_examples": min(1000, target.test_images),
    }


def best_objective(eps: float) -> dict[str, Any]:
    """`--fidelity=best`: eps |J|_1 is the first-order loss of an l-inf attack of radius eps.

    Args:
        eps: as a fraction of the pixel range, the unit of J (Finlay and Oberman 2019, arXiv 1905.11468).
    """
    return {"diff_norm": "l1", "lambda_diff": eps}


RELEASE: dict[str, Any] = {
    "input_gradient": "softmax",  # R1
    "gradient_pixel_max": 255.0,  # R1
    "diff_reduction": "sum",  # R2
    "adv_reduction": "mean_of_both",  # R3
    "disc_outputs": 2,  # R3, R4
    "disc_view": "all",
    "student_input": "unit_norm",  # R5
    "teacher_batch_norm": "batch",  # R6
    "batch_size": 32,  # R7
    "train_steps": 320_000,  # R7
    "igam_start": 280_000,  # R8
    "disc_gradients": "recomputed",  # R9
    "disc_every": 5,  # R9
    "finetune_steps": 4700,  # R11
    "up_resize": "legacy",  # R12
}
