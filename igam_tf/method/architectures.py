"""The networks that can be named, for students and for teachers trained here; one entry each."""

import contextlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import keras

from igam_tf.common.checks import expect
from igam_tf.common.errors import UserError
from igam_tf.common.private_api import reason_of
from igam_tf.common.quiet import is_program
from madry_models import MnistCNN, WideResNet

Shape = tuple[int, int, int]


def wrn_size(name: str) -> tuple[int, int]:
    """(depth, width) of wrn-<depth>-<width>.

    Raises:
        UserError: a depth that is not 6n + 2.
    """
    depth, width = map(int, name.split("-")[1:])
    if depth < 8 or (depth - 2) % 6 or width < 1:
        raise UserError(
            f"expected wrn-<depth>-<width> with depth 6n + 2, such as wrn-32-10; received {name!r}"
        )
    return depth, width


def wide_resnet(
    name: str,
    shape: Shape,
    num_classes: int,
    *,
    input_layer: str,
    synchronized: bool,
    activation: str,
) -> keras.Model:
    """The CIFAR-10 challenge's network, wrn-<depth>-<width>; pixels in 0..255.

    Raises:
        UserError: a depth that is not 6n + 2.
    """
    depth, width = wrn_size(name)
    network = WideResNet(
        depth, width, num_classes=num_classes, input_layer=input_layer,
        synchronized=synchronized, activation=activation, dtype=keras.config.dtype_policy(),
    )  # fmt: skip
    network.build((None, *shape))
    return network


def mnist_cnn(name: str, shape: Shape, num_classes: int, **_) -> keras.Model:
    """The MNIST challenge's network; pixels in 0..1."""
    network = MnistCNN(num_classes)
    network.build((None, *shape))
    return network


def keras_application(name: str, shape: Shape, num_classes: int, **_) -> keras.Model:
    """An untrained network of keras.applications, keras:<name>, on pixels in 0..255.

    A layer in front of it scales pixels to -1..1; the network's own rescaling is left out.

    Raises:
        UserError: there is no such network, or it does not accept such images.
    """
    _, _, wanted = name.partition(":")
    build = getattr(keras.applications, wanted, None)
    if not inspect.isfunction(build):
        known = [n for n, f in vars(keras.applications).items() if inspect.isfunction(f)]
        raise UserError(
            f"expected keras:<name> with a name of keras.applications, {', '.join(sorted(known))}; "
            f"received {name!r}"
        )
    options = {"weights": None, "classes": num_classes, "classifier_activation": None}
    if "include_preprocessing" in inspect.signature(build).parameters:
        options["include_preprocessing"] = False
    try:
        network = build(input_shape=shape, **options)
    except Exception as error:  # each network has its own requirements
        raise UserError(
            f"expected a network for images {list(shape)}; {name} refuses them: {reason_of(error)}"
        ) from error
    x = keras.Input(shape)
    return keras.Model(x, network(keras.layers.Rescaling(1 / 127.5, offset=-1.0)(x)))


def _imported(module: str, name: str):
    """Imports a module; in a program also from the working directory, after all other places."""
    if is_program() and not {"", os.getcwd()} & {*sys.path}:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except UserError:
        raise
    except Exception as error:  # a module of the user's can fail in any way
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UserError(
            f"expected module:function with a module that can be imported; received {name!r}: {reason}"
        ) from error


def called_by_name(name: str, offered: Mapping[str, Any] | None = None, *, prefix: str = "") -> Any:
    """What `module:function` returns; the module can lie in the working directory.

    Args:
        name: of module and function.
        offered: arguments that the function gets if it has some of these names.
        prefix: what stands before the name on the command line.

    Raises:
        UserError: there is no such function, it needs other arguments, or it fails.
    """
    offered, shown = offered or {}, f"{prefix}{name}"
    module, _, function = name.partition(":")
    form = f"{prefix}module:function"
    expect(module and function, form, repr(shown), "name the function that returns the network")
    imported = _imported(module, shown)
    try:
        build = getattr(imported, function)
        wanted = inspect.signature(build).parameters.values()
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"expected {form}; received {shown!r}: {reason_of(error)}") from error
    needed = [
        p.name
        for p in wanted
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    what = f"{form}, a function without arguments" + (
        ", or of shape and num_classes" if offered else ""
    )
    received = f"{shown!r}, which needs {', '.join(needed)}"
    expect({*needed} <= offered.keys(), what, received, "write one that fills them in")
    try:
        return build(**{p.name: offered[p.name] for p in wanted if p.name in offered})
    except UserError:
        raise
    except Exception as error:  # a function of the user's can fail in any way
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UserError(f"expected a network from {shown}; received {reason}") from error


def from_function(name: str, shape: Shape | None = None, num_classes: int = 0, **_) -> keras.Model:
    """The model that `module:function` returns; the function may take `shape` and `num_classes`.

    Raises:
        UserError: it returns no model; or as `called_by_name`.
    """
    model = called_by_name(name, {"shape": shape, "num_classes": num_classes} if shape else None)
    if not isinstance(model, keras.Model):
        raise UserError(
            f"expected a function that returns a keras.Model; {name} returns {type(model).__name__}"
        )
    if shape and not model.built:
        try:
            model(keras.ops.zeros((1, *shape)), training=False)
        except Exception as error:  # on such images a model can fail in any way
            raise UserError(
                f"expected a model for images {list(shape)} from {name}; {reason_of(error)}"
            ) from error
    return model


# Name in error messages -> (pattern, function that builds the network); the first match counts. To add
# one, add a line.
ARCHITECTURES: dict[str, tuple[str, Callable[..., keras.Model]]] = {
    "wrn-<depth>-<width>": (r"wrn-\d+-\d+", wide_resnet),
    "mnist-cnn": ("mnist-cnn", mnist_cnn),
    "keras:<name of keras.applications>": (r"keras:\w+", keras_application),
    "module:function": (r"[\w.]+:\w+", from_function),
}


def build_network(
    name: str,
    shape: Shape,
    num_classes: int,
    *,
    precision: str = "float32",
    input_layer: str = "standardize",
    synchronized: bool = False,
    activation: str = "leaky_relu",
) -> keras.Model:
    """A new network for images [H,W,C] in 0..pixel_max, with new weights.

    Args:
        name: see ARCHITECTURES.
        shape: of an image, (H, W, C).
        num_classes: of its logits.
        precision: dtype policy of its layers.
        input_layer, synchronized, activation: of wrn networks, see `madry_models.WideResNet`.

    Raises:
        UserError: the name is unknown, or the network does not accept such images.
    """
    build = builder_of(name)
    with _dtype_policy(precision):
        return build(
            name, shape, num_classes,
            input_layer=input_layer, synchronized=synchronized, activation=activation,
        )  # fmt: skip


def builder_of(name: str) -> Callable[..., keras.Model]:
    """The function that builds the network of this name.

    Raises:
        UserError: the name is unknown, or the depth of a wrn is not 6n + 2.
    """
    for pattern, build in ARCHITECTURES.values():
        if re.fullmatch(pattern, name):
            if build is wide_resnet:
                wrn_size(name)
            return build
    raise UserError(f"expected a network {', '.join(ARCHITECTURES)}; received {name!r}")


def import_classes(name: str) -> None:
    """Imports the module of a module:function, whose classes a `.keras` file can contain.

    Raises:
        UserError: there is no such module.
    """
    if builder_of(name) is from_function:
        _imported(name.partition(":")[0], name)


@contextlib.contextmanager
def _dtype_policy(name: str):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
