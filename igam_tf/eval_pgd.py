"""Measures a model's accuracy, clean and under attack, and prints a table.

python -m igam_tf.eval_pgd --model=runs/mnist-cifar10 --attacks=clean,fgsm,pgd20 --json=pgd.json

With --json, finished batches are kept in <file>.journal until the end: if it is interrupted, run the
same command to resume.

Exit status: 0, or 3 if a figure is doubtful (0 with --allow_doubts), or 1 after wrong input.
"""

import math
from contextlib import nullcontext
from pathlib import Path

from absl import flags

from igam_tf.attacks import BATCH_NORMS, LOSSES, NORMS, SHOWN, attack_names
from igam_tf.common import devices
from igam_tf.common.checks import check_eps
from igam_tf.common.errors import UserError, flags_alone, writable
from igam_tf.common.files import read_json, write_json
from igam_tf.common.program import heading, run_entry_point
from igam_tf.datasets import parse_fraction
from igam_tf.evaluation.command_line import (
    define_data_flags,
    define_model_flag,
    define_run_flags,
    doubtful_status,
)
from igam_tf.storage.journal import journal_beside, model_identity
from igam_tf.storage.run_folder import environment

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags of this command."""
    of_range = "as a fraction of the pixel range, such as 8/255 or 0.3"
    with heading("model and images"):
        define_model_flag()
        define_data_flags()
        flags.DEFINE_integer(
            "num_examples", None, "Evaluate on the first N images of the split; by default on all.",
            lower_bound=1,
        )  # fmt: skip
    with heading("attacks"):
        flags.DEFINE_string(
            "attacks",
            "clean,fgsm,pgd5,pgd10,pgd20",
            f"Attacks to run, separated by commas: {SHOWN}. apgd runs apgd-ce, then apgd-t on the "
            "images that are robust to it.",
        )
        flags.DEFINE_enum("norm", "linf", NORMS, "Norm of eps and of the step size.")
        flags.DEFINE_string(
            "eps", None,
            f"Radius of every attack, {of_range}; in linf by default the data set's own.",
        )  # fmt: skip
        flags.DEFINE_string(
            "step_size", None,
            f"Step size of PGD, {of_range}; by default eps times the data set's ratio of step "
            "size to eps.",
        )  # fmt: skip
        flags.DEFINE_enum("loss", "xent", tuple(LOSSES), "Loss that FGSM and PGD maximise.")
        flags.DEFINE_integer("restarts", 1, "Number of random starts of each PGD.", lower_bound=1)
        flags.DEFINE_string(
            "targets", None,
            "Output that PGD, apgd-ce, apgd-dlr and square have to reach: random, least_likely, or a "
            "number such as 3; by default any but the label.",
        )  # fmt: skip
        flags.DEFINE_bool(
            "individual", False,
            "Each attack of an ensemble attacks all images that are right clean, not only those that "
            "are robust to the attacks before; worst_case combines them.",
        )  # fmt: skip
        flags.DEFINE_integer(
            "seed", 0, "Seed of the random starts.", lower_bound=0, upper_bound=2**63 - 1
        )
    with heading("run"):
        flags.DEFINE_string("json", None, "File to write the results to.")
        flags.DEFINE_enum(
            "batch_norm",
            "inference",
            BATCH_NORMS,
            "How the model's batch norm works: inference uses moving averages, batch the "
            "statistics of each batch.",
        )
        define_run_flags()


def main(argv: list[str]) -> int:
    """Evaluates one model; returns the exit status."""
    flags_alone(argv)
    attacks = attack_names(FLAGS.attacks)
    most = 1.0 if FLAGS.norm == "linf" else math.inf  # in l2 many pixels add up
    eps, step_size = (
        parse_fraction(flag, FLAGS[flag].value, most=most) for flag in ("eps", "step_size")
    )
    check_eps(eps, FLAGS.norm)
    output = writable("json", FLAGS.json) if FLAGS.json else None
    with devices.local_strategy(FLAGS.replicas).scope():
        return _evaluate(attacks, eps, step_size, output)


def _evaluate(
    attacks: list[str], eps: float | None, step_size: float | None, output: Path | None
) -> int:
    from igam_tf.evaluation.evaluate import model_report, plan, table
    from igam_tf.evaluation.loading import chosen_model
    from igam_tf.method.networks import pixel_max_of

    model, split, data_seed, _ = chosen_model(FLAGS)
    pixel_max = pixel_max_of(model, FLAGS.pixel_max, split.spec.pixel_max)
    settings = dict(
        attacks=attacks, eps=eps, step_size=step_size, pixel_max=pixel_max,
        restarts=FLAGS.restarts, loss=FLAGS.loss, norm=FLAGS.norm, num_examples=FLAGS.num_examples,
        individual=FLAGS.individual, targets=FLAGS.targets, seed=FLAGS.seed, batch_size=FLAGS.batch_size,
        batch_norm=FLAGS.batch_norm,
    )  # fmt: skip
    about = {"model": FLAGS.model}
    _, _, planned = plan(split, **settings)
    if FLAGS.preprocess:
        planned["preprocess"] = FLAGS.preprocess
    synthetic = {"data_seed": data_seed} if split.source == "builtin" else {}
    if output:
        check_earlier(output, about | planned | synthetic)
    with journal_beside(output, model_identity(model)) if output else nullcontext() as journal:
        report = about | model_report(model, split, journal=journal, **settings)
        report |= synthetic
        if output:
            write_json(output, report | {"versions": environment()})
    print(f"{FLAGS.model}\n{table(report)}")
    return doubtful_status(report["doubts"], FLAGS.allow_doubts)


def check_earlier(file: Path, settings: dict) -> None:
    """Raises a UserError if `file` has anything but results of the same model and settings."""
    from igam_tf.evaluation.evaluate import settings_alone

    if not file.exists():
        return
    expected = f"expected --json={file} to be a new file, or results of the same settings"
    earlier = read_json(file)
    try:
        before = {"model": earlier.get("model")} | settings_alone(earlier)
        before |= {name: earlier.get(name) for name in ("data_seed", "preprocess", "class_order")}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{expected}; it is another JSON file") from error
    rows, new = before.pop("results"), settings["results"]
    changed = [(name, value, settings.get(name)) for name, value in before.items()]
    changed += [("attacks", ",".join(rows), ",".join(new))]
    for attack in filter(new.get, rows):
        common = rows[attack].keys() & new[attack].keys()  # not `logits_scale`, which is measured
        changed += [(f"{k} of {attack}", rows[attack][k], new[attack][k]) for k in sorted(common)]
        changed.append((f"targets of {attack}", rows[attack].get("aim"), new[attack].get("aim")))
    for name, old, asked in changed:
        if old != asked:
            raise UserError(f"{expected}; {name} was {old}, is {asked}")


def program() -> None:
    """The command line."""
    define_flags()
    run_entry_point(main)


if __name__ == "__main__":
    program()
