"""Computes each attack's robust mask: runs restarts and targets in batches, and can be resumed."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from igam_tf.attacks import KINDS, AttackSpec, random_inputs
from igam_tf.attacks.attack_losses import aimed_at, class_of_rank
from igam_tf.common import devices
from igam_tf.common.checks import check_labels, check_pixels, expect, logits_of, traced
from igam_tf.common.errors import UserError
from igam_tf.datasets import fraction_text, in_pixel_range
from igam_tf.evaluation.adversarial import Adversarial
from igam_tf.formulas.losses import at_least_float32
from igam_tf.formulas.statistics import wilson_interval
from igam_tf.method.look import LOOKED_AT
from igam_tf.storage.journal import Journal, journaled, journaled_arrays

REVISION = 3  # version of the attacks' results: with another one, older journals are not used
LogitsFn = Callable[[tf.Tensor], tf.Tensor]


class Success(NamedTuple):
    """Of an attack with an aim: which images it attacked, and which of them reached it; [n] bool."""

    attacked: np.ndarray
    reached: np.ndarray


_NOT_FINITE = -1  # predicted class where a logit is NaN or infinite


def robust_flags(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    attacks: Sequence[AttackSpec],
    pixel_max: float,
    seed: int,
    batch_size: int,
    batch_norm: str,
    progress: bool,
    journal: Journal | None = None,
    compiled: dict | None = None,
    scale: float | None = None,
    successes: dict[str, Success] | None = None,
    adversarial: Adversarial | None = None,
    clean: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Name of each attack -> robust mask [n] bool: correct clean and under each run of the attack.

    Args:
        logits_fn, images, labels, attacks, pixel_max, seed, batch_size, batch_norm, progress, journal:
            as in `igam_tf.evaluation.evaluate.evaluate`.
        compiled: stores traced functions, for further calls with the same `logits_fn` and image
            shape.
        scale: factor of the logits; None means `scale_for_attacks`.
        successes: gets, of each attack with an aim, which examples reached it.
        adversarial: keeps the images of the attacks; the masks are then those of its check.
        clean: mask [n] bool of the images that are right clean, where it is known.

    Raises:
        UserError: no images, float pixels out of range, or logits that are not finite.
    """
    check_attackable(images, labels, attacks, pixel_max, batch_norm)
    if scale is None:
        scale = scale_for_attacks(
            logits_fn, images, labels, pixel_max=pixel_max, batch_size=batch_size
        )
    dtype = in_pixel_range(images[:1], pixel_max).dtype.type
    shape, y = images.shape[1:], labels.astype(np.int64)
    compiled = {} if compiled is None else compiled

    def in_batch(group: Sequence[AttackSpec], run: int, batch: np.ndarray) -> dict[str, np.ndarray]:
        """`right` and, with an aim, `reached` of one batch, as `outcomes` has them.

        With `adversarial` also the images `x_adv`, unless they are the clean ones.
        """
        spec = group[0]
        x = in_pixel_range(images[batch], pixel_max)
        eps, step_size = dtype(spec.eps * pixel_max), dtype(spec.step_size * pixel_max)
        rank = run % max(spec.targets, 1)
        drawn = random_inputs(spec, shape, batch, eps=eps, seed=seed, restart=run, dtype=dtype)
        each = np.diff([spec.steps for spec in group], prepend=0).astype(np.int32)
        scalars = {"eps": eps, "step_size": step_size, "steps": each, "rank": np.int32(rank)}
        scalars["scale"] = np.float32(scale)
        inputs = {"x": x, "y": y[batch]} | drawn, scalars
        steps = spec.steps if KINDS[spec.kind].traced_by_steps else 0
        keep = adversarial is not None
        own = (spec.kind, spec.norm, spec.loss, steps, spec.targets, *spec.rare().items())
        kind = (*own, keep)
        if kind not in compiled:
            compiled[kind] = _compiled(
                logits_fn, spec, inputs, pixel_max, whole=batch_norm == "batch", images=keep
            )
        predicted, *images_of = (part.numpy() for part in compiled[kind](inputs))
        predicted, aims = predicted[: len(group)], predicted[-1]
        for each_spec, count in zip(group, (predicted == _NOT_FINITE).sum(1), strict=True):
            if count:
                raise UserError(
                    f"expected finite logits; under {each_spec.name} the model's are NaN or "
                    f"infinite for {count} of {len(batch)} images, so these cannot be evaluated"
                )
        found = {"right": predicted == y[batch]}
        if spec.aim:
            found["reached"] = predicted == aims
        if images_of:
            (found["x_adv"],) = images_of
        return found

    def outcomes(group: Sequence[AttackSpec], run: int, indices: np.ndarray) -> np.ndarray:
        """Which of these examples are right after one run, and which reach the attack's aim.

        Returns:
            [2,len(group),len(indices)] bool; without an aim none reaches it.
        """
        title = ",".join(spec.name for spec in group)
        title += f" at eps {fraction_text(group[0].eps)}" if group[0].loss else ""
        title += f" {run + 1}/{group[0].runs}" if group[0].runs > 1 else ""
        found = np.zeros((2, len(group), len(indices)), bool)
        common = [run, seed, pixel_max, batch_norm, scale, REVISION]
        shown = progress and len(indices) > 0
        with tqdm(total=len(indices), desc=title, unit="image", disable=not shown) as bar:
            for begin in range(0, len(indices), batch_size):
                batch = indices[begin : begin + batch_size]
                work = functools.cache(functools.partial(in_batch, group, run, batch))
                for i, spec in enumerate(group):
                    parts = [spec.settings(), *common, batch, y[batch], images[batch]]
                    here = found[:, i, begin : begin + len(batch)]

                    def of_spec(work=work, i=i) -> dict[str, np.ndarray]:
                        return {name: values[i] for name, values in work().items()}

                    if adversarial is None:
                        for what, name in enumerate(("right", "reached")[: 1 + bool(spec.aim)]):
                            here[what] = journaled(
                                journal, [*parts, *["reached"] * what],
                                lambda work, name: work()[name], of_spec, name,
                            )  # fmt: skip
                        continue
                    kept = journaled_arrays(journal, parts, of_spec)
                    here[0] = adversarial.checked(spec, batch, kept["right"], kept.get("x_adv"))
                    here[1] = kept.get("reached", False) & ~here[0]
                bar.update(len(batch))
        return found

    everything = np.arange(len(labels))
    if clean is None:
        (clean,), _ = outcomes([AttackSpec(name="clean", norm=attacks[0].norm)], 0, everything)
    robust: dict[str, np.ndarray] = {}
    for group in _in_one_pass(attacks):
        first = group[0]
        masks = np.stack([robust[first.after] if first.after else clean] * len(group))
        attacked = clean & (y != int(first.aim)) if (first.aim or "").isdigit() else clean
        reached = np.zeros_like(masks)
        for run in range(first.runs):
            left = attacked & ~reached[0] if first.aim else masks[0]
            left = everything if batch_norm == "batch" else np.flatnonzero(left)
            right, there = outcomes(group, run, left)
            masks[:, left] &= right
            reached[:, left] |= there
        if first.aim and successes is not None:
            both = zip(group, reached, strict=True)
            successes |= {s.name: Success(attacked, attacked & there) for s, there in both}
        robust |= {spec.name: mask for spec, mask in zip(group, masks, strict=True)}
    return {spec.name: robust[spec.name] for spec in attacks}


_SURE, _FAR = 0.9, 3.0


def looked_at(n: int) -> np.ndarray:
    """Indices of LOOKED_AT evenly spread images of n, or of all if there are fewer."""
    return np.unique(np.linspace(0, n - 1, min(LOOKED_AT, n)).astype(int))


def clean_logits(
    logits_fn: LogitsFn,
    images: np.ndarray,
    *,
    pixel_max: float,
    batch_size: int,
    classes: int | None = None,
) -> np.ndarray:
    """Logits [m,K] of the images of `looked_at`; classes: the expected K.

    Raises:
        UserError: the model fails on such images, or does not return [B,K].
    """
    x = in_pixel_range(images[looked_at(len(images))], pixel_max)
    parts = [x[i : i + batch_size] for i in range(0, len(x), batch_size)]
    return np.concatenate([logits_of(logits_fn, part, "model", classes) for part in parts])


def logits_scale(logits: np.ndarray, y: np.ndarray) -> float:
    """The factor of the logits in attacks: 1, or more if confidence is far below accuracy.

    With nearly equal logits, softmax gives all wrong classes the same weight, so the gradient of
    the cross-entropy points to none of them; with two classes there is only one. If the
    probabilities are not far below the accuracy, the logits are not scaled.

    Args:
        logits: those of clean images, [n,K].
        y: labels [n].

    Returns:
        Four times the smallest power of 2 at which the mean probability of the predicted class
            reaches the accuracy (the lower end of its interval, at most 0.9), because too sharp a
            softmax does no harm; 1 if a factor of 3 would suffice, or none does.

    Example:
        >>> z, y = 9.0 * np.eye(10), np.arange(10)
        >>> logits_scale(z, y), logits_scale(z / 1000, y)
        (1.0, 2048.0)
    """
    logits = logits.astype(np.float64)
    right = int((logits.argmax(1) == y).sum())
    enough = min(wilson_interval(right, len(y))[0], _SURE)
    below = logits - logits.max(1, keepdims=True)

    def sure(scale: float) -> bool:
        return bool((1 / np.exp(scale * below).sum(1)).mean() >= enough)

    if logits.shape[1] <= 2 or not np.isfinite(below).all() or sure(_FAR):
        return 1.0
    return next((4 * 2.0**k for k in range(2, 100) if sure(2.0**k)), 1.0)


def scale_for_attacks(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    pixel_max: float,
    batch_size: int,
) -> float:
    """`logits_scale` of the `clean_logits` of these images."""
    z = clean_logits(logits_fn, images, pixel_max=pixel_max, batch_size=batch_size)
    return logits_scale(z, labels[looked_at(len(labels))])


def _in_one_pass(attacks: Sequence[AttackSpec]) -> list[list[AttackSpec]]:
    """Groups PGD runs that share a trajectory, shortest first; other attacks are alone.

    With one start, PGD with 20 steps passes through the end of PGD with 10. With several starts,
    the examples that remain for a restart differ.
    """
    groups: dict[Any, list[AttackSpec]] = {}
    for spec in attacks:
        together = KINDS[spec.kind].begin and spec.runs == 1 and not spec.after
        key = dataclasses.replace(spec, name="", steps=0) if together else spec.name
        groups.setdefault(key, []).append(spec)
    return [sorted(group, key=lambda spec: spec.steps) for group in groups.values()]


def check_attackable(images, labels, attacks, pixel_max: float, batch_norm: str) -> None:
    """Raises a UserError if `robust_flags` cannot attack these images."""
    check_labels(labels, n=len(images))
    if images.dtype != np.uint8:
        check_pixels(images, pixel_max, some=True)
    alone = [spec.name for spec in attacks if not KINDS[spec.kind].on_batch_statistics]
    expect(
        batch_norm != "batch" or not alone, "clean, fgsm and pgd<steps> alone on batch statistics",
        ", ".join(alone), "they need a model in which no image sees another: batch norm inference",
    )  # fmt: skip


def _compiled(
    model_fn: LogitsFn,
    spec: AttackSpec,
    inputs: tuple[dict, dict],
    pixel_max: float,
    *,
    whole: bool,
    images: bool,
):
    """An attack and the classification after it, traced once: inputs -> (classes [m,B], images).

    With an aim, its classes are one more row.

    One trace serves every batch size and every PGD with the same loss, because eps, step size and
    number of steps are inputs (FGSM is one step of eps without noise). The m numbers of steps
    increase along one trajectory. A spec without a loss classifies the clean images. The replicas
    of the current strategy share each batch.

    Args:
        model_fn: `logits_fn` of `robust_flags`.
        spec, pixel_max: as there.
        inputs: (values per example [B,...], scalars), whose types and shapes are used.
        whole: whether a batch must stay on one replica.
        images: whether the images [m,B,...] of an attack are returned; else classes alone.
    """
    kind, bounds = KINDS[spec.kind], (0.0, pixel_max)

    def outcome(by_example: dict, scalars: dict) -> tuple[tf.Tensor, ...]:
        x, y, steps = by_example["x"], by_example["y"], scalars["steps"]

        def logits_fn(x: tf.Tensor) -> tf.Tensor:
            z = at_least_float32(model_fn(x))
            return tf.cast(scalars["scale"], z.dtype) * z

        drawn = {name: v for name, v in by_example.items() if name not in ("x", "y", "aim")}
        ball = {"eps": scalars["eps"], "bounds": bounds}

        def classified(x_adv: tf.Tensor) -> tuple[tf.Tensor, ...]:
            logits = logits_fn(x_adv)
            finite = tf.reduce_all(tf.math.is_finite(logits), axis=1)
            classes = tf.where(finite, tf.argmax(logits, 1), _NOT_FINITE)
            return (classes, x_adv) if images else (classes,)

        if spec.loss is None:
            return (classified(x)[0][None],)
        target = None
        if spec.targets:
            target = class_of_rank(logits_fn(x), y, scalars["rank"], spec.targets)
        elif spec.aim:
            target = aimed_at(spec.aim, logits_fn(x), y, by_example.get("aim"))
        how = {"target": target, "step_size": scalars["step_size"]} | ball

        def with_aims(found: tf.Tensor, *x_adv: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return tf.concat([found, target[None]], 0) if spec.aim else found, *x_adv

        if not kind.begin:
            found = classified(kind.run(logits_fn, x, y, spec, steps=steps[0], **how, **drawn))
            return with_aims(*(part[None] for part in found))

        def further(i: tf.Tensor, x_adv: tf.Tensor, *found: tf.TensorArray):
            x_adv = kind.run(logits_fn, x, y, spec, steps=steps[i], start=x_adv, **how)
            parts = zip(found, classified(x_adv), strict=True)
            return i + 1, x_adv, *(array.write(i, part) for array, part in parts)

        count = tf.size(steps)
        begun = (
            tf.constant(0),
            kind.begin(x, spec, **ball, **drawn),
            *(tf.TensorArray(kept, count) for kept in (tf.int64, x.dtype)[: 1 + images]),
        )
        _, _, *found = tf.while_loop(lambda i, *_: i < count, further, begun, parallel_iterations=1)
        return with_aims(*(array.stack() for array in found))

    many, single = inputs
    signature = [
        {k: tf.TensorSpec([None, *v.shape[1:]], v.dtype, k) for k, v in many.items()},
        {k: tf.TensorSpec([None] * np.ndim(v), v.dtype, k) for k, v in single.items()},
    ]

    @tf.function(input_signature=signature, autograph=False)
    def predicted(by_example, scalars):
        strategy = tf.distribute.get_strategy()
        replicas = strategy.num_replicas_in_sync
        if whole or replicas == 1:
            return outcome(by_example, scalars)

        def of_replica() -> tuple[tf.Tensor, ...]:
            here = tf.distribute.get_replica_context().replica_id_in_sync_group
            part = {k: devices.shard(v, here, replicas) for k, v in by_example.items()}
            return outcome(part, scalars)

        each = map(strategy.experimental_local_results, strategy.run(of_replica))
        return tuple(tf.concat(parts, 1) for parts in each)

    # Call the concrete function, because TensorFlow warns of retracing if many tf.functions have
    # one name.
    graph = traced(predicted)
    return lambda inputs: graph(*tf.nest.map_structure(tf.convert_to_tensor, inputs))
