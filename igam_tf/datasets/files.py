"""The user's own images: `folder:<path>` and `npz:<path>`, read into memory as uint8."""

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging

from igam_tf.common.archives import archive_errors, open_zip
from igam_tf.common.checks import check_labels
from igam_tf.common.errors import UserError
from igam_tf.datasets.named import DatasetSpec

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF")
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_EVERY = 5  # without train/ and test/, every fifth image of a class is for testing

# Split -> (images uint8 [N,H,W,C], labels int64 [N]).
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]


def read_folder(path: str, image_size: int) -> tuple[Arrays, tuple[str, ...]]:
    """(images and labels of "train" and "test", names of the classes) of a folder of images.

    `path` contains train/ and test/, each with a subfolder for every class, or only the subfolders
    of the classes. In the latter case every fifth image of a class, by name, is for testing, or the
    last one of fewer than five. Labels follow the sorted names of the subfolders. A split's images
    are in a fixed random order, so that its beginning contains every class. If all images are grey
    they have one channel, otherwise grey images get three equal ones. An alpha channel is dropped;
    an animation gives its first picture, 16-bit values their upper eight bits. Photographs are
    rotated as their EXIF data say.

    Args:
        path: of the folder.
        image_size: height and width of the result; 0 means that of the files, which must all be
            equal.

    Raises:
        UserError: the folder does not exist or has fewer than two classes, a class has no images,
            an image cannot be read or is neither RGB nor grey (CMYK), or sizes differ without
            `image_size`.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"expected a folder with a subfolder for each class in folder:{path}")
    parts = {name: root / name for name in ("train", "test") if (root / name).is_dir()}
    if len(parts) == 1:
        missing = next(name for name in ("train", "test") if name not in parts)
        raise UserError(
            f"expected both train/ and test/, or the classes' subfolders alone, in folder:{path}; "
            f"it has no {missing}/"
        )
    if parts:
        found = {name: _classes(part) for name, part in parts.items()}
        if differing := sorted(found["train"].keys() ^ found["test"].keys()):
            raise UserError(
                f"expected the same classes in train/ and test/ of folder:{path}; only one of them "
                f"has {', '.join(differing[:5])}"
            )
    else:
        found = _divided(_classes(root), path)
    names = tuple(found["train"])
    if len(names) < 2:
        raise UserError(
            f"expected at least two classes, each a subfolder, in folder:{path}; received "
            f"{', '.join(names) or 'none'}"
        )
    files = {split: _shuffled(classes) for split, classes in found.items()}
    every = tuple(f for pairs in files.values() for f, _ in pairs)
    images = _decoded(every, image_size, tuple(map(_state, every)))
    n = len(files["train"])
    labels = {s: np.array([label for _, label in p], np.int64) for s, p in files.items()}
    return {"train": (images[:n], labels["train"]), "test": (images[n:], labels["test"])}, names


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Name of each class, sorted -> its images, sorted."""
    classes, others = {}, []
    for sub in sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."):
        files = sorted(p for p in sub.rglob("*") if p.is_file() and p.name[0] != ".")
        classes[sub.name] = [p for p in files if p.suffix.lower() in ENDINGS]
        others += [p for p in files if p.suffix.lower() not in ENDINGS]
        if not classes[sub.name]:
            raise UserError(
                f"expected images ({', '.join(e[1:] for e in ENDINGS)}) of each class; found none "
                f"in {sub}"
            )
    if others:
        logging.warning(
            "%d files are not images and are ignored, the first is %s", len(others), others[0]
        )
    return classes


def _divided(classes: dict[str, list[Path]], path: str) -> dict[str, dict[str, list[Path]]]:
    found: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    for name, files in classes.items():
        if len(files) < 2:
            raise UserError(
                f"expected at least two images of each class in folder:{path}, one to test with; "
                f"class {name} has {len(files)}"
            )
        every = min(_EVERY, len(files))
        found["test"][name] = files[every - 1 :: every]
        found["train"][name] = [f for i, f in enumerate(files) if i % every != every - 1]
    return found


def _shuffled(classes: dict[str, list[Path]]) -> list[tuple[str, int]]:
    pairs = [(str(f), label) for label, files in enumerate(classes.values()) for f in files]
    return [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]


def _state(file: str | Path) -> tuple[int, ...]:
    """The attributes of a file that change with its content and cannot be reset."""
    found = os.stat(file)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@functools.lru_cache(maxsize=2)  # source and target: files are decoded once
def _decoded(
    files: tuple[str, ...], image_size: int, _states: tuple[tuple[int, ...], ...]
) -> np.ndarray:
    """The images of files, uint8 [N,H,W,C]; C is 1 if all are grey, else 3."""
    images: list[np.ndarray] = []
    for file in files:
        image = _pixels_of(file)
        if image_size:
            image = resized(image[None], (image_size, image_size))[0]
        elif images and image.shape[:2] != images[0].shape[:2]:
            raise UserError(
                "expected images of one size, or --image_size; received "
                f"{_size(images[0])} in {files[0]} and {_size(image)} in {file}"
            )
        images.append(image)
    if len({image.shape[2] for image in images}) > 1:
        images = [np.repeat(i, 3, axis=2) if i.shape[2] == 1 else i for i in images]
    return np.stack(images)


def _pixels_of(file: str) -> np.ndarray:
    """The pixels uint8 [H,W,C] as a viewer shows them; C is 1 if the image is grey.

    Raises:
        UserError: it cannot be read, or its colours are of an unsupported kind.
    """
    # A dependency of matplotlib. TensorFlow's decoder would read a BMP's palette indices as grey
    # values, and not rotate photographs.
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd but readable files
            with Image.open(file, formats=_FORMATS) as found:
                image = ImageOps.exif_transpose(found)
            if image.mode.startswith("I;16"):  # 16-bit grey; Pillow converts colours itself
                return (np.asarray(image) >> 8).astype(np.uint8)[..., None]
            if image.mode in ("1", "L", "LA"):
                return np.array(image.convert("L"))[..., None]
            if image.mode not in ("P", "PA", "RGB", "RGBA", "RGBX"):
                raise ValueError(f"its pixels are {image.mode}; save it as RGB or grey")
            pixels = np.array(image.convert("RGB"))
    except Exception as error:  # a file of unknown origin can raise any error
        raise UserError(
            f"expected an image (png, jpg, bmp or gif) in {file}; it cannot be read: "
            f"{(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    if image.mode in ("P", "PA") and (pixels == pixels[..., :1]).all():
        return pixels[..., :1]  # a palette of greys
    return pixels


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"


def resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [N,H,W,C] -> uint8 [N,*size,C], resized bilinearly, with antialiasing."""
    import tensorflow as tf

    if images.shape[1:3] == tuple(size):
        return images
    scaled = tf.image.resize(images, size, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(scaled), 0, 255), tf.uint8).numpy()


def read_npz(path: str, image_size: int) -> tuple[Arrays, tuple[str, ...]]:
    """(images and labels of "train" and "test", no names) of an npz file.

    x_train, x_test: uint8 [n,H,W,C], or [n,H,W] for grey images; or float in 0..1, which become
    round(255 x). y_train, y_test: integer [n]; the classes are 0..K-1, and each has a training
    image. The order is kept.

    Args:
        path: of the file.
        image_size: height and width of the result; 0 means that of the file.

    Raises:
        UserError: it is not such a file; pickled arrays are never read.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"expected a file with {', '.join(ARRAYS)} in npz:{path}; it is not there")
    return _checked_npz(path, image_size, _state(file)), ()


@functools.lru_cache(maxsize=2)
def _checked_npz(path: str, image_size: int, _state: tuple[int, ...]) -> Arrays:
    arrays, seen = _npz(path), {}
    for split in ("train", "test"):
        x = _pixels(f"x_{split}", arrays[f"x_{split}"], path)
        y = _labels(f"y_{split}", arrays[f"y_{split}"], path)
        if len(x) != len(y) or not len(y):
            raise UserError(
                f"expected as many images as labels, at least one, in npz:{path}; received {len(x)} in "
                f"x_{split} and {len(y)} in y_{split}"
            )
        seen[split] = resized(x, (image_size, image_size)) if image_size else x, y
    (train, y_train), (test, y_test) = seen["train"], seen["test"]
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"expected images of one shape in npz:{path}; received {list(train.shape[1:])} in x_train "
            f"and {list(test.shape[1:])} in x_test"
        )
    counts = np.bincount(y_train)
    if len(counts) < 2:
        raise UserError(f"expected at least two classes in y_train of npz:{path}; received one")
    if not counts.all():
        raise UserError(
            f"expected training images of every class 0..{len(counts) - 1} in npz:{path}; class "
            f"{np.argmin(counts)} has none"
        )
    if y_test.max() >= len(counts):
        raise UserError(
            f"expected labels in 0..{len(counts) - 1} in y_test of npz:{path}, as in y_train; received "
            f"{y_test.max()}"
        )
    return seen


def _npz(path: str) -> dict[str, np.ndarray]:
    try:
        with archive_errors(), open_zip(Path(path)) as bundle:
            names = {name.removesuffix(".npy") for name in bundle.namelist()}
            if missing := [name for name in ARRAYS if name not in names]:
                raise UserError(f"it has no {', '.join(missing)}")
            with np.load(path) as content:  # pickled arrays are refused by default
                return {name: content[name] for name in ARRAYS}
    except (UserError, ValueError, OSError) as error:
        raise UserError(
            f"expected numpy's npz with {', '.join(ARRAYS)} in npz:{path}, none of them pickled; {error}"
        ) from error


def _pixels(name: str, x: np.ndarray, path: str) -> np.ndarray:
    if x.ndim not in (3, 4):
        raise UserError(
            f"expected {name} [n,H,W,C] or [n,H,W] in npz:{path}; received the shape {list(x.shape)}"
        )
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype == np.uint8:
        return x
    if not np.issubdtype(x.dtype, np.floating):
        raise UserError(
            f"expected {name} as uint8 in 0..255 or float in 0..1 in npz:{path}; received {x.dtype}"
        )
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        raise UserError(
            f"expected float pixels in 0..1, which become round(255 x), in {name} of npz:{path}; "
            f"received {x.min():g}..{x.max():g}: store pixels in 0..255 as uint8"
        )
    return np.round(x * 255).astype(np.uint8)


def _labels(name: str, y: np.ndarray, path: str) -> np.ndarray:
    check_labels(y, what=f"{name} [n] in npz:{path}")
    if y.size and y.min() < 0:
        raise UserError(f"expected labels from 0 on in {name} of npz:{path}; received {y.min()}")
    return y.astype(np.int64)


READERS: dict[str, Callable[[str, int], tuple[Arrays, tuple[str, ...]]]] = {
    "folder": read_folder,
    "npz": read_npz,
}


def file_spec(kind: str, path: str, image_size: int) -> DatasetSpec:
    """The description of a folder's or an npz file's images, after reading all of them.

    Raises:
        UserError: as `read_folder` and `read_npz`.
    """
    arrays, names = READERS[kind](path, image_size)
    (train, labels), (test, _) = arrays["train"], arrays["test"]
    return DatasetSpec(
        f"{kind}:{Path(path).name}", train.shape[1:], int(labels.max()) + 1,
        train_images=len(train), test_images=len(test), class_names=names, address=f"{kind}:{path}",
        image_size=image_size,
    )  # fmt: skip
