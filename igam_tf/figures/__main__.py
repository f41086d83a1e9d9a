r"""Draws input gradients, loss landscape, decision regions and alignment of trained models.

python -m igam_tf.figures --runs=Standard=runs/mnist-cifar10-standard-cpu,runs/mnist-cifar10-igam-cpu \
    --output=figures
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from igam_tf.common.errors import UserError, flags_alone
from igam_tf.common.files import new_folder, write_json
from igam_tf.common.lazy import tf
from igam_tf.common.program import heading, run_entry_point
from igam_tf.datasets import DatasetSpec, class_names, parse_fraction
from igam_tf.evaluation.command_line import (
    NAMES_OF_MODELS,
    data_settings,
    define_architecture_flag,
    define_data_flags,
)
from igam_tf.figures.chosen import EXTENT, FIGURES, PGD_STEPS, FigureSettings
from igam_tf.formulas.losses import GRADIENT_OF
from igam_tf.storage.journal import model_identity
from igam_tf.storage.run_folder import environment, load_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLAGS = flags.FLAGS
DPI = 200
DEFAULT_EXAMPLES = 500  # default number of images of the alignment
# Setting of a run -> the flag that replaces it.
CHOOSING = {
    "target": "dataset", "data": "data", "data_seed": "data_seed", "image_size": "image_size"
}  # fmt: skip


def define_flags() -> None:
    """The flags of this command."""
    with heading("models and images"):
        flags.DEFINE_list(
            "runs",
            [],
            f"Models to draw, separated by commas: each is a {NAMES_OF_MODELS}, or <label>=<one "
            "of these>.",
        )
        flags.DEFINE_string(
            "teacher",
            None,
            "One more model, whose input gradients are J_t: a run folder, a .keras file, or none; "
            "by default the teacher of the first run that has one.",
        )
        define_architecture_flag()
        define_data_flags()
    with heading("figures"):
        flags.DEFINE_string("output", None, "Folder to write to; it must be new or empty.")
        flags.DEFINE_list(
            "figures",
            list(FIGURES),
            f"Figures to draw, separated by commas, from {', '.join(FIGURES)}.",
        )
        flags.DEFINE_integer(
            "num_examples",
            None,
            f"alignment: use the first N images of the split; by default {DEFAULT_EXAMPLES}, or "
            "all if there are fewer.",
            lower_bound=1,
        )
        flags.DEFINE_integer(
            "num_drawn", 6, "gradients: draw the first N images of the split.", lower_bound=1
        )
        flags.DEFINE_integer(
            "image", 0, "landscape and regions: index of the image in the split.", lower_bound=0
        )
        flags.DEFINE_enum(
            "direction",
            "fgsm",
            ("fgsm", "pgd"),
            f"landscape and regions: the first axis is the sign of FGSM's or of PGD-{PGD_STEPS}'s "
            "step.",
        )
        flags.DEFINE_integer(
            "points",
            51,
            "landscape and regions: number of points on a side of the grid; it must be odd.",
            lower_bound=3,
        )
        flags.DEFINE_string(
            "eps",
            None,
            "l-inf radius, as a fraction of the pixel range, such as 8/255; by default the data "
            "set's own.",
        )
        flags.DEFINE_enum(
            "input_gradient",
            "xent",
            tuple(GRADIENT_OF),
            "The quantity whose input gradient is J: xent is the cross-entropy, softmax the "
            "probability of the true class (R1).",
        )
        flags.DEFINE_integer("seed", 0, "Seed of the random direction.", lower_bound=0)


def labelled(items: Sequence[str]) -> dict[str, str]:
    """Label -> path, of "path" or "label=path"; without a label, the last name of the path is the label.

    Raises:
        UserError: there is none, or a label occurs twice.
    """
    pairs = []
    for item in items:
        label, equals, path = item.partition("=")
        if not equals or Path(item).expanduser().exists():
            label, path = Path(item).name.removesuffix(".keras"), item
        pairs.append((label, path))
    if not pairs or len(dict(pairs)) < len(pairs):
        raise UserError(
            "expected --runs=<run folder>,<label>=<run folder>,..., no label twice; received "
            f"{','.join(items)!r}"
        )
    return dict(pairs)


def settings(spec: DatasetSpec, eps: float | None, available: int) -> FigureSettings:
    """The settings of this command line, for a data set of so many images.

    Raises:
        UserError: more images are asked for than there are.
    """
    names = [field.name for field in dataclasses.fields(FigureSettings)]
    chosen = {name: FLAGS[name].value for name in names} | {"eps": eps or spec.eps}
    chosen["num_examples"] = n = FLAGS.num_examples or min(DEFAULT_EXAMPLES, available)
    largest = max(n, FLAGS.num_drawn, FLAGS.image + 1)
    if largest > available:
        raise UserError(
            f"expected --num_examples, --num_drawn and --image within the {available} images of "
            f"{spec.name} {FLAGS.split}; received {largest}"
        )
    return FigureSettings(**chosen)


def check_same_data(runs: dict[str, dict]) -> None:
    """Raises a UserError if the runs have different data and no flag chooses the data."""
    for name, flag in CHOOSING.items():
        values = {
            run[name]
            for run in runs.values()
            if name in run and (name != "data_seed" or (FLAGS.data or run.get("data")) == "builtin")
        }
        if FLAGS[flag].value is None and len(values) > 1:
            raise UserError(
                f"expected runs of one data set, or --{flag}; received runs of "
                f"{', '.join(sorted(map(str, values)))}"
            )


def find_teacher(name: str | None, runs: dict[str, str]) -> dict[str, Path]:
    """Label -> file of the teacher that `--teacher=name` chooses, or {}; runs: label -> path.

    Raises:
        UserError: there is no such file, or a run has the same label.
    """
    if name == "none":
        return {}
    named = {"teacher": name} if name else {f"teacher of {k}": path for k, path in runs.items()}
    for label, path in named.items():
        file = Path(path).expanduser()
        file = file if name and file.is_file() else file / "teacher.keras"
        if file.is_file():
            if label in runs:
                raise UserError(f"expected another label for the run {label!r}, the teacher's own")
            return {label: file}
    if name:
        raise UserError(f"expected a teacher.keras in --teacher={name}, or a .keras file there")
    return {}


def save(figure: Figure, path: Path) -> None:
    """Writes `path`.png, `path`.svg, and the picture to TensorBoard."""
    figure.savefig(path.with_suffix(".png"), dpi=DPI)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    picture = tf.io.decode_png(path.with_suffix(".png").read_bytes(), channels=3)
    tf.summary.image(path.name, picture[None])


def main(argv: list[str]) -> None:
    """Draws the figures and writes them to one folder."""
    flags_alone(argv)
    if not FLAGS.figures or not set(FLAGS.figures) <= set(FIGURES):
        raise UserError(
            f"expected --figures among {', '.join(FIGURES)}; received {','.join(FLAGS.figures)!r}"
        )
    if FLAGS.points % 2 == 0:
        raise UserError(f"expected odd --points, so that x is one of them; received {FLAGS.points}")
    if not FLAGS.output:
        raise UserError("expected --output=<new folder>; received none")
    import matplotlib

    from igam_tf.common.checks import eps_unit
    from igam_tf.evaluation.evaluate import look_at
    from igam_tf.evaluation.loading import as_called, find_model, model_and_images
    from igam_tf.figures import drawing
    from igam_tf.figures.composing import Composer
    from igam_tf.figures.measuring import DrawnModel
    from igam_tf.method.look import as_json, doubtful_lines
    from igam_tf.method.networks import pixel_max_of

    eps = parse_fraction("eps", FLAGS.eps)
    paths = labelled(FLAGS.runs)
    found = {
        label: find_model(path, "runs", architecture=FLAGS.architecture, beside=[*paths.values()])
        for label, path in paths.items()
    }
    runs = {label: run for label, (_, _, run) in found.items()}
    check_same_data(runs)
    teacher = find_teacher(FLAGS.teacher, paths)
    with new_folder("output", FLAGS.output) as folder:
        # The data are those of the flags, or of the runs, which agree.
        run = next(filter(None, runs.values()), {})
        (first, (load, path, _)), *others = found.items()
        model, split, data_seed = model_and_images(partial(load, path), run, **data_settings(FLAGS))
        chosen = settings(split.spec, eps, len(split.labels))
        models = {first: model} | {
            label: as_called(
                load(path), split.spec.pixel_max,
                from_probabilities=FLAGS.from_probabilities, preprocess=FLAGS.preprocess,
            )
            for label, (load, path, _) in others
        }  # fmt: skip
        models |= {label: load_model(file) for label, file in teacher.items()}
        drawn, doubts = {}, {}
        for label, model in models.items():
            given = None if label in teacher else FLAGS.pixel_max
            pixel_max = pixel_max_of(model, given, split.spec.pixel_max)
            drawn[label] = DrawnModel(label, model, pixel_max)
            doubts[label] = as_json(look_at(model, split, pixel_max=pixel_max, eps=chosen.eps))
        names = class_names(
            split.spec, source=split.source, data_dir=FLAGS.data_dir or run.get("data_dir")
        )
        if order := split.class_order:
            names = [names[order.index(k)] if k in order else str(k) for k in range(len(names))]
        composer = Composer(
            list(drawn.values()),
            drawn[next(iter(teacher))] if teacher else None,
            split,
            names,
            chosen,
        )
        numbers = {}
        writer = tf.summary.create_file_writer(str(folder / "tensorboard"))
        with matplotlib.rc_context(drawing.STYLE), writer.as_default(step=0):
            for name in FLAGS.figures:
                figure, numbers[name] = getattr(composer, name)()
                save(figure, folder / name)
                print(f"{FLAGS.output}/{name}.png", flush=True)
        writer.close()
        report = {
            "models": {label: model_identity(model) for label, model in models.items()},
            "runs": paths,
            "dataset": split.spec.name,
            "split": split.name,
            "data": split.source,
            **({"data_seed": data_seed} if split.source == "builtin" else {}),
            "eps_unit": eps_unit("linf"),
            "settings": dataclasses.asdict(chosen) | {"extent_in_eps": EXTENT},
            "figures": numbers,
            "doubts": doubts,
            "versions": environment(),
        }
        if FLAGS.preprocess:
            report["preprocess"] = FLAGS.preprocess
        if split.class_order:
            report["class_order"] = split.class_order
        write_json(folder / "figures.json", report)
        for label, found in doubts.items():
            for line in doubtful_lines({"doubts": found}):
                print(f"{label}: {line}")


def program() -> None:
    """The command line."""
    define_flags()
    run_entry_point(main)


if __name__ == "__main__":
    program()
