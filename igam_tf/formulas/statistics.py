"""95 % intervals: of a share, of a mean, of a paired difference."""

import dataclasses
import math

import numpy as np

Z95 = 1.959963984540054  # normal quantile of 0.975


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share of n trials (Wilson 1927), which holds near 0 and 1 as well.

    Raises:
        ValueError: not 0 <= successes <= n, or n = 0.

    Example:
        >>> [round(bound, 4) for bound in wilson_interval(5, 10)]
        [0.2366, 0.7634]
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"expected 0 <= successes <= n and n > 0; received {successes} of {n}")
    share, z2 = successes / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean of [n] values, by the normal approximation; None where n = 1.

    Example:
        >>> [round(bound, 3) for bound in mean_interval(np.array([1.0, 2.0, 3.0]))]
        [0.868, 3.132]
    """
    if len(values) == 1:
        return None
    mean, half = float(values.mean()), Z95 * float(values.std(ddof=1)) / len(values) ** 0.5
    return mean - half, mean + half


@dataclasses.dataclass(frozen=True)
class Excess:
    """By how much a suspect attack beats a reference on the same n examples.

    Attributes:
        net: examples that the suspect alone breaks, less those that the reference alone breaks.
        low, high: 95 % interval of net / n.
        n: examples.
    """

    net: int
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        amount = f"{abs(self.net)} {'fewer' if self.net < 0 else 'more'}" if self.net else "as many"
        return (
            f"{amount} of {self.n} ({100 * self.net / self.n:+.1f} points, 95 % interval "
            f"{100 * self.low:+.1f} to {100 * self.high:+.1f})"
        )


def excess(reference: np.ndarray, suspect: np.ndarray) -> Excess:
    """Paired difference of two attacks, with the interval of Agresti and Min (2005).

    That is Wald's with half an example added to each cell of the 2 x 2 table, which holds where few
    examples differ.

    Args:
        reference, suspect: robust masks of both attacks, [n] bool.

    Example:
        >>> excess(np.array([True] * 10), np.array([True] * 4 + [False] * 6)).net
        6
    """
    n = len(reference)
    gained, lost = int((reference & ~suspect).sum()), int((suspect & ~reference).sum())
    a, b, m = gained + 0.5, lost + 0.5, n + 2
    centre, half = (a - b) / m, Z95 * np.sqrt(a + b - (a - b) ** 2 / m) / m
    return Excess(gained - lost, float(centre - half), float(centre + half), n)
