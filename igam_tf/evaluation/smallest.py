"""The smallest eps at which each image is misclassified: FAB, and bisection with APGD.

Each distance is of an image that was found and checked by `igam_tf.evaluation.adversarial`, so it is
an upper bound of the smallest.
"""

from collections.abc import Callable
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from igam_tf.attacks import KINDS, attack_specs, fab, random_inputs
from igam_tf.attacks.attack_losses import class_of_rank
from igam_tf.common.checks import NORM_TEXT, eps_unit, traced
from igam_tf.datasets import Split, in_pixel_range
from igam_tf.evaluation.adversarial import distances, logits_of_images
from igam_tf.formulas.losses import at_least_float32
from igam_tf.method.networks import in_float32
from igam_tf.storage.journal import Journal, journaled_arrays

# Radii of the bisection: their ratio, and the smallest as a share of the largest distance there is.
RATIO, LEAST = 1.01, 1e-4
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 20  # of the histogram


def smallest_eps(
    model: keras.Model,
    split: Split,
    *,
    norm: str,
    pixel_max: float,
    seed: int = 0,
    batch_size: int = 100,
    scale: float = 1.0,
    journal: Journal | None = None,
    progress: bool = False,
) -> dict:
    """The smallest radius at which each image was found misclassified, and their distribution.

    FAB goes from each image towards each class that it attacks (its nearest point has no radius to
    stay in); then APGD searches below, in balls whose radii are bisected on a scale of steps of 1 %.

    Args:
        model: [B,H,W,C] -> logits [B,K], in inference mode.
        split: images and labels.
        norm: of the distances.
        pixel_max: highest pixel value of the model's input.
        seed, batch_size, journal, progress: see `igam_tf.evaluation.evaluate.evaluate`.
        scale: factor of the logits, see `igam_tf.evaluation.robust.logits_scale`.

    Returns:
        `each`: the radii, as fractions of the pixel range, 0 where the clean image is misclassified
            and None where nothing was found; `n`, `misclassified_clean`, `not_found`; `found_by`:
            how many each attack found nearest; `quantiles` (values of images; not found counts as
            infinite, which is None), `median`; `histogram`: counts of the positive radii, and edges.
    """
    images, y, n = split.images, split.labels.astype(np.int64), len(split.labels)
    classes, shape = split.spec.num_classes, images.shape[1:]
    dtype = in_pixel_range(images[:1], pixel_max).dtype.type
    names = ("fab-t", "apgd-ce")
    by_fab, by_apgd = attack_specs(
        names, eps=1.0, step_size=0.0, restarts=1, loss="xent", norm=norm, num_classes=classes
    )
    bounds = (0.0, pixel_max)

    def logits_fn(x: tf.Tensor) -> tf.Tensor:
        with in_float32(model):
            z = at_least_float32(model(x, training=False))
        return tf.cast(scale, z.dtype) * z

    def nearest(x: tf.Tensor, y: tf.Tensor, rank: tf.Tensor) -> tf.Tensor:
        target = class_of_rank(logits_fn(x), y, rank, by_fab.targets)
        return fab(logits_fn, x, y, target=target, bounds=bounds, steps=by_fab.steps, norm=norm)

    def in_ball(x: tf.Tensor, y: tf.Tensor, eps: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        return KINDS["apgd"].run(
            logits_fn, x, y, by_apgd, eps=eps, bounds=bounds, step_size=None, steps=None, target=None,
            noise=noise,
        )  # fmt: skip

    x_spec = tf.TensorSpec([None, *shape], dtype)
    y_spec, rank_spec = tf.TensorSpec([None], tf.int64), tf.TensorSpec([], tf.int32)
    # Concrete functions, one graph for each attack whatever its radii.
    graphs = {
        "fab": traced(tf.function(nearest, autograph=False), x_spec, y_spec, rank_spec),
        "apgd": traced(
            tf.function(in_ball, autograph=False),
            x_spec, y_spec, tf.TensorSpec([None], dtype), x_spec,
        ),
    }  # fmt: skip

    def distance(x_adv: np.ndarray, batch: np.ndarray) -> np.ndarray:
        """Of each image, as a fraction of the pixel range; infinite where it is not misclassified."""
        x = in_pixel_range(images[batch], pixel_max)
        inside = ((x_adv >= 0) & (x_adv <= dtype(pixel_max))).reshape(len(x), -1).all(1)
        wrong = inside & (logits_of_images(model, x_adv).argmax(1) != y[batch])
        return np.where(wrong, distances(x_adv, x, norm) / pixel_max, np.inf)

    def run(name: str, batch: np.ndarray, *arguments: np.ndarray) -> np.ndarray:
        x = tf.constant(in_pixel_range(images[batch], pixel_max))
        given = map(tf.constant, (y[batch], *arguments))
        return distance(graphs[name](x, *given).numpy(), batch)

    def searched(name: str, indices: np.ndarray, setting: np.ndarray, work: Callable) -> np.ndarray:
        """work(batch) for all indices, in batches that the journal keeps; setting: [n]."""
        found = []
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            key = ["smallest_eps", name, setting[batch], norm, seed, pixel_max, scale]
            key += [batch, y[batch], images[batch]]

            def measured(batch: np.ndarray = batch) -> dict[str, np.ndarray]:
                return {"distance": work(batch)}

            found.append(journaled_arrays(journal, key, measured)["distance"])
        return np.concatenate(found)

    everything = np.arange(n)
    clean = searched(
        "clean",
        everything,
        np.zeros(n),
        lambda i: distance(in_pixel_range(images[i], pixel_max), i),
    )
    best = {"clean": clean, "fab": np.full(n, np.inf), "apgd": np.full(n, np.inf)}
    right = np.flatnonzero(np.isinf(clean))
    largest = float(distances(np.ones((1, *shape)), np.zeros((1, *shape)), norm)[0])
    steps = int(np.ceil(np.log(LEAST) / -np.log(RATIO)))
    radii = largest * RATIO ** np.arange(-steps, 1.0)
    rounds = by_fab.targets + int(np.ceil(np.log2(steps + 2)))
    with tqdm(
        total=rounds * len(right), desc="smallest eps", unit="image", disable=not progress
    ) as bar:
        for rank in range(by_fab.targets if len(right) else 0):
            work = partial(lambda i, rank: run("fab", i, np.int32(rank)), rank=rank)
            found = searched("fab", right, np.full(n, float(rank)), work)
            best["fab"][right] = np.minimum(best["fab"][right], found)
            bar.update(len(right))
        # The indices of the largest radius where APGD failed, and of the smallest where it need not
        # search any more.
        low, high = np.full(n, -1), np.searchsorted(radii, best["fab"])
        while len(left := right[(high - low)[right] > 1]):
            middle = (low + high) // 2

            def at_radii(batch: np.ndarray, middle: np.ndarray = middle) -> np.ndarray:
                drawn = random_inputs(
                    by_apgd, shape, batch, eps=1.0, seed=seed, restart=0, dtype=dtype
                )  # fmt: skip
                return run("apgd", batch, dtype(radii[middle[batch]] * pixel_max), drawn["noise"])

            found = searched("apgd", left, radii[middle], at_radii)
            best["apgd"][left] = np.minimum(best["apgd"][left], found)
            broken = np.isfinite(found)
            low[left[~broken]] = middle[left[~broken]]
            nearer = np.searchsorted(radii, found[broken])
            high[left[broken]] = np.minimum(middle[left[broken]], nearer)
            bar.update(len(left))
    return _distribution(best, norm)


def _distribution(best: dict[str, np.ndarray], norm: str) -> dict:
    """What `smallest_eps` returns, of the distances [n] that each attack found."""
    each = np.min(list(best.values()), axis=0)
    first = np.argmin(list(best.values()), axis=0)[np.isfinite(each)]
    positive = each[(each > 0) & np.isfinite(each)]
    counts, edges = np.histogram(positive, BINS, (0, positive.max(initial=0) or 1))

    def number(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    ordered = np.sort(each)  # quantiles are values of images: nothing is between them and infinity
    quantiles = {f"{q:g}": number(ordered[int(np.ceil(q * len(each))) - 1]) for q in QUANTILES}
    names = [name for name in best if name != "clean"]
    return {
        "norm": norm,
        "unit": eps_unit(norm),
        "n": len(each),
        "misclassified_clean": int((best["clean"] == 0).sum()),
        "not_found": int(np.isinf(each).sum()),
        "found_by": {name: int((first == list(best).index(name)).sum()) for name in names},
        "median": quantiles["0.5"],
        "quantiles": quantiles,
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "each": [number(value) for value in each],
    }


def smallest_text(found: dict) -> str:
    """The distribution of `smallest_eps` as plain text, with a histogram."""

    def text(value: float | None) -> str:
        return "not found" if value is None else f"{value:.4g}"

    quantiles = ", ".join(f"{100 * float(q):g} %: {text(v)}" for q, v in found["quantiles"].items())
    counts, edges = found["histogram"]["counts"], found["histogram"]["edges"]
    width = max(*counts, 1)
    lines = [
        f"smallest {NORM_TEXT[found['norm']]} eps of {found['n']} images, of the pixel range: median "
        f"{text(found['median'])}",
        f"quantiles {quantiles}",
        f"misclassified clean (eps 0): {found['misclassified_clean']}, not found: "
        f"{found['not_found']}",
    ]
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        bar = "#" * round(40 * count / width)
        lines.append(f"{low:8.4g} to {high:8.4g} {count:6d} {bar}".rstrip())
    return "\n".join(lines)
