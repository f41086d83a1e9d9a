"""Keeps the worst image of each example, and checks it with NumPy and a direct call of the model.

Nothing here is shared with the attacks, so that a mistake in an attack cannot hide itself.
"""

from typing import Any

import keras
import numpy as np

from igam_tf.attacks.spec import AttackSpec
from igam_tf.common.checks import expect, radii_of
from igam_tf.datasets import Split, in_pixel_range
from igam_tf.method.look import Doubt
from igam_tf.method.networks import in_float32
from igam_tf.storage.journal import Journal

_ROUNDING = 1e-6  # share of eps by which its own type may have rounded it


def distances(x_adv: np.ndarray, x: np.ndarray, norm: str) -> np.ndarray:
    """The norm of x_adv - x of each image, [n,...] -> [n] float64.

    Example:
        >>> distances(np.array([[3.0, 5.0]]), np.array([[0.0, 1.0]]), "l2")
        array([5.])
    """
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    delta = (x_adv.astype(np.float64) - x.astype(np.float64)).reshape(len(x), -1)
    return np.linalg.norm(delta, order, axis=1)


def within(x_adv: np.ndarray, x: np.ndarray, *, eps: float, norm: str) -> np.ndarray:
    """Whether each image is in the ball of radius eps around x, [n] bool.

    The type of x_adv may have rounded each pixel, by at most its spacing at the highest one.

    Args:
        x_adv, x: images [n,...].
        eps: radius, in the pixel unit of x.
        norm: "linf", "l2" or "l1".
    """
    ones = np.ones((1, *x.shape[1:]))
    rounded = np.spacing(np.abs(x).max(initial=eps).astype(x_adv.dtype))
    most = eps * (1 + _ROUNDING) + rounded * distances(ones, 0 * ones, norm)[0]
    return distances(x_adv, x, norm) <= most


def logits_of_images(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Logits [n,K] by a direct call in inference mode; float16 layers compute in float32."""
    with in_float32(model):
        return np.asarray(model(x, training=False), np.float64)


def check_kept(batch_norm: str, eps: Any) -> None:
    """Raises a UserError where no one image can be kept: in another batch its class is another."""
    expect(len(radii_of(eps)) == 1, "one eps where adversarial images are kept", eps)
    expect(
        batch_norm == "inference", "batch norm inference where adversarial images are kept",
        batch_norm, "with it an image is misclassified in the company of its own batch alone",
    )  # fmt: skip


class Adversarial:
    """The worst image of each example: misclassified if one was found, else of the smallest margin.

    Margin: the logit of the label less the highest other one. Each image that an attack returns is
    checked first: in the ball, in the pixel range, and misclassified by a direct call of the model.
    What is in neither ball nor range is not kept.

    Args:
        model: [B,H,W,C] -> logits [B,K].
        split: images and labels.
        pixel_max: highest pixel value of the model's input.
        journal: its folder holds the images; None holds them in memory.
    """

    def __init__(
        self, model: keras.Model, split: Split, *, pixel_max: float, journal: Journal | None = None
    ):
        self.model, self.split, self.pixel_max = model, split, pixel_max
        shape, dtype = split.images.shape, in_pixel_range(split.images[:1], pixel_max).dtype
        self._x_adv = (
            np.lib.format.open_memmap(journal.arrays_folder() / "worst.npy", "w+", dtype, shape)
            if journal
            else np.empty(shape, dtype)
        )
        n = len(split.labels)
        self._broken, self._margin = np.zeros(n, bool), np.full(n, np.inf)
        self._attack, self._predicted = np.full(n, "", object), np.zeros(n, np.int64)
        self._threat: dict[str, Any] = {"norm": "", "eps": 0.0}
        self.claimed = 0
        self.failed = {"eps": 0, "range": 0, "class": 0}

    def checked(
        self,
        spec: AttackSpec,
        batch: np.ndarray,
        right: np.ndarray,
        x_adv: np.ndarray | None = None,
    ) -> np.ndarray:
        """Checks and keeps the images of an attack; returns which are not misclassified, [B] bool.

        Args:
            spec: the attack.
            batch: indices [B].
            right: what the attack says of each image, [B] bool.
            x_adv: its images [B,...]; None: the clean ones.
        """
        x = in_pixel_range(self.split.images[batch], self.pixel_max)
        y = self.split.labels[batch]
        x_adv = x if x_adv is None else x_adv
        near = within(x_adv, x, eps=spec.eps * self.pixel_max, norm=spec.norm)
        highest = x.dtype.type(self.pixel_max)
        inside = ((x_adv >= 0) & (x_adv <= highest)).reshape(len(x), -1).all(1)
        z = logits_of_images(self.model, x_adv)
        label = np.arange(z.shape[1]) == y[:, None]
        margin = z[label] - np.where(label, -np.inf, z).max(1)
        wrong = z.argmax(1) != y
        valid = near & inside
        self.claimed += int((~right).sum())
        failures = {"eps": ~near, "range": near & ~inside, "class": valid & ~wrong}
        for name, failed in failures.items():
            self.failed[name] += int((failed & ~right).sum())

        broken, before = valid & wrong, self._broken[batch]
        worse = valid & ((broken & ~before) | ((broken == before) & (margin < self._margin[batch])))
        chosen = batch[worse]
        self._x_adv[chosen], self._attack[chosen] = x_adv[worse], spec.name
        self._broken[chosen], self._margin[chosen] = broken[worse], margin[worse]
        self._predicted[chosen] = z.argmax(1)[worse]
        self._threat = {"norm": spec.norm, "eps": max(spec.eps, self._threat["eps"])}
        return ~broken

    def doubt(self) -> Doubt | None:
        """The doubt if images that attacks call misclassified fail the check."""
        count = sum(self.failed.values())
        if not count:
            return None
        reasons = {
            "eps": "outside eps",
            "range": "outside the pixel range",
            "class": "classified as labelled when the model is called directly",
        }
        found = ", ".join(
            f"{self.failed[k]} {text}" for k, text in reasons.items() if self.failed[k]
        )
        return Doubt(
            code="unverified",
            sentence=f"{count} of {self.claimed} adversarial images fail the check ({found}); they "
            "do not count as broken.",
            remedy="Look for a model whose outputs are random or depend on the batch; else an attack "
            "is wrong.",
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The images and what they are; uint8 where all are whole numbers in 0..255.

        Returns:
            x_adv [n,H,W,C], y [n]; attack [n]: the name of the one that found the image, "clean" if it
            is the clean one; misclassified [n] bool; predicted [n]; norm, eps (a fraction of the
            pixel range), pixel_max.
        """
        x_adv = self._x_adv
        if self.pixel_max == 255 and all((np.rint(x) == x).all() for x in x_adv):
            x_adv = x_adv.astype(np.uint8)
        return {
            "x_adv": x_adv,
            "y": self.split.labels,
            "attack": self._attack.astype(str),
            "misclassified": self._broken.copy(),
            "predicted": self._predicted,
            "pixel_max": np.float64(self.pixel_max),
        } | {name: np.asarray(value) for name, value in self._threat.items()}
