"""One constructor for every method of `igam_tf.method.objectives.METHODS`."""

import dataclasses
import functools
import inspect
from collections.abc import Collection
from typing import Any

import keras

from igam_tf.common.checks import expect
from igam_tf.common.errors import did_you_mean
from igam_tf.method.adversarial import PGDTraining
from igam_tf.method.igam import IGAM
from igam_tf.method.objectives import METHODS
from igam_tf.method.settings import Settings
from igam_tf.method.teacher import FineTune, check_teacher
from igam_tf.method.trainer import WEIGHT_DECAY, ClassifierTrainer

# Arguments of every trainer.
_COMMON = (
    "pixel_max", "weight_decay", "label_smoothing", "decayed", "from_probabilities", "preprocess",
    "name",
)  # fmt: skip


def trainer(
    method: str,
    student: keras.Model,
    teacher: keras.Model | None = None,
    *,
    settings: Settings | None = None,
    **arguments: Any,
) -> ClassifierTrainer:
    """The trainer of a method; it has `compile()`, `fit()` and `save()` like any Keras model.

    Args:
        method: igam, l2, cosine, jarn, gradient_penalty, pgd, fast, n_fgsm, trades, ard, standard or
            finetune; docs/methods.md describes them.
        student: x [B,H,W,C] -> logits [B,K], any Keras model; for finetune an `igam_tf.Teacher`.
        teacher: for igam, l2, cosine and ard, as in `igam_tf.IGAM`.
        settings: values of hyperparameters that are not given here; None means
            `igam_tf.Settings()`.
        **arguments: only those that the method uses: - every method: pixel_max, weight_decay
            (default 2e-4), label_smoothing, decayed, from_probabilities, preprocess, name; -
            methods with adversarial examples: eps, the l-inf radius, which is required; ramp_steps,
            seed; with pgd, trades and ard also steps and step_size of the attack; beta of trades;
            alpha and temperature of ard; - methods that match input gradients: the fields of
            `igam_tf.Settings` that the method uses, such as lambda_diff; seed; discriminator for
            igam and jarn; adaptor for jarn.

    Raises:
        UserError: the method is unknown, or an argument is missing or not used by the method.

    Example:
        >>> import keras, numpy as np
        >>> student = keras.Sequential(
        ...     [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> training = trainer("trades", student, eps=0.1, beta=3.0, pixel_max=1.0)
        >>> training.compile("adam")
        >>> x, y = np.zeros((8, 4, 4, 1), "float32"), np.arange(8) % 2
        >>> sorted(training.fit(x, y, verbose=0).history)
        ['L_kl', 'L_xent', 'accuracy', 'loss']
    """
    _known(method, METHODS, "a method among")
    entry, read = METHODS[method], arguments_of(method)
    for name in arguments:
        _known(name, read, f"for method={method} arguments among")
    if entry.teacher and not entry.trains_teacher:
        check_teacher(teacher, method)
    else:
        received = f"a {type(teacher).__name__}"
        expect(teacher is None, f"no teacher beside the student with method={method}", received)
    fields = {name: field for name, field in read.items() if field}
    chosen = {field: arguments.pop(name) for name, field in fields.items() if name in arguments}
    settings = dataclasses.replace(settings or Settings(), method=method, **chosen)
    arguments = {"weight_decay": WEIGHT_DECAY} | arguments
    if entry.matched_to:
        return IGAM(student, teacher, settings=settings, **arguments)
    arguments["terms"] = entry.terms
    if not entry.adversarial:
        return (FineTune if entry.trains_teacher else ClassifierTrainer)(student, **arguments)
    what = f"eps, the l-inf radius such as 8/255, with method={method}"
    expect("eps" in arguments, what, "none")
    if entry.one_step:
        arguments["step_size"] = entry.one_step * arguments["eps"]
    numbers = inspect.signature(entry.adversarial).parameters.keys() & fields
    return PGDTraining(
        student,
        steps=1 if entry.one_step else settings.pgd_steps,
        noise=entry.noise,
        ramp_steps=settings.ramp_steps,
        objective=functools.partial(
            entry.adversarial, **{name: getattr(settings, fields[name]) for name in numbers}
        ),
        attack_loss=entry.attack_loss,
        teacher=teacher,
        **arguments,
    )


def arguments_of(method: str) -> dict[str, str]:
    """Name of each argument of `trainer` that a method uses -> its field of `Settings`, or ""."""
    entry = METHODS[method]
    read = {
        "eps": entry.adversarial,
        "step_size": entry.many_steps,
        "seed": entry.adversarial or entry.matched_to,
        "discriminator": entry.discriminator,
        "adaptor": entry.adaptor,
    }
    names = dict.fromkeys([*_COMMON, *(name for name in read if read[name])], "")
    for field in dataclasses.fields(Settings):
        needs = field.metadata["needs"]
        if method in needs or any(getattr(entry, need, False) for need in needs):
            # trades_beta is called beta here, and pgd_steps is called steps.
            names[field.name.removeprefix(f"{method}_").removeprefix("pgd_")] = field.name
    return names


def _known(name: str, known: Collection[str], what: str) -> None:
    remedy = did_you_mean(name, known).strip()
    expect(name in known, f"{what} {', '.join(known)}", repr(name), remedy)
