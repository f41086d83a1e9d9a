"""Runs the rows of a table as processes, one or several at a time."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from absl import logging


def run_all(
    commands: Mapping[str, list[str]], *, jobs: int, output: Path
) -> Iterator[tuple[str, int]]:
    """Runs the commands in their order and yields (name, exit status) as each ends.

    If several run at once, each has its own share of the cores, so that none slows another down.

    SIGTERM or Ctrl-C, to this program or to a row, ends all rows and then this program. A closed
    terminal counts as SIGTERM. Rows get the signal from this program, not from the terminal, so
    that each gets exactly one and reports it.

    Args:
        commands: name of a row -> its command line.
        jobs: how many run at once. With several, a row writes its output to <output>/<row>.log.
        output: an existing folder.

    Raises:
        SystemExit: SIGTERM was received.
        KeyboardInterrupt: Ctrl-C was received.
    """
    waiting = list(commands)
    free = shares_of_cores(jobs)
    running: dict[str, tuple[subprocess.Popen, set[int]]] = {}  # starts each on its cores
    heeded = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {n: signal.signal(n, lambda number, _: sys.exit(128 + number)) for n in heeded}
    end_with = signal.SIGTERM
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                logging.info("row %d of %d: %s", len(commands) - len(waiting), len(commands), name)
                log = output / f"{name}.log" if jobs > 1 else None
                cores = free.pop(0)
                running[name] = _begin(commands[name], log, cores), cores
            ended = [name for name, (process, _) in running.items() if process.poll() is not None]
            for name in ended:
                process, cores = running.pop(name)
                free.append(cores)
                yield name, _status(process)
            time.sleep(0.0 if ended else 0.1)
    except KeyboardInterrupt:
        end_with = signal.SIGINT
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process, _ in running.values():
            process.send_signal(end_with)  # a row saves its state first
        for process, _ in running.values():
            process.wait()


def shares_of_cores(jobs: int) -> list[set[int]]:
    """Disjoint sets of cores for `jobs` processes that run at once.

    The sets are empty, which means all cores, if there is one job, more jobs than cores, or no
    support for affinities.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if jobs == 1 or jobs > len(cores):
        return [set() for _ in range(jobs)]
    ends = [len(cores) * i // jobs for i in range(jobs + 1)]
    return [set(cores[start:end]) for start, end in itertools.pairwise(ends)]


def _begin(arguments: list[str], log: Path | None, cores: set[int]) -> subprocess.Popen:
    with log.open("ab") if log else contextlib.nullcontext() as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=file, start_new_session=True)
    if cores:
        with contextlib.suppress(ProcessLookupError):  # it has already ended
            os.sched_setaffinity(process.pid, cores)
    return process


def _status(process: subprocess.Popen) -> int:
    def stopped_by(number: signal.Signals) -> bool:
        return process.returncode in (128 + number, -number)

    if stopped_by(signal.SIGINT):
        raise KeyboardInterrupt
    if stopped_by(signal.SIGTERM):
        raise SystemExit(128 + signal.SIGTERM)
    return process.returncode
