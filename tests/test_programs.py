"""What all programs share: a quiet start, --help, --version, wrong flags, Ctrl-C, plain log lines."""

import importlib.metadata
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from igam_tf import __version__
from igam_tf import train as program
from igam_tf.common.errors import UserError
from igam_tf.common.flagfiles import expanded
from igam_tf.common.program import (
    _is_shown,
    _Sentences,
    default_and_range,
    run_entry_point,
)
from igam_tf.experiments.config import GROUPS
from igam_tf.report import report

# Program -> flags that its help text must show, of those that another module defines among them.
PROGRAMS = {
    "igam_tf.train": ["--source=<", "--workdir=", "--disc_every=", "--[no]print_config"],
    "igam_tf.eval_pgd": ["--model=", "--dataset=", "--pixel_max=", "--attacks=", "--json="],
    "igam_tf.audit": ["--budget=<quick|", "--data_dir=", "--split=<train|test>"],
    "igam_tf.figures": ["--runs=", "--data_seed=", "--points="],
    "igam_tf.reproduce": ["--table=<1|2|", "--[no]collect"],
    "igam_tf.export": ["--run=", "--output="],
    "igam_tf.report": ["--format=<table|robustbench>"],
    "igam_tf.teacher_check": ["--reference=", "--attacks=", "--source=<", "--workdir="],
    "igam_tf.pytorch.convert": ["--architecture=", "--output=", "--num_classes=", "--[no]list"],
    "madry_models.fetch": ["--model=<mnist|cifar10>", "--dest="],
    "madry_models.convert": ["--checkpoint=", "--output="],
}
SCRIPTS = {
    "igam-train": "igam_tf.train",
    "igam-eval": "igam_tf.eval_pgd",
    "igam-audit": "igam_tf.audit.__main__",
    "igam-figures": "igam_tf.figures.__main__",
    "igam-reproduce": "igam_tf.reproduce.__main__",
    "igam-export": "igam_tf.export",
    "igam-report": "igam_tf.report",
    "igam-teacher-check": "igam_tf.teacher_check",
    "igam-convert": "igam_tf.pytorch.convert",
    "madry-fetch": "madry_models.fetch",
    "madry-convert": "madry_models.convert",
}
# As on a user's screen, and nobody asks for silence.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, env=ENVIRONMENT, check=False, cwd=cwd,
    )  # fmt: skip


def light(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a program that is to end at once: without TensorFlow, in little CPU time."""
    code = (
        "import atexit, resource, runpy, sys\n"
        "def end():\n"
        "    assert not {'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    assert used.ru_utime + used.ru_stime < 3, used\n"
        "atexit.register(end)\n"
        f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    )
    return python("-c", code, *arguments)


def script(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a console script as the file does that pip writes for it."""
    code = (
        "import sys; from importlib.metadata import entry_points; "
        f"sys.argv[0] = '/usr/bin/{name}'; "
        f"(found,) = entry_points(group='console_scripts', name='{name}'); sys.exit(found.load()())"
    )
    return python("-c", code, *arguments)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_is_what_it_does_an_example_and_every_flag(name):
    done = light(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].endswith((".", "?"))
    assert lines[2].startswith(f"python -m {name} ")
    for flag in (*PROGRAMS[name], "--flagfile=", "--verbosity=", "--version", "--help"):
        assert f"\n  {flag}" in done.stdout
    assert max(map(len, lines)) <= 105


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_mistyped_flag_is_found_at_once(name):
    done = light(name, "--hepl")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "--hepl" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_every_program_has_its_script():
    found = {e.name: e.value for e in importlib.metadata.distribution("igam_tf").entry_points}
    assert found == {name: f"{module}:program" for name, module in SCRIPTS.items()}
    assert {module.removesuffix(".__main__") for module in SCRIPTS.values()} == PROGRAMS.keys()


@pytest.mark.parametrize("name", ["igam-train", "igam-audit", "madry-fetch"])
def test_help_of_a_script_names_the_script(name):
    module = SCRIPTS[name].removesuffix(".__main__")
    done, as_module = script(name, "--help"), python("-m", module, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[2].startswith(f"{name} --")
    assert done.stdout == as_module.stdout.replace(f"python -m {module} ", f"{name} ")


def test_an_error_of_a_script_names_the_script():
    done = script("madry-fetch", "--modle=mnist")
    assert done.returncode == 1
    assert done.stderr == (
        "error: expected a flag of madry-fetch; received --modle: did you mean --model? "
        "--help lists all of them\n"
    )
    done = script("igam-report")
    assert done.returncode == 1
    assert done.stderr == "error: expected run folders: igam-report <folder> <folder> ...\n"


@pytest.mark.parametrize("written", [["--flagfile=own.flags"], ["--flagfile", "own.flags"]])
def test_a_flagfile_of_the_package_is_found_by_its_name(written, tmp_path, monkeypatch):
    package, here = tmp_path / "package", tmp_path / "here"
    for folder in (package, here):
        folder.mkdir()
    (package / "own.flags").write_text("# Own.\n\n--seed=1\n--flagfile=another.flags\n")
    (package / "another.flags").write_text("--wait")
    monkeypatch.chdir(here)
    place = {"seed": f"{package / 'own.flags'}:3", "wait": f"{package / 'another.flags'}:1"}
    assert expanded(["train", *written], package) == (["train", "--seed=1", "--wait"], place)
    found, places = expanded(["train", *written, "--seed=2", "--", "--flagfile=x"], package)
    assert found == ["train", "--seed=1", "--wait", "--seed=2", "--", "--flagfile=x"]
    assert not places["seed"]  # given by hand
    assert expanded(["train", "--workdir=own.flags", "own.flags"], package)[0] == [
        "train", "--workdir=own.flags", "own.flags",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"received own\.flags"):
        expanded(["eval", *written], None)
    (here / "own.flags").write_text("--seed=3")
    assert expanded(["train", *written], package)[0] == ["train", "--seed=3"]
    (package / "wrong.flags").write_text("--seed=1\nwait")
    with pytest.raises(UserError, match=r"wrong\.flags:2; received wait"):
        expanded(["train", "--flagfile=wrong.flags"], package)
    (package / "round.flags").write_text("--flagfile=round.flags")
    with pytest.raises(UserError, match=r"does not include itself.*round\.flags"):
        expanded(["train", "--flagfile=round.flags"], package)


def test_flagfiles_through_the_program(tmp_path):
    train = ("-m", "igam_tf.train", "--print_config")
    row = "--flagfile=transfers/tiny_imagenet_to_cifar10_pad.flags"
    done = python(*train, row, "--preset=smoke", "--fidelity=best", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for line in (
        "--transform=pad +flags/transfers/tiny_imagenet_to_cifar10_pad.flags:[0-9]+",
        "--train_steps=8 +flags/presets/smoke.flags:[0-9]+",
        "--lambda_diff=0.0313[0-9]+ +computed: eps",
        "--preset=smoke +flag",
        "--seed=0 +default",
    ):
        assert re.search(f"^ +{line}$", done.stdout, re.MULTILINE)
    done = python(*train, "--flagfile=demmo.flags", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "; received demmo.flags: did you mean demo.flags?" in done.stderr
    done = python("-m", "igam_tf.eval_pgd", "--flagfile=demo.flags", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("; received demo.flags\n")


def test_help_of_train_is_grouped_and_says_default_and_range():
    text = python("-m", "igam_tf.train", "-h").stdout
    places = [text.index(f"\n\n{group}: {meaning}\n") for group, meaning in GROUPS.items()]
    assert places == sorted(places)
    assert "(default: 128; at least 1)" in " ".join(text.split())
    assert text.index("--target=") < text.index("--teacher=")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((100, 1, None), " (default: 100; at least 1)"),
        ((0.9, 0, 1), " (default: 0.9; 0 to 1)"),
        ((None, 0.5, float("inf")), " (at least 0.5)"),
        ((True, None, None), " (default: true)"),
        (((4, 8), None, None), " (default: 4,8)"),
        (("", None, None), ""),
    ],
)
def test_default_and_range(arguments, text):
    assert default_and_range(*arguments) == text


def test_versions():
    import keras
    import tensorflow as tf

    done = python("-m", "madry_models.fetch", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    ours, theirs = f"igam_tf {__version__}", f"TensorFlow {tf.__version__}"
    assert done.stdout == f"{ours}, {theirs}, Keras {keras.__version__}\n"


@pytest.mark.parametrize(
    ("module", "flag", "expected", "received"),
    [
        ("madry_models.fetch", "--modle=mnist", "did you mean --model?", "--modle"),
        # What other programs call so: the folder or file to write.
        ("madry_models.fetch", "--output=here", "did you mean --dest?", "--output"),
        ("igam_tf.audit", "--output=here", "did you mean --workdir?", "--output"),
        ("igam_tf.eval_pgd", "--workdir=here", "did you mean --json?", "--workdir"),
        ("igam_tf.audit", "--lines=logits", "did you mean --checks?", "--lines"),
        ("madry_models.fetch", "--xyzxyz", "a flag of python -m madry_models.fetch", "--xyzxyz"),
        ("madry_models.fetch", "--model=svhn", "--model=<mnist|cifar10>", "'svhn'"),
        ("madry_models.fetch", "--model", "--model=<mnist|cifar10>", "none"),
        ("madry_models.fetch", "--name=natural", "--model=<mnist|cifar10>", "none"),
        ("igam_tf.train", "--learning_rate=abc", "--learning_rate=<number>", "'abc'"),
        ("igam_tf.audit", "--batch_size=0", "--batch_size=<whole number> (at least 1)", "'0'"),
        ("igam_tf.audit", "--allow_doubts=maybe", "--[no]allow_doubts", "'maybe'"),
        (
            "igam_tf.report", "--verbosity=loud", "--verbosity=<debug|info|warning|error>", "'loud'",
        ),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_one_sentence(module, flag, expected, received):
    done = python("-m", module, flag)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: expected ")
    assert expected in done.stderr
    assert f"received {received}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_debug_shows_where_a_user_s_error_comes_from():
    done = python("-m", "igam_tf.audit", "--verbosity=debug", "--eps=2")
    assert done.returncode == 1
    assert "in parse_fraction" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: expected --eps")


def test_unlike_runs_are_told_by_what_differs(tmp_path, monkeypatch):
    row = {"n": 4, "accuracy": 50.0, "ci95": [15.0, 85.0], "robust_mask": "1100", "eps": 8 / 255}
    row |= {"batch_norm": "inference", "seed": 0}
    for name, seed in (("a", 0), ("b", 1)):
        results = {"clean": row, "worst_case": row | {"seed": seed}}
        about = {"dataset": "cifar10", "split": "test", "data": "tfds", "doubts": []}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(
            json.dumps({"m": about | {"results": results}})
        )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        report([Path("a"), Path("b")])
    assert str(error.value).endswith("; received a: seed 0; b: seed 1")


def test_tensorflow_talks_when_asked_to():
    done = python("-m", "igam_tf.report", "--verbosity=debug", "/nowhere")
    assert done.returncode == 1
    told = re.compile(r"^I\d{4} .*cpu_feature_guard", re.M)  # what it says of every processor
    assert told.search(done.stderr)
    assert not told.search(python("-m", "igam_tf.report", "/nowhere").stderr)


def test_a_library_leaves_the_environment_alone():
    code = (
        "import logging, os, signal, sys;"
        "state = lambda: (dict(os.environ), list(sys.path), sys.excepthook, logging.root.handlers[:], "
        "[signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)]);"
        "import absl.logging; before = state();"
        "import igam_tf, madry_models.fetch; igam_tf.load_madry; import igam_tf.train;"
        "print(state() == before)"
    )
    assert python("-c", code).stdout == "True\n"


def test_ctrl_c_is_one_line_and_status_130(monkeypatch, capsys):
    def main(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["eval_pgd"])
    with pytest.raises(SystemExit) as end:
        run_entry_point(main)
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_ctrl_c_while_tensorflow_is_loaded_is_one_line_too():
    code = "import sys; sys.argv[0] = 'igam-train'; import igam_tf.common.quiet; raise KeyboardInterrupt"
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (-2, "stopped by Ctrl-C\n")


def test_a_reader_who_goes_away_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "madry_models.fetch", "--help"], env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_bars_write_a_line_a_minute_where_there_is_no_terminal():
    code = (
        "import sys; sys.argv[0] = 'igam-train'; import igam_tf.common.quiet; from tqdm import tqdm;"
        "now = [0.0]; tqdm.monitor_interval = 0; bar = tqdm(total=300); bar._time = lambda: now[0];"
        "bar.start_t = bar.last_print_t = 0.0\n"
        "for _ in range(300): now[0] += 1.0; bar.update()"
    )
    environment = {"TF_CPP_MIN_LOG_LEVEL": "0"} | ENVIRONMENT
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert "\r" not in done.stderr
    assert 3 <= sum("it/s]" in line for line in done.stderr.splitlines()) <= 6


def test_log_lines_are_sentences_of_these_packages():
    def record(level: int, path: str) -> logging.LogRecord:
        return logging.LogRecord("absl", level, path, 7, "step %d", (3,), None)

    here, there = program.__file__, logging.__file__
    assert _Sentences().format(record(logging.INFO, here)) == "step 3"
    assert _Sentences().format(record(logging.WARNING, here)) == "warning: step 3"
    assert _is_shown(record(logging.INFO, here))
    assert not _is_shown(record(logging.INFO, there))
    assert _is_shown(record(logging.WARNING, there))


def test_print_config_says_where_each_setting_comes_from(command_of, capsys, tmp_path):
    run = command_of(program)
    run(
        "--print_config",
        "--preset=cpu",
        "--seed=3",
        "--data_dir=/nowhere",
        f"--workdir={tmp_path / 'run'}",
    )
    text = capsys.readouterr().out
    origin = {
        line.split()[0]: line.split(maxsplit=1)[1] for line in text.splitlines() if " --" in line
    }
    assert origin["--seed=3"] == "flag"
    row = "flags/transfers/mnist_to_cifar10.flags:"
    assert origin["--student=wrn-8-2"].startswith("flags/presets/cpu.flags:")
    assert origin["--transform=grey_crop"].startswith(row)
    assert origin["--disc_channels=16,32,64,128,256"].startswith(row)
    assert origin["--sync_batch_norm=true"] == "default"
    assert text.splitlines()[0] == "experiment"
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="expected --igam_start within the 1700 training steps"):
        run("--print_config", "--preset=cpu", "--igam_start=5000")
