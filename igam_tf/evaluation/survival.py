"""Which examples each attack leaves standing: batches, restarts, targets, random numbers, resuming."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from igam_tf.attacks import AttackSpec, apgd, dlr_targeted, fab, loss_named, pgd, square
from igam_tf.attacks.losses import other_logits
from igam_tf.attacks.norms import length, per_example
from igam_tf.attacks.square import move_length, start_shape
from igam_tf.system import devices
from igam_tf.system.journal import Journal, remembered, settings_of
from madry_models.errors import UserError

LogitsFn = Callable[[tf.Tensor], tf.Tensor]
_NOT_FINITE = -1


def _generator(seed: int, run: int, index: int) -> np.random.Generator:
    """Random numbers that belong to one example, whatever batch it comes in."""
    return np.random.Generator(np.random.Philox(key=[seed, run], counter=[0, 0, 0, int(index)]))


def random_start(
    shape: tuple[int, ...],
    indices: Sequence[int],
    *,
    eps: float,
    seed: int,
    restart: int,
    dtype,
    norm: str = "linf",
) -> np.ndarray:
    """Uniform noise in the eps-ball, [len(indices), *shape]: a function of seed, restart and index.

    So neither the batch size nor the examples left out change anybody's start.
    """

    def one(generator: np.random.Generator) -> np.ndarray:
        if norm == "linf":
            return 2 * generator.random(shape, dtype) - 1
        direction = generator.standard_normal(shape, dtype)
        return direction / np.linalg.norm(direction) * generator.random() ** (1 / direction.size)

    unit = [one(_generator(seed, restart, index)) for index in indices]
    return (np.stack(unit) * eps).astype(dtype)


def square_moves(
    shape: tuple[int, int, int],
    indices: Sequence[int],
    *,
    queries: int,
    seed: int,
    run: int,
    dtype,
    norm: str = "linf",
) -> dict[str, np.ndarray]:
    """The random numbers of `igam_tf.attacks.square`, for images of this shape."""
    start, moves = [], []
    for index in indices:
        generator = _generator(seed, run, index)
        start.append(generator.choice([-1, 1], size=start_shape(shape, norm)))
        moves.append(generator.random((queries - 1, move_length(shape[2], norm)), np.float32))
    return {"start": np.stack(start).astype(dtype), "moves": np.stack(moves)}


def in_pixel_range(images: np.ndarray, pixel_max: float) -> np.ndarray:
    """uint8 images -> float32 in 0..pixel_max; floats stay as they are, at least float32."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255 / pixel_max)  # exact for 0..255
    return images.astype(np.result_type(images.dtype, np.float32), copy=False)


def survivors(
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
    """Name of each attack -> [n] bool, the examples it leaves standing.

    Arguments as `igam_tf.evaluation.evaluate.evaluate`, and:

        compiled: keeps what was traced, for further calls with the same `logits_fn` and kind of image.
    """
    _check(images, labels, attacks, pixel_max, batch_norm)
    dtype = in_pixel_range(images[:1], pixel_max).dtype.type
    shape, y = images.shape[1:], labels.astype(np.int64)
    compiled = {} if compiled is None else compiled

    def standing(spec: AttackSpec, run: int, batch: np.ndarray) -> np.ndarray:
        """Whether each example of a batch is right after one run, [len(batch)] bool."""
        x = in_pixel_range(images[batch], pixel_max)
        eps, step_size = dtype(spec.eps * pixel_max), dtype(spec.step_size * pixel_max)
        inputs = {"x": x, "y": y[batch], "eps": eps}
        if spec.kind == "square":
            of = {"seed": seed, "run": run, "dtype": dtype, "norm": spec.norm}
            inputs |= square_moves(shape, batch, queries=spec.steps, **of)
        else:
            restart, rank = divmod(run, max(spec.targets, 1))
            of = {"seed": seed, "restart": restart, "dtype": dtype, "norm": spec.norm}
            size = dtype(1) if spec.kind == "apgd" else eps
            start = random_start(shape, batch, eps=size, **of) if spec.random_start else 0 * x
            inputs |= {"noise": start, "step_size": step_size, "rank": np.int32(rank)}
            inputs |= {"steps": np.int32(spec.steps)}
        steps = 0 if spec.kind == "pgd" else spec.steps
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
        with tqdm(total=len(indices), desc=title, unit="image", disable=not progress) as bar:
            for begin in range(0, len(indices), batch_size):
                batch = indices[begin : begin + batch_size]
                hits[begin : begin + len(batch)] = remembered(
                    journal, [*common, batch, y[batch], images[batch]], standing, spec, run, batch
                )
                bar.update(len(batch))
        return hits

    everything = np.arange(len(labels))
    clean = right(AttackSpec(name="clean", norm=attacks[0].norm), 0, everything)
    robust: dict[str, np.ndarray] = {}
    for spec in attacks:
        standing_still = (robust[spec.after] if spec.after else clean).copy()
        for run in range(spec.runs):
            left = everything if batch_norm == "batch" else np.flatnonzero(standing_still)
            standing_still[left] &= right(spec, run, left)
        robust[spec.name] = standing_still
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
    alone = [spec.name for spec in attacks if spec.kind != "pgd"]
    if batch_norm == "batch" and alone:
        raise UserError(
            f"expected clean, fgsm and pgd<steps> alone on batch statistics; {alone[0]} needs a model "
            "in which no image sees another, so batch norm inference"
        )


def _compiled(
    logits_fn: LogitsFn, spec: AttackSpec, inputs: dict, pixel_max: float, *, whole: bool
):
    """One trace for every batch size (and for every PGD of a loss): inputs -> predicted classes [B].

    Attacks differ in scalars: FGSM is one step of eps without noise. No loss: the clean images. The
    replicas of the current strategy share each batch, unless it must stay `whole`.
    """
    by_example = {"x", "y", "noise", "start", "moves"}

    def signature(name: str, value: np.ndarray) -> tf.TensorSpec:
        shape = [None, *value.shape[1:]] if name in by_example else []
        return tf.TensorSpec(shape, value.dtype, name)

    bounds = (0.0, pixel_max)

    def attack(x, y, eps, **inputs) -> tf.Tensor:
        threat = {"eps": eps, "bounds": bounds, "norm": spec.norm}
        if spec.kind == "square":
            return square(logits_fn, x, y, **threat, **inputs)
        target = {}
        if spec.targets:
            ranked = tf.math.top_k(other_logits(logits_fn(x), y), spec.targets).indices
            target = {"target": tf.cast(ranked[:, inputs["rank"]], y.dtype)}
        if spec.kind == "fab":
            x_adv = fab(logits_fn, x, y, **threat, steps=spec.steps, **target)
            return tf.where(per_example(length(x_adv - x, spec.norm) <= eps, x), x_adv, x)
        noise = inputs["noise"]
        if spec.kind == "apgd":
            loss = dlr_targeted if spec.targets else loss_named(spec.loss)
            return apgd(
                logits_fn, x, y, **threat, steps=spec.steps, loss=loss, noise=noise, **target
            )
        size = {"step_size": inputs["step_size"], "steps": inputs["steps"]}
        return pgd(logits_fn, x, y, **threat, **size, loss=loss_named(spec.loss), noise=noise)

    def classes(inputs: dict) -> tf.Tensor:
        x = inputs["x"] if spec.loss is None else attack(**inputs)
        logits = logits_fn(x)
        finite = tf.reduce_all(tf.math.is_finite(logits), axis=1)
        return tf.where(finite, tf.argmax(logits, 1), _NOT_FINITE)

    @tf.function(input_signature=[{k: signature(k, np.asarray(v)) for k, v in inputs.items()}])
    def predicted(inputs):
        strategy = tf.distribute.get_strategy()
        replicas = strategy.num_replicas_in_sync
        if whole or replicas == 1:
            return classes(inputs)

        def of_replica() -> tf.Tensor:
            here = tf.distribute.get_replica_context().replica_id_in_sync_group
            part = {k: devices.share(inputs[k], here, replicas) for k in by_example & inputs.keys()}
            return classes(inputs | part)

        return tf.concat(strategy.experimental_local_results(strategy.run(of_replica)), 0)

    # Called as such: TensorFlow takes many functions of one name for one that is traced over again.
    traced = predicted.get_concrete_function()
    return lambda inputs: traced(tf.nest.map_structure(tf.convert_to_tensor, inputs))
