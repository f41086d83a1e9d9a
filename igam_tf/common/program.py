"""The frame of all programs: --help, --version, plain log lines, one sentence for a mistake."""

import igam_tf.common.quiet  # noqa: F401 (before tqdm is imported)

# isort: split
import importlib.metadata
import logging
import math
import os
import re
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby, takewhile
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from absl import app, flags
from absl import logging as absl_logging
from tqdm import tqdm

from igam_tf.common.errors import UserError, did_you_mean, disk_errors
from igam_tf.common.flagfiles import expanded, names

INTERRUPTED_STATUS = 128 + signal.SIGINT

_HELP, _VERSION = {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"}, "--version"
_GENERAL = """
general: of every program
  --flagfile=<file>
      Reads flags from a file, one per line.{flagfiles}
  --verbosity=<debug|info|warning|error>
      How much is logged; debug also shows TensorFlow's own lines, and the traceback of an
      error. (default: info)
  --version
      Prints the versions of igam_tf, TensorFlow and Keras, and exits.
  --help
      Prints this text, and exits."""
_VALUES = {
    "int": "<whole number>",
    "float": "<number>",
    "string": "<text>",
    "comma separated list of strings": "<text>,<text>,...",
}
# Flags with the same meaning in different programs, for the suggestion after an unknown flag.
_ALIKE = (
    ("output", "workdir", "json", "dest"),
    ("model", "run", "runs", "reference", "checkpoint"),
    ("num_examples", "eval_examples", "num_images"),
    ("attacks", "eval_attacks"),
    ("dataset", "target"),
    ("checks", "lines"),
    ("eps", "epsilon", "radius"),
)
# Name of a flag that was set in a flagfile -> "<file>:<line number>".
PLACES: dict[str, str] = {}
_headings: dict[str, str] = {}  # name of a flag -> its heading in --help


@contextmanager
def heading(text: str) -> Iterator[None]:
    """Context: --help lists the flags that are defined in it below the heading `text`."""
    before = set(flags.FLAGS)
    yield
    _headings.update({name: text for name in flags.FLAGS if name not in before})


def default_and_range(default: object, least: float | None, most: float | None) -> str:
    """The end of a help text, such as " (default: 100; at least 1)"; None and "" are left out."""
    said = [] if default in (None, "", [], ()) else [f"default: {value_text(default)}"]
    if least is not None and math.isfinite(least):
        limited = most is not None and math.isfinite(most)
        said.append(f"{least} to {most}" if limited else f"at least {least:g}")
    return f" ({'; '.join(said)})" if said else ""


def value_text(value: object) -> str:
    """A flag's value as a command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _written(flag: flags.Flag) -> str:
    """How a flag is written: --seed=<whole number>."""
    choices = getattr(flag.parser, "enum_values", None)
    value = f"<{'|'.join(choices)}>" if choices else _VALUES.get(flag.flag_type(), "<text>")
    return f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}={value}"


def _range(flag: flags.Flag, default: object = None) -> str:
    bounds = (getattr(flag.parser, end, None) for end in ("lower_bound", "upper_bound"))
    return default_and_range(default, *bounds)


def _flag_text(flag: flags.Flag, width: int) -> str:
    name = _written(flag)
    text = flag.help.removeprefix(f"{name.partition('=')[2]}: ") + _range(flag, flag.default)
    lines = textwrap.wrap(
        name.replace("|", "| "), width - 2, break_long_words=False, break_on_hyphens=False
    )
    lines = [line.replace("| ", "|") for line in lines]
    lines += textwrap.wrap(text, width - 6, break_long_words=False, break_on_hyphens=False)
    first, *others = lines
    return "\n".join([f"  {first}", *(f"      {line}" for line in others)])


def called_as() -> str:
    """How the program was called: "python -m igam_tf.train", or a script's name, "igam-train"."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {_dotted(spec.name)}" if spec else Path(sys.argv[0]).name


def _dotted(module: str) -> str:
    return module.removesuffix(".__main__")


def help_text(module: ModuleType, flagfiles: Path | None = None) -> str:
    """The help text: what the program does, then its flags below their headings.

    Args:
        module: that of the program; its docstring says what it does.
        flagfiles: folder of the flagfiles that the program finds by name.
    """
    width = min(shutil.get_terminal_size().columns, 100)
    found: dict[str, list[flags.Flag]] = {}
    for name, title in _headings.items():
        if name in flags.FLAGS:
            found.setdefault(title, []).append(flags.FLAGS[name])
    others = flags.FLAGS.get_key_flags_for_module(module)
    if others := [flag for flag in others if flag.name not in _headings]:
        found["flags"] = others
    about = (module.__doc__ or "").strip()
    parts = [about.replace(f"python -m {_dotted(module.__name__)} ", f"{called_as()} ")]
    for title, members in found.items():
        parts.append("\n".join([f"\n{title}", *(_flag_text(flag, width) for flag in members)]))
    own = _flagfiles_text(flagfiles, width - 6) if flagfiles else ""
    return "\n".join([*parts, _GENERAL.format(flagfiles=own)])


def _flagfiles_text(folder: Path, width: int) -> str:
    """Lists the flagfiles of a folder, with one paragraph for each subfolder."""
    lines = ["The package has these, each named by its path:"]
    for within, found in groupby(names(folder), lambda name: name.rpartition("/")[0]):
        own = ", ".join(name.removeprefix(f"{within}/") for name in found)
        lines += textwrap.wrap(
            f"{within}/: {own}" if within else own, width, subsequent_indent="  "
        )
    return "".join(f"\n      {line}" for line in lines)


def version_text() -> str:
    """Versions of igam_tf, TensorFlow and Keras."""
    import keras
    import tensorflow as tf

    try:
        ours = importlib.metadata.version("igam_tf")
    except importlib.metadata.PackageNotFoundError:
        ours = "(not installed)"
    return f"igam_tf {ours}, TensorFlow {tf.__version__}, Keras {keras.__version__}"


class _Verbosity(flags.IntegerParser):
    """Parses a level of absl, given by its name or its number."""

    levels: ClassVar = {"debug": 1, "info": 0, "warning": -1, "error": -2}
    enum_values = tuple(levels)

    def parse(self, argument: str | int) -> int:
        return super().parse(self.levels.get(str(argument), argument))


def _error(sentence: object) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 1


def _unknown_flag(name: str) -> str:
    """The sentence for an unknown flag, with a suggestion."""
    alike = [other for names in _ALIKE if name in names for other in names if other in flags.FLAGS]
    meant = did_you_mean(alike[0] if alike else name, flags.FLAGS, "--")
    return f"expected a flag of {called_as()}; received --{name}: {meant}--help lists all of them"


def _wrong_value(error: flags.Error) -> str:
    """The sentence for a flag with a wrong value."""
    text = str(error).replace("\n", " ")
    found = re.match(r"flag --(\w+)=(.*?): |Missing value for flag --?(\w+)", text)
    if not found or (found[1] or found[3]) not in flags.FLAGS:
        return text
    flag = flags.FLAGS[found[1] or found[3]]
    value = "none" if found[2] in (None, "None") else repr(found[2])
    return f"expected {_written(flag)}{_range(flag)}; received {value}"


def _parse(argv: list[str], module: ModuleType, flagfiles: Path | None) -> list[str]:
    """Parses the flags; after --help, --version or a wrong flag it prints the answer and exits."""
    asked = set(takewhile("--".__ne__, argv[1:]))
    if asked & _HELP:
        print(help_text(module, flagfiles))
        sys.exit(0)
    if _VERSION in asked:
        print(version_text())
        sys.exit(0)
    flags.FLAGS["verbosity"].parser = _Verbosity()
    try:
        whole, places = expanded(argv, flagfiles)
        rest = flags.FLAGS(whole)
    except flags.UnrecognizedFlagError as error:
        sys.exit(_error(_unknown_flag(error.flagname)))
    except UserError as error:
        sys.exit(_error(error))
    except flags.Error as error:
        sys.exit(_error(_wrong_value(error)))
    _talk_plainly()
    PLACES.update({n if n in flags.FLAGS else n.removeprefix("no"): p for n, p in places.items()})
    return rest


class _AboveBars(logging.Handler):
    """Writes to standard error; on a terminal, above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        write = tqdm.write if sys.stderr.isatty() else print
        write(self.format(record), file=sys.stderr)


class _Sentences(logging.Formatter):
    """A message without time and place; warnings and errors begin with their level."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        level = record.levelname.lower()
        return text if record.levelno < logging.WARNING else f"{level}: {text}"


def _is_shown(record: logging.LogRecord) -> bool:
    """Whether a log line is shown: all warnings, and all lines of these packages."""
    ours = Path(__file__).parents[2]
    place = Path(record.pathname)
    return record.levelno >= logging.WARNING or any(
        place.is_relative_to(ours / package) for package in ("igam_tf", "madry_models", "bench")
    )


_SCREEN = _AboveBars()
_SCREEN.setFormatter(_Sentences())
_SCREEN.addFilter(_is_shown)


def _talk_plainly() -> None:
    """Shows log lines as sentences, from info on; with --verbosity=debug all lines in absl's format."""
    if flags.FLAGS["verbosity"].using_default_value:
        absl_logging.set_verbosity(absl_logging.INFO)
    if absl_logging.get_verbosity() < absl_logging.DEBUG:
        logging.root.removeHandler(absl_logging.get_absl_handler())
        logging.root.addHandler(_SCREEN)


def run_entry_point(
    main: Callable[[list[str]], int | None], *, flagfiles: Path | None = None
) -> None:
    """Runs `main` with the arguments that are not flags, and exits with its status.

    A wrong flag or a `UserError` prints one line and exits with status 1; Ctrl-C prints one line
    and exits with status 130. If the reader of the output ends, as in `| head`, it exits silently.

    Args:
        main: the program; --help begins with the docstring of its module.
        flagfiles: folder in which `--flagfile=<name>` finds files, besides the current folder.
    """

    def guarded(argv: list[str]) -> int | None:
        try:
            with disk_errors():
                return main(argv)
        except UserError as error:
            if absl_logging.get_verbosity() >= absl_logging.DEBUG:
                traceback.print_exc()
            return _error(error)
        except KeyboardInterrupt:
            print("stopped by Ctrl-C", file=sys.stderr)
            return INTERRUPTED_STATUS

    module = sys.modules[main.__module__]
    try:
        try:
            app.run(guarded, flags_parser=partial(_parse, module=module, flagfiles=flagfiles))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):  # Python would flush the rest again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(128 + signal.SIGPIPE)
