"""Tiny-ImageNet from the zip and from the folder, and what is said where there is neither."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from igam_tf import datasets
from igam_tf.common.errors import UserError

CLASSES = [f"n{i:08d}" for i in range(200)]


def _jpeg(value: int, channels: int = 3) -> bytes:
    return tf.io.encode_jpeg(np.full((64, 64, channels), value, np.uint8), quality=100).numpy()


def _files() -> dict[str, bytes]:
    """Two training images of three classes, one of them grey, and three of val in another order."""
    files = {"wnids.txt": "\n".join(CLASSES).encode()}
    for i in (0, 7, 199):
        for k in range(2):
            name = f"train/{CLASSES[i]}/images/{CLASSES[i]}_{k}.JPEG"
            files[name] = _jpeg(i, channels=1 if i == 7 else 3)
    for k, i in enumerate((199, 0, 7)):
        files[f"val/images/val_{k}.JPEG"] = _jpeg(i)
    rows = [f"val_{k}.JPEG\t{CLASSES[i]}\t0\t0\t63\t63" for k, i in enumerate((199, 0, 7))]
    return files | {"val/val_annotations.txt": "\n".join(rows).encode()}


@pytest.fixture(params=["zip", "folder"])
def data_dir_of_ours(request, tmp_path) -> Path:
    for name, content in _files().items():
        path = tmp_path / "tiny-imagenet-200" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if request.param == "zip":
        shutil.make_archive(
            str(tmp_path / "tiny-imagenet-200"), "zip", tmp_path, "tiny-imagenet-200"
        )
        shutil.rmtree(tmp_path / "tiny-imagenet-200")
    return tmp_path


def test_images_and_labels(data_dir_of_ours):
    train, test = (
        datasets.load("tiny_imagenet", split, data_dir=str(data_dir_of_ours))
        for split in ("train", "test")
    )
    assert train.images.shape == (6, 64, 64, 3)
    assert test.images.shape == (3, 64, 64, 3)
    assert sorted(train.labels) == [0, 0, 7, 7, 199, 199]
    for split in (train, test):  # every image is as bright as its label
        np.testing.assert_allclose(split.images.mean((1, 2, 3)), split.labels, atol=2)
    where = {"source": "tfds", "data_dir": str(data_dir_of_ours)}
    assert datasets.stored_as(train.spec, **where) == "JPEG"
    eight = datasets.spec_of("tiny_imagenet", classes=8)
    assert sorted(datasets.load(eight, "train", data_dir=where["data_dir"]).labels) == [0, 0, 7, 7]


def test_the_subset(data_dir, tmp_path):
    source = data_dir / "tiny-imagenet-200-subset.zip"
    if not source.is_file():
        pytest.skip(f"{source} is absent")
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(
        tmp_path / "tiny-imagenet-200-part.zip", "w"
    ) as part:  # fmt: skip
        for name in whole.namelist():
            if "/train/" not in name or name.endswith("_0.JPEG"):
                part.writestr(name, whole.read(name))
    test = datasets.load("tiny_imagenet", "test", data_dir=str(tmp_path))
    assert test.images.shape == (2000, 64, 64, 3)
    assert len(set(test.labels)) == 200
    train = datasets.load("tiny_imagenet", "train", data_dir=str(tmp_path))
    assert sorted(train.labels) == list(range(200))


def test_neither_zip_nor_folder(tmp_path):
    with pytest.raises(UserError, match=r"no tiny-imagenet-200\.zip.*--data_dir.*--data=builtin"):
        datasets.load("tiny_imagenet", "train", data_dir=str(tmp_path))


def test_a_damaged_zip(tmp_path):
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="is damaged"):
        datasets.load("tiny_imagenet", "train", data_dir=str(tmp_path))


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as archive:
        archive.writestr("readme.txt", io.BytesIO(b"hello").read())
    with pytest.raises(UserError, match=r"it has no tiny-imagenet-200/wnids\.txt"):
        datasets.load("tiny_imagenet", "train", data_dir=str(tmp_path))
