"""The robust mask of each attack: runs its restarts and targets batch by batch, and can be resumed."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from igam_tf.attacks import KINDS, AttackSpec, random_inputs
from igam_tf.attacks.losses import class_of_rank
from igam_tf.datasets import in_pixel_range
from igam_tf.system import devices
from igam_tf.system.journal import Journal, remembered, settings_of
from madry_models.errors import UserError

LogitsFn = Callable[[tf.Tensor], tf.Tensor]
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
) -> dict[str, np.ndarray]:
    """Name of each attack -> robust mask [n] bool: right clean, and under each run of the attack.

    Args:
        logits_fn, images, labels, attacks, pixel_max, seed, batch_size, batch_norm, progress, journal:
            as in `igam_tf.evaluation.evaluate.evaluate`.
        compiled: traced functions are kept in it, for further calls with the same `logits_fn` and the
            same shape of images.

    Raises:
        UserError: no images, float pixels out of range, or logits that are not finite.
    """
    _check(images, labels, attacks, pixel_max, batch_norm)
    dtype = in_pixel_range(images[:1], pixel_max).dtype.type
    shape, y = images.shape[1:], labels.astype(np.int64)
    compiled = {} if compiled is None else compiled

    def right_in_batch(spec: AttackSpec, run: int, batch: np.ndarray) -> np.ndarray:
        """Whether each example of a batch is right after one run, [len(batch)] bool."""
        x = in_pixel_range(images[batch], pixel_max)
        eps, step_size = dtype(spec.eps * pixel_max), dtype(spec.step_size * pixel_max)
        restart, rank = divmod(run, max(spec.targets, 1))
        drawn = random_inputs(
            spec, shape, batch, eps=eps, seed=seed, restart=restart, dtype=dtype
        )  # fmt: skip
        scalars = {"eps": eps, "step_size": step_size}
        scalars |= {"steps": np.int32(spec.steps), "rank": np.int32(rank)}
        inputs = {"x": x, "y": y[batch]} | drawn, scalars
        steps = spec.steps if KINDS[spec.kind].traced_by_steps else 0
        kind = (spec.kind, spec.norm, spec.loss, steps, spec.targets)
        if kind not in compiled:
            compiled[kind] = _compiled(
                logits_fn, spec, inputs, pixel_max, whole=batch_norm == "batch"
            )
        predicted = compiled[kind](inputs).numpy()
        if (predicted == _NOT_FINITE).any():
            raise UserError(
                f"expected finite logits; under {spec.name} the model's are NaN or infinite "
                f"for {(predicted == _NOT_FINITE).sum()} of {len(batch)} images, which "
                "cannot be scored"
            )
        return predicted == y[batch]

    def right(spec: AttackSpec, run: int, indices: np.ndarray) -> np.ndarray:
        """Whether each of these examples is right after one run, [len(indices)] bool."""
        title = f"{spec.name} {run + 1}/{spec.runs}" if spec.runs > 1 else spec.name
        hits = np.zeros(len(indices), bool)
        common = [settings_of(spec), run, seed, pixel_max, batch_norm]
        shown = progress and len(indices) > 0
        with tqdm(total=len(indices), desc=title, unit="image", disable=not shown) as bar:
            for begin in range(0, len(indices), batch_size):
                batch = indices[begin : begin + batch_size]
                hits[begin : begin + len(batch)] = remembered(
                    journal, [*common, batch, y[batch], images[batch]],
                    right_in_batch, spec, run, batch,
                )  # fmt: skip
                bar.update(len(batch))
        return hits

    everything = np.arange(len(labels))
    clean = right(AttackSpec(name="clean", norm=attacks[0].norm), 0, everything)
    robust: dict[str, np.ndarray] = {}
    for spec in attacks:
        mask = (robust[spec.after] if spec.after else clean).copy()
        for run in range(spec.runs):
            left = everything if batch_norm == "batch" else np.flatnonzero(mask)
            mask[left] &= right(spec, run, left)
        robust[spec.name] = mask
    return robust


def _check(images, labels, attacks, pixel_max: float, batch_norm: str) -> None:
    if len(labels) == 0 or len(images) != len(labels):
        raise UserError(
            f"expected as many images as labels; received {len(images)} and {len(labels)}"
        )
    if images.dtype != np.uint8 and not (images.min() >= 0 and images.max() <= pixel_max):
        raise UserError(
            f"expected float pixels in 0..{pixel_max:g}; received {images.min():g}..{images.max():g}"
        )
    alone = [spec.name for spec in attacks if not KINDS[spec.kind].on_batch_statistics]
    if batch_norm == "batch" and alone:
        raise UserError(
            f"expected clean, fgsm and pgd<steps> alone on batch statistics; {alone[0]} needs a model "
            "in which no image sees another, so batch norm inference"
        )


def _compiled(
    logits_fn: LogitsFn,
    spec: AttackSpec,
    inputs: tuple[dict, dict],
    pixel_max: float,
    *,
    whole: bool,
):
    """An attack and the classification after it, traced once: inputs -> predicted classes [B].

    One trace serves every batch size, and every PGD of one loss, for eps, step size and number of steps
    are inputs (FGSM is one step of eps without noise). A spec without a loss is no attack: the clean
    images are classified. The replicas of the current strategy share each batch.

    Args:
        logits_fn, spec, pixel_max: as in `robust_flags`.
        inputs: (values by example [B,...], scalars), of which types and shapes are taken.
        whole: whether a batch must stay on one replica.
    """
    attack, bounds = KINDS[spec.kind].run, (0.0, pixel_max)

    def classes(by_example: dict, scalars: dict) -> tf.Tensor:
        x, y = by_example["x"], by_example["y"]
        drawn = {name: v for name, v in by_example.items() if name not in ("x", "y")}
        strength = {name: scalars[name] for name in ("eps", "step_size", "steps")}
        if spec.loss is not None:
            rank = scalars["rank"]
            target = class_of_rank(logits_fn(x), y, rank, spec.targets) if spec.targets else None
            x = attack(logits_fn, x, y, spec, bounds=bounds, target=target, **strength, **drawn)
        logits = logits_fn(x)
        finite = tf.reduce_all(tf.math.is_finite(logits), axis=1)
        return tf.where(finite, tf.argmax(logits, 1), _NOT_FINITE)

    many, single = inputs
    signature = [
        {k: tf.TensorSpec([None, *v.shape[1:]], v.dtype, k) for k, v in many.items()},
        {k: tf.TensorSpec([], np.asarray(v).dtype, k) for k, v in single.items()},
    ]

    @tf.function(input_signature=signature)
    def predicted(by_example, scalars):
        strategy = tf.distribute.get_strategy()
        replicas = strategy.num_replicas_in_sync
        if whole or replicas == 1:
            return classes(by_example, scalars)

        def of_replica() -> tf.Tensor:
            here = tf.distribute.get_replica_context().replica_id_in_sync_group
            part = {k: devices.share(v, here, replicas) for k, v in by_example.items()}
            return classes(part, scalars)

        return tf.concat(strategy.experimental_local_results(strategy.run(of_replica)), 0)

    # The concrete function is called, for TensorFlow warns of retracing where many tf.functions have
    # one name.
    traced = predicted.get_concrete_function()
    return lambda inputs: traced(*tf.nest.map_structure(tf.convert_to_tensor, inputs))
