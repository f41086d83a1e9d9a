"""Silences the lines that TensorFlow's C++ code writes at import; `program` imports this.

--verbosity=debug, or TF_CPP_MIN_LOG_LEVEL=0 in the environment, keeps these lines. If another
program imports the module of one of these programs, this does nothing.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from igam_tf.common.lazy import around_import


def is_program() -> bool:
    """Whether this process runs a program of these packages, by `python -m` or by a pip script."""
    path = Path(sys.argv[0] if sys.argv else "")
    ours = Path(__file__).absolute().parents[2]
    script = re.fullmatch(r"(igam|madry)-[a-z-]+(\.exe)?", path.name)
    return bool(script) or any(
        path.is_relative_to(ours / package) for package in ("igam_tf", "madry_models")
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Context that drops everything written to standard error, also from C++."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


@_silent()
def _quietly(execute: Callable[[], None]) -> None:
    execute()


def _in_lines(file: IO[str]) -> Callable[[str], object]:
    """Prints each state of a progress bar on a new line, instead of overwriting the last one."""
    return lambda text: text and print(text, file=file, flush=True)


def _stop_in_one_line(kind, error, traceback) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped by Ctrl-C", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if is_program():
    sys.excepthook = _stop_in_one_line  # outside `run_entry_point`
    if not sys.stderr.isatty():  # in a log a bar writes one line a minute
        for name in ("DELAY", "MININTERVAL"):
            os.environ.setdefault(f"TQDM_{name}", "60")
        from tqdm import tqdm

        tqdm.status_printer = staticmethod(_in_lines)
    _debug = re.search(r"^--?v(erbosity)?[=\n](debug|[1-9]\d*)$", "\n".join(sys.argv), re.M)
    # Some lines are written before TensorFlow reads the environment, others at any later time.
    if not _debug and os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") != "0":
        around_import("tensorflow", _quietly)
