"""Reads the MadryLab challenges' TensorFlow 1 checkpoints, strictly."""

import re
from pathlib import Path

import numpy as np
import tensorflow as tf

from igam_tf.common.errors import UserError
from igam_tf.common.literal import literal
from madry_models.mnist_cnn import MnistCNN
from madry_models.network import Network
from madry_models.wide_resnet import NormReLU, WideResNet

_IGNORED = re.compile(r"global_step|beta[12]_power|.*/(Adam|Adam_1|Momentum)")
_READ_ERRORS = (tf.errors.OpError, ValueError, RuntimeError, IndexError)


def tf1_names(model: Network) -> dict:
    """Name in the original code -> variable of a built MnistCNN or WideResNet."""
    return _mnist_cnn_names(model) if isinstance(model, MnistCNN) else _wide_resnet_names(model)


def _mnist_cnn_names(model: MnistCNN) -> dict:
    conv1, conv2 = model.convolutions
    return {
        "Variable": conv1.kernel,
        "Variable_1": conv1.bias,
        "Variable_2": conv2.kernel,
        "Variable_3": conv2.bias,
        "Variable_4": model.hidden_layer.kernel,
        "Variable_5": model.hidden_layer.bias,
        "Variable_6": model.logits_layer.kernel,
        "Variable_7": model.logits_layer.bias,
    }


def _wide_resnet_names(model: WideResNet) -> dict:
    names = {"input/init_conv/DW": model.first_convolution.kernel}
    units_per_group = len(model.units) // 3
    for index, unit in enumerate(model.units):
        group, i = divmod(index, units_per_group)
        scope = f"unit_{group + 1}_{i}"
        kind = "shared_activation" if unit.shared_activation else "residual_only_activation"
        names |= {
            **_batch_norm_names(f"{scope}/{kind}", unit.activation1),
            f"{scope}/sub1/conv1/DW": unit.convolution1.kernel,
            **_batch_norm_names(f"{scope}/sub2", unit.activation2),
            f"{scope}/sub2/conv2/DW": unit.convolution2.kernel,
        }
    return {
        **names,
        **_batch_norm_names("unit_last", model.last_activation),
        "logit/DW": model.logits_layer.kernel,
        "logit/biases": model.logits_layer.bias,
    }


def _batch_norm_names(scope: str, activation: NormReLU) -> dict:
    return {
        f"{scope}/BatchNorm/beta": activation.norm.beta,
        f"{scope}/BatchNorm/gamma": activation.norm.gamma,
        f"{scope}/BatchNorm/moving_mean": activation.norm.moving_mean,
        f"{scope}/BatchNorm/moving_variance": activation.norm.moving_variance,
    }


def load_tf1_checkpoint(model: Network, path: str | Path) -> None:
    """Sets every variable of the built `model` from a checkpoint of the original code.

    Optimizer slots and `global_step` are ignored. Nothing is set unless everything fits.

    Args:
        model: MnistCNN or WideResNet.
        path: a checkpoint's folder (models/<name>) or its prefix.

    Raises:
        UserError: the checkpoint is absent or not readable, or a variable is missing, left over or
            of another shape than the model's.
    """
    prefix, reader = _open(path)
    shapes = _shapes(reader)
    table = tf1_names(model)
    wrong = [f"missing {name}" for name in table if name not in shapes]
    wrong += [f"left over {name}" for name in shapes if name not in table]
    wrong += [
        f"{name} has shape {shapes[name]} where the model has {tuple(variable.shape)}"
        for name, variable in table.items()
        if name in shapes and shapes[name] != tuple(variable.shape)
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"checkpoint {prefix} does not fit {type(model).__name__}: "
            f"{'; '.join(wrong[:5])}{more}."
        )
    values = {name: _read(reader, name, prefix) for name in table}
    for name, variable in table.items():
        variable.assign(values[name].astype(variable.dtype))


def from_tf1_checkpoint(
    path: str | Path, *, input_layer: str = "standardize", dtype: str | None = None
) -> Network:
    """The network in a checkpoint, with class, depth, width and classes from its names and shapes.

    Args:
        path: as for `load_tf1_checkpoint`.
        input_layer: of a WideResNet; the checkpoint does not contain it.
        dtype: Keras dtype policy of the model; None is the global one.

    Raises:
        UserError: it is neither network, or as for `load_tf1_checkpoint`.

    Example:
        >>> network = from_tf1_checkpoint("models/mnist/adv_trained")
        >>> network.pixel_max, network(tf.zeros((2, 28, 28, 1))).shape.as_list()
        (1.0, [2, 10])
    """
    prefix, reader = _open(path)
    shapes = _shapes(reader)
    if len(shapes.get("Variable_6", ())) == 2:
        model = MnistCNN(shapes["Variable_6"][1], dtype=dtype)
        model.build((None, 28, 28, 1))
    elif len(shapes.get("unit_1_0/sub1/conv1/DW", ())) == len(shapes.get("logit/DW", ())) + 2 == 4:
        units_per_group = len({n.split("/")[0] for n in shapes if n.startswith("unit_1_")})
        model = WideResNet(
            6 * units_per_group + 2,
            shapes["unit_1_0/sub1/conv1/DW"][3] // 16,
            num_classes=shapes["logit/DW"][1],
            input_layer=input_layer,
            dtype=dtype,
        )
        model.build((None, 32, 32, 3))
    else:
        received = ", ".join(sorted(shapes)[:5]) or "no variables"
        raise UserError(
            f"expected a network of the challenges in checkpoint {prefix}, so Variable_6 (MNIST) or "
            f"logit/DW (CIFAR-10); received {received}"
        )
    load_tf1_checkpoint(model, prefix)
    return model


def checkpoint_prefix(path: str | Path) -> Path:
    """The prefix of the checkpoint at `path`, a folder or a prefix already.

    A folder's `checkpoint` file is used if the file that it names, by any path, is in the folder;
    otherwise the checkpoint with the largest step.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        if path.with_name(path.name + ".index").is_file():
            return path
        received = "a file, not a folder" if path.is_file() else "no such folder or prefix"
        raise UserError(f"expected a checkpoint's folder or prefix; received {path}, {received}")
    steps = {p.name.removesuffix(".index"): p.with_suffix("") for p in path.glob("*.index")}
    if not steps:
        raise UserError(f"no checkpoint in {path}: expected checkpoint-<step>.index and its data.")
    state = path / "checkpoint"
    text = state.read_text(errors="replace") if state.is_file() else ""
    named = re.search(r'^model_checkpoint_path:\s*"(?:.*[/\\])?([^"]+)"', text, re.MULTILINE)
    if named and named[1] in steps:
        return steps[named[1]]
    return steps[max(steps, key=lambda name: int((re.findall(r"\d+$", name) or [-1])[0]))]


def _open(path: str | Path):
    prefix = checkpoint_prefix(path)
    try:
        return prefix, tf.train.load_checkpoint(str(literal(prefix.parent) / prefix.name))
    except _READ_ERRORS as error:
        raise UserError(_unreadable(prefix, error)) from None


def _shapes(reader) -> dict[str, tuple[int, ...]]:
    every = reader.get_variable_to_shape_map()
    return {name: tuple(every[name]) for name in sorted(every) if not _IGNORED.fullmatch(name)}


def _read(reader, name: str, prefix: Path) -> np.ndarray:
    try:
        return reader.get_tensor(name)
    except _READ_ERRORS as error:
        raise UserError(_unreadable(prefix, error, name)) from None


def _unreadable(prefix: Path, error: Exception, name: str = "") -> str:
    what = f"{name} of checkpoint {prefix}" if name else f"checkpoint {prefix}"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"cannot read {what}, its files are damaged or incomplete: {reason}"
