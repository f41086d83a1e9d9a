"""Attacks per second, and whom they leave: ours and other libraries', in one process.

python bench/attack.py --model=runs/mnist-cifar10-igam-cpu --num_images=100
python bench/attack.py --model=my_nets:mnist --libraries=pyautoattack --norm=l1 --eps=10 \
    --attacks=apgd-ce,apgd-t,autoattack

The others are Foolbox, the Adversarial Robustness Toolbox, and Croce and Hein's own AutoAttack as
pyautoattack packages it (`pip install pyautoattack` brings PyTorch).

Same images, same steps, starts and queries, same batch size, and the same Keras model, which every
library gets traced once for all batch sizes; a network of PyTorch (torch:module:function) goes to
pyautoattack as it is. Each time is the median of --repeats after an unmeasured call on a few images,
which pays for tracing. Every library counts what still stands in the same way; that ours leaves out
what is wrong clean is part of its speed.

Foolbox and the Toolbox are compared in l-inf, Croce and Hein's code in every norm, and in each of its
versions. --noise makes the network random, for autoattack-rand.

The Toolbox has an ensemble named AutoAttack without targeted DLR and without FAB; that is less work,
so a ratio above 1 is a lower bound. Ends with one line of JSON. Libraries that are not installed are
named as such and left out.
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

from igam_tf.attacks import NORMS, attack_names, attack_specs
from igam_tf.attacks.apgd import STARTS_L1, TARGETS_L1
from igam_tf.attacks.fab import STARTS
from igam_tf.attacks.kinds import CUSTOM, CUSTOM_STARTS
from igam_tf.attacks.spec import STEPS, TARGETS
from igam_tf.attacks.square import P_INIT, QUERIES
from igam_tf.common.checks import check_eps
from igam_tf.common.errors import UserError, flags_alone
from igam_tf.common.program import run_entry_point
from igam_tf.datasets import in_pixel_range, parse_fraction
from igam_tf.evaluation.command_line import define_data_flags, define_model_flag
from igam_tf.evaluation.evaluate import logits_function
from igam_tf.evaluation.loading import chosen_model
from igam_tf.evaluation.robust import robust_flags
from igam_tf.pytorch.bridge import TorchModel

FLAGS = flags.FLAGS
WARM_UP = 8  # images of the call that is not measured
# (attack, library) -> what stands behind the name where it is not the same thing, in l-inf
_PARTS = "APGD-CE {0}, {1} {0}, {2} {0}, Square {3}"
BEHIND = {
    ("autoattack", "ours"): _PARTS.format(
        STEPS, f"APGD-T {TARGETS} x", f"FAB-T {TARGETS} x", QUERIES
    ),
    ("autoattack", "art"): _PARTS.format(STEPS, "APGD-DLR", "DeepFool", QUERIES),
}


def define_flags() -> None:
    """The flags of this program."""
    define_model_flag()
    define_data_flags()
    flags.DEFINE_integer("num_images", 100, "Attack the first N images.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 100, "Attack this many images at once.", lower_bound=1)
    flags.DEFINE_integer(
        "repeats", 3, "Number of measured calls of PGD; long attacks have one.", lower_bound=1
    )
    flags.DEFINE_list(
        "attacks", ["pgd20", "apgd-ce", "apgd-dlr", "square", "autoattack"], "Attacks to compare."
    )
    flags.DEFINE_list("libraries", ["foolbox", "art", "pyautoattack"], "Libraries to compare with.")
    flags.DEFINE_enum("norm", "linf", NORMS, "Norm of eps.")
    flags.DEFINE_string("eps", None, "Radius, as a fraction of the pixel range.")
    flags.DEFINE_float(
        "noise", 0.0, "Deviation of normal noise on the pixels, as a fraction of their range.",
        lower_bound=0.0,
    )  # fmt: skip


def _library(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            print(f"{name}: not installed, left out")
            return None


# n -> which of the first n images are robust, [n] bool
Call = Callable[[int], np.ndarray]


def timed(call: Call, n: int, repeats: int) -> tuple[float, np.ndarray]:
    """(median seconds, robust mask) of a call on n images, after one that is not counted."""
    call(min(n, WARM_UP))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        robust = call(n)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), robust


class Bench:
    """One model, one set of images, and every library's way to attack them."""

    def __init__(self, model: keras.Model, images: np.ndarray, labels: np.ndarray, spec):
        self.model, self.images, self.labels, self.spec = model, images, labels, spec
        self.high = model.pixel_max
        given = parse_fraction("eps", FLAGS.eps, most=float("inf"))
        check_eps(given, FLAGS.norm, spec.image_shape)
        self.share = spec.eps if given is None else given
        self.eps = self.share * self.high
        self.step_size = spec.step_size / spec.eps * self.eps
        self.x = in_pixel_range(images, self.high)
        shape = tf.TensorSpec([None, *spec.image_shape], tf.float32)
        exact = logits_function(model, "inference")

        def noisy(x: tf.Tensor) -> tf.Tensor:
            return exact(x + FLAGS.noise * self.high * tf.random.normal(tf.shape(x)))

        self.logits_fn = noisy if FLAGS.noise else exact
        self.traced = tf.function(self.logits_fn, input_signature=[shape])

    def _robust(self, x_adv: np.ndarray) -> np.ndarray:
        cut = range(0, len(x_adv), FLAGS.batch_size)
        logits = [self.traced(x_adv[i : i + FLAGS.batch_size]) for i in cut]
        return np.argmax(np.concatenate(logits), 1) == self.labels[: len(x_adv)]

    def ours(self, name: str) -> Call:
        """`igam_tf`, traced once."""
        specs = attack_specs(
            attack_names(name), eps=self.share, step_size=self.step_size / self.high, restarts=1,
            loss="xent", num_classes=self.spec.num_classes, norm=FLAGS.norm,
        )  # fmt: skip
        compiled: dict = {}

        def call(n: int) -> np.ndarray:
            found = robust_flags(
                self.logits_fn, self.images[:n], self.labels[:n], attacks=specs, pixel_max=self.high,
                seed=0, batch_size=FLAGS.batch_size, batch_norm="inference", progress=False,
                compiled=compiled,
            )  # fmt: skip
            return found[name]

        return call

    def foolbox(self, name: str) -> Call | None:
        """Foolbox has PGD alone of these."""
        foolbox = _library("foolbox")
        if foolbox is None or not name.startswith("pgd") or FLAGS.norm != "linf":
            return None
        fmodel = foolbox.TensorFlowModel(
            lambda x: self.traced(x), bounds=(0, self.high), device="/device:CPU:0"
        )
        attack = foolbox.attacks.LinfPGD(
            abs_stepsize=self.step_size, steps=int(name.removeprefix("pgd")), random_start=True
        )
        x, y = tf.constant(self.x), tf.constant(self.labels)

        def call(n: int) -> np.ndarray:
            batches = range(0, n, FLAGS.batch_size)
            cut = [slice(i, min(i + FLAGS.batch_size, n)) for i in batches]
            return self._robust(
                np.concatenate([attack(fmodel, x[c], y[c], epsilons=self.eps)[1] for c in cut])
            )

        return call

    def art(self, name: str) -> Call | None:
        """The Adversarial Robustness Toolbox, each attack with the settings of ours."""
        needs = ("art", "multiprocess") if name == "autoattack" else ("art",)  # it does not say so
        known = name.startswith("pgd") or name in ("apgd-ce", "apgd-dlr", "square", "autoattack")
        if not known or FLAGS.norm != "linf" or any(_library(n) is None for n in needs):
            return None
        estimators, evasion = map(
            importlib.import_module, ("art.estimators.classification", "art.attacks.evasion")
        )
        classifier = estimators.TensorFlowV2Classifier(
            lambda x, training=False: self.traced(tf.cast(x, tf.float32)),
            nb_classes=self.spec.num_classes,
            input_shape=self.spec.image_shape,
            loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            clip_values=(0.0, self.high),
        )
        common = {"eps": self.eps, "batch_size": FLAGS.batch_size, "verbose": False}
        apgd = {"norm": np.inf, "eps_step": 2 * self.eps, "max_iter": STEPS, "nb_random_init": 1}
        losses = {"apgd-ce": "cross_entropy", "apgd-dlr": "difference_logits_ratio"}

        def auto_pgd(name: str):
            return evasion.AutoProjectedGradientDescent(
                classifier, loss_type=losses[name], **apgd, **common
            )

        def squares():
            return evasion.SquareAttack(
                classifier, norm=np.inf, max_iter=QUERIES, p_init=P_INIT, nb_restarts=1, **common
            )

        if name in losses:
            attack = auto_pgd(name)
        elif name == "square":
            attack = squares()
        elif name == "autoattack":
            fool = {"max_iter": STEPS, "batch_size": FLAGS.batch_size, "verbose": False}
            parts = [*map(auto_pgd, losses), evasion.DeepFool(classifier, **fool), squares()]
            attack = evasion.AutoAttack(
                classifier, norm=np.inf, eps=self.eps, attacks=parts, batch_size=FLAGS.batch_size
            )
        else:
            attack = evasion.ProjectedGradientDescentTensorFlowV2(
                classifier, eps_step=self.step_size, max_iter=int(name.removeprefix("pgd")),
                num_random_init=1, **common,
            )  # fmt: skip
        return lambda n: self._robust(attack.generate(self.x[:n], self.labels[:n]))

    def pyautoattack(self, name: str) -> Call | None:
        """Croce and Hein's code, which takes a PyTorch module of x [B,C,H,W] in 0..1."""
        if name.startswith("pgd") or _library("pyautoattack") is None:
            return None
        torch, pyautoattack = map(importlib.import_module, ("torch", "pyautoattack"))
        traced, high = self.traced, self.high

        def pixels(x) -> np.ndarray:
            return high * x.detach().numpy().transpose(0, 2, 3, 1)

        class Logits(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.x = tf.constant(pixels(x))
                if not ctx.needs_input_grad[0]:
                    return torch.from_numpy(traced(ctx.x).numpy())
                with tf.GradientTape() as ctx.tape:
                    ctx.tape.watch(ctx.x)
                    ctx.logits = traced(ctx.x)
                return torch.from_numpy(ctx.logits.numpy())

            @staticmethod
            def backward(ctx, upstream):
                gradient = ctx.tape.gradient(ctx.logits, ctx.x, tf.constant(upstream.numpy()))
                return torch.from_numpy(high * gradient.numpy().transpose(0, 3, 1, 2))

        class Module(torch.nn.Module):
            def forward(self, x):
                return Logits.apply(x)

        versions = {"autoattack": "standard", "autoattack-plus": "plus", "autoattack-rand": "rand"}
        parts = name.removeprefix(CUSTOM).split("+")
        which = {"version": versions.get(name, "custom")}
        which |= {} if name in versions else {"attacks": parts}
        norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[FLAGS.norm]
        bridged = isinstance(self.model, TorchModel) and self.model.channels_first and high == 1
        as_it_is = bridged and not FLAGS.noise
        module = self.model.module if as_it_is else Module()
        attack = pyautoattack.AutoAttack(module, eps=self.share, norm=norm, seed=0, **which)
        if name not in versions:  # as ours: those of the standard version, if it has the attack
            sparse = FLAGS.norm == "l1"
            attack.apgd.use_largereps = attack.apgd_targeted.use_largereps = sparse
            attack.apgd.n_restarts = (
                STARTS_L1 if sparse else CUSTOM_STARTS if name.startswith(CUSTOM) else 1
            )
            attack.apgd_targeted.n_target_classes = TARGETS_L1 if sparse else TARGETS
            attack.fab.n_restarts = STARTS
        x = torch.from_numpy(np.ascontiguousarray(self.x.transpose(0, 3, 1, 2)) / high)
        y = torch.from_numpy(self.labels)

        def call(n: int) -> np.ndarray:
            # Its own verdict: another look at a broken image is another draw of a random network.
            _, found = attack.run_standard_evaluation(x[:n], y[:n], batch_size=FLAGS.batch_size)
            return (found == y[:n]).numpy()

        return call


def main(argv: list[str]) -> None:
    """Prints a table and one line of JSON."""
    flags_alone(argv)
    model, split, *_ = chosen_model(FLAGS)
    n = FLAGS.num_images
    if n > len(split.labels):
        raise UserError(f"expected at most {len(split.labels)} images; received {n}")
    bench = Bench(model, split.images[:n], split.labels[:n].astype("int64"), split.spec)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for attack in FLAGS.attacks:
        row = results[attack] = {}
        ours = mask = None  # seconds and robust mask of the first in the row
        for library in ["ours", *FLAGS.libraries]:
            call = getattr(bench, library)(attack)
            if call is None:
                print(f"{attack:12s} {library:12s} left out", flush=True)
                continue
            seconds, robust = timed(call, n, FLAGS.repeats if attack.startswith("pgd") else 1)
            if library == "ours":
                ours, mask = seconds, robust
            row[library] = {
                "images_per_second": round(n / seconds, 2),
                "robust": int(robust.sum()),
                "as_ours": int((robust == mask).sum()),
                "ours_over_theirs": round(seconds / ours, 2),
            }
            print(
                f"{attack:12s} {library:12s} {n / seconds:9.2f} images/s, {robust.sum()} of {n} robust, "
                f"{(robust == mask).sum()} as by ours, which is {seconds / ours:.2f} times as fast"
                + (f" ({BEHIND[attack, library]})" if (attack, library) in BEHIND else ""),
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
