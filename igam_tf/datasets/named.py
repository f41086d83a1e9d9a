"""The known data sets and their threat models, and the form of images in memory."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Integral

import numpy as np

from igam_tf.common.checks import expect
from igam_tf.common.errors import UserError


@dataclass(frozen=True)
class Augment:
    """Random changes to a training image.

    Attributes:
        pad: zero pixels added on every side before a crop of the original size.
        flip: whether half of the images are mirrored.
        noise: half-width of uniform noise per pixel value, in units of 0..255, clipped to the
            pixel range (R10 of the release: 8).
    """

    pad: int = 2
    flip: bool = True
    noise: float = 0.0


@dataclass(frozen=True)
class DatasetSpec:
    """A data set and its threat model.

    The defaults are for a user's own data set.

    Attributes:
        name: a key of `SPECS`, or tfds:<name>, folder:<last name>, npz:<last name>; for messages.
        image_shape: (H, W, C).
        num_classes: number of labels.
        pixel_max: models of this data set take pixels in [0, pixel_max].
        eps: l-inf radius of the usual threat model, as a fraction of the pixel range.
        step_size: step size of PGD in this threat model, as a fraction of the pixel range.
        train_images, test_images: number of images in the split; 0 if not known.
        augment: random changes to training images.
        class_names: in the order of the labels; empty if there are none, or only in
            tensorflow-datasets.
        address: the name from which `load` reads it, if that is not `name`.
        image_size: height and width to which its images are resized; 0 means no resizing.
        classes: number of classes whose images are used, the first by label; 0 means all.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    pixel_max: float = 255.0
    eps: float = 8 / 255
    step_size: float = 2 / 255
    train_images: int = 0
    test_images: int = 0
    augment: Augment = Augment()
    class_names: tuple[str, ...] = ()
    address: str = ""
    image_size: int = 0
    classes: int = 0

    def first_classes(self, n: int) -> "DatasetSpec":
        """The data set restricted to its first `n` classes, in the order of the labels; 0 means all.

        `train_images` and `test_images` are reduced as if all classes had equally many.

        Raises:
            UserError: n is 1, or more than the number of classes.
        """
        if not n:
            return self
        if not 2 <= n <= self.num_classes:
            raise UserError(
                f"expected between 2 and {self.num_classes} classes of {self.name}; received {n}"
            )
        return replace(
            self,
            num_classes=n,
            classes=n,
            class_names=self.class_names[:n],
            train_images=self.train_images * n // self.num_classes,
            test_images=self.test_images * n // self.num_classes,
        )

    @property
    def title(self) -> str:
        """The name for tables; it says if only some classes are used."""
        return f"{self.name} (first {self.classes} classes)" if self.classes else self.name


# To add a data set of tensorflow-datasets, add an entry. eps and steps: the MadryLab challenges (MNIST
# 40 x 0.01 in 0.3, CIFAR-10 steps of 2/255 in 8/255); the paper keeps CIFAR-10's for the others.
SPECS = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            "mnist", (28, 28, 1), 10, pixel_max=1.0, eps=0.3, step_size=0.01,
            train_images=60_000, test_images=10_000,
            augment=Augment(pad=0, flip=False),
        ),
        DatasetSpec("cifar10", (32, 32, 3), 10, train_images=50_000, test_images=10_000),
        DatasetSpec("cifar100", (32, 32, 3), 100, train_images=50_000, test_images=10_000),
        DatasetSpec("tiny_imagenet", (64, 64, 3), 200, train_images=100_000, test_images=10_000),
    )
}  # fmt: skip


def data_text(source: str) -> str:
    """A `Split.source` for tables; it says if the images are synthetic."""
    return "builtin (synthetic)" if source == "builtin" else source


def to_pixels(images, pixel_max: float):
    """Converts float32 images, array or tensor, from 0..255 to 0..pixel_max; exact for 255."""
    return images / np.float32(255 / pixel_max)


def in_pixel_range(images: np.ndarray, pixel_max: float) -> np.ndarray:
    """Converts uint8 images to float32 in 0..pixel_max; floats keep their values."""
    if images.dtype == np.uint8:
        return to_pixels(images.astype(np.float32), pixel_max)
    return images.astype(np.result_type(images.dtype, np.float32), copy=False)


def parse_fraction(flag: str, text: str | None, *, most: float = 1.0) -> float | None:
    """A number above 0 and at most `most` out of "8/255", "0.5/255" or "0.3"; None stays None.

    Raises:
        UserError: anything else.
    """
    if text is None:
        return None
    try:
        top, *bottom = text.split("/")
        value = float(Fraction(top) / (Fraction(*bottom) if bottom else 1))
    except (ValueError, TypeError, ZeroDivisionError):
        value = 0.0
    if not (0 < value <= most and math.isfinite(value)):
        limit = "" if math.isinf(most) else f" and at most {most:g}"
        raise UserError(
            f"expected --{flag} as a fraction of the pixel range, above 0{limit}, such as 8/255 or "
            f"0.3; received {text!r}"
        )
    return value


def fraction_text(value: float) -> str:
    """A fraction of the pixel range as text: a decimal, or a multiple of 1/255.

    Example:
        >>> fraction_text(8 / 255), fraction_text(0.25 / 255), fraction_text(0.3)
        ('8/255', '0.25/255', '0.3')
    """
    value = float(f"{value:.12g}")  # 3 * 0.1 is 0.3
    of_255 = f"{value * 255:.4g}"
    if float(f"{value:g}") != value and abs(float(of_255) / 255 - value) < 1e-11:
        return f"{of_255}/255"
    return f"{value:g}"


@dataclass(frozen=True, eq=False)
class Split:
    """All images of a split, in memory.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        spec: the data set.
        source: "tfds", "builtin", "folder" or "npz".
        name: "train", "test" or "validation".
        class_order: what `in_class_order` was given, if it was.
    """

    images: np.ndarray
    labels: np.ndarray
    spec: DatasetSpec
    source: str
    name: str
    class_order: tuple[int, ...] | None = None

    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of images and labels, for run folders."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()[:16]

    def take(self, indices: np.ndarray | slice, name: str) -> "Split":
        """The split of these examples, under another name."""
        return replace(self, images=self.images[indices], labels=self.labels[indices], name=name)

    def in_class_order(self, class_order: Sequence[int] | None) -> "Split":
        """The split with each label k as class_order[k], the output of a model for it; None: as it is.

        Raises:
            UserError: it is not one-to-one within the classes, or has no place for a label.
        """
        if class_order is None:
            return self
        k, low, high = self.spec.num_classes, self.labels.min(), self.labels.max()
        fits = isinstance(class_order, Sequence | np.ndarray) and all(
            isinstance(v, Integral) and 0 <= v < k for v in class_order
        )
        expect(
            fits and len(set(class_order)) == len(class_order) > high and low >= 0,
            f"class_order as different outputs in 0..{k - 1}, one for each label in {low}..{high}",
            class_order,
        )  # fmt: skip
        order = tuple(map(int, class_order))
        return replace(self, labels=np.array(order)[self.labels], class_order=order)


def hold_out(split: Split, num_validation: int, seed: int) -> tuple[Split, Split]:
    """(train, validation): a random, disjoint division of a *training* split, by a seed.

    Raises:
        UserError: no images would be left to train on.
    """
    n = len(split.labels)
    if not 0 <= num_validation < n:
        raise UserError(
            f"expected between 0 and {n - 1} validation images, held out of the {n} images of "
            f"{split.spec.name}/{split.name}; received {num_validation}"
        )
    order = np.random.default_rng(seed).permutation(n)
    validation, train = np.sort(order[:num_validation]), np.sort(order[num_validation:])
    return split.take(train, split.name), split.take(validation, "validation")
