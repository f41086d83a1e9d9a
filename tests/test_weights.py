"""Weight files of ports: every way to save one is read, anything else ends in one sentence."""

import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import wong2018
from conftest import run_here
from torch_references import torch

from igam_tf.common.errors import UserError
from igam_tf.pytorch import convert as program
from igam_tf.pytorch.architectures import FAMILIES, candidates, plan_of
from igam_tf.pytorch.networks import Port
from igam_tf.pytorch.weights import load_port, read

# PyTorch built for GPUs says so where there is none.
pytestmark = pytest.mark.filterwarnings("ignore:CUDA initialization:UserWarning")
NAME = "wrn-10-1"


def state(name: str = NAME, classes: int = 10, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Random weights of an architecture, with counters as PyTorch saves them."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for tensor, shape in plan_of(name, classes).tensors().items():
        found[tensor] = torch.rand(shape, generator=generator).to(dtype)
        if tensor.endswith("running_var"):
            found[tensor.replace("running_var", "num_batches_tracked")] = torch.tensor(3)
    return found


def saved(folder: Path, content, **kwargs) -> Path:
    path = folder / "network.pt"
    torch.save(content, path, **kwargs)
    return path


def refused(work, message: str) -> None:
    """Checks that `work` ends in one sentence that matches."""
    with pytest.raises(UserError, match=message) as error:
        work()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


# --- what is read ---------------------------------------------------------------------------------


def _equal(path: Path, tensors: dict | None = None) -> None:
    """Checks that a file's network has the weights of `state()`."""
    found, tensors = read(path, NAME), tensors or state()
    for tensor, array in found.arrays.items():
        np.testing.assert_array_equal(array, tensors[tensor].float().numpy())
    assert all("num_batches_tracked" in n for n in found.unused)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {}}},
        lambda s: {"model": {"state_dict": s}},
        lambda s: [s],
        lambda s: {"net": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"last": {f"module.model.{k}": v for k, v in s.items()}, "best": {}},
    ],
)
def test_containers_and_prefixes(wrap, tmp_path):
    _equal(saved(tmp_path, wrap(state())))


def test_the_old_format_of_pytorch(tmp_path):
    _equal(saved(tmp_path, state(), _use_new_zipfile_serialization=False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_to_float32(dtype, tmp_path):
    tensors = state(dtype=dtype)
    _equal(saved(tmp_path, tensors), tensors)
    found = read(saved(tmp_path, tensors), NAME)
    assert {array.dtype for array in found.arrays.values()} == {np.dtype("float32")}


def test_parameters_views_and_other_strides(tmp_path):
    tensors = {name: torch.nn.Parameter(t) for name, t in _without().items() if "num" not in name}
    _equal(saved(tmp_path, tensors))
    flat = torch.cat([t.detach().ravel() for t in tensors.values()])
    parts = flat.split([t.numel() for t in tensors.values()])
    views = {
        name: part.view(tensors[name].shape) for name, part in zip(tensors, parts, strict=True)
    }
    last = views["conv1.weight"].contiguous(memory_format=torch.channels_last)
    _equal(saved(tmp_path, views | {"conv1.weight": last}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safetensors(dtype, tmp_path):
    torch_files = pytest.importorskip("safetensors.torch", reason="no safetensors")
    tensors, path = state(dtype=dtype), tmp_path / "network.safetensors"
    torch_files.save_file(tensors, path)
    _equal(path, tensors)


def test_npz(tmp_path):
    path = tmp_path / "network.npz"
    np.savez(path, **{k: v.numpy() for k, v in state().items()})
    _equal(path)


def test_checkpoints_of_the_robustness_library(tmp_path):
    """Its attacker holds the network once more, and both hold the mean and deviation."""
    tensors = state("cifar-resnet-18")
    mean, std = torch.tensor([0.5, 0.25, 0.5]), torch.tensor([0.125, 0.25, 0.5])
    content = {}
    for prefix, normalizer in (("module.", "normalizer"), ("module.attacker.", "normalize")):
        content |= {f"{prefix}model.{k}": v for k, v in tensors.items()}
        content |= {
            f"{prefix}{normalizer}.new_mean": mean[:, None, None],
            f"{prefix}{normalizer}.new_std": std[:, None, None],
        }
    path = saved(tmp_path, {"model": content, "epoch": 1})
    found = read(path, "cifar-resnet-18")
    assert found.preprocess == "mean=0.5,0.25,0.5/std=0.125,0.25,0.5"
    assert {name for name in found.unused if "num_batches" not in name} == {
        name for name in content if "attacker" in name and "num_batches" not in name
    }
    x = np.full((1, 1, 1, 3), 0.75, "float32")
    given = found.network().preprocess(x)
    np.testing.assert_array_equal(given, [[[[2, 2, 0.5]]]])
    refused(lambda: found.network("imagenet"), "no --preprocess where the file has .*imagenet and")


def test_the_second_block_of_trades_is_left_out(tmp_path):
    tensors = state()
    extra = {f"sub_{k}": v for k, v in tensors.items() if k.startswith("block1")}
    found = read(saved(tmp_path, tensors | extra), NAME)
    assert set(extra) <= set(found.unused)


# --- what is refused ------------------------------------------------------------------------------


class Code:
    """Leaves a trace if it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "executed"
    path = saved(tmp_path, state() | {"hook": Code(trace)})
    refused(lambda: load_port(path, NAME), r"no code, in .*a pickle that calls posix\.mkdir")
    assert not trace.exists()
    torch.load(path, weights_only=False)  # so it would have been
    assert trace.exists()


def test_a_whole_module_is_refused(tmp_path):
    path = saved(tmp_path, torch.nn.Linear(2, 2))
    refused(
        lambda: load_port(path, NAME), r"calls torch\.nn\.modules\.linear\.Linear: .*state_dict"
    )


def _without(*names: str) -> dict:
    return {k: v for k, v in state().items() if k not in names}


def _arrays() -> dict:
    return {k: v.numpy() for k, v in state().items()}


def _save_safetensors(tensors: dict, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)


def _other(dtype, value: float = 0) -> dict:
    """With logits in numbers that are no weights as they are."""
    return state() | {"fc.weight": torch.full((10, 64), value).to(dtype)}


def _within_itself(path: Path) -> None:
    content: dict = {}
    content["model"] = [content]
    torch.save(content, path)


def _zeros(path: Path) -> None:
    """An array of which only the header is there: its numbers are not read."""
    with (
        zipfile.ZipFile(path, "w") as bundle,
        bundle.open("zeros.npy", "w") as file,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
        np.lib.format.write_array_header_1_0(file, header)


def _zip_without_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("readme.txt", "hello")


# Name of a file -> (what writes it, what the sentence says).
DAMAGED = {
    "truncated.pt": (
        lambda path: path.write_bytes(saved(path.parent, state()).read_bytes()[:-5000]),
        "PyTorch cannot read, RuntimeError: ",
    ),
    "truncated_old.pt": (
        lambda path: path.write_bytes(
            saved(path.parent, state(), _use_new_zipfile_serialization=False).read_bytes()[:-5000]
        ),
        "PyTorch cannot read, RuntimeError: unexpected EOF",
    ),
    "picture.pth": (
        lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
        "PyTorch cannot read, UnpicklingError",
    ),
    "empty.pt": (lambda path: path.touch(), "PyTorch cannot read, EOFError"),
    "archive.pt": (_zip_without_pickle, "PyTorch cannot read, RuntimeError"),
    "pickle.pt": (
        lambda path: path.write_bytes(pickle.dumps({"a": Code(path.parent / "x")})),
        "what PyTorch cannot read",
    ),
    "number.pt": (lambda path: torch.save(3, path), "no code, in .*; received a int"),
    "several.pt": (lambda path: torch.save([state(), state()], path), "received a list of 2: save"),
    "no_tensors.pt": (lambda path: torch.save({"epoch": 3}, path), "no tensor below epoch"),
    "missing.pt": (
        lambda path: torch.save(_without("bn1.bias", "block1.layer.0.bn1.weight"), path),
        "tensors called block1.layer.0.bn1.weight, bn1.bias in .*; received none of these",
    ),
    "no_logits.pt": (
        lambda path: torch.save(_without("fc.weight"), path),
        "a tensor called fc.weight in .*, as wrn-10-1 has; received conv1.weight, ",
    ),
    "one_too_many.pt": (
        lambda path: torch.save(state() | {"head.weight": torch.ones(3)}, path),
        "no other tensors in .*; received head.weight as well",
    ),
    "mean_alone.pt": (
        lambda path: torch.save(state() | {"mu": torch.ones(3)}, path),
        "no other tensors in .*; received mu as well",
    ),
    "two_means.pt": (
        lambda path: torch.save(state() | {"mu": torch.ones(3), "a.mean": torch.ones(3)}, path),
        "no other tensors in .*; received mu, a.mean as well",
    ),
    "long_mean.pt": (
        lambda path: torch.save(
            state() | {"mu": torch.ones(1).expand(10**12), "sigma": torch.ones(3)}, path
        ),
        "no other tensors in .*; received mu, sigma as well",
    ),
    "shape.pt": (
        lambda path: torch.save(state() | {"conv1.weight": torch.ones(16, 1, 3, 3)}, path),
        r"conv1.weight of the shape \[16, 3, 3, 3\] in .*; received \[16, 1, 3, 3\]",
    ),
    "other_classes.pt": (
        lambda path: torch.save(state() | {"fc.bias": torch.ones(100)}, path),
        r"fc.bias of the shape \[10\] in .*; received \[100\]",
    ),
    "deeper.pt": (
        lambda path: torch.save(state("wrn-16-2"), path),
        "as wrn-10-1 has; .*: it fits --architecture=wrn-16-2",
    ),
    "other_family.pt": (
        lambda path: torch.save(state("dm-wrn-10-1"), path),
        "a tensor called fc.weight .*: it fits --architecture=dm-wrn-10-1",
    ),
    "nan.pt": (
        lambda path: torch.save(state() | {"bn1.bias": torch.full((64,), torch.nan)}, path),
        "finite numbers in .*; received NaN or infinity in bn1.bias",
    ),
    "expanded.pt": (
        lambda path: torch.save(state() | {"conv1.weight": torch.zeros(1).expand(10**12)}, path),
        r"conv1.weight of the shape .*; received \[1000000000000\]",
    ),
    "no_classes.pt": (
        lambda path: torch.save(state() | {"fc.weight": torch.zeros(0, 64)}, path),
        "1 to 100000 classes; received 0",
    ),
    "classes_without_end.pt": (
        lambda path: torch.save(
            state() | {"fc.weight": torch.zeros(1, 64).expand(10**9, 64)}, path
        ),
        "1 to 100000 classes; received 1000000000",
    ),
    "text.npz": (lambda path: path.write_text("hello"), "no code, in .*received damaged or unsupp"),
    "object.npz": (
        lambda path: np.savez(path, a=np.array([Code(path.parent / "x")], dtype=object)),
        "no code, in .*received Python objects in a",
    ),
    "zeros.npz": (_zeros, "a tensor called fc.weight in .*; received zeros"),
    "complex.npz": (
        lambda path: np.savez(path, **_arrays() | {"fc.weight": np.ones((10, 64), complex)}),
        "; received complex128 numbers in fc.weight: save them in float32",
    ),
    "text_numbers.npz": (
        lambda path: np.savez(path, **_arrays() | {"fc.weight": np.full((10, 64), "1")}),
        "received str32 numbers in fc.weight",
    ),
    "int8.pt": (lambda path: torch.save(_other(torch.int8), path), "int8 numbers in fc.weight: s"),
    "complex.pt": (lambda path: torch.save(_other(torch.complex64), path), "complex64 numbers in"),
    "meta.pt": (
        lambda path: torch.save({k: v.to("meta") for k, v in state().items()}, path),
        "PyTorch cannot read, TypeError: can't convert meta device type tensor",
    ),
    "float8.safetensors": (
        lambda path: _save_safetensors(_other(torch.float8_e4m3fn, 1), path),
        "received f8_e4m3 numbers in fc.weight",
    ),
    "within_itself.pt": (_within_itself, "received more than 10 containers in each other"),
    "named_otherwise.pt": (
        lambda path: torch.save({"epoch": 3, "ema": state()}, path),
        "no tensor below epoch, ema: save ema in a file of its own",
    ),
    "long_name.pt": (
        lambda path: torch.save(state() | {"a\n" * 9999: torch.ones(3)}, path),
        "no other tensors in .*; received a a a ",
    ),
    "bytes_mean.pt": (
        lambda path: torch.save(
            state() | {"mu": torch.full((3,), 125.0), "sigma": torch.full((3,), 63.0)}, path
        ),
        "mean and deviation of pixels in 0..1 in .*; received 125.0,125.0,125.0 and 63.0,",
    ),
    "no_deviation.pt": (
        lambda path: torch.save(state() | {"mu": torch.ones(3), "sigma": torch.zeros(3)}, path),
        "deviation of pixels in 0..1 in .*; received 1.0,1.0,1.0 and 0.0,0.0,0.0",
    ),
    "text.safetensors": (lambda path: path.write_text("hello"), "received a damaged file: "),
    "network.h5": (lambda path: path.touch(), r"a file ending in \.pt, .*; received .*network\.h5"),
    "absent.pt": (lambda path: None, "a file at .*absent.pt; received none"),
    "folder.pt": (lambda path: path.mkdir(), "a file at .*folder.pt; received a folder"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_any_other_file_ends_in_one_sentence(name, tmp_path):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors", reason="no safetensors")
    write, message = DAMAGED[name]
    write(tmp_path / name)
    refused(lambda: load_port(tmp_path / name, NAME), message)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    """Its size is right, so that it is found only when the numbers are read."""
    path = saved(tmp_path, state())
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    short = max(entries, key=lambda name: len(entries[name]) if "/data/" in name else 0)
    entries[short] = entries[short][:100]
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            new.writestr(name, content)
    refused(lambda: load_port(path, NAME), "PyTorch cannot read, RuntimeError")


@pytest.mark.parametrize("name", ["wrn-12-1", "wrn-4-1", "wrn-10-0", "wrn-ten-1", "vgg-16", ""])
def test_no_such_architecture(name, tmp_path):
    path = saved(tmp_path, state())
    refused(lambda: load_port(path, name), "expected (an architecture among wrn|a depth|a width)")


def test_other_numbers_of_classes(tmp_path):
    path = saved(tmp_path, state(classes=7))
    assert load_port(path, NAME, num_classes=7).num_classes == 7
    refused(lambda: load_port(path, NAME, num_classes=10), "expected 10 classes in .*; received 7")


def test_a_deepmind_network_of_other_images_needs_their_statistics(tmp_path):
    path = saved(tmp_path, state("dm-wrn-10-1", classes=7))
    refused(lambda: load_port(path, "dm-wrn-10-1"), "preprocess with dm-wrn-10-1 of 7 classes")
    given = load_port(path, "dm-wrn-10-1", preprocess="imagenet")
    assert given.preprocess.convention == "imagenet"


# --- architectures --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wrn-10-1", "dm-preact-resnet-18-relu-pad2", "resnet-18"])
def test_a_plan_has_the_tensors_of_the_network(name):
    port = Port(name, 10)
    wanted = plan_of(name, 10).tensors()
    assert sum(int(np.prod(shape)) for shape in wanted.values()) == port.count_params()


def test_every_family_has_a_candidate():
    plans = {plan_of(name, 10).family for name in candidates()}
    assert plans == set(FAMILIES)


# --- the networks of Wong et al. ------------------------------------------------------------------


@pytest.mark.parametrize("name", wong2018.EPS)
def test_the_networks_of_wong_in_both_formats(name):
    if not wong2018.FOLDER.is_dir():
        pytest.skip(f"no networks of others: {wong2018.FOLDER} is absent")
    port, arrays = wong2018.network(name), np.load(wong2018.FOLDER / f"{name}.npz")
    x = np.random.default_rng(0).uniform(size=(4, *port.plan.family.image_shape)).astype("float32")
    h = torch.tensor(x.transpose(0, 3, 1, 2))
    if h.shape[1] == 3:
        h = (h - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / 0.225
    w = {k: torch.tensor(v) for k, v in arrays.items()}
    for i in (0, 2):
        h = torch.nn.functional.conv2d(h, w[f"{i}.weight"], w[f"{i}.bias"], 2, 1).relu()
    h = (h.flatten(1) @ w["5.weight"].T + w["5.bias"]).relu()
    logits = (h @ w["7.weight"].T + w["7.bias"]).numpy()
    np.testing.assert_allclose(port(x), logits, rtol=1e-4, atol=1e-4)
    if name == "mnist_eps0.1":
        again = load_port(wong2018.FOLDER / f"{name}.pth", port.architecture)
        np.testing.assert_array_equal(again(x), port(x))


# --- the program ----------------------------------------------------------------------------------


@pytest.fixture
def convert(capsys):
    """Runs the program; gives what it prints."""

    def printed(*arguments: str) -> str:
        run_here(program, *arguments)
        return capsys.readouterr().out

    return printed


def test_a_conversion(convert, tmp_path):
    path, output = saved(tmp_path, state("dm-wrn-10-1")), tmp_path / "network.keras"
    printed = convert(str(path), "--architecture=dm-wrn-10-1", f"--output={output}")
    count = sum(int(np.prod(s)) for s in plan_of("dm-wrn-10-1", 10).tensors().values())
    assert f"{count:,} numbers, every one of dm-wrn-10-1; left out 7 that" in printed
    assert "10 classes, activation silu, preprocess mean=0.4914" in printed
    assert f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}  {path}" in printed
    x = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype("float32")
    network = keras.saving.load_model(output)
    np.testing.assert_array_equal(network(x), load_port(path, "dm-wrn-10-1")(x))


def test_the_list_has_every_family(convert):
    printed = convert("--list")
    for family in FAMILIES:
        assert f"{family.form}\n  images: " in printed


def test_mistakes_of_the_command_line(convert, tmp_path):
    path, output = saved(tmp_path, state()), tmp_path / "network.keras"
    flags = (f"--architecture={NAME}", f"--output={output}")
    refused(lambda: convert(*flags), "one weight file, such as robust.pt; received none")
    refused(lambda: convert(str(path), flags[0]), "expected --output; received none")
    refused(lambda: convert(str(path), flags[1]), "expected --architecture; .*--list prints")
    refused(
        lambda: convert(str(path), flags[0], "--output=network.h5"), "ending in .keras; received"
    )
    refused(lambda: convert(str(path), *flags, "--num_classes=100"), "expected 100 classes")
    refused(lambda: convert(str(path), *flags, "--preprocess=none"), "preprocess as one of 0..1")
    assert not output.exists()
    convert(str(path), *flags, "--preprocess=cifar10")
    assert "mean=0.4914" in keras.saving.load_model(output).preprocess.convention
    refused(lambda: convert(str(path), *flags), "network.keras exists; remove it")
