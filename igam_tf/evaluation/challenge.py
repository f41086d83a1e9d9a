"""Files of perturbed test images, as run_attack.py of MadryLab's challenges scores them.

Facts from github.com/MadryLab/mnist_challenge and cifar10_challenge: one array of all test images in
the data set's order, MNIST's flattened to [10000, 784] in 0..1, CIFAR-10's [10000, 32, 32, 3] in
0..255; eps and range may be exceeded by 0.0001.
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np

from igam_tf.common.checks import eps_unit, expect
from igam_tf.common.errors import UserError
from igam_tf.common.files import replacing
from igam_tf.common.tables import with_interval
from igam_tf.datasets import Split, data_text, in_pixel_range
from igam_tf.evaluation.adversarial import distances, logits_of_images
from igam_tf.evaluation.evaluate import figures
from igam_tf.method.look import doubtful_lines
from igam_tf.storage.journal import MASK_KEY, text_of_mask

SLACK = 1e-4  # in the pixel unit
PREDICTIONS = "pred.npy"


def write_images(path: Path, arrays: dict[str, np.ndarray], dataset: str) -> None:
    """Writes kept images, atomically: all of `arrays` as .npz, or the images alone as .npy.

    Args:
        path: the file; the same arrays are the same bytes.
        arrays: see `igam_tf.evaluation.adversarial.Adversarial.arrays`.
        dataset: its name; as .npy, in float32, MNIST's images are [n,784].
    """
    if path.suffix == ".npy":
        x_adv = arrays["x_adv"]
        shape = (len(x_adv), -1) if dataset == "mnist" else x_adv.shape
        return write_array(path, x_adv.reshape(shape).astype(np.float32))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes an .npy file, atomically."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def perturbed_images(
    path: Path, split: Split, *, eps: float, pixel_max: float, batch_size: int
) -> tuple[np.ndarray, float]:
    """(images of an .npy file [n,H,W,C], their largest l-inf distance from the split's, in pixels).

    Args:
        path: the file; the images are in 0..pixel_max, in the order of the split.
        split: natural images.
        eps: largest distance allowed, as a fraction of the pixel range.
        pixel_max: highest pixel value.
        batch_size: images that are compared at once.

    Raises:
        UserError: it is another file, has another shape, or leaves the range or the ball.
    """
    try:
        x_adv = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"expected an .npy file in --adversarial={path}; {error}") from error
    shape = split.images.shape
    flat = (shape[0], int(np.prod(shape[1:])))
    what = f"an array {list(flat)} or {list(shape)} in --adversarial={path}"
    remedy = "--save_adversarial=<file>.npy writes one"
    expect(isinstance(x_adv, np.ndarray), what, "several arrays", remedy)
    expect(x_adv.shape in (flat, shape), what, list(x_adv.shape))
    expect(np.issubdtype(x_adv.dtype, np.number), f"numbers in --adversarial={path}", x_adv.dtype)
    x_adv, largest = x_adv.reshape(shape), 0.0
    for start in range(0, len(x_adv), batch_size):
        batch = slice(start, start + batch_size)
        part, x = x_adv[batch], in_pixel_range(split.images[batch], pixel_max)
        inside = part.min() >= -SLACK and part.max() <= pixel_max + SLACK  # False for NaN
        what = f"pixels in 0..{pixel_max:g} in --adversarial={path}"
        expect(inside, what, f"{part.min():g}..{part.max():g}")
        largest = max(largest, float(distances(part, x, "linf").max()))
    allowed = eps * pixel_max
    what = f"perturbations of at most {allowed:g} in 0..{pixel_max:g} in --adversarial={path}"
    expect(largest <= allowed + SLACK, what, f"{largest:g}")
    return x_adv, largest


def score(
    model: keras.Model, split: Split, path: Path, *, eps: float, pixel_max: float, batch_size: int
) -> tuple[dict, np.ndarray]:
    """(report on the perturbed images of a file, predicted classes [n] int64).

    Args:
        model: [B,H,W,C] -> logits [B,K].
        split, path, eps, pixel_max, batch_size: see `perturbed_images`.
    """
    x_adv, largest = perturbed_images(
        path, split, eps=eps, pixel_max=pixel_max, batch_size=batch_size
    )
    dtype = in_pixel_range(split.images[:1], pixel_max).dtype
    parts = (x_adv[i : i + batch_size].astype(dtype) for i in range(0, len(x_adv), batch_size))
    predicted = np.concatenate([logits_of_images(model, part).argmax(1) for part in parts])
    right = predicted == split.labels
    threat = {"eps": eps, "eps_unit": eps_unit("linf"), "largest": largest / pixel_max}
    about: dict[str, Any] = {"dataset": split.spec.title, "split": split.name, "data": split.source}
    about |= {"pixel_max": pixel_max}
    return about | threat | figures(right) | {MASK_KEY: text_of_mask(right)}, predicted


def score_text(report: dict) -> str:
    """A report of `score` as plain text, with a line for each doubt below it."""
    highest = report["pixel_max"]
    return "\n".join([
        f"{report['dataset']} {report['split']}, data {data_text(report['data'])}: "
        f"first n = {report['n']} images, perturbed: {report['adversarial']}",
        f"largest perturbation {report['largest'] * highest:g} of {report['eps'] * highest:g} "
        f"allowed, in 0..{highest:g}",
        f"accuracy {with_interval(report['accuracy'], report['ci95'], '.2f')} %",
        *doubtful_lines(report),
    ])  # fmt: skip
