"""Weight files of PyTorch networks: read without running code, checked before anything is allocated."""

from __future__ import annotations

import math
import re
import textwrap
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from igam_tf.common.archives import archive_errors, open_zip
from igam_tf.common.checks import expect
from igam_tf.common.errors import UserError
from igam_tf.common.lazy import keras
from igam_tf.pytorch import INSTALL, import_torch
from igam_tf.pytorch.architectures import Plan, candidates, plan_of

# Name -> shape of each tensor of a file, and the function that reads some of them.
Opened = tuple[dict[str, tuple[int, ...]], Callable[[Iterable[str]], dict[str, np.ndarray]]]
# Where training programs keep the weights among other things; the first that is there.
_KEYS = ("state_dict", "model_state_dict", "model", "net", "last")
MOST = 10.0  # of a mean or a deviation of pixels in 0..1
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_NESTED = 10  # containers in each other, at most; a file can hold one that contains itself
# Mean and deviation of the channels, as RobustBench and MadryLab's `robustness` call them.
_STATISTICS = (
    re.compile(r"(?:^|\.)(?:mu|mean|new_mean)$"),
    re.compile(r"(?:^|\.)(?:sigma|std|new_std)$"),
)
# What the network's logits do not depend on: counters, the second first block in files of TRADES, and
# the copy of the network that `robustness` saves as part of its attacker.
_UNUSED = re.compile(r"(?:^|\.)(?:num_batches_tracked$|sub_block1\.|attacker\.)")
# Name of a variable in Keras -> in PyTorch.
_VARIABLES = {
    "kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias",
    "moving_mean": "running_mean", "moving_variance": "running_var",
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """The weights of a file, which fit an architecture.

    Attributes:
        plan: the network, with the file's number of classes.
        arrays: name in `plan.tensors()` -> float32 array.
        preprocess: input convention that the file holds; None without one.
        unused: names of the file's tensors that the logits do not depend on.
    """

    plan: Plan
    arrays: dict[str, np.ndarray]
    preprocess: str | None
    unused: list[str]

    def network(self, preprocess: str | None = None) -> keras.Model:
        """The Keras model with these weights.

        Args:
            preprocess: input convention, if it is not the family's; see `igam_tf.Preprocess`.

        Raises:
            UserError: the file holds another one, or none is known.
        """
        from igam_tf.common.private_api import layers_of
        from igam_tf.pytorch.networks import Port

        expect(
            None in (preprocess, self.preprocess),
            "no --preprocess where the file has a mean and a deviation of its own",
            f"{preprocess} and {self.preprocess}",
        )
        network = Port(
            self.plan.architecture, self.plan.classes, preprocess=preprocess or self.preprocess
        )
        for layer in layers_of(network, include_self=False):
            for ours, theirs in _VARIABLES.items():
                array = self.arrays.get(f"{layer.name}.{theirs}")
                if array is not None and getattr(layer, ours, None) is not None:
                    axes = (2, 3, 1, 0) if array.ndim == 4 else None
                    getattr(layer, ours).assign(array.transpose(axes))
        return network


def load_port(
    path: str | Path,
    architecture: str,
    *,
    num_classes: int | None = None,
    preprocess: str | None = None,
) -> keras.Model:
    """The network of a weight file as a Keras model, from pixels [B,H,W,C] in 0..1 to logits.

    Args:
        path: a .pt, .pth, .safetensors or .npz file.
        architecture: a name such as "wrn-28-10"; `igam-convert --list` prints the forms.
        num_classes: what the file must have; None takes the file's.
        preprocess: input convention, if it is not the family's; see `igam_tf.Preprocess`.

    Raises:
        UserError: there is no such file or architecture; the file is damaged or holds code; a tensor
            is missing, of another shape, one too many or not finite.
    """
    return read(path, architecture, num_classes).network(preprocess)


def read(path: str | Path, architecture: str, num_classes: int | None = None) -> Weights:
    """Reads a weight file; arguments and errors as those of `load_port`."""
    plan_of(architecture, 10)
    path = Path(path).expanduser()
    expect(path.suffix in _READERS, f"a file ending in {', '.join(_READERS)}", path)
    expect(path.is_file(), f"a file at {path}", "a folder" if path.is_dir() else "none")
    shapes, arrays_of = _READERS[path.suffix](path)
    try:
        fit = _fit(shapes, architecture)
    except _Misfit as misfit:
        expected, received = misfit.args
        remedy = next((f"it fits --architecture={n}" for n in candidates() if _fits(shapes, n)), "")
        expect(False, f"{expected} in {path}, as {architecture} has", received, remedy)
    classes = fit.plan.classes
    expect(num_classes in (None, classes), f"{num_classes} classes in {path}", classes)
    arrays = arrays_of([*fit.own, *fit.statistics])
    for name, array in arrays.items():
        expect(np.isfinite(array).all(), f"finite numbers in {path}", f"NaN or infinity in {name}")
    texts = [",".join(map(repr, arrays[name].ravel().tolist())) for name in fit.statistics]
    if texts:  # of pixels in 0..255 they are far above
        mean, std = (arrays[name] for name in fit.statistics)
        fits = np.abs(mean).max() <= MOST and 0 < std.min() <= std.max() <= MOST
        what = f"mean and deviation of pixels in 0..1 in {path}"
        expect(fits, what, " and ".join(texts), "save those of pixels in 0..1")
    preprocess = "mean={}/std={}".format(*texts) if texts else None
    own = {ours: arrays[theirs] for theirs, ours in fit.own.items()}
    return Weights(fit.plan, own, preprocess, fit.unused)


# --- names and sizes ------------------------------------------------------------------------------


class _Fit(NamedTuple):
    """How the tensors of a file are used: all of them are here."""

    plan: Plan
    own: dict[str, str]  # name in the file -> in `plan.tensors()`
    statistics: list[str]  # mean and deviation, or none
    unused: list[str]


class _Misfit(Exception):
    """(what was expected, what the file has): the tensors are not those of the architecture."""


def _some(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    first, more = [" ".join(name.split())[:60] for name in [*names][:3]], len([*names]) - 3
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


def _fit(shapes: Mapping[str, tuple[int, ...]], architecture: str) -> _Fit:
    """Finds each tensor of the network, whatever prefix all of their names have, such as "module."."""
    last = f"{plan_of(architecture, 10).logits.name}.weight"
    found = min((n for n in shapes if f".{n}".endswith(f".{last}")), key=len, default=None)
    if found is None:
        raise _Misfit(f"a tensor called {last}", _some(shapes) or "none")
    prefix = found.removesuffix(last)
    plan = plan_of(architecture, shapes[found][0] if shapes[found] else 1)
    wanted = plan.tensors()
    if missing := [name for name in wanted if prefix + name not in shapes]:
        raise _Misfit(f"tensors called {_some(missing)}", "none of these")
    for name, shape in wanted.items():
        if shapes[prefix + name] != shape:
            raise _Misfit(f"{name} of the shape {[*shape]}", [*shapes[prefix + name]])
    own = {prefix + name: name for name in wanted}
    rest = [name for name in shapes if name not in own]
    unused = [name for name in rest if _UNUSED.search(name)]
    rest = [name for name in rest if name not in unused]
    channels = plan.family.image_shape[-1]
    of_channels = [name for name in rest if math.prod(shapes[name]) in (1, channels)]
    found_of = [[name for name in of_channels if kind.search(name)] for kind in _STATISTICS]
    statistics = [name for names in found_of for name in names]
    if len(rest) != len(statistics) or len({len(names) for names in found_of}) > 1 or len(rest) > 2:
        raise _Misfit("no other tensors", f"{_some(rest)} as well")
    return _Fit(plan, own, statistics, unused)


def _fits(shapes: Mapping[str, tuple[int, ...]], architecture: str) -> bool:
    """Whether a file's tensors are those of an architecture."""
    try:
        return bool(_fit(shapes, architecture))
    except _Misfit:
        return False


# --- files ----------------------------------------------------------------------------------------


def _refuse(path: Path, reason: str) -> NoReturn:
    raise UserError(
        f"expected the weights of a network, and no code, in {path}; received "
        f"{textwrap.shorten(reason, 200)}"
    )


def _pytorch(path: Path) -> Opened:
    """Opens a file of `torch.save`: names and sizes first, without memory for the numbers."""
    torch = import_torch()

    def load(use: Callable[[dict[str, Any]], Any], **where: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(path, weights_only=True, **where)
                return use(_tensors(content, path, torch.Tensor))
        except UserError:
            raise
        except Exception as error:  # a file of unknown origin can raise any error
            code = re.search(r"GLOBAL (\S+)|TorchScript", str(error))
            reason = str(error).rsplit("WeightsUnpickler error: ", 1)[-1]
            _refuse(
                path,
                f"a pickle that calls {code[1] or code[0]}: have its author save the state_dict alone"
                if code
                else f"what PyTorch cannot read, {type(error).__name__}: {reason}",
            )

    def shapes(tensors: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(t.shape) for name, t in tensors.items()}

    def arrays(names: Iterable[str]) -> dict[str, np.ndarray]:
        def read(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
            for name in names:
                _check_type(path, name, str(tensors[name].dtype).removeprefix("torch."))
            return {n: tensors[n].detach().to(torch.float32).numpy() for n in names}

        return load(read, map_location="cpu", mmap=zipfile.is_zipfile(path))

    return load(shapes, map_location="meta"), arrays


def _check_type(path: Path, name: str, dtype: str) -> None:
    """Refuses numbers that are no weights as they are: integers of a quantised network, complex ones."""
    if dtype not in _FLOATS:
        _refuse(path, f"{dtype} numbers in {name}: save them in float32")


def _tensors(content: Any, path: Path, kind: type) -> dict[str, Any]:
    """The tensors in what a training program saved: by name, in one of `_KEYS`, or a list of one."""
    for _ in range(_NESTED):
        if isinstance(content, list | tuple) and len(content) == 1:
            (content,) = content
        elif isinstance(content, list | tuple):
            _refuse(
                path, f"a list of {len(content)}: save the one that counts in a file of its own"
            )
        elif not isinstance(content, dict):
            _refuse(path, f"a {type(content).__name__}")
        elif key := next((k for k in _KEYS if isinstance(content.get(k), dict | list)), None):
            content = content[key]
        else:
            break
    else:
        _refuse(path, f"more than {_NESTED} containers in each other")
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, kind)}
    if not tensors:
        found = f"no tensor below {', '.join(map(str, content)) or 'no name'}"
        nested = [k for k, v in content.items() if isinstance(v, dict)]
        _refuse(path, found + (f": save {nested[0]} in a file of its own" if nested else ""))
    return tensors


def _safetensors(path: Path) -> Opened:
    try:
        import ml_dtypes  # noqa: F401 (lets NumPy know bfloat16; TensorFlow needs it too)
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise UserError(
            f"expected safetensors, which reads {path}; it is not installed: {INSTALL}"
        ) from error

    def opened(use: Callable[[Any], Any]) -> Any:
        try:
            with safe_open(path, framework="np") as file:
                return use(file)
        except SafetensorError as error:
            _refuse(path, f"a damaged file: {error}")

    def arrays(names: Iterable[str]) -> dict[str, np.ndarray]:
        def read(file: Any) -> dict[str, np.ndarray]:
            for name in names:
                short = file.get_slice(name).get_dtype()
                _check_type(path, name, re.sub(r"^(B?)F(?=\d\d$)", r"\1float", short).lower())
            return {n: file.get_tensor(n).astype(np.float32) for n in names}

        return opened(read)

    def shapes(file: Any) -> dict[str, tuple[int, ...]]:
        return {name: tuple(file.get_slice(name).get_shape()) for name in [*file.keys()]}

    return opened(shapes), arrays


def _npz(path: Path) -> Opened:
    def opened(use: Callable[[Any], Any]) -> Any:
        try:
            with archive_errors(), open_zip(path) as bundle:
                return use(bundle)
        except (ValueError, OSError, KeyError) as error:  # UserError is a ValueError
            _refuse(path, str(error))

    def shapes(bundle: zipfile.ZipFile) -> dict[str, tuple[int, ...]]:
        """From the headers alone: an array of zeros can be a thousand times its file."""
        found = {}
        for entry in bundle.namelist():
            with bundle.open(entry) as file:
                header = _HEADERS.get(np.lib.format.read_magic(file))
                if header is None:
                    raise ValueError(f"an array of an unknown version, {entry}")
                shape, _, dtype = header(file)
            name = entry.removesuffix(".npy")
            if dtype.hasobject:
                raise ValueError(f"Python objects in {name}")
            found[name] = shape
        return found

    def read(_: zipfile.ZipFile, names: Iterable[str]) -> dict[str, np.ndarray]:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}

    def arrays(names: Iterable[str]) -> dict[str, np.ndarray]:
        found = opened(partial(read, names=names))
        for name, array in found.items():
            _check_type(path, name, array.dtype.name)
        return {name: array.astype(np.float32) for name, array in found.items()}

    return opened(shapes), arrays


_HEADERS: dict[tuple[int, int], Callable[[Any], tuple]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_READERS: dict[str, Callable[[Path], Opened]] = {
    ".pt": _pytorch, ".pth": _pytorch, ".safetensors": _safetensors, ".npz": _npz
}  # fmt: skip
