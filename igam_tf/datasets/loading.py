"""`load`: a data set by name, from tensorflow-datasets or from the built-in drawing."""

import logging
import os
import re
import threading
import urllib.request
import warnings
from contextlib import contextmanager

import numpy as np

from igam_tf.datasets.registry import SPECS, DatasetSpec, Split
from madry_models.errors import UserError

SOURCES = ("tfds", "builtin")

# One file of each download, to find out within seconds whether there is a network at all.
_PROBE_URLS = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/t10k-labels-idx1-ubyte.gz",
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
}
_PROBE_SECONDS = 5


def load(
    name: str,
    split: str,
    *,
    source: str = "tfds",
    data_dir: str | None = None,
    seed: int = 0,
    num: int | None = None,
) -> Split:
    """A split, in memory.

    Args:
        name: a key of `SPECS`.
        split: "train" or "test".
        source: "tfds", real images; "builtin", synthetic images of the same shape.
        data_dir: tensorflow-datasets folder; default: its own. Tiny-ImageNet: see `tiny_imagenet`.
        seed: of the synthetic images.
        num: images, from the beginning of the split; default: all.

    Raises:
        UserError: an unknown name, split or source; a data set that is neither prepared nor
            downloadable; damaged records.
    """
    check_available(name, source=source, data_dir=data_dir)
    if split not in ("train", "test"):
        raise UserError(f"expected split train or test; received {split!r}")
    spec = SPECS[name]
    if source == "builtin":
        from igam_tf.datasets import builtin

        images, labels = builtin.draw(name, split, seed, num=num)
    else:
        images, labels = (array[:num] for array in _read(spec, split, data_dir))
    return Split(images, labels, spec, source, split)


def check_available(name: str, *, source: str = "tfds", data_dir: str | None = None) -> None:
    """Returns if `load` will find the data set, after downloading it where that is needed.

    Raises:
        UserError: as `load`.
    """
    if name not in SPECS or source not in SOURCES:
        raise UserError(
            f"expected a data set of {', '.join(SPECS)} from {' or '.join(SOURCES)}; "
            f"received {name!r} from {source!r}"
        )
    if source == "tfds":
        _prepared_builder(name, data_dir)
    else:
        from igam_tf.datasets import builtin

        if name not in builtin.DRAWINGS:
            raise UserError(
                f"expected {' or '.join(builtin.DRAWINGS)} with --data=builtin, which stands for "
                f"no other data set; received {name!r}"
            )


def _read(spec: DatasetSpec, split: str, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow as tf

    builder = _prepared_builder(spec.name, data_dir)
    import tensorflow_datasets as tfds

    expected = builder.info.splits[split].num_examples
    try:
        with _quiet_tfds():
            everything = builder.as_dataset(
                split=split,
                batch_size=-1,
                decoders=tfds.decode.PartialDecoding({"image": True, "label": True}),
            )
    except (tf.errors.OpError, OSError) as error:
        files = builder.info.splits[split].filepaths
        raise _damaged(builder, _bad_records(files) or error) from error
    images, labels = everything["image"].numpy(), everything["label"].numpy().astype(np.int64)
    if len(labels) != expected or images.shape[1:] != spec.image_shape:
        raise _damaged(
            builder,
            f"expected {expected} images of shape {spec.image_shape} in {split}, "
            f"found {len(labels)} of {images.shape[1:]}",
        )
    return images, labels


def _bad_records(files: list[os.PathLike]) -> str | None:
    """Which of the record files is not sound up to its end, and why; None if all are."""
    import tensorflow as tf

    for file in map(os.fspath, files):
        try:
            tf.data.TFRecordDataset(file).reduce(np.int64(0), lambda n, _: n + 1)
        except tf.errors.OpError as error:
            return f"{file}: {_first_line(error.message)}"
    return None


def _prepared_builder(name: str, data_dir: str | None):
    """The tfds builder of a data set that is ready to be read."""
    with _quiet_tfds():
        import tensorflow_datasets as tfds

        if name == "tiny_imagenet":
            from igam_tf.datasets.tiny_imagenet import prepared_builder

            return prepared_builder(data_dir)
        try:
            builder = tfds.builder(name, data_dir=data_dir)
        except Exception as error:  # dataset_info.json: tfds lets any parser's error through
            raise UserError(
                f"data set {name} in {data_dir or 'the default folder'} is damaged: "
                f"{_first_line(error)}"
            ) from error
        if not builder.is_prepared():
            _download(builder)
    return builder


def _download(builder) -> None:
    import tensorflow_datasets as tfds

    problem = _unreachable(_PROBE_URLS[builder.name])
    if problem is None:
        try:
            builder.download_and_prepare(
                # the copy on Google Cloud is asked with minutes of retries when there is no network
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
        except Exception as error:  # network, disk, permissions, checksums: anything may come
            problem = _first_line(error)
    if problem is not None:
        root = os.path.dirname(os.path.dirname(os.fspath(builder.data_path)))
        raise UserError(
            f"data set {builder.name} is not prepared in {root} and could not be downloaded "
            f"({problem}): name the folder that holds it with --data_dir, or use synthetic images "
            "with --data=builtin"
        )


def _unreachable(url: str) -> str | None:
    """Why `url` cannot be had, None if it can; in a thread, as name look-ups know no time limit."""
    answer = [f"no answer from {urllib.request.urlparse(url).netloc} in {_PROBE_SECONDS} s"]

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
        f"data set {builder.name} in {builder.data_path} is damaged ({_first_line(problem)}): "
        "remove that folder and prepare it again, or name another with --data_dir"
    )


def _first_line(problem) -> str:
    line = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    return re.sub(r"\{\{.*?\}\} ?", "", line)  # TensorFlow's nodes


@contextmanager
def _quiet_tfds():
    """Silences warnings that tensorflow-datasets raises about itself, and nothing else."""

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
