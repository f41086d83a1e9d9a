"""Trains and evaluates every row of a table of the paper; writes our figures beside the published ones.

python -m igam_tf.reproduce --table=1 --preset=cpu

Each row is one `python -m igam_tf.train` in a run folder of its own: finished rows are not run
again, and interrupted ones are resumed.
"""

import subprocess
import sys
from pathlib import Path

from absl import flags, logging

from igam_tf.attacks import attack_names
from igam_tf.common.errors import UserError, flags_alone
from igam_tf.common.files import read_json
from igam_tf.common.locks import take_folder
from igam_tf.common.program import heading, run_entry_point
from igam_tf.datasets import SPECS
from igam_tf.experiments.config import PRECISIONS
from igam_tf.experiments.recipes import FIELDS
from igam_tf.method.objectives import METHODS
from igam_tf.reproduce.running import run_all
from igam_tf.reproduce.tables import TABLES, Table, TableRow

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags of this program."""
    with heading("what is run"):
        flags.DEFINE_enum(
            "table",
            None,
            tuple(TABLES),
            "The table: a number of the paper's, figure5, baselines, or best, which runs every "
            "method with --fidelity=best.",
        )
        flags.DEFINE_enum(
            "preset", "paper", FIELDS["preset"].metadata["choices"],
            "Size and budget of each row. paper: wrn-32-10 for 200 epochs; cpu: ten minutes on "
            "two cores; smoke: a few seconds.",
        )  # fmt: skip
        flags.DEFINE_list(
            "rows",
            [],
            "Run only these rows, separated by commas; by default all rows of the table.",
        )
        flags.DEFINE_integer(
            "jobs", 1,
            "Train this many rows at once, each on its share of the cores; each writes its output "
            "to <output>/<row>.log. A small network uses little more than one core.",
            lower_bound=1,
        )  # fmt: skip
        flags.DEFINE_bool(
            "print_config", False,
            "Print every setting of each row and where it comes from, and exit.",
        )  # fmt: skip
        flags.DEFINE_bool("collect", False, "Run nothing; write the table of the finished rows.")
        flags.DEFINE_string(
            "output",
            None,
            "Folder of the rows' run folders; by default runs/table<table>-<preset>.",
        )
    with heading("settings of every row"):
        flags.DEFINE_enum(
            "data",
            "tfds",
            ("tfds", "builtin"),
            "Use real images (tfds), or synthetic ones (builtin).",
        )
        flags.DEFINE_string(
            "data_dir", "", "Folder of tensorflow-datasets; if empty, its default folder."
        )
        flags.DEFINE_integer("seed", 0, "Seed of training and evaluation.", lower_bound=0)
        flags.DEFINE_integer(
            "seeds", 1,
            "Number of seeds, beginning with --seed. If there are several, each has its folder "
            "<output>/seed<seed>, and <output> has the table of their means.",
            lower_bound=1,
        )  # fmt: skip
        flags.DEFINE_enum(
            "precision", None, PRECISIONS,
            "Precision in which the layers compute, as --precision of igam_tf.train; by default "
            "the preset's.",
        )  # fmt: skip
        flags.DEFINE_list(
            "teacher_checkpoints",
            [],
            "Checkpoints from which teachers are loaded, separated by commas: "
            "<source>=<checkpoint folder>.",
        )
        flags.DEFINE_enum(
            "teacher", "auto", ("auto", "load", "train"),
            "Load or train the other teachers, as --teacher of igam_tf.train. auto does as "
            "igam_tf.train, but with --preset=cpu or smoke it trains CIFAR-10's, because the "
            "published one is a wrn-32-10.",
        )  # fmt: skip
        flags.DEFINE_string(
            "teachers", None,
            "Folder of the teachers that are trained, each once for all tables; by default the "
            "folder teachers beside --output.",
        )  # fmt: skip
        flags.DEFINE_enum(
            "target", None, tuple(SPECS),
            "Train the students on this task instead of the paper's, and leave out the published "
            "figures.",
        )  # fmt: skip
        flags.DEFINE_string(
            "attacks", None,
            "Attacks of every row, written as for --attacks of igam_tf.eval_pgd, such as "
            "clean,pgd20,autoattack; by default the table's own.",
        )  # fmt: skip
        flags.DEFINE_integer(
            "validate_every", None,
            "Validate every N steps, for figures of accuracy over minutes; by default as often as "
            "the preset.",
        )  # fmt: skip


def teacher_checkpoints() -> dict[str, str]:
    """Source -> folder, from --teacher_checkpoints.

    Raises:
        UserError: an item is not <source>=<folder>.
    """
    pairs = [item.split("=", 1) for item in FLAGS.teacher_checkpoints]
    for pair in pairs:
        if len(pair) != 2 or pair[0] not in SPECS:
            raise UserError(
                "expected --teacher_checkpoints=<source>=<folder>, source one of "
                f"{', '.join(SPECS)}; received {'='.join(pair)!r}"
            )
    return dict(map(tuple, pairs))


def chosen_rows(whole: Table) -> list[TableRow]:
    """The rows to run.

    Raises:
        UserError: there is no row of that name.
    """
    names = [row.name for row in whole.rows]
    if unknown := [name for name in FLAGS.rows if name not in names]:
        raise UserError(f"expected --rows of {', '.join(names)}; received {', '.join(unknown)}")
    return [row for row in whole.rows if not FLAGS.rows or row.name in FLAGS.rows]


def check_alike(folder: Path, seed: int) -> None:
    """Raises a UserError if a finished row differs in budget, data, seed or precision."""
    run = read_json(folder / "config.json")
    wanted = {name: FLAGS[name].value for name in ("preset", "data", "precision")} | {"seed": seed}
    for name, value in wanted.items():
        if value not in (None, run[name]):
            raise UserError(
                f"expected finished rows of --{name}={value} in {folder.parent}, or another "
                f"--output; {folder.name} has --{name}={run[name]}"
            )


def command(
    row: TableRow, whole: Table, output: Path, seed: int, teachers: str, checkpoints: dict[str, str]
) -> list[str]:
    """The command line of one row.

    Trained teachers are in the folder `teachers`, loaded ones in `checkpoints`.
    """
    given = {name: FLAGS[name].value for name in ("preset", "data", "data_dir")} | {"seed": seed}
    given |= {"eval_attacks": ",".join(whole.attacks), "workdir": str(output / row.name)}
    for name in ("validate_every", "precision"):
        if FLAGS[name].value is not None:
            given[name] = FLAGS[name].value
    given["teachers"] = teachers
    source = row.flags["source"]
    if METHODS[row.method].teacher and "teacher" not in row.flags:
        if source in checkpoints:
            given |= {"teacher": "load", "teacher_checkpoint": checkpoints[source]}
        elif teacher := trained_or_loaded(source):
            given["teacher"] = teacher
    flags_of_row = [f"--{name}={value}" for name, value in (dict(row.flags) | given).items()]
    # If this program is killed with SIGKILL, its rows continue, so a new start has to wait for
    # them.
    return [sys.executable, "-m", "igam_tf.train", "--wait", *flags_of_row]


def trained_or_loaded(source: str) -> str | None:
    """--teacher of a row without a checkpoint; None means the default of its source."""
    if FLAGS.teacher != "auto":
        return FLAGS.teacher
    return "train" if source == "cifar10" and FLAGS.preset != "paper" else None


def missing(
    rows: list[TableRow], whole: Table, output: Path, seed: int, teachers: str
) -> dict[str, list[str]]:
    """Name -> command line of the rows that are not finished.

    Raises:
        UserError: a finished row has other settings, or --teacher_checkpoints is wrong.
    """
    from igam_tf.reproduce.collecting import collect, finished

    checkpoints = teacher_checkpoints()
    done = [row for row in rows if finished(output / row.name)]
    for row in done:
        check_alike(output / row.name, seed)
    collect(whole, output)  # raises errors before anything is run
    return {
        row.name: command(row, whole, output, seed, teachers, checkpoints)
        for row in rows
        if row not in done
    }


def run(commands: dict[str, list[str]], whole: Table, output: Path, name: str) -> list[str]:
    """Runs rows and writes the table after each; returns the names of those that failed."""
    from igam_tf.reproduce.aligning import align
    from igam_tf.reproduce.collecting import collect
    from igam_tf.reproduce.writing import write

    failed = []
    output.mkdir(parents=True, exist_ok=True)
    for row_name, status in run_all(commands, jobs=FLAGS.jobs, output=output):
        if status:
            failed.append(row_name)
        write(collect(whole, output), output, name)
    align(whole, output, data_dir=FLAGS.data_dir or None)
    return failed


def folders(name: str) -> tuple[Path, dict[int, Path]]:
    """(folder of the table, seed -> folder of its rows); with one seed both are the same."""
    several = FLAGS.seeds > 1
    end = "-builtin" if FLAGS.data == "builtin" else ""
    end += "-seeds" if several else f"-seed{FLAGS.seed}" if FLAGS.seed else ""
    root = Path(FLAGS.output or f"runs/{name}-{FLAGS.preset}{end}")
    seeds = range(FLAGS.seed, FLAGS.seed + FLAGS.seeds)
    return root, {seed: root / f"seed{seed}" if several else root for seed in seeds}


def tables_of(whole: Table, outputs: dict[int, Path], root: Path, name: str) -> str:
    """Writes the table of each seed and, for several, that of their means; returns it as Markdown."""
    from igam_tf.reproduce.collecting import collect
    from igam_tf.reproduce.seeds import mean_of_seeds
    from igam_tf.reproduce.writing import write

    contents = {seed: collect(whole, output) for seed, output in outputs.items()}
    texts = [write(contents[seed], output, name) for seed, output in outputs.items()]
    if len(contents) > 1:
        texts.append(write(mean_of_seeds(whole, contents), root, f"{name}-seeds"))
    return texts[-1]


def main(argv: list[str]) -> int:
    """Runs the missing rows, writes the table and prints it."""
    flags_alone(argv)
    if FLAGS.table is None:
        raise UserError(f"expected --table, one of {', '.join(TABLES)}; received none")
    whole = TABLES[FLAGS.table]
    if FLAGS.target:
        whole = whole.with_target(FLAGS.target)
    if FLAGS.attacks is not None:
        whole = whole.with_attacks(attack_names(FLAGS.attacks))
    whole = whole.at_preset(FLAGS.preset)
    rows = chosen_rows(whole)
    name = f"table{FLAGS.table}" if FLAGS.table.isdigit() else FLAGS.table
    name += f"-{FLAGS.target}" if FLAGS.target else ""
    root, outputs = folders(name)
    if FLAGS.print_config:
        return print_config(rows, whole, root, outputs)
    if FLAGS.collect and (absent := [str(o) for o in outputs.values() if not o.is_dir()]):
        raise UserError(f"expected finished rows in --output; absent: {', '.join(absent)}")
    with take_folder("output", root):
        return make(rows, whole, root, outputs, name)


def print_config(rows: list[TableRow], whole: Table, root: Path, outputs: dict[int, Path]) -> int:
    """Prints the settings of every row, as igam_tf.train does; returns the exit status."""
    teachers, checkpoints = FLAGS.teachers or str(root.parent / "teachers"), teacher_checkpoints()
    failed = False
    for seed, output in outputs.items():
        for row in rows:
            print(f"\n{output / row.name}", flush=True)
            asked = command(row, whole, output, seed, teachers, checkpoints)
            failed |= subprocess.run([*asked, "--print_config"], check=False).returncode != 0
    return int(failed)


def make(
    rows: list[TableRow], whole: Table, root: Path, outputs: dict[int, Path], name: str
) -> int:
    """Runs the missing rows, writes the tables and prints the last; returns the exit status."""
    failed = []
    if not FLAGS.collect:
        teachers = FLAGS.teachers or str(root.parent / "teachers")
        commands = {
            seed: missing(rows, whole, output, seed, teachers) for seed, output in outputs.items()
        }
        for seed, output in outputs.items():
            logging.info("seed %d, in %s", seed, output)
            names = run(commands[seed], whole, output, name)
            failed += [str((output / row).relative_to(root)) for row in names]
    print("\n" + tables_of(whole, outputs, root, name))
    if failed:
        where = "above" if FLAGS.jobs == 1 else f"in {root}/<row>.log"
        logging.error("rows failed (messages %s): %s", where, ", ".join(failed))
    return 1 if failed else 0


def program() -> None:
    """The command line."""
    define_flags()
    run_entry_point(main)


if __name__ == "__main__":
    program()
