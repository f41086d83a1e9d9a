"""Audits a network: is it robust, or only hard to attack by gradients?

python -m igam_tf.audit --model=runs/mnist-cifar10 --budget=quick

Exit status: 2 if a check FAILs, else 3 if the headline is doubtful (0 with --allow_doubts), else 0;
wrong input ends with 1.
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags, logging

from igam_tf.audit.audited import BUDGETS, AuditedModel
from igam_tf.audit.catalogue import CHECKS, check_names
from igam_tf.audit.checks import FAIL
from igam_tf.common import devices
from igam_tf.common.errors import UserError, flags_alone
from igam_tf.common.files import write_json, write_text
from igam_tf.common.program import heading, run_entry_point
from igam_tf.datasets import in_pixel_range, parse_fraction
from igam_tf.evaluation.command_line import (
    define_data_flags,
    define_model_flag,
    define_run_flags,
    doubtful_status,
)
from igam_tf.storage.journal import Journal, model_identity
from igam_tf.storage.run_folder import RunFolder, environment, load_model

FLAGS = flags.FLAGS
FAILED_STATUS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """The settings that an audit's figures depend on; a folder holds one audit."""

    model: str
    identity: str
    dataset: str
    split: str
    images: str
    budget: str
    eps: str | None
    step_size: str | None
    num_examples: int
    seed: int
    batch_size: int
    transfer_from: dict[str, str]
    pixel_max: float | None = None
    preprocess: str | None = None
    class_order: list[str] | None = None

    @staticmethod
    def without_places(settings: dict[str, Any]) -> dict[str, Any]:
        """Settings without the paths of networks, which their identities stand for."""
        others = settings.get("transfer_from")
        identities = sorted(others.values()) if isinstance(others, dict) else others
        return {**settings, "model": "", "transfer_from": identities}


def define_flags() -> None:
    """The flags of this command."""
    of_range = "as a fraction of the pixel range, such as 8/255 or 0.3"
    with heading("model and images"):
        define_model_flag()
        define_data_flags()
        flags.DEFINE_integer(
            "num_examples", None,
            "Number of images, from the first of the split on; by default as --budget says.",
            lower_bound=1,
        )  # fmt: skip
    with heading("audit"):
        flags.DEFINE_enum(
            "budget",
            "quick",
            tuple(BUDGETS),
            "Number of images, and of the attacks' steps, restarts and queries.",
        )
        flags.DEFINE_string(
            "checks",
            "all",
            f"Checks to run: all, or some of {', '.join(CHECKS)}, separated by commas.",
        )
        flags.DEFINE_list(
            "transfer_from",
            [],
            "Models, named as in --model, whose adversarial examples are tried on this one.",
        )
        flags.DEFINE_string(
            "eps",
            None,
            f"Radius of the headline in l-inf, {of_range}; by default the data set's own.",
        )
        flags.DEFINE_string(
            "step_size", None,
            f"Step size of PGD, {of_range}; by default eps times the data set's own ratio, "
            "but at least 2.5 eps / steps.",
        )  # fmt: skip
        flags.DEFINE_integer(
            "seed", 0, "Seed of all random numbers.", lower_bound=0, upper_bound=2**31 - 1
        )
    with heading("run"):
        flags.DEFINE_string(
            "workdir", None,
            "Folder of the audit; the same command resumes it there. By default "
            "audits/<model>-<budget>, or audit-<budget> in the folder of a run.",
        )  # fmt: skip
        define_run_flags()


def main(argv: list[str]) -> int:
    """Audits one model; returns the exit status."""
    flags_alone(argv)
    names = check_names(FLAGS.checks, "--checks")
    eps, step_size = (parse_fraction(flag, FLAGS[flag].value) for flag in ("eps", "step_size"))
    with devices.local_strategy(FLAGS.replicas).scope():
        return _audit(names, eps, step_size)


def _audit(names: list[str], eps: float | None, step_size: float | None) -> int:
    from igam_tf.audit.audit import audit
    from igam_tf.audit.page import check_text, html, markdown, summary
    from igam_tf.common.checks import logits_of
    from igam_tf.evaluation.loading import chosen_model, find_model
    from igam_tf.method.networks import pixel_max_of

    transfers = {}
    for name in FLAGS.transfer_from:
        load_other, other_path, _ = find_model(
            name, "transfer_from",
            architecture=FLAGS.architecture, beside=[*FLAGS.transfer_from, FLAGS.model or ""],
        )  # fmt: skip
        transfers[name] = partial(load_other, other_path)
    model, everything, _, run = chosen_model(FLAGS, *FLAGS.transfer_from)
    teacher = Path(FLAGS.model).expanduser() / "teacher.keras"
    if run and teacher.is_file():
        transfers["teacher.keras"] = partial(load_model, teacher)
    budget, dataset = BUDGETS[FLAGS.budget], everything.spec.name
    available = len(everything.labels)
    n = FLAGS.num_examples or min(budget.num_examples, available)
    if n > available:
        raise UserError(
            f"expected --num_examples within 1..{available}, the size of {dataset} {FLAGS.split}; "
            f"received {n}"
        )
    split = everything.take(slice(n), FLAGS.split)
    sources = {name: load() for name, load in transfers.items()}
    for other in sources.values():
        x = in_pixel_range(split.images[:1], pixel_max_of(other, default=split.spec.pixel_max))
        logits_of(other, x, "model to transfer from", split.spec.num_classes)
    same = (
        "model", "split", "budget", "eps", "step_size", "seed", "batch_size", "pixel_max",
        "preprocess", "class_order",
    )  # fmt: skip
    settings = AuditSettings(
        **{name: FLAGS[name].value for name in same},
        identity=model_identity(model),
        dataset=dataset,
        images=split.fingerprint(),
        num_examples=n,
        transfer_from={name: model_identity(other) for name, other in sources.items()},
    )
    with RunFolder(_workdir(run), settings) as folder:
        audited = AuditedModel(
            model, split, pixel_max=FLAGS.pixel_max,
            eps=eps, step_size=step_size, seed=FLAGS.seed, batch_size=FLAGS.batch_size, budget=budget,
            sources=sources,
            journal=Journal(folder / "journal.jsonl", settings.identity),
            progress=sys.stderr.isatty(),
        )  # fmt: skip
        if names == list(CHECKS):
            logging.info(
                "budget %s, %d images: at most %.1f minutes of attacks here, by the time of one "
                "gradient; the tracing of each attack comes on top",
                FLAGS.budget, n, audited.expected_minutes(),
            )  # fmt: skip
        report = audit(
            audited,
            names=names,
            progress_file=folder / "finished.json",
            show=lambda check: print(check_text(check), flush=True),
        )
        report = {"name": FLAGS.model, "budget": FLAGS.budget} | report
        write_json(folder / "report.json", report | {"versions": environment()})
        write_text(folder / "report.md", markdown(report))
        write_text(folder / "report.html", html(report))
        print(f"{summary(report)}\n{folder / 'report.html'}")
    failed = any(check["status"] == FAIL for check in report["checks"].values())
    return FAILED_STATUS if failed else doubtful_status(report["doubts"], FLAGS.allow_doubts)


def _workdir(run: dict) -> Path:
    if FLAGS.workdir:
        return Path(FLAGS.workdir).expanduser()
    if run:
        return Path(FLAGS.model).expanduser() / f"audit-{FLAGS.budget}"
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in FLAGS.model).strip("-.")
    return Path("audits") / f"{name}-{FLAGS.budget}"


def program() -> None:
    """The command line."""
    define_flags()
    run_entry_point(main)


if __name__ == "__main__":
    program()
