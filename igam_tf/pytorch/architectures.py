"""The architectures that have a native port: names, sizes and the names of their tensors in PyTorch.

`FAMILIES` is the table. Sizes and names are facts of the sources that it names; a network of any depth
and width of a family follows from its name by `plan_of`, before anything is allocated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from igam_tf.common.checks import expect
from igam_tf.common.errors import UserError

# Mean and deviation of the channels of a data set's training images, in the form of
# `igam_tf.method.conventions`; the numbers are those of RobustBench's dm_wide_resnet.py.
STATISTICS = {
    "cifar10": "mean=0.4914,0.4822,0.4465/std=0.2471,0.2435,0.2616",
    "cifar100": "mean=0.5071,0.4865,0.4409/std=0.2673,0.2564,0.2762",
}
MOST_CLASSES = 100_000  # a file can claim any number
# Depth of a ResNet -> units of each group, and convolutions of a unit (He et al. 2016, table 1).
_RESNETS = {
    18: ((2, 2, 2, 2), 2),
    34: ((3, 4, 6, 3), 2),
    50: ((3, 4, 6, 3), 3),
    101: ((3, 4, 23, 3), 3),
    152: ((3, 8, 36, 3), 3),
}


@dataclass(frozen=True)
class Family:
    """What the networks of a family share; the names are those of PyTorch's modules.

    Attributes:
        form: how a network is called: <...> is a number, [...] can be left out.
        pattern: the same as a regular expression; its groups are the parameters.
        source: where its definition is published.
        published: networks of RobustBench that use it.
        stem, norm, logits: layers outside the units. The norm is before the mean where units are
            pre-activated, and else behind the stem.
        unit: for the numbers of the group, from `first` on, and of the unit in it, from 0 on.
        norms, convs: inside a unit, in order.
        shortcut: convolution, and norm if there is one.
        preactivated: whether a unit is (norm, activation, convolution) several times, and not
            (convolution, norm, activation).
        activated_shortcut: whether the shortcut's convolution reads the activated input.
        shortcut_kernel: its size.
        late_padding: whether a stride of 2 pads below and to the right alone, and not on all sides.
        imagenet: stem of 7x7 with stride 2, then max pooling.
        activation: unless the name says another.
        preprocess: input convention unless the file or the caller says another; "cifar" is that of
            CIFAR-10 or CIFAR-100, by the number of classes.
        image_shape: [H,W,C] of the images that the published networks take.
    """

    form: str
    pattern: str
    source: str
    published: str
    logits: str
    stem: str = ""
    norm: str = ""
    unit: str = ""
    first: int = 1
    norms: tuple[str, ...] = ()
    convs: tuple[str, ...] = ()
    shortcut: tuple[str, ...] = ()
    preactivated: bool = True
    activated_shortcut: bool = True
    shortcut_kernel: int = 1
    late_padding: bool = False
    imagenet: bool = False
    activation: str = "relu"
    preprocess: str = "0..1"
    image_shape: tuple[int, int, int] = (32, 32, 3)


_ROBUSTBENCH = "robustbench/model_zoo/architectures"
_DEPTHS = r"(?P<depth>18|34|50|101|152)"
_DM_OPTIONS = r"(?:-(?P<activation>relu|silu))?(?:-pad(?P<pad>\d+))?"
_DEEPMIND: dict[str, Any] = {
    "source": f"{_ROBUSTBENCH}/dm_wide_resnet.py; deepmind-research/adversarial_robustness",
    "norm": "batchnorm", "first": 0, "norms": ("batchnorm_0", "batchnorm_1"),
    "shortcut": ("shortcut",), "logits": "logits", "late_padding": True, "activation": "silu",
    "preprocess": "cifar",
}  # fmt: skip
_PREACT: dict[str, Any] = {
    "stem": "conv1", "unit": "layer{}.{}", "norms": ("bn1", "bn2"), "convs": ("conv1", "conv2"),
    "shortcut": ("shortcut.0",), "logits": "linear",
}  # fmt: skip
_RESNET: dict[str, Any] = {
    "stem": "conv1", "norm": "bn1", "unit": "layer{}.{}", "norms": ("bn1", "bn2", "bn3"),
    "convs": ("conv1", "conv2", "conv3"), "preactivated": False, "activated_shortcut": False,
}  # fmt: skip
_TORCHVISION: dict[str, Any] = _RESNET | {
    "source": "torchvision/models/resnet.py", "shortcut": ("downsample.0", "downsample.1"),
    "logits": "fc", "imagenet": True, "preprocess": "imagenet", "image_shape": (224, 224, 3),
}  # fmt: skip
_WONG: dict[str, Any] = {
    "source": "locuslab/convex_adversarial, examples/problems.py",
    "logits": "7",
}
FAMILIES = (
    Family(
        form="wrn-<depth>-<width>",
        pattern=r"wrn-(?P<depth>\d+)-(?P<width>\d+)",
        source=f"{_ROBUSTBENCH}/wide_resnet.py; yaodongyu/TRADES",
        published="Zhang2019Theoretically (34-10), Carmon2019Unlabeled (28-10), Sehwag2021Proxy "
        "(34-10), Cui2020Learnable_34_20, Jia2022LAS-AT_70_16; with --preprocess=cifar10 "
        "Rice2020Overfitting (34-20) and Chen2020Efficient (34-10)",
        stem="conv1", norm="bn1", unit="block{}.layer.{}", norms=("bn1", "bn2"),
        convs=("conv1", "conv2"), shortcut=("convShortcut",), logits="fc",
    ),
    Family(
        form="dm-wrn-<depth>-<width>[-relu|-silu][-pad<n>]",
        pattern=rf"dm-wrn-(?P<depth>\d+)-(?P<width>\d+){_DM_OPTIONS}",
        published="Gowal2020Uncovering_28_10_extra, Rebuffi2021Fixing_70_16_cutmix_ddpm, "
        "Wang2023Better_WRN-28-10, Bartoldson2024Adversarial_WRN-94-16, all with SiLU",
        stem="init_conv", unit="layer.{}.block.{}", convs=("conv_0", "conv_1"), **_DEEPMIND,
    ),
    Family(
        form="preact-resnet-<18|34>",
        pattern=r"preact-resnet-(?P<depth>18|34)",
        source=f"{_ROBUSTBENCH}/resnet.py, PreActBlock",
        published="Andriushchenko2020Understanding; with --preprocess=cifar10 Wong2020Fast",
        activated_shortcut=False, **_PREACT,
    ),
    Family(
        form="preact-resnet-<18|34>-v2",
        pattern=r"preact-resnet-(?P<depth>18|34)-v2",
        source=f"{_ROBUSTBENCH}/resnet.py, PreActBlockV2 with bn_before_fc",
        published="Addepalli2021Towards_PARN18; with --preprocess=cifar10 Rice2020Overfitting (l2) "
        "and Kireev2021Effectiveness_RLATAugMix",
        norm="bn", **_PREACT,
    ),
    Family(
        form="dm-preact-resnet-<18|34>[-relu|-silu][-pad<n>]",
        pattern=rf"dm-preact-resnet-(?P<depth>18|34){_DM_OPTIONS}",
        published="Rebuffi2021Fixing_R18_ddpm, Rade2021Helper_R18_extra, "
        "Gowal2021Improving_R18_ddpm_100m, all with SiLU",
        stem="conv_2d", unit="layer_{}.{}", convs=("conv_2d_1", "conv_2d_2"),
        activated_shortcut=False, shortcut_kernel=3, **_DEEPMIND,
    ),
    Family(
        form="cifar-resnet-<18|34|50|101|152>",
        pattern=f"cifar-resnet-{_DEPTHS}",
        source=f"{_ROBUSTBENCH}/resnet.py; MadryLab/robustness",
        published="Engstrom2019Robustness (50), Sehwag2021Proxy_R18, Addepalli2022Efficient_RN18",
        shortcut=("shortcut.0", "shortcut.1"), logits="linear", **_RESNET,
    ),
    Family(
        form="resnet-<18|34|50|101|152>",
        pattern=f"resnet-{_DEPTHS}",
        published="on ImageNet: Engstrom2019Robustness (50), Wong2020Fast (50), Salman2020Do_R18, "
        "Salman2020Do_R50",
        **_TORCHVISION,
    ),
    Family(
        form="wide-resnet-<50|101>-2",
        pattern="wide-resnet-(?P<depth>50|101)-(?P<width>2)",
        published="on ImageNet: Salman2020Do_50_2; with --preprocess=0..1 Chen2024Data_WRN_50_2",
        **_TORCHVISION,
    ),
    Family(
        form="wong-small-mnist", pattern="wong-small-mnist",
        published="none of RobustBench; Wong et al. 2018, Scaling provable adversarial defenses",
        image_shape=(28, 28, 1), **_WONG,
    ),
    Family(
        form="wong-small-cifar", pattern="wong-small-cifar",
        published="none of RobustBench; Wong et al. 2018, Scaling provable adversarial defenses",
        preprocess="mean=0.485,0.456,0.406/std=0.225,0.225,0.225", **_WONG,
    ),
)  # fmt: skip
FORMS = ", ".join(family.form for family in FAMILIES)


class Part(NamedTuple):
    """One layer with weights.

    Attributes:
        name: of its module in PyTorch.
        shape: of its weight in PyTorch: [out,in,k,k] of a convolution, [out,in] of a dense layer, [C]
            of a batch norm.
        stride: of a convolution.
        bias: whether a convolution has one.
    """

    name: str
    shape: tuple[int, ...]
    stride: int = 1
    bias: bool = False

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name in a file -> shape."""
        if len(self.shape) == 1:
            names = ("weight", "bias", "running_mean", "running_var")
            return {f"{self.name}.{name}": self.shape for name in names}
        found = {f"{self.name}.weight": self.shape}
        if self.bias or len(self.shape) == 2:
            found[f"{self.name}.bias"] = self.shape[:1]
        return found


class Unit(NamedTuple):
    """A residual unit: its layers in order, and those of its shortcut, if any."""

    norms: tuple[Part, ...]
    convs: tuple[Part, ...]
    shortcut: tuple[Part, ...]


@dataclass(frozen=True)
class Plan:
    """A network, layer by layer.

    Attributes:
        architecture, family: its name and what it belongs to.
        before: layers before the units; of a network without units, all but the last.
        units: residual units.
        after: batch norm behind the units, if any.
        logits: the last layer.
        activation: "relu" or "silu".
        pad: pixels of zeros on each side, before everything else.
    """

    architecture: str
    family: Family
    before: tuple[Part, ...]
    units: tuple[Unit, ...]
    after: tuple[Part, ...]
    logits: Part
    activation: str
    pad: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name in a file -> shape."""
        within = (part for unit in self.units for part in chain(*unit))
        found: dict[str, tuple[int, ...]] = {}
        for part in (*self.before, *within, *self.after, self.logits):
            found |= part.tensors()
        return found

    @property
    def classes(self) -> int:
        """Number of logits."""
        return self.logits.shape[0]

    @property
    def preprocess(self) -> str | None:
        """The input convention of the family; None if the data set is not known."""
        own = self.family.preprocess
        return STATISTICS.get(f"cifar{self.classes}") if own == "cifar" else own


def _unit(
    family: Family, name: str, channels: int, inner: int, outer: int, stride: int, n: int
) -> Unit:
    """A unit of n convolutions, two of 3x3 or 1x1, 3x3, 1x1; [.., channels] -> [.., outer]."""
    widths = (channels, *(inner,) * (n - 1), outer)
    kernels = (3, 3) if n == 2 else (1, 3, 1)
    strided = 0 if n == 2 else 1  # the 3x3 one
    convs = tuple(
        Part(f"{name}.{conv}", (widths[i + 1], widths[i], k, k), stride if i == strided else 1)
        for i, (conv, k) in enumerate(zip(family.convs, kernels, strict=False))
    )
    normed = widths[:-1] if family.preactivated else widths[1:]
    norms = (Part(f"{name}.{norm}", (c,)) for norm, c in zip(family.norms, normed, strict=False))
    shortcut = []
    if stride > 1 or channels != outer:
        k = family.shortcut_kernel
        shortcut = [Part(f"{name}.{family.shortcut[0]}", (outer, channels, k, k), stride)]
        shortcut += [Part(f"{name}.{norm}", (outer,)) for norm in family.shortcut[1:]]
    return Unit(tuple(norms), convs, tuple(shortcut))


_Layers = tuple[tuple[Part, ...], tuple[Unit, ...], tuple[Part, ...], Part]


def _residual(family: Family, found: dict, classes: int) -> _Layers:
    """(before, units, after, logits) of a ResNet."""
    depth, width = int(found["depth"]), int(found.get("width") or 1)
    counts: tuple[int, ...]
    if family.imagenet or "width" not in found:
        counts, n = _RESNETS[depth]
        channels, inner = 64, [64 * 2**i for i in range(4)]
        outer = [w * (4 if n == 3 else 1) for w in inner]
        inner = [w * width for w in inner]
    else:
        expect(depth % 6 == 4 and depth > 4, "a depth of 6n+4, so 10, 16, 22, 28, ...", depth)
        expect(width >= 1, "a width of at least 1", width)
        counts, n = ((depth - 4) // 6,) * 3, 2
        channels, inner = 16, [16 * width * 2**i for i in range(3)]
        outer = inner
    kernel, stride = (7, 2) if family.imagenet else (3, 1)
    before = [Part(family.stem, (channels, family.image_shape[2], kernel, kernel), stride)]
    if not family.preactivated:
        before.append(Part(family.norm, (channels,)))
    units = []
    for group, count in enumerate(counts):
        for i in range(count):
            name = family.unit.format(group + family.first, i)
            stride = 2 if group and not i else 1
            units.append(_unit(family, name, channels, inner[group], outer[group], stride, n))
            channels = outer[group]
    after = [Part(family.norm, (channels,))] if family.preactivated and family.norm else []
    return tuple(before), tuple(units), tuple(after), Part(family.logits, (classes, channels))


def _chain(family: Family, classes: int) -> _Layers:
    """(before, units, after, logits) of the small networks of Wong et al."""
    size, _, channels = family.image_shape
    before = (
        Part("0", (16, channels, 4, 4), 2, True),
        Part("2", (32, 16, 4, 4), 2, True),
        Part("5", (100, 32 * (size // 4) ** 2)),
    )
    return before, (), (), Part(family.logits, (classes, 100))


def plan_of(architecture: str, classes: int) -> Plan:
    """The network of this name; allocates nothing.

    Args:
        architecture: a name of the forms in `FAMILIES`, such as "wrn-28-10".
        classes: number of logits.

    Raises:
        UserError: there is no such form, depth or width, or no such number of classes.

    Example:
        >>> plan = plan_of("wrn-10-2", 10)
        >>> plan.tensors()["block2.layer.0.convShortcut.weight"]
        (64, 32, 1, 1)
    """
    expect(1 <= classes <= MOST_CLASSES, f"1 to {MOST_CLASSES} classes", classes)
    for family in FAMILIES:
        if match := re.fullmatch(family.pattern, architecture):
            found = match.groupdict()
            layers = _residual(family, found, classes) if family.unit else _chain(family, classes)
            activation = found.get("activation") or family.activation
            return Plan(architecture, family, *layers, activation, int(found.get("pad") or 0))
    raise UserError(f"expected an architecture among {FORMS}; received {architecture!r}")


def candidates() -> Iterator[str]:
    """Names of networks of usual sizes, for finding out what a file holds."""
    for prefix in ("wrn", "dm-wrn"):
        for depth in range(10, 107, 6):
            yield from (f"{prefix}-{depth}-{width}" for width in range(1, 21))
    for prefix in ("cifar-resnet", "resnet"):
        yield from (f"{prefix}-{depth}" for depth in _RESNETS)
    for depth in (18, 34):
        yield from (f"preact-resnet-{depth}", f"preact-resnet-{depth}-v2")
        yield f"dm-preact-resnet-{depth}"
    yield from ("wide-resnet-50-2", "wide-resnet-101-2", "wong-small-mnist", "wong-small-cifar")
