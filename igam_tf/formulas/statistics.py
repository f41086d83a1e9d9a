"""95 % intervals of a share, of a mean and of a paired difference, over one seed or several."""

import dataclasses
import math

import numpy as np

Z95 = 1.959963984540054  # normal quantile of 0.975


def wilson_interval(successes: float, n: float) -> tuple[float, float]:
    """95 % interval of a share of n trials (Wilson 1927), also valid near 0 and 1.

    Raises:
        ValueError: successes is not within 0..n, or n is 0.

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


def share_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of [n] values in 0..1, such as each image's share of robust seeds.

    Wilson's interval, with the number of trials that gives the mean this variance: n for values of
    0 and 1, more for values between.

    Example:
        >>> [round(bound, 4) for bound in share_interval(np.array([1.0] * 5 + [0.0] * 5))]
        [0.2366, 0.7634]
        >>> [round(bound, 4) for bound in share_interval(np.array([1.0, 1.0, 0.5, 0.5, 0.0, 0.0]))]
        [0.2265, 0.7735]
    """
    mean, variance = float(values.mean()), float(values.var())
    trials = len(values) * (mean * (1 - mean) / variance if variance else 1.0)
    return wilson_interval(mean * trials, trials)


def mean_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean of [n] values, by the normal approximation; None if n = 1.

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
        net: examples that only the suspect breaks, minus those that only the reference breaks.
        low, high: 95 % interval of net / n.
        n: examples.
    """

    net: int
    low: float
    high: float
    n: int

    @property
    def points(self) -> str:
        """Net and interval in percentage points, as text."""
        return (
            f"{100 * self.net / self.n:+.1f} points, 95 % interval {100 * self.low:+.1f} to "
            f"{100 * self.high:+.1f}"
        )

    def __str__(self) -> str:
        amount = f"{abs(self.net)} {'fewer' if self.net < 0 else 'more'}" if self.net else "as many"
        return f"{amount} of {self.n} ({self.points})"

    def sentence(self, suspect: str, reference: str) -> str:
        """The difference in words, with the attacks' names.

        Example:
            >>> Excess(net=-2, low=-0.1, high=0.02, n=50).sentence("fgsm", "pgd20").split(" (")[0]
            '2 fewer of the 50 images are broken by fgsm than by pgd20'
        """
        more = f"{abs(self.net)} {'fewer' if self.net < 0 else 'more'}" if self.net else "as many"
        than = "than" if self.net else "as"
        return (
            f"{more} of the {self.n} images are broken by {suspect} {than} by {reference} "
            f"({self.points})"
        )


def excess(reference: np.ndarray, suspect: np.ndarray) -> Excess:
    """Paired difference between two attacks, with its `difference_interval`.

    Args:
        reference, suspect: robust masks of both attacks, [n] bool.

    Example:
        >>> excess(np.array([True] * 10), np.array([True] * 4 + [False] * 6)).net
        6
    """
    differences = reference.astype(int) - suspect
    return Excess(int(differences.sum()), *difference_interval(differences), len(reference))


def difference_interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of [n] paired differences in -1..1, after Agresti and Min (2005).

    For differences of -1, 0 and 1 it is Wald's interval with half an example added to each cell of
    the 2 x 2 table, which is valid even if few examples differ. A difference can be a mean over
    several seeds.

    Example:
        >>> [round(bound, 4) for bound in difference_interval(np.array([1] * 6 + [0] * 4))]
        [0.1733, 0.8267]
    """
    n = len(differences) + 2
    mean = float(differences.sum()) / n
    half = Z95 * math.sqrt(((differences**2).sum() + 1) / n - mean**2) / math.sqrt(n)
    return mean - half, mean + half


def mcnemar(gained: int, lost: int) -> float:
    """One-sided p of McNemar's exact test, that of at least `gained` of gained + lost at even odds.

    Example:
        >>> mcnemar(5, 0), mcnemar(3, 3)
        (0.03125, 0.65625)
    """
    n = gained + lost
    return sum(math.comb(n, k) for k in range(gained, n + 1)) / 2**n


def paired_t(gain: np.ndarray) -> float:
    """One-sided p of Student's t test that the mean of [n] paired differences is above 0.

    By Wallace's (1959) normal quantile of t: within 2 % of p for n of at least 10, 12 % for 5.

    Example:
        >>> round(paired_t(np.arange(1, 11) - 2.38836), 4), paired_t(-np.ones(4))  # exactly 0.005
        (0.005, 1.0)
    """
    n, mean = len(gain), float(gain.mean())
    deviation = float(gain.std(ddof=1)) if n > 1 else math.inf
    if mean <= 0 or not deviation:
        return 0.0 if mean > 0 else 1.0
    t, nu = mean / deviation * math.sqrt(n), n - 1
    z = (8 * nu + 1) / (8 * nu + 3) * math.sqrt(nu * math.log1p(t * t / nu)) if nu else 0.0
    return math.erfc(z / math.sqrt(2)) / 2
