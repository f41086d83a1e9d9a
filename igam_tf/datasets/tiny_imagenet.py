"""Tiny-ImageNet for tensorflow-datasets, from the official zip or its unpacked folder.

`--data_dir` contains `tiny-imagenet-200.zip` (any `tiny-imagenet-200*.zip`) or
`tiny-imagenet-200/`; the prepared records are written beside it, once. The zip is read in place.
`test` is the official, labelled `val`: the labels of the official test images are not published.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow_datasets as tfds

from igam_tf.common.archives import archive_errors, open_zip
from igam_tf.common.errors import UserError

_ROOT = "tiny-imagenet-200"
_ANNOTATIONS = "val/val_annotations.txt"


class Archive:
    """The files of the data set by their path below `tiny-imagenet-200/`, in the zip or the folder.

    Raises:
        UserError: the zip is damaged or unsafe, or lacks files of the data set.
    """

    def __init__(self, source: Path):
        self.source, self._zip = source, None
        if source.is_dir():
            paths = (p.relative_to(source) for p in source.rglob("*") if p.is_file())
            names = (path.as_posix() for path in paths)
        else:
            with self.errors():
                self._zip = open_zip(source)
            prefix = f"{_ROOT}/"
            inside = (n for n in self._zip.namelist() if n.startswith(prefix) and n[-1] != "/")
            names = (name.removeprefix(prefix) for name in inside)
        self.names = dict.fromkeys(sorted(names))
        for needed in ("wnids.txt", _ANNOTATIONS):
            if needed not in self.names:
                raise UserError(f"expected Tiny-ImageNet in {source}; it has no {_ROOT}/{needed}")

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        with self.errors():
            if name not in self.names:  # annotations can name any file
                raise UserError(f"{name!r} is not among its files")
            if self._zip is None:
                return (self.source / name).read_bytes()
            return self._zip.read(f"{_ROOT}/{name}")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Context that turns any error of the source into one sentence that names it."""
        try:
            with archive_errors():
                yield
        except (UserError, OSError, KeyError, ValueError) as error:
            raise UserError(
                f"Tiny-ImageNet's {self.source} is damaged or unsafe: {error}"
            ) from error

    def examples(self, split: str) -> Iterator[tuple[str, str]]:
        """(file, class id) of every image of "train" or "val"."""
        if split == "train":
            for name in self.names:
                if name.startswith("train/") and name.endswith(".JPEG"):
                    yield name, name.split("/")[1]
        else:
            text = self.read(_ANNOTATIONS)
            with self.errors():
                rows = [line.split("\t") for line in text.decode().splitlines()]
                pairs = [(f"val/images/{file}", wnid) for file, wnid, *_ in rows]
            yield from pairs


def find(data_dir: str) -> Path | None:
    """The unpacked folder or the zip in `data_dir`."""
    folder = Path(data_dir).expanduser()
    if (folder / _ROOT).is_dir():
        return folder / _ROOT
    return next(iter(sorted(folder.glob(f"{_ROOT}*.zip"))), None)


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """64x64x3 images of 200 classes, in the order of `wnids.txt`; grey JPEGs become three channels."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"put {_ROOT}.zip or its unpacked folder into data_dir"

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=200),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        archive = Archive(find(os.fspath(dl_manager.manual_dir)))
        return {
            "train": self._generate_examples(archive, "train"),
            "test": self._generate_examples(archive, "val"),
        }

    def _generate_examples(self, archive: Archive, split: str) -> Iterator[tuple[str, dict]]:
        labels = {w: i for i, w in enumerate(archive.read("wnids.txt").decode().split())}
        for name, wnid in archive.examples(split):
            with archive.errors():
                label = labels[wnid]
            yield name, {"image": io.BytesIO(archive.read(name)), "label": label}


def prepared_builder(data_dir: str | None) -> TinyImagenet:
    """The builder of the data set; writes its records if they do not exist.

    Raises:
        UserError: the source in `data_dir` is absent or damaged, or the folder cannot be written
            to.
    """
    builder = TinyImagenet(data_dir=data_dir)
    if builder.is_prepared():
        return builder
    root = data_dir or os.path.dirname(os.path.dirname(os.fspath(builder.data_path)))
    source = find(root)
    if source is None:
        raise UserError(
            f"data set tiny_imagenet is not prepared in {root}, and there is no {_ROOT}.zip or "
            f"{_ROOT}/ to prepare it from: put one there, name its folder with --data_dir, or use "
            "synthetic images of another transfer with --data=builtin"
        )
    Archive(source)
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=root, try_download_gcs=False)
        )
    except OSError as error:
        raise UserError(f"tiny_imagenet could not be prepared in {root}: {error}") from error
    return builder
