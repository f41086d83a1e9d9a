"""Accuracy under attack: per example, worst case over restarts and attacks, with its interval.

The accuracy of an attack is the share of the n examples that are classified correctly both clean
and under each restart of this attack. Other attacks do not count, so the table shows if a one-step
attack is stronger than an iterative one, a symptom of masked gradients. The row `worst_case`
combines all attacks for each example.

    model_report -> evaluate -> igam_tf.evaluation.robust.robust_flags -> igam_tf.attacks
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from igam_tf.attacks import BATCH_NORMS, AttackSpec, attack_names, attack_specs
from igam_tf.common.checks import (
    check_batch_size,
    check_eps,
    check_images,
    check_labels,
    check_model,
    check_radii,
    eps_unit,
    expect,
    logits_of,
    radii_of,
)
from igam_tf.common.errors import UserError
from igam_tf.common.tables import Table, interval_text, with_interval
from igam_tf.datasets import DatasetSpec, Split, data_text, fraction_text, in_pixel_range
from igam_tf.evaluation.adversarial import Adversarial, check_kept
from igam_tf.evaluation.arrays import Data, in_memory
from igam_tf.evaluation.disagreement import disagreements, weak_loss
from igam_tf.evaluation.loading import as_called
from igam_tf.evaluation.robust import (
    LogitsFn,
    Success,
    check_attackable,
    clean_logits,
    logits_scale,
    looked_at,
    robust_flags,
    scale_for_attacks,
)
from igam_tf.evaluation.smallest import smallest_eps, smallest_text
from igam_tf.formulas.statistics import wilson_interval
from igam_tf.method.look import Doubt, as_json, doubtful_lines, look, refuse
from igam_tf.method.networks import float16_layers, in_float32, pixel_max_of
from igam_tf.method.preprocess import Preprocessed
from igam_tf.storage.journal import MASK_KEY, Journal, mask_of_text, text_of_mask

WORST_CASE = "worst_case"
REACHED_KEY = "reached_mask"
_OUTCOMES = (
    "accuracy", "ci95", MASK_KEY, "success", "success_ci95", "attacked", REACHED_KEY,
)  # fmt: skip


def logits_function(model: keras.Model, batch_norm: str) -> LogitsFn:
    """The function x [B,H,W,C] -> logits [B,K] of a Keras model; it changes no variable.

    Layers in float16 compute in float32 here, with the same weights.

    Args:
        model: a model that is called with `training=`.
        batch_norm: "inference" uses moving averages; "batch" uses the statistics of each batch
            (`training=True`), as the release does in attacks on its students (R6).

    Raises:
        UserError: `batch_norm` has another value, or the model is no Keras model.
    """
    expect(batch_norm in BATCH_NORMS, f"batch norm {' or '.join(BATCH_NORMS)}", repr(batch_norm))
    check_model(model, "model")

    def logits(x: tf.Tensor) -> tf.Tensor:
        with in_float32(model):
            if batch_norm == "inference":
                return model(x, training=False)
            with keras.StatelessScope():  # discards the new moving averages
                return model(x, training=True)

    logits.__name__ = type(model).__name__  # the name in errors
    return logits


def settings_dict(spec: AttackSpec) -> dict[str, Any]:
    """The settings of an attack for a report, by name."""
    names = ("eps", "step_size", "steps", "restarts", "loss", "kind", "targets", "after")
    common = {"eps_unit": eps_unit(spec.norm)} | {name: getattr(spec, name) for name in names}
    return common | spec.rare()


def evaluate(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    attacks: Sequence[AttackSpec],
    pixel_max: float,
    seed: int,
    batch_size: int,
    batch_norm: str = "inference",
    progress: bool = True,
    journal: Journal | None = None,
    compiled: dict | None = None,
    scale: float | None = None,
    adversarial: Adversarial | None = None,
    clean: np.ndarray | None = None,
) -> dict[str, dict]:
    """Runs every attack on every correctly classified example, and combines them to the worst case.

    Examples that are misclassified already, clean or by an earlier restart of the same attack, are
    not attacked again. With `batch_norm="batch"` the examples of a batch influence each other, so
    the batches stay complete and in order, and the figures depend on `batch_size`.

    Args:
        logits_fn: x [B,...] in 0..pixel_max -> logits [B,K]; see `logits_function`.
        images: [n,...], uint8 in 0..255, or float in 0..pixel_max, which keeps its precision.
        labels: [n], int.
        attacks: see `attack_specs`.
        pixel_max: highest pixel value of the model's input.
        seed: seed of the random starts; with the same seed attacks start from the same points.
        batch_size: examples attacked at once.
        batch_norm: how `logits_fn` normalises, as in `logits_function`.
        progress: whether progress bars with rate and time left are shown.
        journal: stores finished batches, which are not computed again.
        compiled, scale, adversarial, clean: see `igam_tf.evaluation.robust.robust_flags`.

    Returns:
        For each attack, and for `worst_case`, accuracy and ci95 in percent, n, and every setting; for
        each attack its robust mask under MASK_KEY, see `igam_tf.storage.journal`; of an attack with
        an aim also what `success_figures` has; logits_scale where it is not 1, see
        `igam_tf.evaluation.robust.logits_scale`.

    Raises:
        UserError: there are no images, float pixels are out of range, or logits are not finite.
    """
    common: dict = {"batch_norm": batch_norm, "batch_size": batch_size, "seed": seed}
    check_attackable(images, labels, attacks, pixel_max, batch_norm)
    if scale is None:
        scale = scale_for_attacks(
            logits_fn, images, labels, pixel_max=pixel_max, batch_size=batch_size
        )
    successes: dict[str, Success] = {}
    robust = robust_flags(
        logits_fn, images, labels, attacks=attacks, pixel_max=pixel_max, progress=progress,
        journal=journal, compiled=compiled, scale=scale, successes=successes,
        adversarial=adversarial, clean=clean, **common,
    )  # fmt: skip
    common |= {"logits_scale": scale} if scale != 1 else {}
    results = {}
    for spec in attacks:
        mask = robust[spec.name]
        results[spec.name] = (
            figures(mask) | settings_dict(spec) | common | {MASK_KEY: text_of_mask(mask)}
        )
        if spec.name in successes:
            results[spec.name] |= success_figures(successes[spec.name])
    over = {"attacks": list(robust), "eps": max(spec.eps for spec in attacks)}
    over["eps_unit"] = eps_unit(attacks[0].norm)
    worst = np.logical_and.reduce(list(robust.values()))
    return results | {WORST_CASE: figures(worst) | over | common}


def figures(robust: np.ndarray) -> dict:
    """Accuracy and its 95 % interval in percent, and n, of a robust mask [n] bool."""
    hits, n = int(robust.sum()), len(robust)
    interval = [round(100 * bound, 4) for bound in wilson_interval(hits, n)]
    return {"accuracy": 100 * hits / n, "n": n, "ci95": interval}


def success_figures(success: Success) -> dict:
    """The share of the attacked images that reached an attack's aim, None where none was attacked.

    Returns:
        success and success_ci95 in percent, attacked: how many images, and the mask of all images
        that reached it, as text.
    """
    found = figures(success.reached[success.attacked]) if success.attacked.any() else {}
    return {
        "success": found.get("accuracy"),
        "success_ci95": found.get("ci95"),
        "attacked": int(success.attacked.sum()),
        REACHED_KEY: text_of_mask(success.reached),
    }


def plan(
    split: Split,
    *,
    attacks: Sequence[str],
    pixel_max: float,
    eps: float | None = None,
    step_size: float | None = None,
    restarts: int = 1,
    loss: str = "xent",
    norm: str = "linf",
    individual: bool = False,
    targets: str | int | None = None,
    num_examples: int | None = None,
    seed: int = 0,
    batch_size: int = 100,
    batch_norm: str = "inference",
) -> tuple[Split, list[AttackSpec], dict]:
    """The plan of an evaluation: (images, attacks, the report without results of `settings_alone`).

    Args:
        split: images and labels.
        attacks: names, see `igam_tf.attacks.attack_names`.
        pixel_max: highest pixel value of the model's input.
        eps: radius as a fraction of the pixel range; None means the data set's, for l-inf only.
        step_size: of PGD, as such a fraction too; None means the data set's ratio to eps.
        restarts, loss, norm, individual, targets: see `attack_specs`.
        num_examples: number of images, the first of the split; None means all.
        seed, batch_size, batch_norm: see `evaluate`.

    Raises:
        UserError: there are fewer examples than asked for, no eps for l2, or as `attack_specs`.
    """
    check_eps(eps, norm, split.spec.image_shape)
    spec, available = split.spec, len(split.labels)
    n = available if num_examples is None else num_examples
    if not 1 <= n <= available:
        raise UserError(
            f"expected a number of examples within 1..{available}, the size of {spec.name} "
            f"{split.name}; received {n}"
        )
    eps = spec.eps if eps is None else eps
    step_size = spec.step_size / spec.eps * eps if step_size is None else step_size
    specs = attack_specs(
        attacks, eps=eps, step_size=step_size, restarts=restarts, loss=loss, norm=norm,
        num_classes=spec.num_classes, individual=individual, targets=targets,
    )  # fmt: skip
    common: dict = {"batch_norm": batch_norm, "batch_size": batch_size, "seed": seed}
    settings = {
        "dataset": spec.title,
        "split": split.name,
        "data": split.source,
        "pixel_max": pixel_max,
        **({"class_order": list(split.class_order)} if split.class_order else {}),
        "results": {spec.name: {"n": n} | settings_dict(spec) | common for spec in specs},
    }
    return split.take(slice(n), split.name), specs, settings


def model_report(
    model: keras.Model,
    split: Split,
    *,
    pixel_max: float | None = None,
    seed: int = 0,
    batch_size: int = 100,
    batch_norm: str = "inference",
    progress: bool = True,
    journal: Journal | None = None,
    logits: np.ndarray | None = None,
    adversarial: Adversarial | None = None,
    eps: float | Sequence[float] | None = None,
    smallest: bool = False,
    **settings: Any,
) -> dict:
    """`evaluate` for a model on a data set, with what `table` needs besides the results.

    Args:
        model: [B,H,W,C] -> logits [B,K].
        split: images and labels.
        pixel_max: highest pixel value of the model's input; None means the model's own, else the
            data set's.
        seed, batch_size, batch_norm, progress, journal: see `evaluate`.
        logits: those that `split_of_arrays` returned with the split; None computes them.
        adversarial: keeps the images of the attacks.
        eps: radius, see `plan`; or several, which share the clean images and the look. The report
            then has `radii` instead of `results`: for each, `eps` and its `results`.
        smallest: whether the smallest eps of each image is searched too, see
            `igam_tf.evaluation.smallest`.
        **settings: attacks, step_size, restarts, loss, norm, individual, targets, num_examples: see
            `plan`.

    Raises:
        UserError: the model does not accept such images, or as `plan` and `evaluate`.
    """
    check_radii(eps, settings.get("norm", "linf"))
    if adversarial:
        check_kept(batch_norm, eps)
    if smallest:
        check_kept(batch_norm, None)
    pixel_max = pixel_max_of(model, pixel_max, split.spec.pixel_max)
    common: dict = {"seed": seed, "batch_size": batch_size, "batch_norm": batch_norm}
    threats = radii_of(eps)
    plans = [plan(split, pixel_max=pixel_max, eps=eps, **common, **settings) for eps in threats]
    split, _, about = plans[0]
    specs = [spec for _, of_eps, _ in plans for spec in of_eps]
    radii = [spec.eps for spec in specs if spec.loss and spec.kind != "square"]
    logits_fn = logits_function(model, batch_norm)
    if logits is None:
        logits = clean_logits(
            logits_fn, split.images,
            pixel_max=pixel_max, batch_size=batch_size, classes=split.spec.num_classes,
        )  # fmt: skip
    doubts = look_at(
        model, split, logits=logits,
        pixel_max=pixel_max, eps=max(radii, default=None), norm=specs[0].norm, **common
    )  # fmt: skip
    for doubt in doubts:
        refuse(doubt, "probabilities")
    attacking = [spec for spec in specs if spec.loss]
    averaged = attacking and all(spec.eot > 1 for spec in attacking)  # what the remedy asks for
    if averaged and not smallest:
        doubts = [doubt for doubt in doubts if doubt.code != "random"]
    if float16_layers(model):
        about["computed_in"] = "float32"
    if isinstance(model, Preprocessed):
        about["preprocess"] = model.preprocess.convention
    scale = logits_scale(logits, split.labels[looked_at(len(split.labels))])
    images, labels = split.images, split.labels
    how: dict = {
        "pixel_max": pixel_max,
        "journal": journal,
        "scale": scale,
        "compiled": {},
    } | common

    def further(spec: AttackSpec, chosen: np.ndarray) -> np.ndarray:
        x, y = images[chosen], labels[chosen]
        return robust_flags(logits_fn, x, y, attacks=[spec], progress=False, **how)[spec.name]

    def at(specs: Sequence[AttackSpec], clean: np.ndarray | None) -> tuple[dict, list[Doubt]]:
        """Results of the attacks of one radius, and the doubts about them."""
        results = evaluate(
            logits_fn, images, labels, attacks=specs, progress=progress, clean=clean,
            adversarial=adversarial, **how,
        )  # fmt: skip
        masks = [mask_of_text(row[MASK_KEY]) for name, row in results.items() if name != WORST_CASE]
        left = np.logical_and.reduce(masks)
        weak = weak_loss(specs, left, further, split.spec.num_classes)
        return results, [doubt for doubt in (disagreements(results), weak) if doubt]

    if len(threats) == 1:
        about["results"], found = at(specs, None)
        unverified = adversarial.doubt() if adversarial else None
        doubts += [*filter(None, [unverified]), *found]
    else:
        del about["results"]
        about["radii"] = []
        without = AttackSpec(name="clean", norm=specs[0].norm)
        (clean,) = robust_flags(
            logits_fn, images, labels, attacks=[without], progress=progress, **how
        ).values()
        for radius, (_, specs, _) in zip(threats, plans, strict=True):
            results, found = at(specs, clean)
            about["radii"].append({"eps": radius, "results": results})
            where = f"At eps {fraction_text(radius)}: "
            doubts += [dataclasses.replace(d, sentence=where + d.sentence) for d in found]
    if smallest:
        about["smallest_eps"] = smallest_eps(
            model, split, norm=specs[0].norm, pixel_max=pixel_max, seed=seed, batch_size=batch_size,
            scale=scale, journal=journal, progress=progress,
        )  # fmt: skip
    return about | {"doubts": as_json(doubts)}


def look_at(
    model: keras.Model,
    split: Split,
    *,
    pixel_max: float,
    batch_norm: str = "inference",
    **settings: Any,
) -> list[Doubt]:
    """Runs `look` on a model and LOOKED_AT evenly spread images of a split.

    Args:
        model: [B,H,W,C] in 0..pixel_max -> logits [B,K].
        split: images and labels.
        pixel_max: highest pixel value of the model's input.
        batch_norm: see `evaluate`.
        **settings: eps, norm, seed, batch_size and logits, see `look`.

    Raises:
        UserError: the model does not accept such images.
    """
    chosen = looked_at(len(split.labels))
    x, y = in_pixel_range(split.images[chosen], pixel_max), split.labels[chosen].astype(np.int64)
    function = partial(logits_function, batch_norm=batch_norm)
    return look(
        model, x, y,
        pixel_max=pixel_max, classes=split.spec.num_classes, function=function,
        whole=batch_norm == "batch", class_order=split.class_order, **settings,
    )  # fmt: skip


def settings_alone(report: dict) -> dict:
    """A report of `model_report` without results: the data, and the settings of each attack."""
    about = {name: report[name] for name in ("dataset", "split", "data", "pixel_max")}
    more = ("preprocess", "computed_in", "class_order")
    about |= {name: report[name] for name in more if name in report}
    results = {
        attack: {name: value for name, value in row.items() if name not in _OUTCOMES}
        for attack, row in all_rows(report).items()
        if not attack.startswith(WORST_CASE)
    }
    return about | {"results": results}


def all_rows(report: dict) -> dict[str, dict]:
    """Name -> row of a report; where it is of several radii the name says of which."""
    if "radii" not in report:
        return report["results"]
    return {
        f"{name} at eps {fraction_text(part['eps'])}": row
        for part in report["radii"]
        for name, row in part["results"].items()
    }


def planned(split: Split, *, eps: float | Sequence[float] | None, **settings: Any) -> tuple:
    """(images, report without results of `settings_alone`) of `plan` for one radius or several."""
    radii = radii_of(eps)
    plans = [plan(split, eps=radius, **settings) for radius in radii]
    chosen, _, about = plans[0]
    if len(radii) > 1:
        parts = [{"eps": e, "results": p[2]["results"]} for e, p in zip(radii, plans, strict=True)]
        about["results"] = all_rows({"radii": parts})
    return chosen, about


def evaluate_model(
    model: keras.Model,
    images: Data,
    labels: np.ndarray | None = None,
    attacks: str | Sequence[str] = "clean,fgsm,pgd20",
    *,
    eps: float | Sequence[float],
    pixel_max: float,
    preprocess: str | None = None,
    from_probabilities: bool = False,
    num_examples: int | None = None,
    class_order: Sequence[int] | None = None,
    step_size: float | None = None,
    norm: str = "linf",
    restarts: int = 1,
    loss: str = "xent",
    individual: bool = False,
    targets: str | int | None = None,
    seed: int = 0,
    batch_size: int = 100,
    batch_norm: str = "inference",
    progress: bool = False,
    return_adversarial: bool = False,
    smallest_eps: bool = False,
) -> dict:
    """Accuracy of any Keras model on any images, clean and under attack.

    Args:
        model: images [B,H,W,C] in 0..pixel_max, or as `preprocess` says, -> logits [B,K].
        images: [n,H,W,C], uint8 in 0..255, or float in 0..pixel_max. Or, without labels, batches of
            pairs (images, labels): a tf.data.Dataset, keras.utils.PyDataset, or another iterable;
            they are read into memory, in the order in which they come.
        labels: [n] int, below K.
        attacks: "clean,fgsm,pgd20", or a list of names; see `igam_tf.attacks.attack_names`.
        eps: radius, as a fraction of the pixel range; or several, such as [2 / 255, 4 / 255].
        pixel_max: highest pixel value of the model's input, such as 1 or 255; with `preprocess`, of
            the images.
        preprocess: the input that the model expects instead of pixels: "0..1", "0..255", "-1..1",
            "imagenet", "caffe", or "mean=0.5,0.5,0.5/std=0.2,0.2,0.2" in pixels of 0..1; eps stays
            a fraction of the range of the images. None means pixels in 0..pixel_max.
        from_probabilities: whether the model returns probabilities, of exclusive classes or of each
            class separately: its last softmax or sigmoid is removed, or the logarithms are
            attacked.
        num_examples: number of images, the first; None means all. Data that do not tell their
            length, such as generators, need it.
        class_order: label k of the data is output class_order[k] of the model; None: output k.
        step_size: of PGD, as a fraction of the pixel range; None means a quarter of eps.
        norm: "linf", "l2" or "l1", of eps and step_size.
        restarts, loss: of FGSM and PGD, see `igam_tf.attacks.attack_specs`.
        individual: whether each attack of an ensemble gets all images that are right clean.
        targets: the class that PGD, apgd-ce, apgd-dlr and Square have to reach: "random",
            "least_likely" or a class; their rows then have `success` too, the share of the attacked
            images that reach it. None: any class but the label.
        seed, batch_size, batch_norm, progress: see `evaluate`.
        return_adversarial: whether the report has the worst image of each example; an image that
            fails a check by NumPy and a direct call of the model does not count as broken then.
        smallest_eps: whether the smallest eps of each image is searched too.

    Returns:
        The report that `python -m igam_tf.eval_pgd --json` writes, and prints by `table`: `results`,
        name of each attack and `worst_case` -> accuracy and its 95 % interval in percent, n, and every
        setting; and `doubts`, what makes the figures doubtful, each with `code`, `sentence` and
        `remedy`; empty where nothing does. With several radii it has `radii` instead of `results`:
        a list of `eps` and its `results`. With `smallest_eps` it has `smallest_eps`, what
        `igam_tf.evaluation.smallest.smallest_eps` returns. With `return_adversarial` it has
        `adversarial`, the arrays that `--save_adversarial` writes, see
        `igam_tf.evaluation.adversarial.Adversarial.arrays`.

    Raises:
        UserError: images, labels and outputs of the model do not fit together, the model returns
            probabilities instead of logits, or an attack is unknown.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential(
        ...     [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> model.set_weights([np.full((16, 2), [-1.0, 1.0]), np.array([8.0, -8.0])])
        >>> images = np.zeros((8, 4, 4, 1), np.uint8)
        >>> images[4:] = 255
        >>> labels = np.repeat([0, 1], 4)
        >>> report = evaluate_model(model, images, labels, "clean,pgd5", eps=0.6, pixel_max=1.0)
        >>> {name: row["accuracy"] for name, row in report["results"].items()}
        {'clean': 100.0, 'pgd5': 0.0, 'worst_case': 0.0}
    """
    names = attack_names(attacks)
    check_model(model, "model")
    expect(
        isinstance(restarts, Integral) and restarts > 0, "restarts of at least 1", repr(restarts)
    )
    positive = step_size is None or (isinstance(step_size, Real) and step_size > 0)
    expect(positive, "a step_size above 0, as a fraction of the pixel range", repr(step_size))
    radii = radii_of(eps)
    if len(radii) != 1:
        check_radii(eps, norm)
    model = as_called(
        model, pixel_max, from_probabilities=from_probabilities, preprocess=preprocess
    )
    split, logits = split_of_arrays(
        model, images, labels,
        eps=max(radii), pixel_max=pixel_max, norm=norm, batch_norm=batch_norm,
        batch_size=batch_size, num_examples=num_examples, class_order=class_order,
    )  # fmt: skip
    adversarial = Adversarial(model, split, pixel_max=pixel_max) if return_adversarial else None
    report = model_report(
        model, split, logits=logits, adversarial=adversarial, smallest=smallest_eps,
        attacks=names, eps=eps, step_size=step_size, restarts=restarts, loss=loss, norm=norm, seed=seed,
        individual=individual, targets=targets, batch_size=batch_size, batch_norm=batch_norm,
        pixel_max=pixel_max, progress=progress,
    )  # fmt: skip
    return report | ({"adversarial": adversarial.arrays()} if adversarial else {})


def split_of_arrays(
    model: keras.Model,
    images: Data,
    labels: np.ndarray | None = None,
    *,
    eps: float,
    pixel_max: float,
    norm: str = "linf",
    batch_norm: str = "inference",
    batch_size: int = 100,
    num_examples: int | None = None,
    class_order: Sequence[int] | None = None,
) -> tuple[Split, np.ndarray]:
    """(images and labels as a split, checked against each other and the model; `clean_logits`).

    Args:
        model: images [B,H,W,C] in 0..pixel_max -> logits [B,K].
        images, labels, num_examples, class_order: see `evaluate_model`.
        eps: radius, as a fraction of the pixel range.
        pixel_max: highest pixel value of the model's input.
        norm: of eps.
        batch_norm, batch_size: see `evaluate`.

    Raises:
        UserError: they do not fit together.
    """
    check_batch_size(batch_size)
    images, labels = in_memory(images, labels, num_examples)
    check_images(images, pixel_max, uint8=True)
    check_labels(labels, n=len(images))
    check_eps(eps, norm, images.shape[1:])
    if batch_norm == "batch" or not model.built:  # no variable can be created within its scope
        logits_of(model, in_pixel_range(images[:1], pixel_max), "model")
    logits_fn = logits_function(model, batch_norm)
    logits = clean_logits(logits_fn, images, pixel_max=pixel_max, batch_size=batch_size)
    check_labels(labels, classes=logits.shape[1])
    spec = DatasetSpec(
        "arrays", images.shape[1:], logits.shape[1],
        pixel_max=float(pixel_max), eps=float(eps), step_size=float(eps) / 4,
    )  # fmt: skip
    split = Split(images, labels.astype(np.int64), spec, "arrays", "test")
    return split.in_class_order(class_order), logits


def attack_texts(row: dict) -> tuple[str, str, str]:
    """Steps, step size and restarts of an attack's row; "own" if it chooses its step size."""
    if not row.get("steps"):
        return "", "", ""
    step_size = fraction_text(row["step_size"]) if row["step_size"] else "own"
    runs = (
        f"{row['restarts']} x {row['targets']} targets"
        if row.get("targets")
        else str(row["restarts"])
    )
    return str(row["steps"]), step_size, runs


def success_texts(row: dict) -> tuple[str, str]:
    """Success and its interval of an attack's row; empty where it has no aim, or attacked nothing."""
    if row.get("success") is None:
        return "", ""
    return f"{row['success']:.2f}", interval_text(row["success_ci95"], ".2f")


def table(report: dict) -> str:
    """A report of `model_report` as plain text, with a line for each doubt below it."""
    results, highest = all_rows(report), report["pixel_max"]
    parts = report.get("radii") or [report]
    worst = parts[-1]["results"][WORST_CASE]
    losses = {row["loss"] for row in results.values() if row.get("loss")}
    radii = [part["results"][WORST_CASE]["eps"] for part in parts]
    lines = [
        f"{report['dataset']} {report['split']}, data {data_text(report['data'])}: "
        f"first n = {worst['n']} images",
        f"{worst['eps_unit'].split(',')[0]} eps {', '.join(map(fraction_text, radii))} of the pixel "
        f"range ({', '.join(f'{eps * highest:g}' for eps in radii)} in 0..{highest:g}), "
        f"loss {', '.join(sorted(losses)) or 'none'}, "
        f"batch norm {worst['batch_norm']}, batch size {worst['batch_size']}, seed {worst['seed']}"
        + (f", logits x {worst['logits_scale']:g}" if "logits_scale" in worst else ""),
    ]
    for eot in sorted({row["eot"] for row in results.values() if "eot" in row}):
        rows = ", ".join(name for name, row in results.items() if row.get("eot") == eot)
        lines.append(f"{rows}: gradients averaged over {eot} draws (eot={eot}), scored by one more")
    for aim in sorted({row["aim"] for row in results.values() if "aim" in row}):
        lines.append(f"success: share of the attacked images that reach the target class ({aim})")
    if "computed_in" in report:
        lines.append(f"the model's float16 layers computed in {report['computed_in']}")
    if "preprocess" in report:
        lines.append(f"preprocess={report['preprocess']} in front of the model")
    if "class_order" in report:
        lines.append(f"label k is output class_order[k]: {report['class_order']}")
    below: list[str] = []
    if "radii" in report:
        figure = Table(*_over_radii(parts))
    else:
        aims = any("aim" in row for row in results.values())
        cells = [
            (
                name, f"{row['accuracy']:.2f}", interval_text(row["ci95"], ".2f"),
                *success_texts(row)[: 2 * aims], *attack_texts(row),
            )
            for name, row in results.items()
        ]  # fmt: skip
        success = ("success %", "95 % interval")[: 2 * aims]
        head = ("attack", "accuracy %", "95 % interval", *success, "steps", "step size", "restarts")
        figure = Table(head, cells)
    if "smallest_eps" in report:
        below = ["", smallest_text(report["smallest_eps"])]
    return "\n".join([*lines, "", figure.text(), *below, *doubtful_lines(report)])


def _over_radii(parts: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """(head, lines) of a table with a column of accuracy in % and its interval for each radius."""
    head = ["attack", *(f"% at eps {fraction_text(part['eps'])}" for part in parts)]
    lines = []
    for name, row in parts[0]["results"].items():
        of_name = [part["results"][name] for part in parts]
        figures = [with_interval(each["accuracy"], each["ci95"], ".2f") for each in of_name]
        steps, _, runs = attack_texts(row)
        lines.append([name, *figures, steps, runs])
        if "aim" in row:
            got = map(success_texts, of_name)
            shares = [f"{share} ({interval})" if share else "" for share, interval in got]
            lines.append([f"{name}, success", *shares, "", ""])
    return [*head, "steps", "restarts"], lines
