"""PyTorch networks that a command line names, in front of the bridge or as a native port.

torch:module:function           what a function of the user's returns
robustbench:<name>              RobustBench's network, which it downloads
robustbench:<name>:<file.pt>    the same, with weights from a file
<file.pt>                       weights of a port, whose architecture another flag names
"""

from __future__ import annotations

import difflib
import tempfile
from pathlib import Path
from typing import Any

import keras

from igam_tf.common.checks import expect
from igam_tf.common.errors import UserError
from igam_tf.common.private_api import layers_of, reason_of
from igam_tf.method.architectures import called_by_name
from igam_tf.pytorch import import_torch
from igam_tf.pytorch.bridge import TorchModel

PREFIXES = ("torch:", "robustbench:")
SUFFIXES = (".pt", ".pth", ".safetensors")
DOWNLOADS = Path("models") / "robustbench"
# Names of this process's command line and of the runs that it names: a file alone calls no code.
_asked: set[str] = set()


def is_bridged(name: str) -> bool:
    """Whether this is the name of a network behind the bridge."""
    return name.startswith(PREFIXES)


def allow(name: str) -> None:
    """Lets `.keras` files that are loaded later hold this network, if it is one behind the bridge."""
    if is_bridged(name):
        _asked.add(name)


def is_weight_file(name: str) -> bool:
    """Whether this is the name of a file with the weights of a port."""
    return name.endswith(SUFFIXES) and not is_bridged(name)


def is_pytorch(name: str) -> bool:
    """Whether `load_named` takes this name."""
    return is_bridged(name) or is_weight_file(name)


def check_architecture(architecture: str | None, *names: str, flag: str = "architecture") -> None:
    """Raises a UserError if a weight file among the names comes without an architecture, or it alone.

    Args:
        architecture: from `flag`.
        *names: of all models that it could be of.
    """
    (*files,) = filter(is_weight_file, names)
    what = f"--{flag}, such as wrn-28-10, with the weights in {', '.join(files)}"
    expect(architecture or not files, what, "none", "igam-convert --list prints the names")
    what = f"--{flag} only with a file of weights, {', '.join(SUFFIXES)}"
    expect(files or not architecture, what, f"{architecture} with {', '.join(names)}")


def load_named(name: str, *, architecture: str = "", preprocess: str | None = None) -> keras.Model:
    """The network of a name, see above: pixels [B,H,W,C] -> logits.

    A bare `torch.nn.Module` takes [B,C,H,W] in 0..1, as `igam_tf.from_torch` has it by default.

    Args:
        name: see `is_pytorch`.
        architecture: of a weight file; "" without one.
        preprocess: what a bare module takes in place of pixels in 0..1, if a caller converts them.

    Raises:
        UserError: there is no such network, or its package is not installed.
    """
    if not is_bridged(name):
        from igam_tf.pytorch.weights import load_port

        return load_port(name, architecture)
    allow(name)
    found, dataset = _bridged(name)
    if not isinstance(found, keras.Model):
        found = TorchModel(found, pixel_max=None if preprocess else 1.0)
    for layer in layers_of(found):
        if isinstance(layer, TorchModel):
            layer.source = name
    found.dataset = dataset
    return found


def module_again(name: str) -> Any:
    """The `torch.nn.Module` of a name that this process knows already, with any weights.

    Raises:
        UserError: nobody but a file names it.
    """
    if name not in _asked:
        raise UserError(
            f"expected a .keras file without the PyTorch network {name!r}, whose code it would "
            "run: name the run folder that it lies in, or the network itself"
        )
    found, _ = _bridged(name, weights=False)
    if isinstance(found, keras.Model):
        (found,) = [part.module for part in layers_of(found) if isinstance(part, TorchModel)]
    return found


def _bridged(name: str, *, weights: bool = True) -> tuple[Any, str]:
    """(a torch.nn.Module or what from_torch made of it, the data set that it is of, or "")."""
    kind, _, rest = name.partition(":")
    if kind == "robustbench":
        return _robustbench(rest, weights=weights)
    torch = import_torch()
    found = called_by_name(rest, prefix="torch:")
    bridged = isinstance(found, keras.Model) and any(
        isinstance(part, TorchModel) for part in layers_of(found)
    )
    expect(
        bridged or isinstance(found, torch.nn.Module),
        f"a function that returns a torch.nn.Module, or what igam_tf.from_torch makes of one, in {name}",
        type(found).__name__,
    )  # fmt: skip
    return found, ""


def _robustbench(text: str, *, weights: bool) -> tuple[Any, str]:
    """The same of [data set/][norm/]<name>[:<file>]."""
    import_torch()
    try:
        from robustbench.model_zoo import model_dicts
        from robustbench.utils import load_model
    except ImportError as error:
        raise UserError(
            f"expected RobustBench, which knows the network {text}; {error}: "
            "pip install git+https://github.com/RobustBench/robustbench.git"
        ) from error
    path, _, file = text.partition(":")
    *place, name = path.split("/")
    of_name = [
        (dataset, norm)
        for dataset, by_norm in model_dicts.items()
        for norm, models in by_norm.items()
        if name in models
    ]
    if not of_name:
        known = {
            n for by_norm in model_dicts.values() for models in by_norm.values() for n in models
        }
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        remedy = f"did you mean {' or '.join(near)}?" if near else ""
        expect(False, "a name of RobustBench's model zoo", repr(name), remedy)
    found = [pair for pair in of_name if set(place) <= {part.value for part in pair}]
    found = [pair for pair in found if pair[1].value == "Linf"] or found
    if len(found) != 1:
        forms = [f"robustbench:{dataset.value}/{norm.value}/{name}" for dataset, norm in of_name]
        expect(False, f"one network of {', '.join(forms)}", f"robustbench:{path}")
    ((dataset, norm),) = found
    if not weights:
        return model_dicts[dataset][norm][name]["model"](), dataset.value
    if file:
        source = Path(file).expanduser().absolute()
        expect(source.is_file(), f"a file of weights in robustbench:{text}", f"{file!r}, not there")

    def load(folder: Path) -> Any:
        return load_model(name, model_dir=folder, dataset=dataset, threat_model=norm)

    try:
        if not file:
            return load(DOWNLOADS), dataset.value
        with tempfile.TemporaryDirectory() as folder:  # where RobustBench looks for a download
            place_of = Path(folder) / dataset.value / norm.value / f"{name}.pt"
            place_of.parent.mkdir(parents=True)
            place_of.symlink_to(source)
            return load(Path(folder)), dataset.value
    except Exception as error:  # a download or a file can fail in any way
        raise UserError(
            f"expected weights of {name} that RobustBench can load; received {file or 'a download'}: "
            f"{reason_of(error).split('. ')[0]}"
        ) from error
