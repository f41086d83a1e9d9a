"""Speed of the IGAM step on 1, 2 and 4 replicas, the same global batch, in one process.

python bench/scale.py [--student=wrn-8-2] [--counts=1,2,4]

Times are medians of --repeats rounds; a round runs each number of replicas in turn, with the steps of
`bench/step.py`. Each batch is split as in `igam_tf.train`. Weights and images are random.

Without GPUs the replicas are logical CPUs, which share the cores: there is nothing to gain from them
but what one replica leaves idle, and what is lost is the cost of splitting the step, of synchronised
batch norm and of adding up. Above 1 they tell nothing about several GPUs or machines. Ends with one
line of JSON.
"""

import functools

import rounds
import step
import tensorflow as tf
from absl import flags

from igam_tf.common import devices
from igam_tf.common.errors import UserError, flags_alone
from igam_tf.common.program import run_entry_point

FLAGS = flags.FLAGS
KIND = "igam"


def define_flags() -> None:
    """The flags of `step`, whose trainer this is, and the numbers of replicas."""
    step.define_flags()
    flags.DEFINE_list("counts", ["1", "2", "4"], "Numbers of replicas; the first is the reference.")


def replicated(config, count: int) -> tuple:
    """(a step on so many replicas, its batches)."""
    strategy = devices.local_strategy(count)
    with strategy.scope():
        one = step.Step(config, FLAGS.teacher)
        batches = devices.sharded(tf.data.Dataset.from_tensors((one.x, one.y)).repeat())
    return strategy, one, batches


def measure(student: str, counts: list[int]) -> dict:
    """The figures of one student; prints a line for each number of replicas."""
    config = step.configs(student)[KIND]
    runs = {count: replicated(config, count) for count in counts}

    def seconds(count: int) -> float:
        strategy, one, batches = runs[count]
        with strategy.scope():
            return one.seconds(batches)

    calls = {count: functools.partial(seconds, count) for count in counts}
    median = rounds.medians(calls, FLAGS.repeats)
    rates = {n: config.batch_size / value for n, value in median.items()}
    over = {n: rate / rates[counts[0]] for n, rate in rates.items()}
    for n in counts:
        print(
            f"{student:10s} {n} replicas {rates[n]:9.2f} images/s, {over[n]:5.2f} x that of "
            f"{counts[0]}",
            flush=True,
        )
    return {
        "batch_size": config.batch_size,
        "images_per_second": {n: round(rate, 2) for n, rate in rates.items()},
        f"over_{counts[0]}": {n: round(ratio, 3) for n, ratio in over.items()},
    }


def main(argv: list[str]) -> None:
    """Prints a line for each network and number of replicas, and one line of JSON."""
    flags_alone(argv)
    try:
        counts = list(map(int, FLAGS.counts))
        ok = min(counts) > 0
    except ValueError:
        ok = False
    if not ok:
        raise UserError(f"expected --counts such as 1,2,4; received {','.join(FLAGS.counts)!r}")
    if KIND not in FLAGS.kinds:
        raise UserError(
            f"expected {KIND}, the step of this program, in --kinds; received {','.join(FLAGS.kinds)!r}"
        )
    devices.local_strategy(max(counts))  # as many logical CPUs, before any tensor is made
    kind = "GPUs" if tf.config.list_physical_devices("GPU") else "logical CPUs that share the cores"
    about = {"kind": KIND, "replicas": kind}
    about |= step.chosen("teacher", "precision", "disc_every", "repeats")
    heading = f"weights and images: random; replicas: {kind}"
    step.run(about, lambda student: measure(student, counts), heading)


if __name__ == "__main__":
    define_flags()
    run_entry_point(main)
