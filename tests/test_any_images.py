"""Images outside the four data sets: folders, npz and tensorflow-datasets, through every program."""

import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import run_here

from igam_tf import datasets, eval_pgd, export, train
from igam_tf.audit import __main__ as audit
from igam_tf.common.errors import UserError
from igam_tf.common.files import read_json
from igam_tf.datasets import SPECS, Augment, checked_name, load, short_name, spec_of
from igam_tf.datasets.files import READERS, resized
from igam_tf.evaluation.loading import data_spec
from igam_tf.experiments.resolve import resolve, source_spec, target_spec
from igam_tf.figures import __main__ as figures
from igam_tf.training.building import check_student

RNG = np.random.default_rng(0)


def write_image(path: Path, image: np.ndarray) -> None:
    """By the ending of its name; JPEGs of one colour lose nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = {".png": tf.io.encode_png, ".jpg": tf.io.encode_jpeg}[path.suffix]
    path.write_bytes(encode(image).numpy())


def write_classes(folder: Path, counts: dict[str, int], shape=(4, 5, 3)) -> Path:
    """Image i of a class is i everywhere."""
    for name, n in counts.items():
        for i in range(n):
            write_image(folder / name / f"{i:02d}.png", np.full(shape, i, np.uint8))
    return folder


def arrays(**changed) -> dict[str, np.ndarray]:
    """What an npz of 3 classes holds; None leaves an array out."""
    content = {
        "x_train": RNG.integers(0, 256, (9, 4, 5, 3), np.uint8), "y_train": np.arange(9) % 3,
        "x_test": RNG.integers(0, 256, (6, 4, 5, 3), np.uint8), "y_test": np.arange(6) % 3,
    }  # fmt: skip
    return {name: x for name, x in (content | changed).items() if x is not None}


@pytest.fixture
def npz(tmp_path):
    """Name of a data set of these arrays."""

    def of(**changed) -> str:
        np.savez(tmp_path / "own.npz", **arrays(**changed))
        return f"npz:{tmp_path / 'own.npz'}"

    return of


# --- folders ----------------------------------------------------------------------------------------


def test_a_folder_of_classes_is_divided_by_the_order_of_names(tmp_path):
    name = f"folder:{write_classes(tmp_path, {'b': 11, 'a': 3})}"
    spec = spec_of(name)
    assert spec.class_names == ("a", "b")
    assert (spec.image_shape, spec.num_classes) == ((4, 5, 3), 2)
    assert (spec.train_images, spec.test_images) == (11, 3)
    assert (spec.pixel_max, spec.eps, spec.step_size) == (255.0, 8 / 255, 2 / 255)
    assert spec.augment == Augment(pad=2, flip=True)
    # Every fifth of b, and the last of the three of a.
    for split, expected in {
        "test": {0: {2}, 1: {4, 9}},
        "train": {0: {0, 1}, 1: {0, 1, 2, 3, 5, 6, 7, 8, 10}},
    }.items():
        data = load(name, split)
        found = {k: set(data.images[data.labels == k, 0, 0, 0]) for k in (0, 1)}
        assert found == expected
        assert data.source == "folder"
        assert data.labels.dtype == np.int64
        assert (data.images == data.images[:, :1, :1, :1]).all()


def test_a_split_begins_with_every_class(tmp_path):
    name = f"folder:{write_classes(tmp_path, {str(k): 20 for k in range(5)})}"
    assert set(load(name, "train", num=30).labels) == set(range(5))
    np.testing.assert_array_equal(load(name, "train").labels, load(name, "train").labels)


def test_folders_of_train_and_test_are_taken_as_they_are(tmp_path):
    write_classes(tmp_path / "train", {"x": 3, "y": 1})
    write_classes(tmp_path / "test", {"x": 1, "y": 2})
    write_image(tmp_path / "train" / "x" / "deep" / "9.jpg", np.full((4, 5, 3), 200, np.uint8))
    (tmp_path / "train" / "x" / ".hidden").write_text("no image")
    train_, test = (load(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert sorted(train_.images[train_.labels == 0, 0, 0, 0]) == [0, 1, 2, 200]
    assert sorted(test.images[test.labels == 1, 0, 0, 0]) == [0, 1]


def test_grey_images_keep_one_channel_unless_others_have_three(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2}, shape=(3, 3, 1))
    assert spec_of(f"folder:{tmp_path}").image_shape == (3, 3, 1)
    write_image(tmp_path / "a" / "colour.png", np.full((3, 3, 4), (1, 2, 3, 4), np.uint8))  # alpha
    images = load(f"folder:{tmp_path}", "test").images
    assert images.shape[1:] == (3, 3, 3)
    assert (1, 2, 3) in {tuple(pixel) for pixel in images[:, 0, 0]}


def test_images_are_resized_to_image_size(tmp_path):
    for i, side in enumerate((4, 8, 4, 8)):
        image = np.zeros((side, side, 3), np.uint8)
        image[: side // 2] = 100
        write_image(tmp_path / "ab"[i // 2] / f"{i}.png", image)
    name = f"folder:{tmp_path}"
    with pytest.raises(UserError, match=r"one size, or --image_size; received 4x4 in .*and 8x8 in"):
        spec_of(name)
    spec = spec_of(name, image_size=2)
    assert spec.image_shape == (2, 2, 3)
    images = load(spec, "train").images
    assert (abs(images[:, 0].astype(int) - 100) < 15).all()
    assert (images[:, 1] < 15).all()


def test_a_constant_image_stays_one_when_resized():
    for value in (0, 7, 255):
        assert (resized(np.full((1, 5, 7, 1), value, np.uint8), (3, 9)) == value).all()


def test_what_is_wrong_with_a_folder(tmp_path):
    def refused(path: Path, message: str):
        with pytest.raises(UserError, match=message):
            spec_of(f"folder:{path}")

    refused(tmp_path / "none", "a folder with a subfolder for each class in folder:.*none")
    refused(write_classes(tmp_path / "one", {"a": 5}), "at least two classes.*received a$")
    refused(write_classes(tmp_path / "few", {"a": 5, "b": 1}), "two images of each.*b has 1")
    (write_classes(tmp_path / "empty", {"a": 5, "b": 2}) / "c").mkdir()
    refused(tmp_path / "empty", r"images \(png, .*gif\) of each class; found none in .*empty/c")
    write_classes(tmp_path / "half" / "train", {"a": 5, "b": 2})
    refused(tmp_path / "half", "both train/ and test/, .*; it has no test/")
    write_classes(tmp_path / "half" / "test", {"a": 5, "c": 2})
    refused(tmp_path / "half", "the same classes in train/ and test/.*has b, c")
    broken = write_classes(tmp_path / "broken", {"a": 5, "b": 5}) / "b" / "02.png"
    broken.write_bytes(broken.read_bytes()[:30])
    refused(
        tmp_path / "broken", r"an image \(png, jpg, bmp or gif\) in .*b/02.png; it cannot be read"
    )


# --- npz --------------------------------------------------------------------------------------------


def test_npz_is_taken_in_its_order(npz):
    content = arrays()
    split = load(npz(**content), "test")
    np.testing.assert_array_equal(split.images, content["x_test"])
    np.testing.assert_array_equal(split.labels, content["y_test"])
    assert split.labels.dtype == np.int64
    assert (split.source, split.spec.name, split.spec.num_classes) == ("npz", "npz:own.npz", 3)


def test_grey_and_float_arrays_have_a_rule(npz):
    x = RNG.uniform(size=(6, 4, 5)).astype("float32")
    x[0, 0, :3] = (0, 1, 0.5)
    images = load(npz(x_test=x, x_train=np.zeros((9, 4, 5), np.uint8)), "test").images
    assert images.shape == (6, 4, 5, 1)
    assert images.dtype == np.uint8
    assert images[0, 0, :3, 0].tolist() == [0, 255, 128]  # 127.5 rounds to even
    np.testing.assert_array_equal(images[..., 0], np.round(x * 255))


def test_npz_is_resized(npz):
    assert load(spec_of(npz(), image_size=6), "train").images.shape == (9, 6, 6, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_test": None}, "it has no y_test"),
        ({"x_train": np.full((9, 4, 5, 3), 1.5)}, r"float pixels in 0\.\.1, .*received 1\.5\.\.1\.5"),
        ({"x_train": np.full((9, 4, 5, 3), np.nan)}, r"float pixels in 0\.\.1, .*received nan"),
        ({"x_train": np.zeros((9, 4, 5, 3), int)}, r"uint8 in 0\.\.255 or float .*received int64"),
        ({"y_train": np.arange(9) - 1}, "labels from 0 on in y_train of .*; received -1"),
        ({"y_train": np.eye(9)}, r"y_train \[n\] in npz:.*of an integer type.*\[9, 9\]: take y\.argmax"),
        ({"x_test": np.zeros((6, 1, 4, 5, 3), np.uint8)}, r"\[n,H,W\] in .*; received the shape \[6, 1"),
        ({"x_test": np.zeros((6, 5, 4, 3), np.uint8)}, r"one shape .*\[4, 5, 3\] in x_train and \[5, 4"),
        ({"y_test": np.arange(5)}, "as many images as labels, .*received 6 in x_test and 5 in y_test"),
        ({"y_train": np.zeros(9, int)}, "at least two classes in y_train"),
        ({"y_train": np.arange(9) % 3 + 1}, r"every class 0\.\.3 .*; class 0 has none"),
        ({"y_test": np.arange(6)}, r"labels in 0\.\.2 in y_test .*received 5"),
        ({"y_test": np.array([object()] * 6)}, "none of them pickled; Object arrays cannot"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_npz(npz, changed, message):
    with pytest.raises(UserError, match=message):
        spec_of(npz(**changed))


def test_an_npz_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"in npz:.*a.npz; it is not there"):
        spec_of(f"npz:{tmp_path}/a.npz")
    (tmp_path / "b.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"expected numpy's npz .*damaged or unsupported"):
        spec_of(f"npz:{tmp_path}/b.npz")


# --- tensorflow-datasets ----------------------------------------------------------------------------


def store(
    folder: Path, like: str, splits: tuple[str, ...], *, n: int = 80, name: str = "", **changed
) -> str:
    """Records of the mock's random examples of a data set, under `folder`; returns the folder.

    With `name`, a data set that tensorflow-datasets does not know, with other features.
    """
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=n):
        builder = tfds.builder(like)
        drawn = [
            {key: value for key, value in example.items() if key in ("image", "label")}
            for example in builder.as_dataset(split="train").take(n).as_numpy_iterator()
        ]
    features = {key: builder.info.features[key] for key in ("image", "label")} | changed
    if "image" in changed:
        drawn = [e | {"image": e["image"][: 20 + i % 5]} for i, e in enumerate(drawn)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name or like,
        version=str(builder.version),
        features=tfds.features.FeaturesDict(features),
        split_datasets={split: list(enumerate(drawn)) for split in splits},
        data_dir=str(folder),
        disable_shuffling=True,
    )
    return str(folder)


@pytest.fixture(scope="module")
def svhn(tmp_path_factory):
    return store(tmp_path_factory.mktemp("tfds"), "svhn_cropped", ("train", "test"), n=120)


def test_tfds_tells_shape_classes_and_sizes(svhn):
    spec = spec_of("tfds:svhn_cropped", data_dir=svhn, image_size=16)
    assert (spec.image_shape, spec.num_classes) == ((16, 16, 3), 10)
    assert (spec.train_images, spec.test_images) == (120, 120)
    spec = spec_of("tfds:svhn_cropped", data_dir=svhn)
    split = load(spec, "test", data_dir=svhn)
    assert split.images.shape == (120, 32, 32, 3)
    assert (split.source, split.spec.name) == ("tfds", "tfds:svhn_cropped")
    names = datasets.class_names(spec, source="tfds", data_dir=svhn)
    assert names == [str(k) for k in range(10)]


def test_validation_stands_for_a_test_split_that_is_not_there(tmp_path, caplog):
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=(None, 28, 1))
    folder = store(
        tmp_path, "fashion_mnist", ("train", "validation"), name="own_clothes", image=image
    )
    with pytest.raises(UserError, match=r"or --image_size; its info says uint8 \[None, 28, 1\]"):
        spec_of("tfds:own_clothes", data_dir=folder)
    with caplog.at_level("INFO", logger="absl"):
        spec = spec_of("tfds:own_clothes", data_dir=folder, image_size=14)
        assert load(spec, "test", data_dir=folder).images.shape == (80, 14, 14, 1)
    assert "own_clothes has no test split; validation is used instead" in caplog.text
    assert datasets.class_names(spec, source="tfds")[0] == "T-shirt/top"


def test_tfds_data_that_cannot_be_used(tmp_path):
    import tensorflow_datasets as tfds

    with pytest.raises(
        UserError, match=r"that tensorflow-datasets knows, .*; received tfds:nothing_"
    ):
        spec_of("tfds:nothing_of_the_kind", data_dir=str(tmp_path))
    folder = store(tmp_path / "a", "svhn_cropped", ("train",))
    with pytest.raises(UserError, match=r"test .or validation. of tfds:svhn_cropped; it has train"):
        spec_of("tfds:svhn_cropped", data_dir=folder)
    scalar = tfds.features.Scalar(dtype=np.int64)
    folder = store(
        tmp_path / "b", "svhn_cropped", ("train", "test"), name="own_numbers", label=scalar
    )
    with pytest.raises(UserError, match=r"an image and an integer label.*label \(Scalar\)"):
        spec_of("tfds:own_numbers", data_dir=folder)


def test_without_a_network_an_unprepared_data_set_is_told_within_seconds(tmp_path, monkeypatch):
    from igam_tf.datasets import loading

    monkeypatch.setattr(loading, "_PROBE_SECONDS", 0.2)
    monkeypatch.setattr(
        loading.urllib.request, "urlopen", lambda *_, **__: __import__("time").sleep(9)
    )
    with pytest.raises(UserError, match=r"no answer from ufldl.stanford.edu in 0.2 s.*--data_dir$"):
        spec_of("tfds:svhn_cropped", data_dir=str(tmp_path))


# --- names and settings -----------------------------------------------------------------------------


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checked_name("folder:a b/c") == f"folder:{tmp_path}/a b/c"
    assert checked_name("npz:~/x.npz") == f"npz:{Path.home()}/x.npz"
    assert checked_name("tfds:svhn_cropped") == "tfds:svhn_cropped"
    assert short_name("npz:/a/b.npz") == "npz:b.npz"
    (tmp_path / "some.npz").touch()
    for name, hint in {
        "svhn_cropped": "tfds:svhn_cropped is its name if it is one of tensorflow-datasets",
        "some.npz": "its name is npz:some.npz",
        "./": "its name is folder:./",
        "folder:": "received 'folder:'",
    }.items():
        with pytest.raises(UserError, match=re.escape(hint)):
            resolve({"target": name})
    with pytest.raises(
        UserError, match=r"expected --source=mnist, cifar10.*npz:<path>; received 'x y'"
    ):
        resolve({"source": "x y"})


def test_the_synthetic_pair_stands_for_nothing_else(npz):
    with pytest.raises(UserError, match="--data=builtin"):
        datasets.check_available(spec_of(npz()), source="builtin")


def test_settings_of_the_data_reach_its_spec(npz, tmp_path, monkeypatch):
    chosen = {"source": "mnist", "target": npz(), "preset": "smoke", "num_validation": 2}
    chosen |= {"eval_examples": 6, "image_size": 8, "pixel_max": 1.0, "eps": "16/255"}
    config = resolve(chosen)
    spec = target_spec(config)
    assert spec.image_shape == (8, 8, 3)
    assert spec.eps == 16 / 255
    assert spec.step_size == pytest.approx(4 / 255)  # in the ratio of 2 to 8
    assert spec.pixel_max == 1.0
    assert target_spec(resolve(chosen | {"step_size": "0.5/255"})).step_size == 0.5 / 255
    assert source_spec(config) == SPECS["mnist"]
    assert data_spec(config.target, vars(config)) == spec
    assert data_spec("cifar10", {"image_size": 8}) == SPECS["cifar10"]
    same = resolve(chosen | {"source": chosen["target"], "teacher": "train"})
    assert source_spec(same) == spec


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            {"image_size": 8},
            "tfds:, folder: or npz: images; received 8 for mnist and cifar10",
        ),
        ({"eps": "2"}, "--eps as a fraction of the pixel range, above 0 and at most 1"),
        ({"step_size": "x"}, "--step_size as a fraction"),
        ({"pixel_max": -1.0}, "--pixel_max of at least 0"),
    ],
)
def test_settings_that_are_refused(chosen, message):
    with pytest.raises(UserError, match=message):
        resolve(chosen)


def test_more_images_than_there_are(npz):
    for more, message in {
        "num_validation": "--num_validation of at most 8, for npz:own.npz has 9 images to train on",
        "eval_examples": "--eval_examples of at most 6",
    }.items():
        with pytest.raises(UserError, match=message):
            resolve({"target": npz(), "num_validation": 2, "eval_examples": 6} | {more: 9})


def test_a_student_of_another_pixel_range_is_told_at_once(npz):
    chosen = {"target": npz(), "preset": "smoke", "num_validation": 2, "eval_examples": 6}
    config = resolve(chosen | {"pixel_max": 1.0, "image_size": 8})
    with pytest.raises(UserError, match=r"--pixel_max=255, .* that wrn-8-1 takes.*; received 1$"):
        check_student(config, target_spec(config))


def test_the_teachers_recipe_belongs_to_the_data_set(npz):
    def recipe(source: str) -> tuple:
        c = resolve({"source": source, "target": "cifar10"})
        return c.teacher, c.teacher_network, c.teacher_optimizer, c.teacher_steps

    assert recipe("mnist")[1:3] == ("mnist-cnn", "adam")
    assert SPECS["mnist"].augment == Augment(pad=0, flip=False)
    name, _, *others = recipe(npz())
    assert (name, *others) == ("train", "momentum", 80_000)


# --- one command each -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ten_classes(data_dir, tmp_path_factory):
    """Ten classes of the Tiny-ImageNet subset, 24 images each, of which every fifth is for testing."""
    folder = tmp_path_factory.mktemp("images") / "ten classes"
    with zipfile.ZipFile(data_dir / "tiny-imagenet-200-subset.zip") as bundle:
        names = [n for n in bundle.namelist() if re.search(r"/train/.*\.JPEG$", n)]
        for wnid in sorted({name.split("/")[2] for name in names})[:10]:
            for name in [n for n in names if n.split("/")[2] == wnid][:24]:
                file = folder / wnid / os.path.basename(name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(bundle.read(name))
    return f"folder:{folder}"


MORE = pytest.mark.parametrize("more", [False, pytest.param(True, marks=pytest.mark.slow)])


def every_program(
    folder: Path, name: str, *how: str, teacher: bool = False, more: bool = True
) -> None:
    """Trains, attacks and exports, with `more` audits and draws; no flag then says what the data are."""
    run = folder / "run"
    run_here(
        train, f"--target={name}", "--preset=smoke", f"--workdir={run}", "--train_steps=4",
        f"--num_validation={8 * more}", "--eval_examples=16", *how,
    )  # fmt: skip
    results = read_json(run / "results.json")
    settings = read_json(run / "config.json")
    report = results[settings["method"]]
    assert report["dataset"] == short_name(name)
    run_here(
        eval_pgd, f"--model={run}", "--attacks=clean,fgsm", "--num_examples=16",
        f"--json={folder / 'eval.json'}",
    )  # fmt: skip
    again = read_json(folder / "eval.json")
    for attack in ("clean", "fgsm"):
        assert again["results"][attack] == report["results"][attack]
    if more:
        run_here(
            audit, f"--model={run}", "--checks=logits", "--num_examples=8",
            f"--workdir={folder / 'audit'}",
        )  # fmt: skip
        assert read_json(folder / "audit" / "config.json")["dataset"] == short_name(name)
        run_here(
            figures, f"--runs={run}", "--figures=gradients", "--num_drawn=2",
            f"--output={folder / 'figures'}",
        )  # fmt: skip
        assert (folder / "figures" / "gradients.png").stat().st_size > 1000
    run_here(export, f"--run={run}", f"--output={folder / 'exported'}")
    text = (folder / "exported" / "card.json").read_text()
    card = json.loads(text)
    assert str(folder) not in text
    assert name.partition(":")[2] not in text or name.startswith("tfds")
    assert card["results"]["dataset"] == short_name(name)
    assert str(folder) not in (folder / "exported" / "README.md").read_text()
    assert (run / "transform.txt").exists() == teacher


def test_a_folder_through_every_program(ten_classes, tmp_path, npz):
    x = RNG.integers(0, 256, (40, 12, 12), np.uint8)
    source = npz(x_train=x, x_test=x, y_train=np.arange(40) % 4, y_test=np.arange(40) % 4)
    how = ("--image_size=16", "--eps=4/255", "--igam_start=0", "--disc_every=1")
    how += ("--student=conftest:small_student", "--teacher_network=conftest:small_student")
    every_program(tmp_path, ten_classes, f"--source={source}", *how, teacher=True)
    run = tmp_path / "run"
    words = (run / "transform.txt").read_text()
    assert words == "mean of 3 channels\n"
    assert read_json(run / "config.json")["transform"] == "auto"
    assert read_json(run / "results.json")["igam"]["results"]["pgd2"]["eps"] == 4 / 255
    names = read_json(tmp_path / "exported" / "card.json")["class_names"]
    assert len(names) == 10
    assert all(name.startswith("n0") for name in names)


@MORE
def test_an_npz_through_every_program(tmp_path, npz, more):
    x = RNG.integers(0, 256, (60, 12, 16, 1), np.uint8)  # not square, grey
    every_program(
        tmp_path, npz(x_train=x, x_test=x, y_train=np.arange(60) % 5, y_test=np.arange(60) % 5),
        "--method=pgd", "--eval_attacks=clean,fgsm", "--student=conftest:small_student", more=more,
    )  # fmt: skip


@MORE
def test_tfds_through_every_program(svhn, tmp_path, more):
    how = ("--method=standard", f"--data_dir={svhn}", "--eval_attacks=clean,fgsm")
    every_program(tmp_path, "tfds:svhn_cropped", *how, more=more)


def test_a_relative_path_resumes_from_anywhere(npz, tmp_path, monkeypatch):
    x = RNG.integers(0, 256, (60, 8, 8, 1), np.uint8)
    npz(x_train=x, x_test=x, y_train=np.arange(60) % 5, y_test=np.arange(60) % 5)
    settings = ["--preset=smoke", "--method=standard", "--num_validation=8", "--eval_examples=16"]
    settings += ["--train_steps=2", "--eval_attacks=clean"]
    monkeypatch.chdir(tmp_path)
    reader, read = READERS["npz"], []
    monkeypatch.setitem(READERS, "npz", lambda *file: read.append(file) or reader(*file))
    run_here(train, "--target=npz:own.npz", *settings)
    assert len(read) == 5  # settings, their check, the run, and its two splits
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "mnist-npz-own.npz-standard-smoke"
    before = (run / "results.json").read_bytes()
    monkeypatch.chdir("/")
    run_here(train, f"--target=npz:{tmp_path}/own.npz", f"--workdir={run}", *settings)
    assert (run / "results.json").read_bytes() == before
