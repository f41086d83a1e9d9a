"""Exports the student of a finished run to a folder that can be given away.

python -m igam_tf.export --run=runs/mnist-cifar10-igam-cpu --output=exported

    student.keras   for Keras, needs this package
    saved_model/    SavedModel, needs TensorFlow alone: `serve`, and serving_default
    card.json       settings, results, pixel range, class names, versions, git commit, checksums
    README.md       the same as text, and how to load and attack the student

Both models contain the input layer: they take raw pixels and return logits, with batch norm by
moving averages.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from igam_tf.common.errors import UserError, flags_alone
from igam_tf.common.files import new_folder, write_json, write_text
from igam_tf.common.lazy import keras, tf
from igam_tf.common.literal import literal
from igam_tf.common.program import heading, run_entry_point
from igam_tf.common.tables import Table, interval_text
from igam_tf.datasets import DatasetSpec, class_names, data_text, fraction_text, short_name
from igam_tf.storage.journal import MASK_KEY
from igam_tf.storage.run_folder import environment

FLAGS = flags.FLAGS
TOLERANCE = 1e-4  # SavedModel against .keras file, as a share of the largest logit or 1
STUDENT, SAVED_MODEL = "student.keras", "saved_model"


def define_flags() -> None:
    """The flags of this command."""
    with heading("export"):
        flags.DEFINE_string("run", None, "Folder of the finished run.")
        flags.DEFINE_string("output", None, "Folder to write, new or empty.")


def largest_difference(
    model: keras.Model, folder: Path, shape: tuple[int, ...], pixel_max: float
) -> float:
    """Largest difference between the logits of a model and of its SavedModel, on 16 random images.

    Raises:
        UserError: it is more than TOLERANCE.
    """
    x = np.random.default_rng(0).uniform(0, pixel_max, (16, *shape)).astype(np.float32)
    expected = model(x, training=False)
    loaded = tf.saved_model.load(str(literal(folder) / SAVED_MODEL))  # its functions need it
    difference = float(np.abs(expected - loaded.serve(tf.constant(x))).max())
    largest = float(np.abs(expected).max())
    if not difference <= TOLERANCE * max(1.0, largest):
        raise UserError(
            f"expected the SavedModel's logits within {TOLERANCE} of the .keras file's, of which the "
            f"largest is {largest:g}; they differ by {difference:g}"
        )
    return difference


def card(
    config: dict[str, Any], report: dict[str, Any], model: keras.Model, spec: DatasetSpec
) -> dict[str, Any]:
    """What a user needs to know about a student, for JSON.

    Args:
        config: settings of its run, with `environment`.
        report: the report of its evaluation, see `igam_tf.evaluation.evaluate.model_report`.
        model: the student.
        spec: the target's data set.
    """
    from igam_tf.evaluation.results import settings_text

    results = {
        attack: {name: value for name, value in row.items() if name != MASK_KEY}
        for attack, row in report["results"].items()
    }
    return {
        "title": f"{config['method']}: {_without_folder(config['source'])} to {spec.name}, "
        f"data {data_text(report['data'])}",
        "input": {
            "shape": ["batch", *spec.image_shape],
            "dtype": "float32",
            "pixel_range": [0, report["pixel_max"]],
        },
        "output": {"shape": ["batch", spec.num_classes], "dtype": "float32", "what": "logits"},
        "batch_norm": "inference",
        "parameters": model.count_params(),
        "class_names": class_names(
            spec, source=report["data"], data_dir=config["data_dir"] or None
        ),
        "data": data_text(report["data"]),
        "evaluation": settings_text(report),
        "results": report | {"results": results},
        "settings": {
            name: _without_folder(value) for name, value in config.items() if name != "environment"
        },
        "trained_with": config["environment"],
        "exported_with": environment(),
    }


def _without_folder(value: Any) -> Any:
    """A setting; of an absolute path only the last name, because folders differ between machines."""
    value = short_name(value) if isinstance(value, str) else value
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value


def readme(card: dict[str, Any], spec: DatasetSpec) -> str:
    """The card as Markdown."""
    from igam_tf.method.look import doubtful_lines

    report, settings, names = card["results"], card["settings"], card["class_names"]
    highest, behind = card["input"]["pixel_range"][1], settings.get("preprocess")
    worst = report["results"]["worst_case"]
    rows = [
        (attack, f"{row['accuracy']:.1f}", interval_text(row["ci95"]))
        for attack, row in report["results"].items()
    ]
    synthetic = settings["data"] == "builtin"
    data = f" --data=builtin --data_seed={settings['data_seed']}" if synthetic else ""
    data += f" --pixel_max={highest:g}" if settings.get("pixel_max") else ""
    data += f" --image_size={spec.image_size}" if spec.image_size else ""
    kind, _, path = spec.name.partition(":")
    dataset = f"'{kind}:<path of {path}>'" if kind in ("folder", "npz") else spec.name
    pgd = f"eps={spec.eps * highest:g}, step_size={spec.step_size * highest:g}, steps=20, "
    pgd += f"bounds=(0, {highest:g})"
    doubts = "".join(f"\n**{line}**\n" for line in doubtful_lines(report))
    made = card["trained_with"]
    commit = made["git_commit"] or "unknown"
    return f"""# {card["title"]}

A student network of {card["parameters"]} parameters, trained on {spec.name}, data {card["data"]}.

- Input: float32 [batch, {", ".join(map(str, spec.image_shape))}], raw pixels in 0..{highest:g};
  {f"the file brings them to {behind} itself" if behind else "the network normalises them itself"}.
- Output: {spec.num_classes} logits; batch norm by moving averages.
- Classes, in order: {", ".join(names)}.

## Results

{card["evaluation"][0].upper() + card["evaluation"][1:]}.

{Table(("attack", "accuracy %", "95 % interval"), rows).markdown()}
{doubts}
`worst_case` joins the others, example by example. Nothing is said here of attacks that are not listed.

## Load and attack it

With `{STUDENT}`, on {spec.name}:

```
python -m igam_tf.eval_pgd --model={STUDENT} --dataset={dataset} --attacks=clean,fgsm,pgd20 \\
    --eps={fraction_text(worst["eps"])} --num_examples={worst["n"]}{data}
```

With `{SAVED_MODEL}`, on any x (float32, as above) and y (int64 [batch]); PGD-20 from x itself:

```python
import tensorflow as tf
from igam_tf.attacks import pgd

student = tf.saved_model.load("{SAVED_MODEL}")
x_adv = pgd(student.serve, x, y, {pgd})
```

## How it was made

git commit {commit}, Keras {made["keras"]}, Python {made["python"]}; exported with TensorFlow
{card["exported_with"]["tensorflow"]}. Everything else: `card.json`.

```json
{json.dumps(settings, indent=2)}
```
"""


def main(argv: list[str]) -> None:
    """Exports one run."""
    flags_alone(argv)
    for flag in ("run", "output"):
        if not FLAGS[flag].value:
            raise UserError(f"expected --{flag}=<folder>; received none")
    from igam_tf.evaluation.loading import data_spec, find_model
    from igam_tf.evaluation.results import read_results
    from igam_tf.method.networks import inference_only

    load, student, config = find_model(FLAGS.run, "run")
    if not config:
        raise UserError(f"expected a run folder, with config.json, in --run={FLAGS.run}")
    report = read_results(student.parent)[config["method"]]
    spec = data_spec(config["target"], config, data_dir=config["data_dir"] or None)
    shape, pixel_max = spec.image_shape, report["pixel_max"]
    with new_folder("output", FLAGS.output) as folder:
        shutil.copyfile(student, folder / STUDENT)
        model = load(folder / STUDENT)
        if inference_only(model):
            raise UserError(
                "expected a student of Keras layers, which TensorFlow runs alone; received one with "
                "a network of PyTorch in it: give its run folder away, with the code of the network"
            )
        images = tf.TensorSpec((None, *shape), tf.float32, "images")
        model.export(folder / SAVED_MODEL, verbose=False, input_signature=[images])
        about = card(config, report, model, spec) | {
            "logits_difference": largest_difference(model, folder, shape, pixel_max),
            "sha256": {STUDENT: hashlib.sha256(student.read_bytes()).hexdigest()},
        }
        write_json(folder / "card.json", about)
        write_text(folder / "README.md", readme(about, spec))
    print(f"{FLAGS.output}: {STUDENT}, {SAVED_MODEL}, card.json, README.md")


def program() -> None:
    """The command line."""
    define_flags()
    run_entry_point(main)


if __name__ == "__main__":
    program()
