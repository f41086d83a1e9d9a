"""What `torch_step.py` and `release_step.py` share: the students and the lines they print.

The standard library alone, as of Python 3.7: their libraries are not those of igam_tf.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from typing import Callable  # noqa: UP035

import rounds

STUDENTS = {"wrn-8-2": 128, "wrn-32-1": 32, "wrn-32-10": 8}  # -> images a step
SIDE = 2048  # of the matrices whose product is the peak


def seconds(step: Callable[[], object], turns: int = 1) -> float:
    """Mean seconds of so many steps."""
    begin = time.perf_counter()
    for _ in range(turns):
        step()
    return (time.perf_counter() - begin) / turns


def rates(student: str, trainers: dict, product: Callable, disc_every: int, repeats: int) -> dict:
    """Images a second of each kind of training, the fastest trainer's; prints a line for each.

    Args:
        student: an entry of STUDENTS.
        trainers: name -> an object with methods `plain`, `igam` and `pgd7`, each one step.
        product: multiplies two matrices [SIDE,SIDE].
        disc_every: steps in a round of IGAM's, and of plain ones.
        repeats: rounds.
    """
    batch_size = STUDENTS[student]
    turns = {"plain": disc_every, "igam": disc_every, "pgd7": 1}
    calls = {
        (kind, name): functools.partial(seconds, getattr(trainer, kind), turns[kind])
        for kind in turns
        for name, trainer in trainers.items()
    }
    products: list = []
    median = rounds.medians(calls, repeats, between=lambda: products.append(seconds(product)))
    best = {kind: min(trainers, key=lambda n, kind=kind: median[kind, n]) for kind in turns}
    taken = {kind: median[kind, name] for kind, name in best.items()}
    for kind, name in best.items():
        rate = f"{student:10s} {kind:6s} {batch_size / taken[kind]:9.2f} images/s"
        print(f"{rate}, {taken[kind] / taken['plain']:5.2f} x plain, {name}", flush=True)
    return {
        "batch_size": batch_size,
        "peak_gflops_per_second": round(2 * SIDE**3 / min(products[1:]) / 1e9, 1),
        "images_per_second": {k: round(batch_size / taken[k], 2) for k in turns},
    }


def main(library: dict, description: str, trainers_of: Callable) -> None:
    """Prints a line for each network and kind of training, and one line of JSON.

    Args:
        library: its name and version, for the JSON.
        description: of the program.
        trainers_of: (student, images a step, disc_every) -> (trainers, product) of `rates`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--student", default=",".join(STUDENTS), help="students to measure")
    parser.add_argument("--disc_every", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    students = args.student.split(",")
    if set(students) - set(STUDENTS) or min(args.disc_every, args.repeats) < 1:
        parser.error(f"expected --student of {', '.join(STUDENTS)} and whole numbers above 0")
    networks = {}
    for student in students:
        trainers, product = trainers_of(student, STUDENTS[student], args.disc_every)
        networks[student] = rates(student, trainers, product, args.disc_every, args.repeats)
    print(json.dumps({**library, "disc_every": args.disc_every, "networks": networks}))
