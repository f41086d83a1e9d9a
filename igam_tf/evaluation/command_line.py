"""The flags that several programs share: a model, its test images, and the threat model."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from igam_tf import datasets
from igam_tf.common.checks import expect
from igam_tf.common.errors import UserError
from igam_tf.method.conventions import FORMS, contradiction, parsed

# The flags are listed in the --help of the program that defines them by these functions.
flags.disclaim_key_flags()

NAMES_OF_MODELS = (
    "run folder, .keras file, MadryLab checkpoint folder, module:function, or a network of PyTorch: "
    "torch:module:function, robustbench:<name>, robustbench:<name>:<file>, .pt, .pth or .safetensors "
    "file"
)
DOUBTFUL_STATUS = 3
DATA_FLAGS = (
    "dataset", "split", "data", "data_dir", "data_seed", "image_size", "from_probabilities",
    "preprocess", "class_order",
)  # fmt: skip


def define_model_flag() -> None:
    """The flag that names the one model of a program; see `igam_tf.evaluation.loading`."""
    flags.DEFINE_string("model", None, f"The model: {NAMES_OF_MODELS}.")
    define_architecture_flag()


def define_architecture_flag() -> None:
    """The flag that says of which network a PyTorch weight file is."""
    flags.DEFINE_string(
        "architecture", None,
        "The network of a .pt or .safetensors file, such as wrn-28-10; `igam-convert --list` prints "
        "the forms.",
    )  # fmt: skip


def define_data_flags() -> None:
    """The flags that choose the test images; see `model_and_images`."""
    flags.DEFINE_string(
        "dataset",
        None,
        f"Data set: {datasets.NAMES}; by default the one on which the model was trained.",
    )
    flags.DEFINE_enum("split", "test", ("train", "test"), "Split of the data set to use.")
    flags.DEFINE_enum(
        "data", None, ("tfds", "builtin"),
        "Use real images (tfds), or synthetic ones (builtin); by default as in the model's run, "
        "else real.",
    )  # fmt: skip
    flags.DEFINE_string(
        "data_dir", None,
        "Folder of tensorflow-datasets; by default that of the model's run, else its default "
        "folder.",
    )  # fmt: skip
    flags.DEFINE_integer(
        "data_seed", None,
        "Seed from which synthetic images are drawn; by default that of the model's run, else 0.",
        lower_bound=0,
    )  # fmt: skip
    flags.DEFINE_integer(
        "image_size", None,
        "Height and width in pixels to which tfds:, folder: and npz: images are resized; by "
        "default as in the model's run, else they are not resized.",
        lower_bound=1,
    )  # fmt: skip
    flags.DEFINE_float(
        "pixel_max", None,
        "Highest pixel value of the model's input, such as 1 or 255; by default the attribute of "
        "a network of this project, else the data set's.",
        lower_bound=1e-6,
    )  # fmt: skip
    flags.DEFINE_bool(
        "from_probabilities", False,
        "The model returns probabilities, so attack their logarithms.",
    )  # fmt: skip
    flags.DEFINE_string(
        "preprocess", None,
        f"The input that the model expects instead of pixels in 0..pixel_max: {FORMS}. eps stays "
        "a fraction of the pixel range.",
    )  # fmt: skip
    flags.DEFINE_list(
        "class_order", None,
        "Outputs of the model, separated by commas, in the order of the labels: 1,0,2 where label 0 "
        "is output 1. By default label k is output k.",
    )  # fmt: skip


def define_run_flags() -> None:
    """The flags of a program that attacks a model and may print doubtful figures."""
    flags.DEFINE_integer("batch_size", 100, "Attack this many images at once.", lower_bound=1)
    flags.DEFINE_integer(
        "replicas",
        0,
        "Number of devices of this machine that share each batch; 0 means all GPUs, or one CPU.",
    )
    flags.DEFINE_bool(
        "allow_doubts", False,
        f"End with status 0 instead of {DOUBTFUL_STATUS} if figures are doubtful.",
    )  # fmt: skip


def doubtful_status(doubts: Sequence[dict], allowed: bool) -> int:
    """The exit status of a program that printed figures with these doubts."""
    return DOUBTFUL_STATUS if doubts and not allowed else 0


def data_settings(values: flags.FlagValues) -> dict[str, Any]:
    """The settings of `model_and_images`, from the flags of `define_data_flags`.

    Raises:
        UserError: both --preprocess and --pixel_max are given, or --preprocess or --class_order is
            wrong.
    """
    if values.preprocess is not None:
        parsed(values.preprocess)
        if values.pixel_max is not None:
            raise UserError(contradiction(values.preprocess, values.pixel_max))
    settings = {name: values[name].value for name in DATA_FLAGS}
    if (order := values.class_order) is not None:
        digits = all(part.isdecimal() for part in order)
        expect(digits, "--class_order as numbers separated by commas", repr(",".join(order)))
        settings["class_order"] = [*map(int, order)]
    return settings
