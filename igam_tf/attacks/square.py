"""Square attack (Andriushchenko et al. 2020): black box, random search over squares of +-eps.

It reads logits only, so masked gradients do not hide anything from it.
"""

import math
from collections.abc import Callable

import tensorflow as tf

from igam_tf.attacks.losses import cw_margin
from igam_tf.attacks.norms import per_example
from igam_tf.attacks.shrinking import State, shrinking_loop

P_INIT = 0.8  # share of the pixels that the first square covers, as in AutoAttack
# Share of all queries -> how often p has been halved by then (their §5, for 10 000 queries)
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square_side(query: int, queries: int, height: int, width: int) -> int:
    """Side of the square of query number `query` of `queries`, in pixels.

    Example:
        >>> [square_side(q, 10_000, 32, 32) for q in (0, 11, 51, 8001)]
        [29, 20, 14, 1]
    """
    scaled = query * 10_000 // queries
    p = P_INIT / 2 ** sum(scaled > at for at in HALVINGS)
    return min(max(round(math.sqrt(p * height * width)), 1), min(height, width))


def square(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    y: tf.Tensor,
    *,
    eps: float,
    bounds: tuple[float, float],
    stripes: tf.Tensor,
    moves: tf.Tensor,
) -> tf.Tensor:
    """Minimises the margin within the l-inf ball by sign changes of random squares.

    Args:
        logits_fn: x [B,H,W,C] -> logits [B,K]; each example's alone, without batch statistics.
        x: images [B,H,W,C], float32 or float64, within `bounds`.
        y: labels [B], int.
        eps: l-inf radius, in the pixel unit of x.
        bounds: lowest and highest pixel value.
        stripes: start, +-1 for each column and channel, [B,W,C] of the dtype of x.
        moves: for each further query the square's row and column as shares in [0,1), then for each
            channel a share whose half says its sign, [B,queries - 1,2 + C] float32.

    Returns:
        x_adv, as x: misclassified if that was found, else the point of the smallest margin.
    """
    eps, *bounds = (tf.convert_to_tensor(value, x.dtype) for value in (eps, *bounds))
    _, height, width, _ = x.shape
    queries = moves.shape[1] + 1
    sides = tf.constant([square_side(q, queries, height, width) for q in range(queries)])
    rows, columns = tf.range(height)[None, :], tf.range(width)[None, :]

    def margin(x_adv: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return -cw_margin(logits_fn(x_adv), y)

    def step(t: tf.Tensor, s: State) -> State:
        x, side, move = s["x"], sides[t], s["moves"][:, t]

        def inside(share: tf.Tensor, places: tf.Tensor, extent: int) -> tf.Tensor:
            first = tf.cast(share * tf.cast(extent - side + 1, tf.float32), tf.int32)[:, None]
            return (places >= first) & (places < first + side)

        mask = (
            inside(move[:, 0], rows, height)[:, :, None, None]
            & inside(move[:, 1], columns, width)[:, None, :, None]
        )
        sign = tf.where(move[:, 2:] < 0.5, -eps, eps)[:, None, None, :]
        new = tf.where(mask, tf.clip_by_value(x + sign, *bounds), s["answer"])
        value = margin(new, s["y"])
        better = value < s["margin"]
        return s | {
            "answer": tf.where(per_example(better, x), new, s["answer"]),
            "margin": tf.where(better, value, s["margin"]),
            "done": value < 0,
        }

    start = tf.clip_by_value(x + eps * stripes[:, None], *bounds)
    value = margin(start, y)
    state = {"x": x, "y": y, "moves": moves, "answer": start, "margin": value, "done": value < 0}
    return tf.stop_gradient(shrinking_loop(step, state, steps=queries - 1))
