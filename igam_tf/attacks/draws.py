"""Random numbers of an attack, drawn for each example independently of its batch."""

from collections.abc import Callable, Iterable

import numpy as np

Draws = dict[str, np.ndarray]


def for_each(
    one: Callable[[np.random.Generator], Draws],
    indices: Iterable[int],
    *,
    seed: int,
    restart: int = 0,
) -> Draws:
    """The stacked results of `one` for these examples, a function of seed, restart and index.

    So they depend neither on the batch size nor on which examples are left out.
    """
    key = [seed, restart]
    each = [
        one(np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, int(index)])))
        for index in indices
    ]
    return {name: np.stack([draws[name] for draws in each]) for name in (each[0] if each else ())}


def in_ball(generator: np.random.Generator, shape: tuple[int, ...], dtype, norm: str) -> np.ndarray:
    """One point, uniform in the ball of radius 1 (l-inf: the cube of +-1).

    In l1 a normal direction, of length 1, as the starts of AutoAttack's FAB.
    """
    if norm == "linf":
        return 2 * generator.random(shape, dtype) - 1
    direction = generator.standard_normal(shape, dtype)
    if norm == "l1":
        return direction / np.abs(direction).sum()
    return direction / np.linalg.norm(direction) * generator.random() ** (1 / direction.size)
