"""A PyTorch network as a Keras model: values and first derivatives are computed by PyTorch.

TensorFlow calls the network from its graphs by `tf.numpy_function`. What PyTorch keeps of a forward
pass serves its gradient; where that is gone, or was never kept, the pass is repeated.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from igam_tf.common.checks import channels_last, check_pixel_max, expect
from igam_tf.common.errors import UserError
from igam_tf.common.private_api import reason_of
from igam_tf.method.preprocess import preprocessed
from igam_tf.pytorch import import_torch

KEPT = 2  # forward passes of one place in a graph that wait for their gradient
SECOND = (
    "expected first derivatives of a PyTorch network alone; received a loss that needs second ones, "
    "which TensorFlow cannot take through PyTorch: make it the network of an igam_tf.Teacher"
)


@keras.saving.register_keras_serializable("igam_tf")
class TorchModel(keras.Model):
    """A `torch.nn.Module` in evaluation mode: images [B,H,W,C] -> logits [B,K], in float32.

    See `from_torch`, which makes one. It has no Keras variables, and one call runs at a time.

    Args:
        module: the network; it is put into evaluation mode.
        channels_first: whether it takes [B,C,H,W].
        pixel_max: highest pixel value of its input; None means unknown.
        source: the name that it was loaded by, by which a saved model finds its code; else "".
    """

    inference_only = True  # see `igam_tf.method.networks.inference_only`

    def __init__(
        self,
        module: Any,
        *,
        channels_first: bool = True,
        pixel_max: float | None = None,
        source: str = "",
        **kwargs,
    ):
        torch = import_torch()
        expect(
            isinstance(module, torch.nn.Module), "a torch.nn.Module", f"a {type(module).__name__}"
        )
        tensors = _tensors(module).values()
        empty = any(t.is_meta for t in tensors)
        expect(not empty, "a PyTorch network with weights", "the device meta", "load them first")
        own = [t.dtype for t in tensors if t.is_floating_point()]
        for dtype in own:
            expect(
                dtype in (torch.float32, torch.float64),
                "a PyTorch network of float32 or float64 weights", dtype, "call its float() first",
            )  # fmt: skip
        super().__init__(**kwargs)
        self.supports_jit = False  # XLA cannot call Python
        self.module, self.channels_first = module.train(False), channels_first
        self.pixel_max, self.source = pixel_max, source
        weights = [p.dtype for p in module.parameters() if p.is_floating_point()] or own
        self._float = np.float64 if {*weights} == {torch.float64} else np.float32
        self._alone = threading.RLock()  # the hook below sees one call
        self._differentiable, self._no_features = True, ""
        self._last: Any = None  # the torch.nn.Linear that returns the logits
        self.written = ""  # its identity when the file that it comes from was written

    def build(self, input_shape: tuple) -> None:
        """Calls the network on two grey images [B,H,W,C] and on one, to see what it returns.

        Raises:
            UserError: it fails on such images, or does not return logits [B,K].
        """
        torch, kind, image_shape = import_torch(), type(self.module).__name__, input_shape[1:]
        images = np.full((2, *image_shape), (self.pixel_max or 1.0) / 2, np.float32)
        order = "[C,H,W], channels_first" if self.channels_first else "[H,W,C]"
        called: list[tuple] = []
        hooks = [
            part.register_forward_hook(lambda part, args, out: called.append((part, args, out)))
            for part in self.module.modules()
            if isinstance(part, torch.nn.Linear)
        ]
        try:
            with self.failures(f"for images {list(image_shape)}, given to it as {order}"):
                x, z = self.forward_in_torch(images, keep=True)
        finally:
            for hook in hooks:
                hook.remove()
        what = f"logits [2,K] of this {kind}, one tensor"
        if not isinstance(z, torch.Tensor):
            held = f" of {len(z)} outputs" if hasattr(z, "__len__") else ""
            remedy = "wrap it in a module that returns the one that classifies"
            expect(False, what, f"a {type(z).__name__}{held}", remedy)
        fits = z.ndim == 2 and len(z) == 2 and z.is_floating_point()
        expect(fits, what, f"{z.dtype} {list(z.shape)}")
        self.num_classes, self._channels = z.shape[1], image_shape[-1]
        with self.failures("whose logits PyTorch differentiates"):
            if z.requires_grad:
                (found,) = torch.autograd.grad(z.sum(), x, allow_unused=True)
            self._differentiable = z.requires_grad and found is not None
            one = _array(self.forward_in_torch(images[:1], keep=False)[1])
        expect(
            one.shape == (1, self.num_classes), f"logits [1,K] of one image from this {kind}",
            list(one.shape), "keep the axis of the batch, which squeeze() removes",
        )  # fmt: skip
        called.sort(key=lambda call: call[2] is z)  # an auxiliary head can be called after it
        if not called:
            self._no_features = f"this {kind} calls no torch.nn.Linear"
        elif (last := called[-1])[2].shape != z.shape:
            self._no_features = (
                f"the last torch.nn.Linear of this {kind} returns {list(last[2].shape[1:])} values, and "
                f"it has {self.num_classes} logits"
            )
        else:
            self._last = last[0]
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] -> logits [B,K].

        Raises:
            UserError: `training` is set, or several devices share the batch.
        """
        return self._outputs(x, training, self.num_classes)

    def igam_features(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] -> what the last torch.nn.Linear reads, [B,F].

        Raises:
            UserError: the logits do not come from a torch.nn.Linear; or as `call`.
        """
        if not self.built:
            self.build(x.shape)
        if self._last is None:
            raise UserError(
                "expected a torch.nn.Linear that returns the logits, whose input new logits read; "
                f"{self._no_features}: let a module that ends with one compute them"
            )
        return self._outputs(x, training, self._last.in_features, of_last=True)

    def _outputs(
        self, x: tf.Tensor, training: bool, width: int, *, of_last: bool = False
    ) -> tf.Tensor:
        expect(
            not training, "a PyTorch network in evaluation mode", "training=True",
            "its batch norm and dropout have no other mode here; leave out batch statistics",
        )  # fmt: skip
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        expect(
            replicas == 1, "one device for a PyTorch network", f"a batch for {replicas} devices",
            "set --replicas=1, or leave out the strategy",
        )  # fmt: skip
        if x.shape[-1] not in (None, self._channels):  # flattened, other images pass unseen
            raise UserError(
                f"expected images [B,H,W,{self._channels}] for this {type(self.module).__name__}; "
                f"received {x.shape.as_list()}{channels_last(x.shape[1:])}"
            )
        x = tf.cast(x, tf.float32)
        place = _Place(self, of_last, width)

        @tf.custom_gradient
        def outputs(x: tf.Tensor):
            z, token = tf.numpy_function(place.forward, [x], [tf.float32, tf.int64])
            z = tf.ensure_shape(z, [x.shape[0], width])

            def first(dz: tf.Tensor) -> tf.Tensor:
                place.differentiated = True

                @tf.custom_gradient
                def gradient(x: tf.Tensor, dz: tf.Tensor):
                    j = tf.numpy_function(place.backward, [x, dz, token], tf.float32)

                    def second(*_):
                        raise UserError(SECOND)

                    return tf.ensure_shape(j, x.shape), second

                return gradient(x, dz)

            return z, first

        return outputs(x) if self._differentiable else tf.stop_gradient(outputs(x))

    def forward_in_torch(
        self, x: np.ndarray, *, keep: bool, of_last: bool = False
    ) -> tuple[Any, Any]:
        """(its input as PyTorch's tensor, its outputs); with a graph from one to the other, if `keep`.

        The network gets a copy in the order that it takes, and may write into it.
        """
        torch = import_torch()
        if self.module.training:
            raise UserError(
                f"expected this {type(self.module).__name__} in evaluation mode; it is in training "
                "mode: call its eval() before it is measured"
            )
        x = np.array(x.transpose(0, 3, 1, 2) if self.channels_first else x, self._float, order="C")
        weight = next(itertools.chain(self.module.parameters(), self.module.buffers()), None)
        tensor = torch.from_numpy(x).to(None if weight is None else weight.device)
        tensor.requires_grad_(keep)
        with self._alone, torch.inference_mode(False), torch.set_grad_enabled(keep):
            given = tensor.clone() if keep else tensor
            if not of_last:
                return tensor, self.module(given)
            read: list = []
            hook = self._last.register_forward_pre_hook(
                lambda _, args: read.append(args[0].clone())
            )
            try:
                self.module(given)
            finally:
                hook.remove()
        return tensor, read[-1]

    @contextlib.contextmanager
    def failures(self, what: str) -> Iterator[None]:
        """Context that turns errors of the network, which can fail in any way, into one sentence.

        Raises:
            UserError: expected a PyTorch network `what`; the reason.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"expected a PyTorch network {what}; this {type(self.module).__name__} fails: "
                f"{reason_of(error)}"
            ) from error

    @contextlib.contextmanager
    def networks_inside(self) -> Iterator[list[tuple[TorchModel, np.ndarray]]]:
        """Context that records each module inside that turns images into as many logits as this does.

        (It as a model, what it gets [B,H,W,C]) in the order in which their calls end.
        """
        torch = import_torch()
        found: list[tuple[TorchModel, np.ndarray]] = []

        def called(part, args, out) -> None:
            images = [t for t in args if isinstance(t, torch.Tensor) and t.ndim == 4]
            if len(images) != 1 or not isinstance(out, torch.Tensor):
                return
            if out.shape == (len(images[0]), self.num_classes):
                model = TorchModel(part, channels_first=self.channels_first)
                found.append((model, self.images_of(images[0])))

        hooks = [
            part.register_forward_hook(called)
            for part in self.module.modules()
            if part is not self.module
        ]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def images_of(self, tensor: Any) -> np.ndarray:
        """A tensor in the network's order -> [B,H,W,C] float32."""
        array = _array(tensor)
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1) if self.channels_first else array)

    def get_config(self) -> dict:
        """Its name, and a digest of code and weights by which a journal tells it from others."""
        return {
            **super().get_config(),
            "source": self.source,
            "channels_first": self.channels_first,
            "pixel_max": self.pixel_max,
            "identity": identity_of(self.module),
        }

    @classmethod
    def from_config(cls, config: dict) -> TorchModel:
        """The network of that name, if the user named it in this process too; weights are in the file.

        Raises:
            UserError: it has no name, or one that a file alone asks for.
        """
        from igam_tf.pytorch.named import module_again

        config = dict(config)
        written = config.pop("identity", "")
        model = cls(module_again(config["source"]), **config)
        model.written = written
        return model

    def save_own_variables(self, store: dict) -> None:
        """Writes PyTorch's weights.

        Raises:
            UserError: the network was not loaded by a name, so its code could not be found again.
        """
        if not self.source:
            raise UserError(
                "expected a network whose code can be found again; received a PyTorch network "
                "made by from_torch, which a .keras file cannot hold: save it with torch.save, or "
                "name it, --teacher_checkpoint=torch:module:function"
            )
        for name, tensor in self.module.state_dict().items():
            store[name] = tensor.cpu().numpy()

    def load_own_variables(self, store: dict) -> None:
        """Reads PyTorch's weights."""
        torch = import_torch()
        tensors = {name: torch.from_numpy(np.array(store[name])) for name in store.keys()}  # noqa: SIM118
        self.module.load_state_dict(tensors)
        if self.written not in ("", identity_of(self.module)):
            logging.warning(
                "DOUBTFUL: the code of %s is not what it was when its weights were saved. What it "
                "computes may be something else: take the code as it was, or start anew.",
                self.source,
            )


class _Place:
    """One call of the network, in a graph or outside: its passes, and what their gradients need.

    Attributes:
        differentiated: whether a gradient is taken here. In a graph that is known before it runs;
            outside, each pass is kept as long as the tape is.
    """

    def __init__(self, model: TorchModel, of_last: bool, width: int):
        self._model, self._of_last, self._width = model, of_last, width
        self.differentiated = tf.executing_eagerly()
        self._kept: collections.OrderedDict = collections.OrderedDict()
        self._numbers = itertools.count()

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.int64]:
        """(outputs, number of the pass)."""
        keep, number = self.differentiated, next(self._numbers)
        with self._model.failures(f"for {len(x)} images"):
            pair = self._model.forward_in_torch(x, keep=keep, of_last=self._of_last)
            # A copy: TensorFlow may write into what it gets, and PyTorch needs its own.
            z = _array(pair[1]).copy()
        what = f"outputs {[len(x), self._width]} of a PyTorch network"
        expect(z.shape == (len(x), self._width), what, list(z.shape))
        if keep:
            self._kept[number] = pair
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return z, np.int64(number)

    def backward(self, x: np.ndarray, dz: np.ndarray, number: np.ndarray) -> np.ndarray:
        """The gradient of <dz, outputs> with respect to x."""
        torch = import_torch()
        pair = self._kept.pop(int(number), None)
        with self._model.failures(f"whose outputs for {len(x)} images PyTorch differentiates"):
            tensor, z = pair or self._model.forward_in_torch(x, keep=True, of_last=self._of_last)
            dz = torch.from_numpy(np.array(dz)).to(z.device, z.dtype)
            (j,) = torch.autograd.grad(z, tensor, dz)
            return self._model.images_of(j)


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _tensors(module: Any) -> dict[str, Any]:
    """Parameters and buffers, those that are not saved too."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def identity_of(module: Any) -> str:
    """Digest of a PyTorch network: its layers, weights, numbers, and the files of its classes."""
    digest = hashlib.sha256(repr(module).encode())
    parts = list(module.modules())
    for name in sorted({type(part).__module__ for part in parts}):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and name.split(".")[0] != "torch":
            digest.update(Path(file).read_bytes())
    for part in parts:
        held = {
            k: v
            for k, v in vars(part).items()
            if not k.startswith("_") and isinstance(v, int | float | str)
        }
        digest.update(json.dumps(held, sort_keys=True).encode())
        digest.update(str(getattr(part, "code", "")).encode())  # of TorchScript, and of graphs
    for name, tensor in _tensors(module).items():
        array = tensor.detach().cpu().numpy()
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()


def from_torch(
    module: Any,
    image_shape: tuple[int, int, int],
    *,
    channels_first: bool = True,
    preprocess: str | None = None,
    pixel_max: float = 1.0,
) -> keras.Model:
    """A PyTorch network as a Keras model, to be measured, audited, or a teacher.

    Values and first derivatives come from PyTorch, on the device of its weights, in float32. Of a
    network that ends with a `torch.nn.Linear`, `Teacher` and `FineTune` put new logits on what that
    layer reads.

    It cannot be a student, because TensorFlow does not take second derivatives through PyTorch; it
    has no training mode, cannot be saved to a `.keras` file, and runs on one device.

    Args:
        module: a `torch.nn.Module`, images -> logits [B,K]; it is put into evaluation mode.
        image_shape: of an image, (H, W, C).
        channels_first: whether the network takes [B,C,H,W], as PyTorch's do.
        preprocess: the input that it takes in place of pixels in 0..pixel_max, see
            `igam_tf.evaluate`.
        pixel_max: highest pixel value of the images; by default 1, as torchvision gives them.

    Returns:
        A model of images [B,H,W,C] in 0..pixel_max -> logits [B,K].

    Raises:
        UserError: PyTorch is not installed, or the network fails on such images or does not return
            logits.

    Example:
        >>> import torch
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
        >>> from_torch(module, (4, 4, 3))(tf.zeros((2, 4, 4, 3))).shape.as_list()
        [2, 10]
    """
    check_pixel_max(pixel_max)
    shape = tuple(image_shape)
    fits = len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape)
    expect(fits, "image_shape (H, W, C) of whole numbers above 0", repr(image_shape))
    what = "image_shape (H, W, C) with the channels last, whatever the network takes"
    expect(not channels_last(shape), what, shape, f"set {(*shape[1:], shape[0])}")
    plain = preprocess is None
    model = TorchModel(
        module, channels_first=channels_first, pixel_max=pixel_max if plain else None
    )
    whole = preprocessed(model, preprocess, pixel_max)
    model.build((None, *shape))
    whole.build((None, *shape))
    return whole
