"""Files and folders as users have them: any name, any image, damaged, moved, used by two at once."""

import importlib
import json
import os
import shutil
import struct
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from igam_tf.audit.audit import _resume
from igam_tf.audit.audited import AttackResult
from igam_tf.common import quiet
from igam_tf.common.errors import UserError
from igam_tf.common.literal import literal
from igam_tf.common.locks import take_lock
from igam_tf.datasets import files, load
from igam_tf.evaluation.results import read_results
from igam_tf.experiments.config import Config
from igam_tf.experiments.resolve import target_spec
from igam_tf.method import architectures
from igam_tf.storage.checkpoints import Checkpoints
from igam_tf.storage.journal import Journal, checksum, journal_beside, model_identity
from igam_tf.storage.run_folder import RunFolder
from igam_tf.training.stages import Run
from madry_models.tf1_checkpoint import from_tf1_checkpoint

# --- names ----------------------------------------------------------------------------------------

NAMES = (
    "run[1]",
    "[a-z]",
    "x[1",
    "a*b",
    "q?",
    "back\\slash",
    "sp ace",
    "5%d",
    "#1",
    "ü",
    "~t",
    "c:d",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_in_a_folder_of_any_name(tmp_path, name):
    state = tf.Variable(3.0)
    Checkpoints(tf.train.Checkpoint(state=state), tmp_path / name).save(1)
    state.assign(0.0)
    Checkpoints(tf.train.Checkpoint(state=state), tmp_path / name).restore()
    assert state.numpy() == 3.0


def test_only_patterns_get_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (folder := tmp_path / name).mkdir()
        link = literal(folder)
        assert (link != folder) == any(c in name for c in "*?[]\\")
        assert link.samefile(folder)
        assert literal(Path(name)).samefile(folder)
        assert link == literal(folder)


def test_a_published_checkpoint_and_data_in_a_folder_with_brackets(tmp_path, golden_dir, data_dir):
    folder = tmp_path / "[1]"
    folder.mkdir()
    (folder / "model").symlink_to(golden_dir / "mnist" / "models" / "adv_trained")
    (folder / "data").symlink_to(data_dir / "tensorflow_datasets")
    x = load("mnist", "test", data_dir=str(folder / "data")).images[:4]
    np.testing.assert_array_equal(
        x, load("mnist", "test", data_dir=str(data_dir / "tensorflow_datasets")).images[:4]
    )
    logits = from_tf1_checkpoint(folder / "model")(x / np.float32(255))
    expected = from_tf1_checkpoint(golden_dir / "mnist" / "models" / "adv_trained")
    np.testing.assert_array_equal(logits, expected(x / np.float32(255)))


# --- images ---------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 6, 3), np.uint8)
GREY = RGB[..., 0]
INDICES = RNG.integers(0, 3, (5, 6), np.uint8)
COLOURS = np.array([(255, 0, 0), (0, 250, 3), (10, 20, 30)], np.uint8)
BLOCKS = np.kron(RNG.integers(0, 256, (4, 6, 3), np.uint8), np.ones((8, 8, 1), np.uint8))


def bmp(
    indices: np.ndarray, table: np.ndarray, *, top_down: bool = False, rle: bool = False
) -> bytes:
    """A BMP of 8 bits a pixel, by its specification."""
    height, width = indices.shape
    rows = [row.tobytes() for row in (indices if top_down else indices[::-1])]
    if rle:
        data = b"".join(b"".join(bytes((1, v)) for v in row) + b"\0\0" for row in rows) + b"\0\1"
    else:
        data = b"".join(row + bytes(-width % 4) for row in rows)
    palette = b"".join(bytes((b, g, r, 0)) for r, g, b in table.tolist())
    begin = 54 + len(palette)
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, -height if top_down else height, 1, 8, int(rle), len(data), 0, 0,
        len(table), 0,
    )  # fmt: skip
    return b"BM" + struct.pack("<IHHI", begin + len(data), 0, 0, begin) + header + palette + data


def saved(
    image: np.ndarray, path: Path, *, mode: str | None = None, palette=None, **options
) -> None:
    picture = Image.fromarray(image)
    if palette is not None:
        picture.putpalette(palette.ravel().tolist())
    (picture.convert(mode) if mode else picture).save(path, **options)


def test_an_image_is_what_a_viewer_shows(tmp_path):
    inverted = np.repeat(np.arange(255, -1, -1, dtype=np.uint8)[:, None], 3, 1)
    shown = COLOURS[INDICES]
    for name, content, expected in (
        ("palette", bmp(INDICES, COLOURS), shown),
        ("rle", bmp(INDICES, COLOURS, rle=True), shown),
        ("top_down", bmp(INDICES, COLOURS, top_down=True), shown),
        ("grey", bmp(GREY, inverted[::-1]), GREY[..., None]),
        ("inverted", bmp(GREY, inverted), 255 - GREY[..., None]),
    ):
        (tmp_path / f"{name}.bmp").write_bytes(content)
        np.testing.assert_array_equal(files._pixels_of(tmp_path / f"{name}.bmp"), expected, name)
    deep = RNG.integers(0, 2**16, (5, 6, 3), np.uint16)
    (tmp_path / "deep.png").write_bytes(tf.io.encode_png(deep).numpy())
    np.testing.assert_array_equal(files._pixels_of(tmp_path / "deep.png"), deep >> 8)
    alpha = np.dstack([RGB, GREY])
    animation = {"save_all": True, "append_images": [Image.fromarray(RGB)]}
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned: the right side is the top
    for name, image, options, expected in (
        ("rgb.png", RGB, {}, RGB),
        ("palette.png", INDICES, {"palette": COLOURS}, shown),
        ("transparent.png", INDICES, {"palette": COLOURS, "transparency": 1}, shown),
        ("palette.gif", INDICES, {"palette": COLOURS} | animation, shown),
        ("bits.png", GREY > 99, {}, np.uint8(255) * (GREY > 99)[..., None]),
        ("bits.bmp", GREY > 99, {}, np.uint8(255) * (GREY > 99)[..., None]),
        ("deep_grey.png", deep[..., 0], {}, deep[..., :1] >> 8),
        ("alpha.png", alpha, {}, RGB),
        ("alpha.bmp", alpha, {}, RGB),
        ("grey_alpha.png", alpha[..., 2:], {}, RGB[..., 2:]),
    ):
        saved(image, tmp_path / name, **options)
        np.testing.assert_array_equal(files._pixels_of(tmp_path / name), expected, name)
    saved(BLOCKS, tmp_path / "photo.jpg", quality=100, subsampling=0, exif=turned)
    upright = files._pixels_of(tmp_path / "photo.jpg").astype(int)
    assert abs(upright - np.rot90(BLOCKS, -1)).max() <= 3
    saved(RGB, tmp_path / "print.jpg", mode="CMYK")
    for name in ("print.jpg", "half.png", "html.png", "empty.gif"):
        if name == "half.png":
            (tmp_path / name).write_bytes((tmp_path / "rgb.png").read_bytes()[:-30])
        elif name != "print.jpg":
            (tmp_path / name).write_bytes(b"<html>" * (name == "html.png"))
        with pytest.raises(
            UserError, match=f"expected an image .*{name}; it cannot be read: ."
        ) as e:
            files._pixels_of(tmp_path / name)
        assert "\n" not in str(e.value)


def classes(folder: Path, value: int) -> str:
    """Name of a data set of four images, all of one value."""
    for name in ("a/0", "a/1", "b/0", "b/1"):
        path = folder / f"{name}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bmp(np.full((2, 2), value, np.uint8), COLOURS))
    return f"folder:{folder}"


def test_images_that_were_replaced_are_read_again(tmp_path):
    """Also where names, sizes and times are those of before."""
    for value in (0, 2):
        name = classes(tmp_path, value)
        for path in tmp_path.rglob("*.bmp"):
            os.utime(path, (0, 0))
        assert (load(name, "train").images == COLOURS[value]).all()
    arrays = {"y_train": [0, 1], "y_test": [0, 1]}
    for value in (1, 2):
        np.savez(tmp_path / "x.npz", **arrays | dict.fromkeys(
            ("x_train", "x_test"), np.full((2, 2, 2), value, np.uint8)))  # fmt: skip
        os.utime(tmp_path / "x.npz", (0, 0))
        assert (load(f"npz:{tmp_path / 'x.npz'}", "test").images == value).all()


# --- the images of a run ------------------------------------------------------------------------------


def test_a_run_knows_its_images_and_not_where_they_are(tmp_path):
    def train_images(place: str, **changed) -> np.ndarray:
        config = Config(target=f"folder:{tmp_path / place / 'own'}", **changed)
        with RunFolder(tmp_path / "run", config) as folder:
            return Run(config, folder).load(target_spec(config), "train").images

    for place, value in (("here", 1), ("there", 1), ("other", 2)):
        classes(tmp_path / place / "own", value)
    assert (train_images("here", data_dir="/here") == train_images("there", data_dir="~/x")).all()
    with pytest.raises(UserError, match=r"expected the images that the run in .*own, train"):
        train_images("other")
    with pytest.raises(UserError, match="--seed was 0, is 1"):
        train_images("here", seed=1)
    shutil.move(tmp_path / "here" / "own", tmp_path / "here" / "renamed")
    with (
        pytest.raises(UserError, match="--target was"),
        RunFolder(tmp_path / "run", Config(target=f"folder:{tmp_path / 'here' / 'renamed'}")),
    ):
        pass


def test_a_folder_of_another_program_is_refused(tmp_path):
    for i, content in enumerate(("{}", '{"model": "x", "transfer_from": {"y": "z"}}')):
        (folder := tmp_path / str(i)).mkdir()
        (folder / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"holds a run of other settings"):
            RunFolder(folder, Config(seed=1, target="cifar10"))


# --- journals and results ---------------------------------------------------------------------------

MASK = np.array([True, False, True, True])


def flipped(line: bytes) -> bytes:
    return line.replace(b"1011", b"1111")


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        lambda line: line.replace(b"1011", b"101"),
        lambda line: line.replace(b"1011", b"10110"),
        lambda line: line.replace(b'"key": "', b'"key": "0'),
        lambda line: line[:40],
        lambda line: bytes(len(line)),
        lambda line: b"\xff{[ no JSON",
        lambda line: b"[" * 5000,
        lambda line: b"",
        lambda line: json.dumps(
            {k: v for k, v in json.loads(line).items() if k != "sha256"}
        ).encode(),
    ],
)
def test_a_damaged_line_of_a_journal_is_not_there(tmp_path, damage):
    path = tmp_path / "j"
    journal = Journal(path, "model")
    keys = [journal.key(i) for i in range(3)]
    for key in keys:
        journal.put(key, MASK)
    lines = path.read_bytes().split(b"\n")
    for damaged in (0, 2):
        path.write_bytes(
            b"\n".join([*lines[:damaged], damage(lines[damaged]), *lines[damaged + 1 :]])
        )
        found = [Journal(path, "model").get(key) for key in keys]
        assert found.pop(damaged) is None
        for mask in found:
            np.testing.assert_array_equal(mask, MASK)
    again = Journal(path, "model")
    again.put(keys[2], MASK)
    tmp_path.rename(away := tmp_path.with_name(f"{tmp_path.name} away"))
    with pytest.raises(UserError, match="renamed or removed"):
        again.put(keys[1], MASK)
    away.rename(tmp_path)
    np.testing.assert_array_equal(Journal(path, "model").get(keys[2]), MASK)


def test_an_edited_network_is_another(tmp_path, monkeypatch):
    """Though its class, configuration and weights are those of before."""
    monkeypatch.syspath_prepend(tmp_path)
    code = (
        "import keras\nclass Own(keras.layers.Layer):\n    def call(self, x):\n        return {}\n"
    )
    identities = []
    for i, result in enumerate(("x", "x", "-x")):
        (tmp_path / "own_layer_here.py").write_text(code.format(result) + "#" * (i == 2))
        sys.modules.pop("own_layer_here", None)
        layer = importlib.import_module("own_layer_here").Own(name="own")
        identities.append(model_identity(keras.Sequential([keras.Input((2,), name="x"), layer])))
    assert identities[0] == identities[1] != identities[2]


def test_one_process_writes_a_results_file(tmp_path):
    file = tmp_path / "x.json"
    with journal_beside(file, "model") as journal:
        journal.put(journal.key(1), MASK)
        with pytest.raises(UserError, match=r"another process is writing .*x.json"):
            journal_beside(file, "model").__enter__()
        with journal_beside(file, "model", "teacher") as other:
            assert other.path.name == "x.json.teacher.journal"
    assert not list(tmp_path.iterdir())

    def interrupted():
        with journal_beside(file, "model") as journal:
            journal.put(journal.key(1), MASK)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with journal_beside(file, "model") as journal:
        assert journal.get(journal.key(1)) is not None
    with pytest.raises(UserError, match="expected to read and write"):
        journal_beside(tmp_path / "no" / "x.json", "model").__enter__()


def test_whoever_waits_for_a_lock_gets_the_file_that_is_there(tmp_path):
    first = take_lock(tmp_path / "lock")
    (tmp_path / "lock").unlink()
    second = take_lock(tmp_path / "lock")
    first.close()
    with pytest.raises(BlockingIOError):
        take_lock(tmp_path / "lock")
    second.close()
    take_lock(tmp_path / "lock", wait=True).close()


class _Audited:
    results: dict = {}  # noqa: RUF012


def test_finished_checks_that_are_damaged_are_done_again(tmp_path):
    path = tmp_path / "finished.json"
    content = {"checks": {"x": {"status": "PASS"}}, "rows": {"a": AttackResult(MASK, {}).to_json()}}
    sealed = content | {"sha256": checksum(content)}
    path.write_text(json.dumps(sealed))
    assert _resume(_Audited(), path) == content["checks"]
    whole = path.read_text()
    for damaged in (whole.replace("1011", "1111"), whole.replace("PASS", "FAIL"), whole[:-9], "",
                    json.dumps(content), json.dumps([])):  # fmt: skip
        path.write_text(damaged)
        assert _resume(_Audited(), path) == {}


def test_figures_that_are_not_those_of_their_masks_are_refused(tmp_path):
    common = {"n": 4, "ci95": [0, 100], "eps": 0.1, "eps_unit": "l-inf", "batch_norm": "inference"}
    rows = {
        "clean": {"accuracy": 75.0, "robust_mask": "1011"},
        "pgd5": {"accuracy": 50.0, "robust_mask": "1001"},
        "worst_case": {"accuracy": 50.0, "seed": 0},
    }
    report = {"dataset": "mnist", "split": "test", "data": "tfds", "pixel_max": 1.0}
    report |= {"results": {name: row | common for name, row in rows.items()}, "doubts": []}
    text = json.dumps({"igam": report})
    path = tmp_path / "results.json"
    path.write_text(text)
    assert read_results(tmp_path)["igam"] == report
    for old, new in (
        ("1001", "1011"),
        ("1011", "101"),
        ("75.0", "57.0"),
        ("1001", "0101"),
        ("1001", "1002"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=r"results.json; it is damaged"):
            read_results(tmp_path)


# --- the process ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("called", "ours"),
    [
        ("/usr/bin/igam-train", True),
        ("C:/bin/madry-fetch.exe", True),
        (str(Path(quiet.__file__).parents[2] / "igam_tf" / "train.py"), True),
        (str(Path(quiet.__file__).parents[2] / "tests" / "test_files.py"), False),
        ("igam-experiment.py", False),
        ("-m", False),
        ("", False),
    ],
)
def test_what_is_a_program(monkeypatch, called, ours):
    monkeypatch.setattr("sys.argv", [called])
    assert quiet.is_program() == ours


def test_modules_of_the_working_directory_hide_none(tmp_path, monkeypatch):
    (tmp_path / "own_network_here.py").write_text("def net(): pass\n")
    (tmp_path / "json.py").write_text("raise AssertionError\n")
    monkeypatch.chdir(tmp_path)
    before = ["/nowhere"]
    monkeypatch.setattr("sys.path", before)
    with pytest.raises(UserError, match="No module named 'own_network_here'"):
        architectures.import_classes("own_network_here:net")
    assert before == ["/nowhere"]
    monkeypatch.setattr(architectures, "is_program", lambda: True)
    architectures.import_classes("own_network_here:net")
    assert before == ["/nowhere", str(tmp_path)]
