"""From what a user names on a command line to a model, a number or a file."""

import math
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import keras
from absl import flags

import igam_tf.method.teacher  # noqa: F401 (registers its class for .keras files)
from igam_tf import datasets
from igam_tf.datasets import Split
from igam_tf.system.run_folder import load_model, read_json
from madry_models import MnistCNN, WideResNet
from madry_models.errors import UserError
from madry_models.tf1_checkpoint import from_tf1_checkpoint


def parse_fraction(flag: str, text: str | None, *, most: float = 1.0) -> float | None:
    """A number above 0 and at most `most` out of "8/255" or "0.3"; None stays None.

    Raises:
        UserError: anything else.
    """
    if text is None:
        return None
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if not (0 < value <= most and math.isfinite(value)):
        limit = "" if math.isinf(most) else f" and at most {most:g}"
        raise UserError(
            f"expected --{flag} as a fraction of the pixel range, above 0{limit}, such as 8/255 or "
            f"0.3; received {text!r}"
        )
    return value


def find_model(path: str | None) -> tuple[Callable[[Path], keras.Model], Path, dict]:
    """(how to load it, from where, settings of its run); nothing is loaded yet.

    Raises:
        UserError: no model there, or a run that has not come to its student.
    """
    if not path:
        raise UserError("expected --model=<run folder, .keras file or MadryLab checkpoint folder>")
    path = Path(path).expanduser()
    if path.is_file() and path.suffix == ".keras":
        return load_model, path, {}
    if any(path.glob("*.index")) or Path(f"{path}.index").is_file():
        return from_tf1_checkpoint, path, {}
    settings, student = path / "config.json", path / "student.keras"
    if settings.is_file():
        run = read_json(settings)
        if "target" not in run:
            raise UserError(f"expected the settings of a run in {settings}; it names no target")
        if not student.is_file():
            raise UserError(
                f"expected a finished student in the run folder {path}; it has no student.keras yet"
            )
        return load_model, student, run
    kind = "a folder without them" if path.is_dir() else "a file" if path.exists() else "not there"
    raise UserError(
        "expected --model as a run folder (config.json, student.keras), a .keras file or a MadryLab "
        f"checkpoint (*.index); received {str(path)!r}, {kind}"
    )


def dataset_of(model: keras.Model) -> str:
    """The data set that a challenge's network with 10 classes was made for.

    Raises:
        UserError: any other model.
    """
    for network, name in ((MnistCNN, "mnist"), (WideResNet, "cifar10")):
        if isinstance(model, network) and model.num_classes == datasets.SPECS[name].num_classes:
            return name
    raise UserError(
        f"expected --dataset, one of {', '.join(datasets.SPECS)}: this {type(model).__name__} does "
        "not tell which it was made for"
    )


def define_data_flags() -> None:
    """The flags that say on which images a model is judged; see `model_and_images`."""
    flags.DEFINE_enum("dataset", None, tuple(datasets.SPECS), "default: the model's own")
    flags.DEFINE_enum("split", "test", ("train", "test"), "of the data set")
    flags.DEFINE_enum(
        "data", None, ("tfds", "builtin"), "real or synthetic; default: the run's, else tfds"
    )
    flags.DEFINE_string(
        "data_dir", None, "tensorflow-datasets folder; default: the run's, else its own"
    )
    flags.DEFINE_integer(
        "data_seed", None, "of builtin data; default: the run's, else 0", lower_bound=0
    )


def model_and_images(
    load: Callable[[], keras.Model],
    run: dict,
    *,
    dataset: str | None,
    split: str,
    data: str | None,
    data_dir: str | None,
    data_seed: int | None,
) -> tuple[keras.Model, Split, int]:
    """(model, images, seed of builtin images): as the flags say, else the run, else the model.

    Args:
        load: loads the model, once the data set is known to be there.
        run: settings of the model's run, or none.
        dataset, split, data, data_dir, data_seed: values of `define_data_flags`.

    Raises:
        UserError: no such data, or a model that does not tell what it was made for.
    """
    source = data or run.get("data") or "tfds"
    folder = data_dir or run.get("data_dir") or None
    seed = run.get("data_seed", 0) if data_seed is None else data_seed
    name = dataset or run.get("target")
    if name:
        datasets.check_available(name, source=source, data_dir=folder)
    model = load()
    name = name or dataset_of(model)
    return model, datasets.load(name, split, source=source, data_dir=folder, seed=seed), seed


def writable(path: str) -> Path:
    """The path of a file that can be written, checked before the work rather than after it.

    Raises:
        UserError: it cannot.
    """
    file = Path(path).expanduser()
    try:
        if file.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        tempfile.TemporaryFile(dir=file.absolute().parent).close()
    except OSError as error:
        raise UserError(f"expected --json={path} to be writable; {error.strerror}") from error
    return file
