"""Measures what a robust teacher can give to a student, before the student is trained.

python -m igam_tf.teacher_check --source=mnist --target=cifar10 --preset=cpu --reference=runs/fast

The teacher is made as by igam_tf.train with the same flags (stages 0 and 1), in the same run
folder, so that igam_tf.train can continue there. The reference is a robust student of the target
task, whose input gradients J are the example of what a student should have.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from absl import flags

from igam_tf.attacks import attack_names
from igam_tf.common import devices
from igam_tf.common.errors import UserError, flags_alone, writable
from igam_tf.common.files import write_json
from igam_tf.common.flagfiles import FOLDER
from igam_tf.common.lazy import keras
from igam_tf.common.program import PLACES, heading, run_entry_point
from igam_tf.common.tables import Table, with_interval
from igam_tf.datasets import Split, data_text
from igam_tf.evaluation.command_line import NAMES_OF_MODELS, define_architecture_flag
from igam_tf.experiments.command_line import chosen_settings, define_settings, process_flags
from igam_tf.experiments.config import Config
from igam_tf.formulas.statistics import excess
from igam_tf.method.conventions import FORMS, parsed
from igam_tf.method.objectives import METHODS
from igam_tf.storage.journal import MASK_KEY, Journal, journal_beside, mask_of_text, model_identity
from igam_tf.storage.run_folder import environment

FLAGS = flags.FLAGS
_MEANING = {
    "cosine": "cos(J, J_t)",
    "explained": "share of |J|^2 that J_t explains, cos^2",
    "attack_share": "share of |J|_1 that a step along sign J_t gains",
}


def define_flags() -> None:
    """The flags of this command, and those of igam_tf.train."""
    with heading("check"):
        flags.DEFINE_string(
            "reference", None, f"The robust student of the target task: {NAMES_OF_MODELS}."
        )
        flags.DEFINE_integer(
            "num_examples", 200, "Evaluate on the first N test images of the target.",
            lower_bound=2,
        )  # fmt: skip
        flags.DEFINE_string(
            "attacks", "clean,autoattack",
            "Attacks on teacher and reference, written as for --attacks of igam_tf.eval_pgd; the "
            "last one decides.",
        )  # fmt: skip
        flags.DEFINE_string(
            "reference_preprocess", None,
            f"The input that the reference expects instead of pixels in 0..pixel_max: {FORMS}.",
        )  # fmt: skip
        define_architecture_flag()
        flags.DEFINE_string("json", None, "File to write the results to.")
    define_settings()


def main(argv: list[str]) -> None:
    """Makes the teacher, attacks both networks, compares their gradients, and prints a verdict."""
    flags_alone(argv)
    from igam_tf.common.checks import logits_of
    from igam_tf.evaluation.evaluate import plan
    from igam_tf.evaluation.loading import find_model
    from igam_tf.experiments.resolve import resolve
    from igam_tf.method.preprocess import preprocessed
    from igam_tf.training.open_run import opened_run

    config = resolve(chosen_settings(FLAGS), PLACES)
    if not METHODS[config.method].teacher:
        raise UserError(f"expected a --method with a teacher; received {config.method}")
    attacks = attack_names(FLAGS.attacks)
    load, path, _ = find_model(FLAGS.reference, "reference", architecture=FLAGS.architecture)
    if FLAGS.reference_preprocess:
        parsed(FLAGS.reference_preprocess)
    output = writable("json", FLAGS.json) if FLAGS.json else None
    if output and output.exists():
        raise UserError(f"expected --json={output} to be a new file; it is there already")
    with opened_run(config, **process_flags(FLAGS)) as (run, chosen):
        test = run.load(run.target_spec, "test")
        images, *_ = plan(
            test, attacks=attacks, pixel_max=test.spec.pixel_max, num_examples=FLAGS.num_examples
        )
        reference = preprocessed(load(path), FLAGS.reference_preprocess, test.spec.pixel_max)
        logits_of(reference, images.images[:1].astype("float32"), "reference")
        with chosen.scope():
            teacher = run.teacher()
        if run.folder.chief:
            with devices.without_peers(chosen).scope():
                models = {"teacher": teacher, "reference": reference}
                with ExitStack() as kept:
                    journals = {
                        name: kept.enter_context(
                            journal_beside(output, model_identity(model), name)
                        )
                        for name, model in models.items()
                        if output
                    }
                    check(models, images, config, attacks, output, journals)


def check(
    models: dict[str, keras.Model],
    images: Split,
    config: Config,
    attacks: list[str],
    output: Path | None,
    journals: dict[str, Journal],
) -> None:
    """Measures and prints; `journals` store finished batches of attacks."""
    from igam_tf.evaluation.evaluate import model_report, table
    from igam_tf.evaluation.teaching import input_gradients, teaching, verdict

    reports = {
        name: model_report(
            model, images, attacks=attacks, seed=config.seed, journal=journals.get(name)
        )
        for name, model in models.items()
    }
    last = attacks[-1]
    teacher, reference = (
        mask_of_text(reports[name]["results"][last][MASK_KEY]) for name in ("teacher", "reference")
    )
    over = excess(teacher, reference)
    j_t, j = (
        input_gradients(models[name], images, input_gradient=config.input_gradient)
        for name in ("teacher", "reference")
    )
    found = teaching(j, j_t)
    said = verdict(found, over)
    for name, report in reports.items():
        print(f"\n{name}\n{table(report)}")
    print(
        f"\nUnder {last} the teacher withstands {over} than the reference.\n\n"
        f"Of J, the reference's input gradient, on these {len(images.labels)} images, data "
        f"{data_text(images.source)}; mean and 95 % interval:\n{teaching_table(found)}\n\n{said}"
    )
    if output:
        content = {"settings": {"input_gradient": config.input_gradient}, "reports": reports}
        content |= {"teaching": found, "verdict": said, "versions": environment()}
        write_json(output, content)


def teaching_table(found: dict[str, dict]) -> str:
    """The result of `igam_tf.evaluation.teaching.teaching` as plain text."""
    columns = ("teacher", "shuffled", "difference")
    rows = [
        [meaning]
        + [with_interval(row["mean"], row["ci95"], ".3f") for row in map(found[name].get, columns)]
        for name, meaning in _MEANING.items()
    ]
    return Table(["", *columns], rows).text()


def program() -> None:
    """The command line."""
    define_flags()
    run_entry_point(main, flagfiles=FOLDER)


if __name__ == "__main__":
    program()
