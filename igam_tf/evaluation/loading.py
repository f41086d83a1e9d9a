"""Loads the model and the images that the command line names."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras

import igam_tf.method.teacher  # noqa: F401 (registers its class for .keras files)
from igam_tf import datasets
from igam_tf.common.checks import check_pixel_max
from igam_tf.common.errors import UserError
from igam_tf.common.files import read_json
from igam_tf.datasets import DatasetSpec, Split
from igam_tf.datasets import parse_fraction as parse_fraction
from igam_tf.evaluation.command_line import NAMES_OF_MODELS, data_settings
from igam_tf.method.architectures import from_function, import_classes
from igam_tf.method.networks import LogProbabilities
from igam_tf.method.preprocess import preprocessed
from igam_tf.pytorch.named import allow, check_architecture, is_pytorch, load_named
from igam_tf.storage.run_folder import load_model
from madry_models import MnistCNN, WideResNet
from madry_models.tf1_checkpoint import from_tf1_checkpoint


def find_model(
    name: str | None,
    flag: str = "model",
    *,
    architecture: str | None = None,
    beside: Sequence[str] = (),
) -> tuple[Callable[[Any], keras.Model], Path | str, dict]:
    """(function that loads the model, its path, settings of its run); loads nothing itself.

    Args:
        name: a run folder, a `.keras` file, a MadryLab checkpoint, `module:function`, or a PyTorch
            network, see `igam_tf.pytorch.named`.
        flag: name of its flag, for error messages.
        architecture: of a PyTorch weight file, this one or another of the command.
        beside: names of the command's other models.

    Raises:
        UserError: there is no model, or the run has not finished its student; or an architecture is
            missing, or of no file.
    """
    if not name:
        raise UserError(f"expected --{flag}=<{NAMES_OF_MODELS}>; received none")
    check_architecture(architecture, name, *beside)
    if is_pytorch(name):
        return partial(load_named, architecture=architecture or ""), name, {}
    if ":" in name and not Path(name).expanduser().exists():
        return from_function, name, {}
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".keras":
        return load_model, path, {}
    if any(path.glob("*.index")) or Path(f"{path}.index").is_file():
        return from_tf1_checkpoint, path, {}
    settings, student = path / "config.json", path / "student.keras"
    if settings.is_file():
        run = read_json(settings)
        if "target" not in run:
            raise UserError(
                f"expected the settings of a run in {settings}; it does not name a target"
            )
        if not student.is_file():
            raise UserError(
                f"expected a finished student in the run folder {path}; it has no student.keras yet"
            )
        allow(run.get("teacher_checkpoint", ""))
        trained = run.get("teacher_network") if run.get("teacher", "train") == "train" else ""
        for network in filter(None, (run.get("student"), trained)):
            import_classes(network)
        return load_model, student, run
    kind = "a folder without them" if path.is_dir() else "a file" if path.exists() else "not there"
    raise UserError(
        f"expected --{flag} as a run folder (config.json, student.keras), a .keras file, a MadryLab "
        "checkpoint (*.index), module:function or a PyTorch network (torch:module:function, "
        f"robustbench:<name>, .pt file); received {str(path)!r}, {kind}"
    )


def dataset_of(model: keras.Model) -> str:
    """The data set of a challenge's network with 10 classes, or of one of RobustBench.

    Raises:
        UserError: it is another model.
    """
    if name := getattr(model, "dataset", ""):
        return name
    for network, name in ((MnistCNN, "mnist"), (WideResNet, "cifar10")):
        if isinstance(model, network) and model.num_classes == datasets.SPECS[name].num_classes:
            return name
    raise UserError(
        f"expected --dataset={datasets.NAMES}; received none, and this {type(model).__name__} "
        "does not name its data set"
    )


def as_called(
    model: keras.Model,
    pixel_max: float,
    *,
    from_probabilities: bool = False,
    preprocess: str | None = None,
) -> keras.Model:
    """The model from images in 0..pixel_max to logits, as the flags describe it.

    Raises:
        UserError: `pixel_max` or the convention is wrong.
    """
    check_pixel_max(pixel_max)
    model = LogProbabilities(model) if from_probabilities else model
    return preprocessed(model, preprocess, pixel_max)


def model_and_images(
    load: Callable[[], keras.Model],
    run: dict,
    *,
    dataset: str | None,
    split: str,
    data: str | None,
    data_dir: str | None,
    data_seed: int | None,
    image_size: int | None = None,
    class_order: Sequence[int] | None = None,
    **called: Any,
) -> tuple[keras.Model, Split, int]:
    """(model, images, seed of synthetic images), from the flags, else the run, else the model.

    Args:
        load: loads the model; called once the data set is found.
        run: settings of the model's run, empty without one. dataset, split, data, data_dir,
            data_seed, image_size, class_order: values of flags.
        **called: from_probabilities and preprocess, of `as_called`.

    Raises:
        UserError: there are no such data, or the model's data set is not known.
    """
    source = data or run.get("data") or "tfds"
    folder = data_dir or run.get("data_dir") or None
    seed = run.get("data_seed", 0) if data_seed is None else data_seed
    name = dataset or run.get("target")
    model = None if name else load()
    spec = data_spec(name or dataset_of(model), run, data_dir=folder, image_size=image_size)
    datasets.check_available(spec, source=source, data_dir=folder)
    model = as_called(model or load(), spec.pixel_max, **called)
    images = datasets.load(spec, split, source=source, data_dir=folder, seed=seed)
    return model, images.in_class_order(class_order), seed


def chosen_model(values: Any, *beside: str) -> tuple[keras.Model, Split, int, dict]:
    """(model, images, seed of synthetic images, settings of its run), from the flags.

    Args:
        values: of the flags.
        *beside: names of the command's other models.

    Raises:
        UserError: as `find_model`, `data_settings` and `model_and_images`.
    """
    load, path, run = find_model(values.model, architecture=values.architecture, beside=beside)
    return *model_and_images(partial(load, path), run, **data_settings(values)), run


def data_spec(
    name: str, run: dict, *, data_dir: str | None = None, image_size: int | None = None
) -> DatasetSpec:
    """Describes a data set, with size, threat model, pixel range and classes of the run, if any.

    Args:
        name: see `igam_tf.datasets.spec_of`.
        run: settings of the model's run, or none.
        data_dir: tensorflow-datasets folder.
        image_size: replaces the run's.

    Raises:
        UserError: as `igam_tf.datasets.spec_of`.
    """
    if image_size is None:
        image_size = 0 if name in datasets.SPECS else run.get("image_size", 0)
    return datasets.spec_of(
        name,
        data_dir=data_dir,
        image_size=image_size,
        eps=parse_fraction("eps", run.get("eps") or None),
        step_size=parse_fraction("step_size", run.get("step_size") or None),
        pixel_max=run.get("pixel_max") or None,
        classes=run.get("target_classes", 0) if name == run.get("target") else 0,
    )
