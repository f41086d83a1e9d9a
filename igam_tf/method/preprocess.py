"""Another input convention than pixels in 0..pixel_max, as a layer in front of the network."""

import contextlib
import re
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from igam_tf.common.errors import UserError
from igam_tf.method.transforms import Identity

# Name -> mean and deviation of each channel, in pixels of 0..1, and whether the channels come as BGR.
CONVENTIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...], bool]] = {
    "0..1": ((0.0,), (1.0,), False),
    "0..255": ((0.0,), (1 / 255,), False),
    "-1..1": ((0.5,), (0.5,), False),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False),
    "caffe": ((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,), True),
}
FORMS = (
    f"{', '.join(CONVENTIONS)}, or mean=0.5,0.5,0.5/std=0.2,0.2,0.2 in pixels of 0..1; with /bgr behind "
    "it the channels are turned around first"
)
_NUMBERS = re.compile(r"mean=([^/]+)/std=([^/]+)")


def contradiction(preprocess: str, pixel_max: float) -> str:
    """Why --preprocess and --pixel_max are refused together."""
    return (
        "expected --preprocess or --pixel_max, which both say what the model takes; received "
        f"--preprocess={preprocess} and --pixel_max={pixel_max:g}"
    )


def parsed(convention: str, name: str = "preprocess") -> tuple[np.ndarray, np.ndarray, bool]:
    """(mean, deviation, whether BGR) of an input convention; [1] or [C], in pixels of 0..1.

    `name` is what an error calls it.

    Raises:
        UserError: another form, numbers that are not finite, or a deviation that is not above 0.

    Example:
        >>> parsed("mean=0.5/std=0.25")
        (array([0.5]), array([0.25]), False)
    """
    text = str(convention)
    turned, text = text.endswith("/bgr"), text.removesuffix("/bgr")
    if text in CONVENTIONS:
        mean, std, bgr = CONVENTIONS[text]
        return np.array(mean), np.array(std), bgr or turned
    if found := _NUMBERS.fullmatch(text):
        with contextlib.suppress(ValueError):
            means, deviations = (
                np.array([float(v) for v in part.split(",")]) for part in found.groups()
            )
            fits = len(means) == len(deviations) or 1 in (len(means), len(deviations))
            if fits and np.isfinite([*means, *deviations]).all() and (deviations > 0).all():
                return means, deviations, turned
    raise UserError(f"expected {name} as one of {FORMS}; received {convention!r}")


@keras.saving.register_keras_serializable("igam_tf")
class Preprocess(Identity):
    """x' = (x / pixel_max - mean) / deviation, for each channel; see `CONVENTIONS`.

    Args:
        convention: one of `CONVENTIONS`, or "mean=0.5,0.5,0.5/std=0.2,0.2,0.2" in pixels of 0..1; with
            "/bgr" behind it the channels are turned around first.
        pixel_max: highest pixel value of x.

    Example:
        >>> Preprocess("-1..1")(np.full((1, 1, 1, 3), 0.75, "float32")).numpy().ravel()
        array([0.5, 0.5, 0.5], dtype=float32)
    """

    def __init__(self, convention: str, pixel_max: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.convention, self.pixel_max = convention, float(pixel_max)
        mean, std, self._bgr = parsed(convention)
        self.factor = 1 / (std * self.pixel_max)
        self._offset = -mean / std

    def build(self, input_shape: Sequence) -> None:
        """Checks the number of channels.

        Raises:
            UserError: it is not that of the convention.
        """
        channels, expected = input_shape[-1], max(self.factor.size, self._offset.size)
        if expected not in (1, channels):
            raise UserError(
                f"expected images of {expected} channels with preprocess={self.convention}; received "
                f"{channels}"
            )
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B,H,W,C] in 0..pixel_max -> the same as the network takes it."""
        x = x[..., ::-1] if self._bgr else x
        return x * tf.cast(self.factor, x.dtype) + tf.cast(self._offset, x.dtype)

    def get_config(self) -> dict:
        """Keras configuration."""
        own = {"convention": self.convention, "pixel_max": self.pixel_max}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("igam_tf")
class Preprocessed(keras.Model):
    """A network behind `Preprocess`: a model of pixels in 0..pixel_max.

    Args:
        base: the network, which takes what `Preprocess` makes of the pixels.
        convention, pixel_max: as of `Preprocess`.

    Example:
        >>> network = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten()])
        >>> Preprocessed(network, "caffe")(np.zeros((1, 4, 4, 3), "float32")).numpy()[0, :3]
        array([-103.939, -116.779, -123.68 ], dtype=float32)
    """

    def __init__(self, base: keras.Model, convention: str, pixel_max: float = 1.0, **kwargs):
        super().__init__(autocast=False, **kwargs)
        # In the order of calls.
        self.preprocess, self.base = Preprocess(convention, pixel_max), base
        self.pixel_max = float(pixel_max)
        if base.built:
            self.built = True

    def build(self, input_shape: Sequence) -> None:
        """Builds the network where it is not built yet."""
        self.preprocess.build(input_shape)
        if not self.base.built:
            self.base.build(input_shape)
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images [B,H,W,C] in 0..pixel_max -> logits [B,K]."""
        return self.base(self.preprocess(x), training=training)

    def get_config(self) -> dict:
        """Keras configuration."""
        return {
            **super().get_config(),
            "base": keras.saving.serialize_keras_object(self.base),
            "convention": self.preprocess.convention,
            "pixel_max": self.pixel_max,
        }

    @classmethod
    def from_config(cls, config: dict) -> "Preprocessed":
        """Inverse of `get_config`."""
        return cls(keras.saving.deserialize_keras_object(config.pop("base")), **config)


def preprocessed(model: keras.Model, convention: str | None, pixel_max: float = 1.0) -> keras.Model:
    """The model behind an input convention; None: as it is."""
    return model if convention is None else Preprocessed(model, convention, pixel_max)
