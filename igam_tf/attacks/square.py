"""Square attack (Andriushchenko et al. 2020, arXiv:1912.00049): black box, random search over squares.

In l-inf a square is set to +-eps (their Algorithm 2); in l2 the norm of a source square moves to
another one, in the shape of two bumps of opposite sign (Algorithm 3). In l1 it does so with steeper
bumps, and is projected to ball and box (Croce and Hein 2021, arXiv:2103.01208). It uses only logits,
so masked gradients do not affect it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from igam_tf.attacks.attack_losses import cw_margin, misclassified, reached
from igam_tf.attacks.draws import Draws, for_each
from igam_tf.attacks.inputs import checked, known_size
from igam_tf.attacks.norms import length, per_example, project, unit
from igam_tf.attacks.shrinking import State, shrinking_loop
from igam_tf.attacks.spec import AttackSpec, Kind, Threat
from igam_tf.common.errors import UserError
from igam_tf.common.lazy import tf

QUERIES = 5000  # after the start, as in AutoAttack

P_INIT = 0.8  # share of the pixels that the first square covers, as in AutoAttack
# p is halved after so many queries, however many there are in all, as in AutoAttack
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
TILES = 5  # of the start in l2 and l1, along each side
STEEPNESS = {"l2": 2, "l1": 4}  # of the bumps, as in the authors' code
_LEAST_BUMP = 3  # pixels; bumps have odd sides, as in the authors' code


def square_side(query: int, height: int, width: int, norm: str = "linf") -> int:
    """Side of the square of query number `query` after the start, from 0, in pixels.

    Example:
        >>> [square_side(q, 32, 32) for q in (0, 11, 51, 8001)]
        [29, 20, 14, 1]
        >>> [square_side(q, 32, 32, "l2") for q in (0, 11, 51, 8001)]
        [29, 21, 15, 3]
    """
    p = P_INIT / 2 ** sum(query > at for at in HALVINGS)
    side = max(round(math.sqrt(p * height * width)), 1)
    if norm != "linf":
        side = max(side, _LEAST_BUMP) | 1
    return min(side, height, width)


def start_shape(image_shape: tuple[int, int, int], norm: str) -> tuple[int, ...]:
    """Shape of the signs of a start, for one image [H,W,C]: stripes [W,C], or else tiles [T,T,C]."""
    height, width, channels = image_shape
    tiles = min(TILES, height, width)
    return (width, channels) if norm == "linf" else (tiles, tiles, channels)


def move_length(channels: int, norm: str) -> int:
    """How many random numbers a query takes for one image."""
    return channels + (2 if norm == "linf" else 5)


def bumps(side: int, norm: str = "l2") -> np.ndarray:
    """The update eta of l2 (their eq. 4 and Fig. 2) or l1, [side,side], of length 1.

    A rectangle's pixel at Chebyshev distance m from its middle has sum_{k=m}^{M} 1 / (k+1)^p, M the
    largest such distance, p of STEEPNESS; the upper half of the square is one rectangle, minus the
    lower half another.
    """

    def size(values: np.ndarray) -> np.floating:
        return np.linalg.norm(values.ravel(), {"l2": 2, "l1": 1}[norm])

    def pyramid(height: int, width: int) -> np.ndarray:
        distance = np.maximum(
            np.abs(np.arange(height) - height // 2)[:, None], np.abs(np.arange(width) - width // 2)
        )
        terms = 1.0 / (1 + np.arange(max(height, width) // 2 + 1)) ** STEEPNESS[norm]
        values = terms[::-1].cumsum()[::-1][distance]
        return values / max(size(values), 1e-12)

    both = np.concatenate([pyramid(side // 2, side), -pyramid(side - side // 2, side)])
    return both / size(both)


def _window(shares: tf.Tensor, side: tf.Tensor, extents: tuple[int, int]):
    """The square of each image, its place given as shares [B,2] of the free rows and columns.

    As in the authors' code the last of them is never taken: squares smaller than the image leave out
    its last row and column.

    Returns:
        (row within the square [B,H], column within it [B,W], mask of the square [B,H,W,1])
    """

    def inside(share: tf.Tensor, extent: int) -> tf.Tensor:
        first = tf.cast(share * tf.cast(tf.maximum(extent - side, 1), tf.float32), tf.int32)
        return tf.range(extent)[None, :] - first[:, None]

    row, column = inside(shares[:, 0], extents[0]), inside(shares[:, 1], extents[1])
    in_row, in_column = ((place >= 0) & (place < side) for place in (row, column))
    return row, column, in_row[:, :, None, None] & in_column[:, None, :, None]


def _signs(shares: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """-1 below a half, else 1. [B,C] -> [B,1,1,C]."""
    return tf.cast(tf.where(shares < 0.5, -1, 1), dtype)[:, None, None, :]


def _channel_length(v: tf.Tensor, norm: str) -> tf.Tensor:
    """l2 or l1 norm of each channel. [B,H,W,C] -> [B,1,1,C]."""
    if norm == "l1":
        return tf.reduce_sum(tf.abs(v), [1, 2], keepdims=True)
    return tf.sqrt(tf.reduce_sum(tf.square(v), [1, 2], keepdims=True))


def exchange(delta, move, side, shapes, eps, norm: str = "l2") -> tf.Tensor:
    """One query (Algorithm 3): a square gets the norm of a source square, and the rest up to eps.

    Args:
        delta: perturbations [B,H,W,C], no longer than eps.
        move: see `square`, [B,5 + C].
        side: of both squares.
        shapes: `bumps` of that side, one above the other and side by side, [2,S,S].
        eps: radius.
        norm: "l2", or "l1", where each channel gets what in l2 all of them share.

    Returns:
        The new perturbations, [B,H,W,C], of length eps in l2; 0 in the source square.
    """
    channels, extents = delta.shape[3], delta.shape[1:3]
    row, column, taking = _window(move[:, :2], side, extents)
    _, _, giving = _window(move[:, channels + 2 : -1], side, extents)
    bump = tf.gather(shapes, tf.cast(move[:, -1] < 0.5, tf.int32))
    for axis, place in ((1, row), (2, column)):
        bump = tf.gather(bump, tf.clip_by_value(place, 0, side - 1), axis=axis, batch_dims=1)
    inside, either = tf.cast(taking, delta.dtype), tf.cast(taking | giving, delta.dtype)
    old = inside * delta
    bump = inside * bump[..., None] * _signs(move[:, 2 : channels + 2], delta.dtype)
    new = bump + tf.math.divide_no_nan(old, _channel_length(old, norm))
    new = tf.math.divide_no_nan(new, _channel_length(new, norm))
    there, size = _channel_length(either * delta, norm), length(delta, norm)
    if norm == "l1":
        new *= channels * there + per_example(tf.maximum(eps - size, 0), delta)
    else:
        unused = tf.maximum(eps**2 - tf.square(size), 0) / channels
        new *= tf.sqrt(tf.square(there) + per_example(unused, delta))
    return delta * (1 - either) + new


def square(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    y: tf.Tensor,
    *,
    eps: float,
    bounds: tuple[float, float],
    start: tf.Tensor | None = None,
    moves: tf.Tensor | None = None,
    queries: int = QUERIES,
    seed: int = 0,
    norm: str = "linf",
    target: tf.Tensor | None = None,
) -> tf.Tensor:
    """Minimises the margin within the ball by random changes of squares; keeps those that help.

    Args:
        logits_fn: x [B,H,W,C] -> logits [B,K]; each example's alone, without batch statistics.
        x: images [B,H,W,C], float32 or float64, within `bounds`.
        y: labels [B], of any integer type.
        eps: radius, in the pixel unit of x.
        bounds: lowest and highest pixel value.
        start: +-1 of the dtype of x, [B, *`start_shape`].
        moves: for each query shares in [0,1): of the square's row and column, then one for each
            channel whose half says its sign; but in linf also row and column of the source square, and
            the orientation bit of the bumps; [B,queries,`move_length`] float32.
        queries, seed: draw start and moves if they are not given; the evaluation of the start does
            not count as a query.
        norm: "linf", "l2" or "l1".
        target: classes [B] to be reached; then the margin is how far another one is above it.

    Returns:
        x_adv, as x: misclassified, or of its target, if that was found, else the point of the
            smallest margin.

    Raises:
        UserError: see `inputs.checked`.

    Example:
        >>> import tensorflow as tf
        >>> logits_fn = lambda x: tf.stack([x[:, 0, 0, 0], 1 - x[:, 0, 0, 0]], 1)
        >>> x = tf.fill([1, 1, 1, 1], 0.75)
        >>> square(logits_fn, x, [0], eps=0.5, bounds=(0.0, 1.0), queries=20).numpy().item()
        0.25
    """
    logits_fn, x, y = checked(logits_fn, x, y, eps=eps, bounds=bounds, norm=norm, steps=queries)
    if (start is None) != (moves is None):
        raise UserError("expected both start and moves, or neither; received one of them")
    if start is None:
        shape, dtype = tuple(x.shape[1:]), x.dtype.as_numpy_dtype
        drawn = for_each(
            lambda generator: _random_search(shape, generator, queries, dtype, norm),
            range(known_size(x, "start and moves")), seed=seed,
        )  # fmt: skip
        start, moves = tf.constant(drawn["start"]), tf.constant(drawn["moves"])
    eps, *limits = (tf.convert_to_tensor(value, x.dtype) for value in (eps, *bounds))
    height, width, _ = x.shape[1:]
    queries = moves.shape[1]
    sides = [square_side(q, height, width, norm) for q in range(queries)]
    if norm == "linf":
        delta = eps * start[:, None]
    else:
        different = sorted(set(sides))
        shapes = np.zeros((len(different), 2, different[-1], different[-1]))
        for pair, side in zip(shapes, different, strict=True):
            pair[:, :side, :side] = bumps(side, norm), bumps(side, norm).T
        shapes, different = tf.constant(shapes, x.dtype), tf.constant(different)
        delta = _tiles(start, height, width, norm)
        delta = delta * (limits[1] - limits[0]) if norm == "l1" else eps * unit(delta, norm)
    sides = tf.constant(sides)

    def propose(s: State, move: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
        if norm == "linf":
            mask = _window(move, side, (height, width))[2]
            whole = tf.clip_by_value(s["x"] + eps * _signs(move[:, 2:], x.dtype), *limits)
            return tf.where(mask, whole, s["answer"])
        pair = shapes[tf.searchsorted(different, [side])[0]]
        delta = exchange(s["answer"] - s["x"], move, side, pair, eps, norm)
        if norm == "l1":
            return project(s["x"] + delta, s["x"], eps=eps, bounds=limits, norm=norm)
        return tf.clip_by_value(s["x"] + eps * unit(delta, norm), *limits)

    def look(x_adv: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(margin, whether the example is done), [B] each; y is the target where there is one."""
        logits = logits_fn(x_adv)
        if target is not None:
            return cw_margin(logits, y), reached(logits, y)
        return -cw_margin(logits, y), misclassified(logits, y)

    def step(t: tf.Tensor, s: State) -> State:
        new = propose(s, s["moves"][:, t], sides[t])
        value, done = look(new, s["y"])
        better = done | (value < s["margin"])
        return s | {
            "answer": tf.where(per_example(better, x), new, s["answer"]),
            "margin": tf.where(better, value, s["margin"]),
            "done": done,
        }

    if norm == "l1":
        answer = project(x + delta, x, eps=eps, bounds=limits, norm=norm)
    else:
        answer = tf.clip_by_value(x + delta, *limits)
    y = y if target is None else tf.cast(target, y.dtype)
    value, done = look(answer, y)
    state = {"x": x, "y": y, "moves": moves, "answer": answer, "margin": value, "done": done}
    return tf.stop_gradient(shrinking_loop(step, state, steps=queries))


def _tiles(signs: tf.Tensor, height: int, width: int, norm: str) -> tf.Tensor:
    """Bumps of these signs [B,T,T,C] beside each other in the middle of the image, [B,H,W,C]."""
    tiles = signs.shape[1]
    side = min(height, width) // tiles
    signs = tf.repeat(tf.repeat(signs, side, 1), side, 2)
    whole = signs * tf.constant(np.tile(bumps(side, norm), (tiles, tiles))[..., None], signs.dtype)
    top, left = (height - tiles * side) // 2, (width - tiles * side) // 2
    return tf.image.pad_to_bounding_box(whole, top, left, height, width)


def _random_search(shape, generator: np.random.Generator, queries: int, dtype, norm: str) -> Draws:
    """start and moves of one image of this shape [H,W,C], see `square`; none of them PGD's numbers."""
    generator = np.random.Generator(generator.bit_generator.jumped())  # type: ignore[attr-defined]
    return {
        "start": generator.choice([-1, 1], size=start_shape(shape, norm)).astype(dtype),
        "moves": generator.random((queries, move_length(shape[2], norm)), np.float32),
    }


def _spec(name: str, threat: Threat) -> AttackSpec:
    return AttackSpec(
        name=name, kind="square", norm=threat.norm, eps=threat.eps, steps=QUERIES, restarts=1,
        loss="cw", random_start=True, aim=threat.aim,
    )  # fmt: skip


def _draws(spec: AttackSpec, shape, generator: np.random.Generator, eps: float, dtype) -> Draws:
    return _random_search(shape, generator, spec.steps, dtype, spec.norm)


def _run(
    logits_fn, x, y, spec: AttackSpec, *, eps, bounds, step_size, steps, target, start, moves
) -> tf.Tensor:
    return square(
        logits_fn, x, y, eps=eps, bounds=bounds, start=start, moves=moves, norm=spec.norm,
        target=target,
    )  # fmt: skip


KIND = Kind(names="square", shown="square", spec=_spec, draws=_draws, run=_run, aims=True)
