"""Measures a model's accuracy, clean and under attack, and prints a table.

python -m igam_tf.eval_pgd --model=runs/mnist-cifar10 --attacks=clean,fgsm,pgd20 --json=pgd.json

With --json or --save_adversarial, finished batches are kept in <file>.journal until the end: if it is
interrupted, run the same command to resume.

Exit status: 0, or 3 if a figure is doubtful (0 with --allow_doubts), or 1 after wrong input.
"""

import math
from contextlib import nullcontext
from pathlib import Path

from absl import flags

from igam_tf.attacks import BATCH_NORMS, LOSSES, NORMS, SHOWN, attack_names
from igam_tf.common import devices
from igam_tf.common.checks import check_radii, expect
from igam_tf.common.errors import UserError, flags_alone, writable
from igam_tf.common.files import read_json, write_json, write_text
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
            f"Radius of every attack, {of_range}, or several, such as 2/255,4/255; in linf by "
            "default the data set's own.",
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
        flags.DEFINE_bool(
            "smallest_eps", False,
            "Also search the smallest eps at which each image is misclassified, by FAB and by "
            "bisection with APGD; prints median, quantiles and a histogram.",
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
        flags.DEFINE_string(
            "save_adversarial", None,
            "File to write the worst image of each example to: <file>.npz with its attack, or "
            "<file>.npy as --adversarial reads it. An image that fails a check without the attacks' "
            "code does not count as broken.",
        )  # fmt: skip
        flags.DEFINE_string(
            "adversarial", None,
            "Instead of attacks, score the perturbed test images of this .npy file, as run_attack.py "
            "of MadryLab's challenges does, and write pred.npy.",
        )  # fmt: skip
        flags.DEFINE_string(
            "curve", None, "SVG file to draw the accuracy over several --eps to.",
        )  # fmt: skip
        define_run_flags()


def main(argv: list[str]) -> int:
    """Evaluates one model; returns the exit status."""
    flags_alone(argv)
    attacks = attack_names(FLAGS.attacks)
    most = 1.0 if FLAGS.norm == "linf" else math.inf  # in l2 many pixels add up
    radii = FLAGS.eps.split(",") if FLAGS.eps else [FLAGS.eps]
    eps = [parse_fraction("eps", radius, most=most) for radius in radii]
    step_size = parse_fraction("step_size", FLAGS.step_size, most=most)
    check_radii(eps, FLAGS.norm)
    files = {name: _file(name) for name in ("json", "save_adversarial", "curve")}
    if files["save_adversarial"] or FLAGS.smallest_eps:
        from igam_tf.evaluation.adversarial import check_kept

        check_kept(FLAGS.batch_norm, eps if files["save_adversarial"] else None)
    several = len(eps) > 1
    expect(several or not files["curve"], "several --eps with --curve", FLAGS.eps)
    if FLAGS.adversarial:
        _check_scored(several)
    with devices.local_strategy(FLAGS.replicas).scope():
        return _evaluate(attacks, eps if several else eps[0], step_size, files)


def _file(name: str) -> Path | None:
    """The path in a flag, which is checked to be writable, and its suffix."""
    suffixes = {"save_adversarial": (".npz", ".npy"), "curve": (".svg",)}.get(name)
    if not FLAGS[name].value:
        return None
    file = writable(name, FLAGS[name].value)
    if suffixes:
        forms = " or ".join(f"<file>{suffix}" for suffix in suffixes)
        expect(file.suffix in suffixes, f"--{name}={forms}", repr(FLAGS[name].value))
    return file


def _check_scored(several: bool) -> None:
    """Raises a UserError where flags do not go with --adversarial."""
    files = ("save_adversarial", "curve")
    other = [f"--{name}" for name in files if FLAGS[name].value]
    other += [
        f"--{name}={FLAGS[name].value}"
        for name in (
            "attacks", "norm", "step_size", "loss", "restarts", "targets", "individual",
            "smallest_eps", "batch_norm",
        )
        if FLAGS[name].value != FLAGS[name].default
    ]  # fmt: skip
    other += ["several --eps"] * several
    expect(not other, "--adversarial with one l-inf eps and inference alone", ", ".join(other))


def _evaluate(
    attacks: list[str],
    eps: float | list[float] | None,
    step_size: float | None,
    files: dict[str, Path | None],
) -> int:
    from igam_tf.evaluation.adversarial import Adversarial
    from igam_tf.evaluation.challenge import write_images
    from igam_tf.evaluation.evaluate import model_report, planned, table
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
    chosen, expected = planned(split, **settings)
    if FLAGS.preprocess:
        expected["preprocess"] = FLAGS.preprocess
    synthetic = {"data_seed": data_seed} if split.source == "builtin" else {}
    output, images = files["json"], files["save_adversarial"]
    if FLAGS.adversarial:
        return _score(model, chosen, eps, pixel_max, about | synthetic, output)
    if output:
        check_earlier(output, about | expected | synthetic | {"smallest_eps": FLAGS.smallest_eps})
    place, adversarial = output or images, None
    with journal_beside(place, model_identity(model)) if place else nullcontext() as journal:
        if images:
            adversarial = Adversarial(model, chosen, pixel_max=pixel_max, journal=journal)
        report = about | model_report(
            model, split, journal=journal, adversarial=adversarial, smallest=FLAGS.smallest_eps,
            **settings,
        )  # fmt: skip
        report |= synthetic
        if images:
            write_images(images, adversarial.arrays(), chosen.spec.name)
        if files["curve"]:
            from igam_tf.evaluation.curve import curve

            write_text(files["curve"], curve(report))
        if output:
            write_json(output, report | {"versions": environment()})
    print(f"{FLAGS.model}\n{table(report)}")
    return doubtful_status(report["doubts"], FLAGS.allow_doubts)


def _score(
    model, split, eps: float | None, pixel_max: float, about: dict, output: Path | None
) -> int:
    """Scores the perturbed images of --adversarial; returns the exit status."""
    from igam_tf.evaluation.challenge import PREDICTIONS, score, score_text, write_array
    from igam_tf.evaluation.evaluate import look_at
    from igam_tf.method.look import as_json

    predictions = writable("adversarial", PREDICTIONS)
    eps = split.spec.eps if eps is None else eps
    about |= {"adversarial": FLAGS.adversarial, "eps": eps, "n": len(split.labels)}
    if output and output.exists():
        earlier = read_json(output)
        for name, value in about.items():
            if earlier.get(name) != value:
                raise UserError(
                    f"expected --json={output} to be a new file, or the score of the same file; "
                    f"{name} was {earlier.get(name)}, is {value}"
                )
    how = {"pixel_max": pixel_max, "batch_size": FLAGS.batch_size}
    found, predicted = score(model, split, Path(FLAGS.adversarial).expanduser(), eps=eps, **how)
    doubts = look_at(model, split, **how)
    report = about | found | {"doubts": as_json(doubts)}
    write_array(predictions, predicted)
    if output:
        write_json(output, report | {"versions": environment()})
    print(f"{FLAGS.model}\n{score_text(report)}\npredicted classes: {predictions}")
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
    changed += [("smallest_eps", "smallest_eps" in earlier, settings["smallest_eps"])]
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
