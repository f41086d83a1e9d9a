"""`python -m igam_tf.eval_pgd`: a model's accuracy, clean and under FGSM and PGD, as table and JSON.

python -m igam_tf.eval_pgd --model=runs/mnist-cifar10 --attacks=clean,fgsm,pgd20 --json=pgd.json
"""

import json
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import keras
from absl import flags

import igam_tf.teacher  # noqa: F401 (registers its class for .keras files)
from igam_tf import datasets
from igam_tf.attacks import LOSSES, attack_names
from igam_tf.evaluation import BATCH_NORMS, model_report, table
from igam_tf.runs import environment, load_model, write_json
from madry_models import MnistCNN, WideResNet
from madry_models.errors import UserError, run_entry_point
from madry_models.tf1_checkpoint import from_tf1_checkpoint

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags of this command."""
    of_range = "fraction of the pixel range, such as 8/255 or 0.3"
    flags.DEFINE_string("model", None, "run folder, .keras file or MadryLab checkpoint folder")
    flags.DEFINE_string("attacks", "clean,fgsm,pgd5,pgd10,pgd20", "clean, fgsm, pgd<steps>, ...")
    flags.DEFINE_string("json", None, "file for the results")
    flags.DEFINE_string("eps", None, f"l-inf radius, {of_range}; default: the data set's")
    flags.DEFINE_string(
        "step_size", None, f"of PGD, {of_range}; default: in the data set's ratio to eps"
    )
    flags.DEFINE_enum("loss", "xent", tuple(LOSSES), "what the attacks maximise")
    flags.DEFINE_integer("restarts", 1, "random starts of each PGD", lower_bound=1)
    flags.DEFINE_integer("num_examples", None, "first so many images; default: all", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of the random starts", lower_bound=0, upper_bound=2**63 - 1)
    flags.DEFINE_integer("batch_size", 100, "images attacked at once", lower_bound=1)
    flags.DEFINE_enum(
        "batch_norm", "inference", BATCH_NORMS, "by moving averages, or by each batch's statistics"
    )
    flags.DEFINE_enum("dataset", None, tuple(datasets.SPECS), "default: the model's own")
    flags.DEFINE_enum("split", "test", ("train", "test"), "of the data set")
    flags.DEFINE_enum(
        "data", None, ("tfds", "builtin"), "real or synthetic; default: the run's, else tfds"
    )
    flags.DEFINE_string(
        "data_dir", None, "tensorflow-datasets folder; default: the run's, else its own"
    )
    flags.DEFINE_integer("data_seed", None, "of builtin data; default: the run's, else 0")


def parse_fraction(flag: str, text: str | None) -> float | None:
    """A number above 0 and at most 1 out of "8/255" or "0.3"; None stays None.

    Raises:
        UserError: anything else.
    """
    if text is None:
        return None
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if not 0 < value <= 1:
        raise UserError(
            f"expected --{flag} as a fraction of the pixel range, above 0 and at most 1, such as "
            f"8/255 or 0.3; received {text!r}"
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
        try:
            run = json.loads(settings.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"expected JSON in {settings}; it is damaged: {error}") from error
        if not isinstance(run, dict) or "target" not in run:
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


def main(argv: list[str]) -> None:
    """Evaluates one model."""
    if argv[1:]:
        raise UserError(f"expected flags alone; received {' '.join(argv[1:])!r} as well")
    attacks = attack_names(FLAGS.attacks)
    eps, step_size = (parse_fraction(flag, FLAGS[flag].value) for flag in ("eps", "step_size"))
    output = writable(FLAGS.json) if FLAGS.json else None
    load, path, run = find_model(FLAGS.model)
    source = FLAGS.data or run.get("data") or "tfds"
    data_dir = FLAGS.data_dir or run.get("data_dir") or None
    data_seed = run.get("data_seed", 0) if FLAGS.data_seed is None else FLAGS.data_seed
    dataset = FLAGS.dataset or run.get("target")
    if dataset:
        datasets.check_available(dataset, source=source, data_dir=data_dir)
    model = load(path)
    dataset = dataset or dataset_of(model)
    split = datasets.load(dataset, FLAGS.split, source=source, data_dir=data_dir, seed=data_seed)
    report = {"model": FLAGS.model} | model_report(
        model,
        split,
        attacks=attacks,
        eps=eps,
        step_size=step_size,
        restarts=FLAGS.restarts,
        loss=FLAGS.loss,
        num_examples=FLAGS.num_examples,
        seed=FLAGS.seed,
        batch_size=FLAGS.batch_size,
        batch_norm=FLAGS.batch_norm,
    )
    if source == "builtin":
        report["data_seed"] = data_seed
    print(f"{FLAGS.model}\n{table(report)}")
    if output:
        write_json(output, report | {"versions": environment()})


if __name__ == "__main__":
    define_flags()
    run_entry_point(main)
