"""Files made to do harm: refused with one sentence, and nothing in them is run or written.

Archives of checkpoints, with entries that leave their folder, links or bombs: `test_fetch.py`.
"""

import ast
import io
import json
import pickle
import stat
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from igam_tf import datasets, eval_pgd
from igam_tf.common import archives
from igam_tf.common.errors import UserError
from igam_tf.storage.run_folder import load_model

ROOT = Path(__file__).parents[1]
CLASS = "n00000001"


def refused(work, message: str) -> None:
    """Checks that `work` ends in one sentence that matches."""
    with pytest.raises(UserError, match=message) as error:
        work()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


# --- .keras files ---------------------------------------------------------------------------------


@pytest.fixture
def executed(tmp_path) -> Path:
    """What the code in these files writes, if it is ever run."""
    return tmp_path / "executed"


@pytest.fixture
def payload(executed):
    """A function that leaves its trace when it is called."""
    path = str(executed)
    return lambda x: (open(path, "w").close(), x)[1]


def saved(folder: Path, *layers: keras.layers.Layer) -> Path:
    path = folder / "student.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), *layers]).save(path)
    return path


def rewritten(path: Path, replace: dict[str, bytes]) -> Path:
    """Replaces entries of an archive; None leaves one out."""
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()} | replace
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            if content is not None:
                new.writestr(name, content)
    return path


def test_code_in_a_lambda_layer_is_not_run(tmp_path, payload, executed):
    path = saved(tmp_path, keras.layers.Lambda(payload))
    executed.unlink(missing_ok=True)
    refused(lambda: load_model(path), f"file without code in it; received {path}: .*`Lambda` layer")
    assert not executed.exists()
    keras.saving.load_model(path, safe_mode=False)  # so it would have been
    assert executed.exists()


def test_nor_is_it_in_an_activation(tmp_path, payload, executed):
    with pytest.warns(UserWarning, match="includes a `lambda`"):
        path = saved(tmp_path, keras.layers.Dense(2, activation=payload))
    executed.unlink(missing_ok=True)
    refused(
        lambda: load_model(path),
        f"received {path}: (Could not interpret activation|Unknown .config.)",
    )
    assert not executed.exists()


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("os", "system", {"command": "touch EXECUTED"}),
        ("subprocess", "Popen", {"args": ["touch", "EXECUTED"]}),
        ("pathlib._local", "Path", {}),
        ("os", "function", "system"),
    ],
)
def test_what_a_configuration_names_is_not_called(tmp_path, executed, module, name, arguments):
    path = saved(tmp_path)
    config = {"module": module, "class_name": name, "config": arguments, "registered_name": name}
    text = json.dumps(config).replace("EXECUTED", str(executed))
    rewritten(path, {"config.json": text.encode()})
    refused(lambda: load_model(path), f"received {path}: ")
    assert not executed.exists()


def test_a_function_that_a_layer_names_is_not_called(tmp_path, executed):
    """CVE-2025-1550: Keras before 3.9 calls it with the layer's inputs."""
    x = keras.Input((2,))
    path = tmp_path / "student.keras"
    keras.Model(x, keras.layers.Dense(2)(x)).save(path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    layer = {"module": "shutil", "class_name": "function", "config": "copyfile", "name": "copy"}
    call = {"args": [str(path), str(executed)], "kwargs": {}}
    config["config"]["layers"].append(
        layer | {"registered_name": "function", "inbound_nodes": [call]}
    )
    rewritten(path, {"config.json": json.dumps(config).encode()})
    refused(lambda: load_model(path), f"received {path}: ")
    assert not executed.exists()


def test_a_saved_model_that_a_layer_names_is_not_loaded(tmp_path):
    """CVE-2026-1462: TFSMLayer loads any graph from any folder."""
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]).export(
        tmp_path / "graph", verbose=False
    )
    path = saved(tmp_path, keras.layers.TFSMLayer(str(tmp_path / "graph"), "serve"))
    refused(lambda: load_model(path), f"received {path}: ")


class _Pickled:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled(executed: Path) -> bytes:
    """A .npz with an array of objects: reading it the careless way runs code."""
    buffer = io.BytesIO()
    np.savez(buffer, weights=np.array([_Pickled(executed)], object), allow_pickle=True)
    return buffer.getvalue()


def test_pickled_weights_are_not_unpickled(tmp_path, executed):
    content = pickled(executed)
    np.load(io.BytesIO(content), allow_pickle=True)["weights"]
    assert executed.exists()  # so it would have been
    executed.unlink()
    path = saved(tmp_path, keras.layers.Dense(2))
    rewritten(path, {"model.weights.h5": None, "model.weights.npz": content})
    refused(lambda: load_model(path), f"received {path}: ")
    assert not executed.exists()


@pytest.mark.parametrize("name", ["weights.npy", "weights.npz", "model.pkl", "model.h5"])
def test_files_of_other_kinds_are_not_opened(tmp_path, executed, command_of, name):
    path = tmp_path / name
    path.write_bytes(
        pickled(executed) if name == "weights.npz" else pickle.dumps(_Pickled(executed))
    )
    refused(lambda: command_of(eval_pgd)(f"--model={path}"), "expected --model as a run folder")
    assert not executed.exists()


def test_weights_of_pytorch_are_not_unpickled(tmp_path, executed, command_of):
    path = tmp_path / "m.pt"
    path.write_bytes(pickle.dumps(_Pickled(executed)))
    given = (f"--model={path}", "--architecture=wrn-28-10", "--dataset=cifar10", "--data=builtin")
    refused(lambda: command_of(eval_pgd)(*given), "expected PyTorch, which|and no code, in")
    assert not executed.exists()


def bomb(path: Path, name: str) -> None:
    """An archive that says an entry is of 5 GiB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(1000))
        archive.getinfo(name).file_size = 5 << 30


def slip(path: Path) -> None:
    rewritten(path, {"../outside.txt": b"x"})


def link(path: Path) -> None:
    entry = zipfile.ZipInfo("assets")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, "/etc")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (
            lambda path: bomb(path, "model.weights.h5"),
            "unsafe archive: expected at most 4294967296 bytes; received 5",
        ),
        (slip, "unsafe archive: '../outside.txt' is a link or leaves its folder"),
        (link, "unsafe archive: 'assets' is a link or leaves its folder"),
    ],
    ids=["bomb", "slip", "link"],
)  # fmt: skip
def test_unsafe_keras_files(tmp_path, command_of, harm, reason):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = saved(folder)
    harm(path)
    output = folder / "out.json"
    refused(
        lambda: command_of(eval_pgd)(
            f"--model={path}", f"--json={output}", "--data=builtin", "--dataset=mnist"
        ),
        f"received {path}: {reason}",
    )
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == {path}


# --- Tiny-ImageNet --------------------------------------------------------------------------------


def tiny_imagenet(folder: Path, *, images: int = 1, annotations: str | None = None) -> Path:
    """An archive that looks like Tiny-ImageNet's, its JPEGs of nothing but one byte over and over."""
    path = folder / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {
            "wnids.txt": CLASS,
            "val/val_annotations.txt": annotations or f"val_0.JPEG\t{CLASS}\t0\t0\t63\t63",
            "val/images/val_0.JPEG": "v" * 100,
            **{f"train/{CLASS}/images/{CLASS}_{i}.JPEG": "t" * 100 for i in range(images)},
        }.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    return path


def refused_by_load(path: Path, message: str) -> None:
    before = sorted(path.parent.parent.rglob("*"))
    refused(
        lambda: datasets.load("tiny_imagenet", "test", data_dir=str(path.parent)),
        f"Tiny-ImageNet's {path} is damaged or unsafe: {message}",
    )
    left = {p for p in path.parent.parent.rglob("*") if p.is_file()}
    assert left == {p for p in before if p.is_file()}


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (slip, "unsafe archive: '../outside.txt' is a link or leaves its folder"),
        (link, "unsafe archive: 'assets' is a link or leaves its folder"),
    ],
    ids=["slip", "link"],
)
def test_unsafe_entries_of_a_data_set(tmp_path, harm, reason):
    path = tiny_imagenet(tmp_path)
    harm(path)
    refused_by_load(path, reason)


def test_an_oversized_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED", 300)
    path = tiny_imagenet(tmp_path, images=3)
    refused_by_load(path, r"unsafe archive: expected at most 300 bytes; received 439")


def test_a_damaged_image_in_the_archive(tmp_path):
    path = tiny_imagenet(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"t" * 100, b"t" * 99 + b"T"))
    refused_by_load(path, f"damaged or unsupported archive: Bad CRC-32 .*{CLASS}_0.JPEG")


@pytest.mark.parametrize("zipped", [True, False])
def test_annotations_that_name_a_file_elsewhere(tmp_path, zipped):
    (tmp_path / "secret").write_text("not to be read")
    folder = tmp_path / "data"
    folder.mkdir()
    path = tiny_imagenet(folder, annotations=f"../../../../secret\t{CLASS}")
    if not zipped:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        path.unlink()
        path = path.with_suffix("")
    refused_by_load(path, "'val/images/../../../../secret' is not among its files")


@pytest.mark.parametrize(
    ("annotations", "reason"), [("val_0.JPEG", ""), ("val_0.JPEG\tn9", "'n9'")], ids=["column", "class"]
)  # fmt: skip
def test_annotations_of_another_kind(tmp_path, annotations, reason):
    refused_by_load(tiny_imagenet(tmp_path, annotations=annotations), reason)


# --- the code itself ------------------------------------------------------------------------------


def test_nothing_of_ours_unpickles_or_evaluates():
    """No such module or call, and no switch that would let a library do it."""
    modules = {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
    names = {"eval", "exec", "enable_unsafe_deserialization"}
    for path in [*(ROOT / "igam_tf").rglob("*.py"), *(ROOT / "madry_models").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not modules & {alias.name.split(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in modules, path
            elif isinstance(node, ast.Call):
                called = getattr(node.func, "id", getattr(node.func, "attr", None))
                assert called not in names, path
                values = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                assert values.get("allow_pickle", False) is False, path
                assert values.get("safe_mode", True) is True, path
