"""PyTorch networks that a command names: teachers of runs, models to measure, what is refused."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import run_here

import igam_tf
from igam_tf import eval_pgd, train
from igam_tf.common.flagfiles import FOLDER
from igam_tf.evaluation.loading import find_model
from igam_tf.figures import __main__ as figures
from igam_tf.pytorch import named
from igam_tf.storage.run_folder import load_model

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
# A PyTorch that is built for CUDA says once that there is no driver.
pytestmark = pytest.mark.filterwarnings("ignore:CUDA initialization")

NETS = """
import igam_tf
import torch

def bare():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(512, 10))

def whole():
    return igam_tf.from_torch(bare(), (32, 32, 3), preprocess="imagenet")

def number():
    return 3

def of_classes(num_classes, *, width=3):
    return torch.nn.Linear(width, num_classes)

def broken():
    raise KeyError("fc.weight")
"""
BLOCKS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(192, 10)

    def forward(self, x):
        return self.last((2 * x).flatten(1))
"""
# RobustBench's registry and loader, as far as they are called.
ROBUSTBENCH = {
    "__init__.py": "",
    "model_zoo.py": """
import enum, torch

class Data(enum.Enum):
    cifar_10, cifar_100 = "cifar10", "cifar100"

class Norm(enum.Enum):
    Linf, L2 = "Linf", "L2"

def net(classes=10):
    return lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, classes))

model_dicts = {
    Data.cifar_10: {Norm.Linf: {"One2020": {"model": net()}, "Both2021": {"model": net()}},
                    Norm.L2: {"One2020": {"model": net()}}},
    Data.cifar_100: {Norm.Linf: {"Both2021": {"model": net(100)}}},
}
""",
    "utils.py": """
import torch
from robustbench.model_zoo import model_dicts

def load_model(name, model_dir, dataset, threat_model):
    net = model_dicts[dataset][threat_model][name]["model"]()
    file = model_dir / dataset.value / threat_model.value / f"{name}.pt"
    net.load_state_dict(torch.load(file, weights_only=True))
    return net.eval()
""",
}
QUICK = (
    "--data=builtin", "--preset=smoke", "--method=l2", "--source=cifar10", "--target=cifar10",
    "--transform=auto", "--num_validation=0", "--eval_attacks=clean", "--eval_examples=8",
    "--student=conftest:small_student", "--replicas=1", "--train_examples=64",
)  # fmt: skip
BUILTIN = ("--dataset=cifar10", "--data=builtin", "--attacks=clean", "--num_examples=8")


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    (tmp_path / "nets_of_pytorch.py").write_text(NETS)
    (tmp_path / "raises.py").write_text("raise RuntimeError('no weights')")
    (tmp_path / "unfinished.py").write_text("def net(:")
    (tmp_path / "robustbench").mkdir()
    for name, text in ROBUSTBENCH.items():
        (tmp_path / "robustbench" / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(named, "_asked", set())
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        if name.split(".")[0] in ("robustbench", "nets_of_pytorch"):
            del sys.modules[name]


def arrays(path: Path) -> list[np.ndarray]:
    return [v.numpy() for v in load_model(path).variables]


# --- runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["bare", "whole"])
def test_a_run_is_resumed_in_another_place_with_the_same_bits(function, tmp_path, monkeypatch):
    """The teacher is read from the run folder, with the code of its name and the weights of the file."""
    given = (*QUICK, f"--teacher_checkpoint=torch:nets_of_pytorch:{function}")
    run_here(train, *given, "--workdir=first")
    shutil.copytree("first", "moved")
    for name in ("student.keras", "results.json", "checkpoints/student"):
        path = tmp_path / "moved" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)  # else it draws the same weights
    run_here(train, *given, "--workdir=moved")
    for ours, theirs in zip(
        *(arrays(Path(n) / "student.keras") for n in ("first", "moved")), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    teacher = load_model(Path("moved/teacher.keras"))
    assert type(teacher.network).__name__ == (
        "TorchModel" if function == "bare" else "Preprocessed"
    )
    assert teacher.network.pixel_max == 1.0
    assert json.loads(Path("moved/results.json").read_text())["l2"]["alignment"]["n"] == 8


def test_a_student_that_is_the_teacher_is_found_by_its_run(tmp_path):
    name = "torch:nets_of_pytorch:bare"
    run_here(train, *QUICK, f"--teacher_checkpoint={name}", "--method=finetune", "--workdir=run")
    named._asked.clear()
    with pytest.raises(
        igam_tf.UserError, match=f"without the PyTorch network '{name}', whose code"
    ):
        load_model(Path("run/student.keras"))
    shutil.move("run", "moved")
    load, path, _ = find_model("moved")
    x = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    teacher, net = load(path), named.load_named(name)
    kernel, bias = teacher.logits_layer.get_weights()
    expected = net.igam_features(tf.constant(x / 255)) @ kernel + bias
    np.testing.assert_allclose(teacher(x), expected, rtol=1e-4, atol=1e-5)
    from igam_tf import export

    with pytest.raises(igam_tf.UserError, match="expected a student of Keras layers"):
        run_here(export, "--run=moved", f"--output={tmp_path / 'out'}")


# --- models ------------------------------------------------------------------------------------------


def test_a_function_is_measured(capsys):
    model = "--model=torch:nets_of_pytorch:bare"
    run_here(eval_pgd, model, *BUILTIN, "--preprocess=0..1", "--allow_doubts", "--json=a.json")
    run_here(eval_pgd, "--model=torch:nets_of_pytorch:whole", *BUILTIN, "--preprocess=0..1",
             "--allow_doubts", "--json=b.json")  # fmt: skip
    found = [
        json.loads(Path(name).read_text())["results"]["clean"] for name in ("a.json", "b.json")
    ]
    assert [row["n"] for row in found] == [8, 8]


def weights_of(name: str, path: str) -> dict[str, np.ndarray]:
    """Draws the tensors of a port, and saves them as PyTorch does."""
    from igam_tf.pytorch.architectures import plan_of

    rng = np.random.default_rng(0)
    tensors = {
        key: torch.from_numpy(rng.uniform(0.5, 1, shape).astype("float32"))
        for key, shape in plan_of(name, 10).tensors().items()
    }
    torch.save(tensors, path)
    return tensors


def test_a_weight_file_is_measured_and_teaches(caplog):
    weights_of("wrn-10-1", "net.pt")
    load, path, _ = find_model("net.pt", architecture="wrn-10-1")
    assert type(load(path)).__name__ == "Port"
    run_here(eval_pgd, "--model=net.pt", "--architecture=wrn-10-1", *BUILTIN, "--allow_doubts",
             "--preprocess=0..1")  # fmt: skip
    with pytest.raises(igam_tf.UserError, match="--architecture, such as wrn-28-10, with the weig"):
        find_model("net.pt")
    alone = (*QUICK, "--teacher_checkpoint=net.pt", "--workdir=run")
    for more in ((), ("--source=mnist", "--transform=grey_crop")):  # whose recipe has a network
        with pytest.raises(
            igam_tf.UserError, match=r"--teacher_network, .* none: igam-convert --list"
        ):
            run_here(train, *alone, *more)
    recipe = (f"--flagfile={FOLDER / 'robust_teacher.flags'}", *QUICK, "--method=igam")
    with caplog.at_level("INFO", logger="absl"):
        run_here(train, *recipe, "--teacher_checkpoint=net.pt", "--teacher_network=wrn-10-1",
                 "--match_every=2", "--workdir=run")  # fmt: skip
    assert "J_t of 48 images (0.8 epochs) costs about" in caplog.text  # steps 2, 4 and 6 of 16
    settings = json.loads(Path("run/config.json").read_text())
    assert (settings["fidelity"], settings["diff_norm"]) == ("best", "l1")
    Path("net.pt").unlink()
    assert type(load_model(Path("run/teacher.keras")).network).__name__ == "Port"


def test_an_architecture_of_no_file_is_refused():
    """But one command can name a file and other models."""
    bare = "torch:nets_of_pytorch:bare"
    told = "only with a file of weights, .pt, .pth, .safetensors; received wrn-10-1 with"
    for name in (bare, "robustbench:One2020:net.pt", "run", "net.keras"):
        with pytest.raises(igam_tf.UserError, match=f"--architecture {told} {name}"):
            find_model(name, architecture="wrn-10-1")
    find_model(bare, architecture="wrn-10-1", beside=["net.pt"])
    for name in (bare, "teacher.keras"):
        given = (f"--teacher_checkpoint={name}", "--teacher_network=wrn-10-1")
        with pytest.raises(
            igam_tf.UserError, match=f"only with a teacher .*=wrn-10-1 with .*{name}"
        ):
            run_here(train, *QUICK, *given, "--workdir=run")


def test_a_weight_file_is_drawn(tmp_path):
    weights_of("wrn-10-1", "net.pt")
    flags = (
        "--runs=net.pt",
        *BUILTIN[:2],
        "--figures=gradients",
        "--num_drawn=1",
        "--output=drawn",
    )
    with pytest.raises(igam_tf.UserError, match="--architecture, such as wrn-28-10, with the weig"):
        run_here(figures, *flags)
    run_here(figures, *flags, "--architecture=wrn-10-1")
    assert list((tmp_path / "drawn").iterdir())


def test_a_network_of_robustbench(tmp_path):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    torch.save(net.state_dict(), "weights.pt")
    x = np.random.default_rng(0).uniform(size=(4, 32, 32, 3)).astype("float32")
    expected = net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach()
    for name in ("One2020", "cifar10/One2020", "cifar10/Linf/Both2021", "L2/One2020"):
        model = named.load_named(f"robustbench:{name}:weights.pt")
        np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)
        assert (model.dataset, model.pixel_max) == ("cifar10", 1.0)
    teacher = igam_tf.Teacher(model, num_classes=3)
    teacher.build((None, 32, 32, 3))
    teacher.save("teacher.keras")
    before = teacher(x)
    Path("weights.pt").unlink()
    np.testing.assert_array_equal(load_model(Path("teacher.keras"))(x), before)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "torch:nets_of_pytorch:number",
            "expected a function that returns a torch.nn.Module, or wha",
        ),
        ("torch:nets_of_pytorch:absent", "has no attribute 'absent'"),
        ("torch:absent:net", "No module named 'absent'"),
        ("torch:nets_of_pytorch", "expected torch:module:function; received 'torch:nets_of_pyt"),
        ("torch::bare", "expected torch:module:function; received 'torch::bare'"),
        (
            "torch:nets_of_pytorch:of_classes",
            "without arguments; received .* needs num_classes: wri",
        ),
        (
            "torch:nets_of_pytorch:broken",
            "expected a network from torch:nets_of_pytorch:broken; received KeyError: 'fc.weight'",
        ),
        ("torch:raises:net", "can be imported; received 'torch:raises:net': RuntimeError: no weig"),
        ("torch:unfinished:net", "received 'torch:unfinished:net': SyntaxError: "),
        ("robustbench:One2021", "received 'One2021': did you mean One2020"),
        (
            "robustbench:Both2021",
            "expected one network of robustbench:cifar10/Linf/Both2021, robustbe",
        ),
        ("robustbench:L2/Both2021", "expected one network of"),
        ("robustbench:One2020:absent.pt", "received 'absent.pt', not there"),
        (
            "robustbench:One2020:nets_of_pytorch.py",
            "expected weights of One2020 that RobustBench can",
        ),
    ],
)
def test_a_name_of_nothing(name, said):
    with pytest.raises(igam_tf.UserError, match=said) as refused:
        named.load_named(name)
    assert "\n" not in str(refused.value)


def test_code_that_has_changed_since_is_told(tmp_path, caplog):
    """The weights are those of the file, but what is computed with them is another thing."""
    (tmp_path / "own_blocks_of_pytorch.py").write_text(BLOCKS)
    name = "torch:own_blocks_of_pytorch:Net"
    model = named.load_named(name)
    x = np.ones((2, 8, 8, 3), "float32")
    before = model(x)
    model.save("net.keras")
    np.testing.assert_array_equal(load_model(Path("net.keras"))(x), before)
    assert "DOUBTFUL" not in caplog.text
    (tmp_path / "own_blocks_of_pytorch.py").write_text(BLOCKS.replace("2 * x", "3 * x"))
    del sys.modules["own_blocks_of_pytorch"]
    importlib.invalidate_caches()
    assert np.abs(load_model(Path("net.keras"))(x) - before).max() > 0.01
    assert f"DOUBTFUL: the code of {name} is not what it was" in caplog.text
    del sys.modules["own_blocks_of_pytorch"]


def test_without_robustbench_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(igam_tf.UserError, match=r"expected RobustBench, which knows.*pip install"):
        named.load_named("robustbench:One2020")


def test_a_keras_file_runs_no_code_of_a_name():
    """A file of unknown origin could name any function of any module."""
    config = {"module": "igam_tf", "class_name": "igam_tf>TorchModel", "registered_name":
              "igam_tf>TorchModel", "config": {"source": "torch:nets_of_pytorch:bare"}}  # fmt: skip
    with pytest.raises(Exception, match="whose code it would run"):
        keras.saving.deserialize_keras_object(config)
    assert "nets_of_pytorch" not in sys.modules
