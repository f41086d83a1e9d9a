"""`load` reads a data set by name, real or synthetic; `spec_of` describes it."""

import logging
import os
import re
import threading
import urllib.parse
import urllib.request
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging as absl_logging

from igam_tf.common.errors import UserError
from igam_tf.common.literal import literal
from igam_tf.datasets.files import READERS, file_spec, resized
from igam_tf.datasets.named import SPECS, DatasetSpec, Split

SOURCES = ("tfds", "builtin")
NAMES = f"{', '.join(SPECS)}, tfds:<name>, folder:<path> or npz:<path>"
_PROBE_SECONDS = 5
_MAGIC = {"JPEG": b"\xff\xd8", "PNG": b"\x89PNG"}  # the first bytes of a file


def checked_name(name: str, flag: str = "dataset") -> str:
    """The name of a data set with an absolute path; nothing is read.

    Args:
        name: see `NAMES`.
        flag: where the user wrote it, for error messages.

    Raises:
        UserError: it is not such a name.
    """
    kind, _, rest = name.partition(":")
    if name in SPECS or (kind == "tfds" and rest):
        return name
    if kind in READERS and rest:
        return f"{kind}:{os.path.abspath(Path(rest).expanduser())}"
    hint = ""
    if re.fullmatch(r"\w+", name):
        hint = f": tfds:{name} is its name if it is one of tensorflow-datasets"
    elif os.path.exists(name):
        hint = f": its name is {'npz' if name.endswith('.npz') else 'folder'}:{name}"
    raise UserError(f"expected --{flag}={NAMES}; received {name!r}{hint}")


def short_name(name: str) -> str:
    """The name of a data set without folders: folder:/a/b becomes folder:b.

    Example:
        >>> short_name("folder:/a/b"), short_name("cifar10"), short_name("tfds:a/b")
        ('folder:b', 'cifar10', 'tfds:a/b')
    """
    kind, _, rest = name.partition(":")
    return f"{kind}:{Path(rest).name}" if kind in READERS else name


def spec_of(
    name: str,
    *,
    data_dir: str | None = None,
    image_size: int = 0,
    eps: float | None = None,
    step_size: float | None = None,
    pixel_max: float | None = None,
    classes: int = 0,
) -> DatasetSpec:
    """Describes a data set; one that is not in `SPECS` is read, and downloaded if needed.

    Args:
        name: a key of `SPECS`, tfds:<name>, folder:<path> or npz:<path>.
        data_dir: folder of tensorflow-datasets; None means its default. image_size: height and
            width to which images not in `SPECS` are resized; 0 means no resizing.
        eps: replaces the data set's own.
        step_size: replaces the data set's own, which otherwise keeps its ratio to eps.
        pixel_max: replaces the data set's own.
        classes: use only this many classes, the first by label; 0 means all.

    Raises:
        UserError: the name is unknown, the data set cannot be used, or has fewer classes.
    """
    name = checked_name(name)
    kind, _, rest = name.partition(":")
    if name in SPECS:
        if image_size:
            raise UserError(
                "expected --image_size only with tfds:<name>, folder:<path> or npz:<path>; "
                f"received {image_size} for {name}, whose images are "
                f"{list(SPECS[name].image_shape)}"
            )
        spec = SPECS[name]
    elif kind == "tfds":
        spec = _tfds_spec(rest, data_dir, image_size)
    else:
        spec = file_spec(kind, rest, image_size)
    changed: dict[str, Any] = {"eps": eps, "step_size": step_size, "pixel_max": pixel_max}
    if eps and not step_size:
        changed["step_size"] = spec.step_size / spec.eps * eps
    changed = {key: value for key, value in changed.items() if value}
    return replace(spec, **changed).first_classes(classes)


def load(
    data: str | DatasetSpec,
    split: str,
    *,
    source: str = "tfds",
    data_dir: str | None = None,
    seed: int = 0,
    num: int | None = None,
) -> Split:
    """Reads a split into memory.

    Args:
        data: a name, see `spec_of`, or the result of `spec_of`.
        split: "train" or "test".
        source: "tfds", real images; "builtin", synthetic images of the same shape.
        data_dir: folder of tensorflow-datasets; None means its default. Tiny-ImageNet: see
            `tiny_imagenet`.
        seed: of the synthetic images.
        num: number of images, the first of the split in the classes of `data`; None means all.

    Raises:
        UserError: the name, split or source is unknown; the data set is neither prepared nor
            downloadable; its records are damaged.
    """
    check_available(data, source=source, data_dir=data_dir)
    if split not in ("train", "test"):
        raise UserError(f"expected split train or test; received {split!r}")
    spec = spec_of(data, data_dir=data_dir) if isinstance(data, str) else data
    kind, _, path = spec.address.partition(":")
    if source == "builtin":
        from igam_tf.datasets import builtin

        images, labels = builtin.draw(spec.name, split, seed, num=None if spec.classes else num)
    elif kind in READERS:
        arrays, _ = READERS[kind](path, spec.image_size)
        images, labels = arrays[split]
        source = kind
    else:
        images, labels = _read(spec, split, data_dir)
    if spec.classes:
        images, labels = (array[labels < spec.classes] for array in (images, labels))
    images, labels = images[:num], labels[:num]
    return Split(images, labels, spec, source, split)


def check_available(
    data: str | DatasetSpec, *, source: str = "tfds", data_dir: str | None = None
) -> None:
    """Checks that `load` will find the data set, and downloads it if needed.

    Raises:
        UserError: as `load`.
    """
    name = data if isinstance(data, str) else data.address or data.name
    if source not in SOURCES:
        raise UserError(f"expected images from {' or '.join(SOURCES)}; received {source!r}")
    name = checked_name(name)
    if source == "tfds":
        if isinstance(data, str):
            spec_of(name, data_dir=data_dir)
        if name in SPECS:
            _prepared_builder(name, data_dir)
    else:
        from igam_tf.datasets import builtin

        if name not in builtin.DRAWINGS:
            raise UserError(
                f"expected {' or '.join(builtin.DRAWINGS)} with --data=builtin, which has no "
                f"other data set; received {name!r}"
            )


def class_names(spec: DatasetSpec, *, source: str, data_dir: str | None = None) -> list[str]:
    """Names of the classes of a data set, in the order of the labels.

    They are the labels' numbers if there are no names: for synthetic images, npz files,
    Tiny-ImageNet, and data of tensorflow-datasets that are not prepared in `data_dir`.
    """
    if spec.class_names:
        return list(spec.class_names)
    if source != "tfds" or spec.name == "tiny_imagenet":
        return [str(k) for k in range(spec.num_classes)]
    with _quiet_tfds():
        import tensorflow_datasets as tfds

        builder = tfds.builder(spec.name, data_dir=_found_by_tfds(data_dir))
        names = builder.info.features["label"].names
    return list(names)[: spec.num_classes]


def stored_as(spec: DatasetSpec, *, source: str, data_dir: str | None = None) -> str:
    """The format of the training images in tensorflow-datasets' records: JPEG, PNG, or "".

    "" means images from elsewhere, or another format.
    """
    if source != "tfds":
        return ""
    builder = _prepared_builder(spec.name.removeprefix("tfds:"), data_dir)
    with _quiet_tfds():
        import tensorflow_datasets as tfds

        wanted = tfds.decode.PartialDecoding({"image": True}, {"image": tfds.decode.SkipDecoding()})
        first = next(iter(builder.as_dataset(split="train", decoders=wanted).take(1)))
    begins = first["image"].numpy()[:4]
    return next((name for name, magic in _MAGIC.items() if begins.startswith(magic)), "")


def _tfds_spec(name: str, data_dir: str | None, image_size: int) -> DatasetSpec:
    """The description of a prepared data set of tensorflow-datasets, from its builder.

    Raises:
        UserError: there is no such data set, or it lacks images or integer labels of known range.
    """
    builder = _prepared_builder(name, data_dir)
    import tensorflow_datasets as tfds

    features = builder.info.features
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    found = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    if any(not isinstance(found.get(key), kind) for key, kind in kinds.items()):
        has = ", ".join(f"{key} ({type(f).__name__})" for key, f in found.items())
        raise UserError(
            "expected an image and an integer label, features image (Image) and label (ClassLabel), in "
            f"tfds:{name}; it has {has or type(features).__name__}"
        )
    image, label = found["image"], found["label"]
    shape = tuple(image.shape)
    if image_size:
        shape = (image_size, image_size, shape[2])
    if None in shape or image.np_dtype != np.uint8:
        raise UserError(
            f"expected uint8 images of one shape in tfds:{name}, or --image_size; its info says "
            f"{np.dtype(image.np_dtype)} {list(image.shape)}"
        )
    sizes = {
        split: builder.info.splits[_tfds_split(builder, split)].num_examples
        for split in ("train", "test")
    }
    return DatasetSpec(
        f"tfds:{name}", shape, label.num_classes,
        train_images=sizes["train"], test_images=sizes["test"], class_names=tuple(label.names),
        address=f"tfds:{name}", image_size=image_size,
    )  # fmt: skip


def _tfds_split(builder, split: str) -> str:
    """The split of a builder for "train" or "test"; if it has no test split, validation."""
    splits = list(builder.info.splits)
    if split in splits:
        return split
    if split == "test" and "validation" in splits:
        return "validation"
    raise UserError(
        f"expected splits train and test (or validation) of tfds:{builder.name}; it has "
        f"{', '.join(splits) or 'none'}"
    )


def _read(spec: DatasetSpec, split: str, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow as tf

    builder = _prepared_builder(spec.name.removeprefix("tfds:"), data_dir)
    import tensorflow_datasets as tfds

    part = _tfds_split(builder, split)
    if part != split:
        absl_logging.info("%s has no %s split; %s is used instead", spec.name, split, part)
    expected = builder.info.splits[part].num_examples
    wanted = {
        "split": part,
        "decoders": tfds.decode.PartialDecoding({"image": True, "label": True}),
    }
    try:
        with _quiet_tfds():
            if spec.image_size:  # images of any size
                examples = list(builder.as_dataset(**wanted))
                images = np.concatenate([
                    resized(e["image"].numpy()[None], spec.image_shape[:2]) for e in examples
                ])  # fmt: skip
                labels = np.array([e["label"] for e in examples], np.int64)
            else:
                everything = builder.as_dataset(batch_size=-1, **wanted)
                images = everything["image"].numpy()
                labels = everything["label"].numpy().astype(np.int64)
    except (tf.errors.OpError, OSError) as error:
        files = builder.info.splits[part].filepaths
        raise _damaged(builder, _bad_records(files) or error) from error
    if len(labels) != expected or images.shape[1:] != spec.image_shape:
        raise _damaged(
            builder,
            f"expected {expected} images of shape {spec.image_shape} in {part}, "
            f"found {len(labels)} of {images.shape[1:]}",
        )
    return images, labels


def _bad_records(files: list[os.PathLike]) -> str | None:
    """Which of the record files is damaged, and why; None if none is."""
    import tensorflow as tf

    for file in map(os.fspath, files):
        try:
            tf.data.TFRecordDataset(file).reduce(np.int64(0), lambda n, _: n + 1)
        except tf.errors.OpError as error:
            return f"{file}: {_first_line(error.message)}"
    return None


def _found_by_tfds(data_dir: str | None) -> str | None:
    """A path to the user's folder that tensorflow-datasets can read."""
    if data_dir is None:
        return None
    folder = Path(data_dir).expanduser()
    return os.fspath(literal(folder) if folder.is_dir() else folder)


def _prepared_builder(name: str, data_dir: str | None):
    """The tfds builder of a data set, prepared if needed."""
    place = _found_by_tfds(data_dir)
    with _quiet_tfds():
        import tensorflow_datasets as tfds

        if name == "tiny_imagenet":
            from igam_tf.datasets.tiny_imagenet import prepared_builder

            return prepared_builder(place)
        try:
            builder = tfds.builder(name, data_dir=place)
        except tfds.core.DatasetNotFoundError as error:
            raise UserError(
                "expected tfds:<name> of a data set that tensorflow-datasets knows, or that is in "
                f"--data_dir; received tfds:{name}"
            ) from error
        except Exception as error:  # any parser's error can come from dataset_info.json
            raise UserError(
                f"data set {name} in {data_dir or 'the default folder'} is damaged: "
                f"{_first_line(error)}"
            ) from error
        if not builder.is_prepared():
            _download(builder)
    return builder


def _download(builder) -> None:
    import tensorflow_datasets as tfds

    problem = _unreachable(next(iter(builder.url_infos), None))
    if problem is None:
        try:
            builder.download_and_prepare(
                # without a network, asking for the copy on Google Cloud takes minutes of retries
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
        except Exception as error:  # network, disk, permissions, checksums: any error is possible
            problem = _first_line(error)
    if problem is not None:
        root = os.path.realpath(os.path.dirname(os.path.dirname(os.fspath(builder.data_path))))
        builtin = ", or use synthetic images with --data=builtin" if builder.name in SPECS else ""
        raise UserError(
            f"data set {builder.name} is not prepared in {root} and could not be downloaded "
            f"({problem}): name the folder that holds it with --data_dir{builtin}"
        )


def _unreachable(url: str | None) -> str | None:
    """Why the first file of a download cannot be reached; None if it can, or if there is no such file.

    Without a network tensorflow-datasets retries for minutes; this reports it within seconds. It
    uses a thread, because the look-up of a host's name has no time limit.
    """
    if url is None:
        return None
    answer = [f"no answer from {urllib.parse.urlsplit(url).netloc} in {_PROBE_SECONDS} s"]

    def probe():
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()
            answer[0] = None
        except Exception as error:
            answer[0] = _first_line(error)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answer[0]


def _damaged(builder, problem) -> UserError:
    return UserError(
        f"data set {builder.name} in {os.path.realpath(builder.data_path)} is damaged "
        f"({_first_line(problem)}): remove that folder and prepare it again, or name another with "
        "--data_dir"
    )


def _first_line(problem) -> str:
    line = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    return re.sub(r"\{\{.*?\}\} ?", "", line)  # TensorFlow's nodes


@contextmanager
def _quiet_tfds():
    """Context that silences the warnings of tensorflow-datasets about itself, and no others."""

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or "tensorflow_datasets" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(from_elsewhere)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"tensorflow_datasets\b")
            yield
    finally:
        logger.removeFilter(from_elsewhere)
