"""Speed of the training step: IGAM against plain training and against PGD-7 training, in one process.

python bench/step.py [--student=wrn-8-2]

Times are medians of --repeats rounds; a round runs every kind of training in turn, and the matrix
product that stands for the machine's peak. IGAM's is the mean over `match_every` x `disc_every` steps,
one of which is the discriminator's turn as well. The trainers are those of `igam_tf.train`; weights and
images are random and hardly move, which does not matter to the time.

Operations are counted from the traced graph, where they are needed: convolutions, their two gradients
and matrix products, two for each multiply-add, padding included; everything else is left out.

Peak memory is the largest resident size of a process of its own, which has done that step and nothing
else; TensorFlow itself is in it. Ends with one line of JSON.
"""

import dataclasses
import json
import math
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial

import keras
import numpy as np
import rounds
import tensorflow as tf
from absl import flags
from rivals import SIDE, STUDENTS

from igam_tf import datasets
from igam_tf.common.errors import UserError, flags_alone, writable
from igam_tf.common.files import write_text
from igam_tf.common.program import run_entry_point
from igam_tf.experiments.config import Config
from igam_tf.experiments.resolve import described_transform, resolve
from igam_tf.formulas import gradients, losses
from igam_tf.method.adversarial import PGDTraining
from igam_tf.method.architectures import builder_of
from igam_tf.method.igam import IGAM
from igam_tf.method.objectives import METHODS
from igam_tf.method.teacher import Teacher
from igam_tf.method.trainer import ClassifierTrainer
from igam_tf.training.building import new_optimizers, new_source_network, new_student, new_trainer
from madry_models import WideResNet

FLAGS = flags.FLAGS
TEACHERS = {  # -> the transfer it is of
    "mnist": {"source": "mnist", "target": "cifar10"},
    "cifar10": {"source": "cifar10", "target": "cifar100"},
    "student": {"source": "cifar10", "target": "cifar100", "teacher": "train"},
}
KINDS = {
    "plain": {"method": "standard"},
    "igam": {"method": "igam", "second_order": "exact"},
    "igam_finite_difference": {"method": "igam", "second_order": "finite_difference"},
    "igam_every_4th": {"method": "igam", "second_order": "finite_difference", "match_every": 4},
    "pgd7": {"method": "pgd", "pgd_steps": 7},
}


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_list("student", list(STUDENTS), "Students to measure, each wrn-<depth>-<width>.")
    flags.DEFINE_integer(
        "batch_size", 0, "Images per step; 0 means 128, 32 or 8 by size.", lower_bound=0
    )
    flags.DEFINE_enum(
        "teacher",
        "mnist",
        list(TEACHERS),
        "MNIST's, CIFAR-10's w32-10, or one of the student's size",
    )
    flags.DEFINE_list("kinds", list(KINDS), "Kinds of step to measure besides plain.")
    for field in dataclasses.fields(Config):
        if field.name in ("precision",):
            choices = field.metadata["choices"]
            flags.DEFINE_enum(field.name, field.default, choices, "as in igam_tf.train")
    flags.DEFINE_integer("disc_every", 5, "as in igam_tf.train", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "Number of rounds.", lower_bound=1)
    flags.DEFINE_bool("memory", True, "Measure peak memory, each in a process of its own.")
    flags.DEFINE_string("json", None, "File to write the JSON to as well.")


# --- one kind of training --------------------------------------------------------------------------


class Step:
    """A trainer of `igam_tf.train`, on one random batch over and over.

    Args:
        config: all settings.
        teacher: an entry of TEACHERS.
    """

    def __init__(self, config: Config, teacher: str):
        keras.utils.set_random_seed(config.seed)
        self.config, self.spec = config, datasets.SPECS[config.target]
        method = METHODS[config.method]
        f_t = self._teacher(teacher) if method.teacher else None
        pixel_max = self.spec.pixel_max
        self.trainer: ClassifierTrainer = new_trainer(
            config, self.spec, new_student(config, self.spec, config.precision), f_t
        )
        self.trainer.compile(*new_optimizers(config))
        rng = np.random.default_rng(config.seed)
        shape = (config.batch_size, *self.spec.image_shape)
        self.x = tf.constant(rng.uniform(0, pixel_max, shape), tf.float32)
        self.y = tf.constant(rng.integers(0, self.spec.num_classes, config.batch_size))
        self._step = self.trainer.make_train_function() or self.trainer.train_function
        self._data = iter(tf.data.Dataset.from_tensors((self.x, self.y)).repeat())
        # A round: all of IGAM's kinds of step; PGD's are long enough one by one.
        self.turns = 1 if method.adversarial else config.match_every * config.disc_every

    def _teacher(self, name: str) -> Teacher:
        spec = datasets.SPECS[self.config.source]
        if name == "cifar10":  # the challenge's network, whatever the student
            network = WideResNet(32, 10, num_classes=spec.num_classes)
            network.build((None, *spec.image_shape))
        else:
            network = new_source_network(self.config, spec)
        _, between = described_transform(self.config)
        teacher = Teacher(network, between, num_classes=self.spec.num_classes)
        teacher.build((None, *self.spec.image_shape))
        return teacher

    def seconds(self, batches: Iterator | None = None) -> float:
        """Mean seconds of a step over one round, on the one batch or on these."""
        begin = time.perf_counter()
        for _ in range(self.turns):
            logs = self._step(batches or self._data)
        float(logs["L_xent"])  # an accelerator may still be at work
        return (time.perf_counter() - begin) / self.turns

    def flops(self) -> float:
        """Operations of a step in its traced graph, the mean over one round."""
        trainer, data = self.trainer, (self.x, self.y)
        if isinstance(trainer, IGAM):
            kinds = [trainer.phase(step) for step in range(self.turns)]
            of = {p: flops_of(lambda p=p: trainer.step_of_kind(data, p)) for p in set(kinds)}
            return sum(of[kind] for kind in kinds) / self.turns
        plain = flops_of(lambda: ClassifierTrainer.train_step(trainer, data))
        if not isinstance(trainer, PGDTraining):
            return plain
        # The attack is a loop in the graph, of which one turn is an input gradient.
        logits_fn = partial(trainer.network, training=False)
        turn = partial(gradients.input_gradient, logits_fn, self.x, self.y, losses.xent)
        return plain + trainer.steps * flops_of(turn)


def flops_of(function: Callable) -> int:
    """Operations of the convolutions and matrix products that the graph of `function` needs.

    TensorFlow traces both gradients of each convolution and drops later what nothing reads.
    """
    graph = tf.function(function).get_concrete_function().graph
    todo, needed = [*graph.control_outputs, *(t.op for t in graph.outputs)], set()
    while todo:
        op = todo.pop()
        if op not in needed:
            needed.add(op)
            todo += [*op.control_inputs, *(t.op for t in op.inputs)]
    return 2 * sum(map(multiply_adds, needed))


def multiply_adds(op: tf.Operation) -> int:
    """Of one convolution, gradient of one, or matrix product; 0 for any other."""
    if op.type == "MatMul":
        return (
            op.outputs[0].shape.num_elements() * op.inputs[0].shape[not op.get_attr("transpose_a")]
        )
    if op.type not in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"):
        return 0
    # Each value of the convolution's output is a sum over one kernel.
    output = op.outputs[0] if op.type == "Conv2D" else op.inputs[2]
    kernel = op.outputs[0] if op.type == "Conv2DBackpropFilter" else op.inputs[1]
    return output.shape.num_elements() * math.prod(kernel.shape[:3])


def matrix_product(precision: str) -> Callable[[], float]:
    """Operations a second of a product of two square matrices in the precision of the layers."""
    dtype = keras.dtype_policies.get(precision).compute_dtype
    side = 8192 if tf.config.list_physical_devices("GPU") else SIDE  # a GPU is idle at the smaller
    a, b = (tf.cast(tf.random.stateless_normal([side, side], [0, i]), dtype) for i in range(2))
    product = tf.function(lambda: tf.reduce_max(tf.matmul(a, b)))

    def rate() -> float:
        begin = time.perf_counter()
        float(product())
        return 2 * side**3 / (time.perf_counter() - begin)

    return rate


def peak_memory(config: Config, teacher: str) -> float:
    """Largest resident size in GiB of this process, which does one round and nothing else."""
    Step(config, teacher).seconds()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# --- all of them ------------------------------------------------------------------------------------


def configs(student: str) -> dict[str, Config]:
    """Settings of each kind of training of this student."""
    batch_size = FLAGS.batch_size or STUDENTS.get(student, 0)
    if not batch_size:
        raise UserError(f"expected --batch_size with --student={student}")
    builder_of(student)
    unknown = set(FLAGS.kinds) - set(KINDS)
    if unknown:
        raise UserError(f"expected --kinds of {', '.join(KINDS)}; received {', '.join(unknown)}")
    common = TEACHERS[FLAGS.teacher] | {
        "student": student,
        "batch_size": batch_size,
        "precision": FLAGS.precision,
        "disc_every": FLAGS.disc_every,
        "disc_channels": (16, 32, 64, 128, 256),
        "lr_schedule": "constant",
        "learning_rate": 1e-6,
        "disc_learning_rate": 1e-6,
    }
    return {k: resolve(common | KINDS[k]) for k in KINDS if k in ("plain", *FLAGS.kinds)}


def check() -> None:
    """Refuses wrong flags before any work."""
    for student in FLAGS.student:
        configs(student)
    if FLAGS.json:
        writable("json", FLAGS.json)


def measure(student: str) -> dict:
    """All figures of one student; prints a line for each kind of training."""
    settings, memory = configs(student), {}
    if FLAGS.memory:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            todo = [(config, FLAGS.teacher) for config in settings.values()]
            memory = dict(zip(settings, pool.starmap(peak_memory, todo, 1), strict=True))
    steps = {kind: Step(config, FLAGS.teacher) for kind, config in settings.items()}
    rate, rates = matrix_product(FLAGS.precision), []
    calls = {kind: step.seconds for kind, step in steps.items()}
    median = rounds.medians(calls, FLAGS.repeats, between=lambda: rates.append(rate()))
    peak = max(rates[1:])
    flops = {kind: step.flops() for kind, step in steps.items()}
    batch_size = settings["plain"].batch_size
    result = {
        "batch_size": batch_size,
        "peak_gflops_per_second": round(peak / 1e9, 1),
        "seconds": {k: round(median[k], 5) for k in steps},
        "images_per_second": {k: round(batch_size / median[k], 2) for k in steps},
        "gflops_per_step": {k: round(flops[k] / 1e9, 3) for k in steps},
        "flops_over_plain": {k: round(flops[k] / flops["plain"], 3) for k in steps},
        "share_of_peak": {k: round(flops[k] / (median[k] * peak), 4) for k in steps},
        "peak_memory_gib": {k: round(v, 2) for k, v in memory.items()},
    }
    for kind in steps:
        for other in ("plain", "pgd7"):
            if kind.startswith("igam") and other in steps:
                result[f"{kind}_over_{other}"] = round(median[kind] / median[other], 3)
        print(
            f"{student:10s} {kind:23s} {batch_size / median[kind]:9.2f} images/s, "
            f"{median[kind] / median['plain']:5.2f} x plain (by operations "
            f"{flops[kind] / flops['plain']:5.2f}), {100 * flops[kind] / median[kind] / peak:5.1f} % "
            f"of {peak / 1e9:.0f} GFLOP/s" + (f", {memory[kind]:.2f} GiB" if memory else ""),
            flush=True,
        )
    return result


def chosen(*names: str) -> dict:
    """Flag -> its value."""
    return {name: FLAGS[name].value for name in names}


def run(about: dict, measured: Callable[[str], dict], heading: str = "") -> None:
    """Measures every student; the last line, and --json, have `about` and the figures of each."""
    check()
    tf.get_logger().setLevel("ERROR")
    if heading:
        print(heading)
    networks = {}
    for student in FLAGS.student:
        networks[student] = measured(student)
        keras.backend.clear_session()
    line = json.dumps(about | {"networks": networks})
    print(line)
    if FLAGS.json:
        write_text(writable("json", FLAGS.json), line + "\n")


def main(argv: list[str]) -> None:
    """Prints a line for each network and kind of training, and one line of JSON."""
    flags_alone(argv)
    about = chosen("teacher", "precision", "disc_every", "repeats")
    run(about, measure, "weights and images: random; the teacher's too")


if __name__ == "__main__":
    define_flags()
    run_entry_point(main)
