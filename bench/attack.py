"""Attacks per second: ours against Foolbox and the Adversarial Robustness Toolbox, in one process.

python bench/attack.py --model=runs/mnist-cifar10-igam-cpu --num_images=100

Same Keras model, same images, same steps; every library takes all images in one batch size. Each
time is the median of --repeats after one unmeasured call, which pays for tracing. Ends with one line
of JSON. Libraries that are not installed are named as such and left out.
"""

import importlib
import json
import statistics
import time
import warnings
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from igam_tf import datasets
from igam_tf.attacks import attack_names, attack_specs
from igam_tf.evaluation import logits_function
from igam_tf.models import dataset_of, find_model
from igam_tf.survival import in_pixel_range, survivors
from madry_models.errors import UserError, run_entry_point

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_string("model", None, "run folder, .keras file or MadryLab checkpoint folder")
    flags.DEFINE_string("data_dir", None, "tensorflow-datasets folder")
    flags.DEFINE_enum("data", None, ("tfds", "builtin"), "default: the run's, else tfds")
    flags.DEFINE_integer("num_images", 100, "images attacked", lower_bound=1)
    flags.DEFINE_integer("batch_size", 100, "images at once", lower_bound=1)
    flags.DEFINE_integer(
        "repeats", 3, "measured calls of PGD; the long ones have one", lower_bound=1
    )
    flags.DEFINE_list("attacks", ["pgd20", "apgd-ce", "square", "autoattack"], "what is compared")
    flags.DEFINE_list("libraries", ["foolbox", "art"], "with whom")


def _library(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            print(f"{name}: not installed, left out")
            return None


def timed(call: Callable[[], int], repeats: int) -> tuple[float, int]:
    """(median seconds, images left standing) of a call, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        standing = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), standing


class Bench:
    """One model, one set of images, and every library's way to attack them."""

    def __init__(self, model: keras.Model, images: np.ndarray, labels: np.ndarray, spec):
        self.model, self.images, self.labels, self.spec = model, images, labels, spec
        self.high = model.pixel_max
        self.eps, self.step_size = spec.eps * self.high, spec.step_size * self.high
        self.x = in_pixel_range(images, self.high)

    def _standing(self, x_adv: np.ndarray) -> int:
        logits = [self.model(x_adv[i : i + 100], training=False) for i in range(0, len(x_adv), 100)]
        return int((np.argmax(np.concatenate(logits), 1) == self.labels).sum())

    def ours(self, name: str) -> Callable[[], int]:
        """`igam_tf`, traced once."""
        specs = attack_specs(
            attack_names(name), eps=self.spec.eps, step_size=self.spec.step_size, restarts=1,
            loss="xent", num_classes=self.spec.num_classes,
        )  # fmt: skip
        logits_fn, compiled = logits_function(self.model, "inference"), {}

        def call() -> int:
            found = survivors(
                logits_fn, self.images, self.labels, attacks=specs, pixel_max=self.high, seed=0,
                batch_size=FLAGS.batch_size, batch_norm="inference", progress=False,
                compiled=compiled,
            )  # fmt: skip
            return int(found[name].sum())

        return call

    def foolbox(self, name: str) -> Callable[[], int] | None:
        """Foolbox has PGD alone of these."""
        foolbox = _library("foolbox")
        if foolbox is None or not name.startswith("pgd"):
            return None
        fmodel = foolbox.TensorFlowModel(self.model, bounds=(0, self.high), device="/device:CPU:0")
        attack = foolbox.attacks.LinfPGD(
            abs_stepsize=self.step_size, steps=int(name.removeprefix("pgd")), random_start=True
        )
        x, y = tf.constant(self.x), tf.constant(self.labels)

        def call() -> int:
            batches = range(0, len(x), FLAGS.batch_size)
            cut = [slice(i, i + FLAGS.batch_size) for i in batches]
            return self._standing(
                np.concatenate([attack(fmodel, x[c], y[c], epsilons=self.eps)[1] for c in cut])
            )

        return call

    def art(self, name: str) -> Callable[[], int] | None:
        """The Adversarial Robustness Toolbox, each attack with the settings of ours."""
        if _library("art") is None:
            return None
        estimators, evasion = map(
            importlib.import_module, ("art.estimators.classification", "art.attacks.evasion")
        )
        classifier = estimators.TensorFlowV2Classifier(
            lambda x, training=False: self.model(x, training=False),
            nb_classes=self.spec.num_classes,
            input_shape=self.spec.image_shape,
            loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            clip_values=(0.0, self.high),
        )
        common = {"eps": self.eps, "batch_size": FLAGS.batch_size, "verbose": False}
        apgd = {"norm": np.inf, "eps_step": 2 * self.eps, "max_iter": 100, "nb_random_init": 1}

        def auto_pgd(**changed):
            return evasion.AutoProjectedGradientDescent(classifier, **common, **(apgd | changed))

        def squares():
            return evasion.SquareAttack(
                classifier, norm=np.inf, max_iter=5000, p_init=0.8, nb_restarts=1, **common
            )

        if name == "apgd-ce":
            attack = auto_pgd(loss_type="cross_entropy")
        elif name == "square":
            attack = squares()
        elif name == "autoattack":
            parts = [
                auto_pgd(loss_type="cross_entropy"),
                auto_pgd(loss_type="difference_logits_ratio"),
                evasion.DeepFool(
                    classifier, max_iter=100, batch_size=FLAGS.batch_size, verbose=False
                ),
                squares(),
            ]
            attack = evasion.AutoAttack(
                classifier, norm=np.inf, eps=self.eps, attacks=parts, batch_size=FLAGS.batch_size
            )
        else:
            attack = evasion.ProjectedGradientDescentTensorFlowV2(
                classifier, eps_step=self.step_size, max_iter=int(name.removeprefix("pgd")),
                num_random_init=1, **common,
            )  # fmt: skip
        return lambda: self._standing(attack.generate(self.x, self.labels))


def main(_argv: list[str]) -> None:
    """Prints a table and one line of JSON."""
    load, path, run = find_model(FLAGS.model)
    model = load(path)
    name = run.get("target") or dataset_of(model)
    split = datasets.load(
        name, "test", source=FLAGS.data or run.get("data", "tfds"),
        data_dir=FLAGS.data_dir or run.get("data_dir") or None,
    )  # fmt: skip
    n = FLAGS.num_images
    if n > len(split.labels):
        raise UserError(f"expected at most {len(split.labels)} images; received {n}")
    bench = Bench(model, split.images[:n], split.labels[:n].astype("int64"), split.spec)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for attack in FLAGS.attacks:
        row = results[attack] = {}
        for library in ["ours", *FLAGS.libraries]:
            call = getattr(bench, library)(attack)
            if call is None:
                continue
            seconds, standing = timed(call, FLAGS.repeats if attack.startswith("pgd") else 1)
            row[library] = {"images_per_second": round(n / seconds, 2), "standing": standing}
            row[library]["ours_over_theirs"] = round(
                seconds / (n / row["ours"]["images_per_second"]), 2
            )
            print(
                f"{attack:12s} {library:8s} {n / seconds:9.2f} images/s, {standing} of {n} standing, "
                f"ours is {row[library]['ours_over_theirs']} times as fast",
                flush=True,
            )
    print(
        json.dumps(
            {"model": FLAGS.model, "n": n, "batch_size": FLAGS.batch_size, "results": results}
        )
    )


if __name__ == "__main__":
    define_flags()
    flags.mark_flag_as_required("model")
    run_entry_point(main)
