"""Intervals of shares and of paired differences."""

import math

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
