"""Speed of the input pipeline alone, against the step it feeds, in one process.

python bench/pipeline.py [--student=wrn-8-2] [--data=tfds --data_dir=...]

The batches are those of `igam_tf.train`: shuffled, cropped, mirrored. They are drawn as fast as they
come; then plain training, whose step is the shortest, runs on one batch over and over, and on the
pipeline's. Medians of --repeats rounds in turn. `pipeline_over_step` is how many times as fast as the
step the pipeline is alone, `fed_over_step` the cost of a step that is fed over one that is not. Ends
with one line of JSON.
"""

import time

import rounds
import step
from absl import flags

from igam_tf import datasets
from igam_tf.common.errors import flags_alone
from igam_tf.common.program import run_entry_point

FLAGS = flags.FLAGS
DRAIN = 8  # batches drawn unmeasured: more than were prefetched


def define_flags() -> None:
    """The flags of `step`, whose trainer this is, and those of the data."""
    step.define_flags()
    flags.DEFINE_enum(
        "data", "builtin", ("tfds", "builtin"), "Use real (tfds) or synthetic images (builtin)."
    )
    flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets; by default its own.")
    flags.DEFINE_integer(
        "batches", 50, "Draw N batches in each round without training.", lower_bound=1
    )


def seconds_alone(batches) -> float:
    """Mean seconds for a batch of an iterator that nothing else waits for."""
    for _ in range(DRAIN):
        next(batches)
    begin = time.perf_counter()
    for _ in range(FLAGS.batches):
        next(batches)
    return (time.perf_counter() - begin) / FLAGS.batches


def measure(student: str) -> dict:
    """The figures of one student; prints a line."""
    config = step.configs(student)["plain"]
    split = datasets.load(
        config.target, "train", source=FLAGS.data, data_dir=FLAGS.data_dir, seed=config.data_seed
    )
    batches = iter(
        datasets.train_batches(
            split,
            batch_size=config.batch_size,
            seed=config.seed,
            augment=datasets.Augment(noise=config.pixel_noise),
            num_steps=10**9,
        )
    )
    plain = step.Step(config, FLAGS.teacher)
    kinds = {
        "pipeline": lambda: seconds_alone(batches),
        "step": plain.seconds,
        "fed": lambda: plain.seconds(batches),
    }
    median = rounds.medians(kinds, FLAGS.repeats)
    rates = {kind: round(config.batch_size / value, 1) for kind, value in median.items()}
    ratio, cost = median["step"] / median["pipeline"], median["fed"] / median["step"]
    print(
        f"{student:10s} pipeline {rates['pipeline']:9.1f} images/s, plain step {rates['step']:9.1f}: "
        f"{ratio:.1f} times as fast; a fed step costs {cost:.3f} of one that is not",
        flush=True,
    )
    return {
        "batch_size": config.batch_size,
        "images_per_second": rates,
        "pipeline_over_step": round(ratio, 2),
        "fed_over_step": round(cost, 3),
    }


def main(argv: list[str]) -> None:
    """Prints a line for each network, and one line of JSON."""
    flags_alone(argv)
    step.run(step.chosen("data", "precision", "repeats"), measure)


if __name__ == "__main__":
    define_flags()
    run_entry_point(main)
