"""Statistics: shares and means with their 95 % intervals, the bootstrap, tests, and the rates that show position bias.

Means follow E. Miller, "Adding error bars to evals" (arXiv 2411.00640): a standard error for every mean, clusters where
answers are not independent, and differences of paired answers rather than of two means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpo_lite.records import Comparison

if TYPE_CHECKING:
    import numpy as np  # the functions that need it import it: the command line starts without

Z_95 = 1.959964
Z_80 = 0.841621
"""The quantile of the standard normal distribution that 80 % lie below."""

# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom.
T_95 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


@dataclass(frozen=True)
class Share:
    """A share of n with its 95 % Wilson interval."""

    value: float | None
    """Between 0 and 1; None where there was nothing to count."""
    low: float
    """Lower end of the interval; 0 where n is 0."""
    high: float
    """Upper end of the interval; 1 where n is 0."""
    n: int
    """The number counted."""


@dataclass(frozen=True)
class Mean:
    """A mean over a few seeds with its 95 % t interval."""

    value: float
    """The mean."""
    half_width: float | None
    """The interval is value +- half_width; None for a single seed, whose spread is unknown."""
    n: int
    """The number of seeds."""


@dataclass(frozen=True)
class Estimate:
    """A mean over many units with its standard error and 95 % interval."""

    value: float
    """The mean."""
    standard_error: float | None
    """Its standard error; None for a single cluster, whose spread is unknown."""
    low: float
    """Lower end of the 95 % interval; -inf for a single cluster."""
    high: float
    """Upper end of the 95 % interval; inf for a single cluster."""
    n: int
    """The number of clusters: of units, where each is independent of the others."""

    def times(self, factor: float) -> Estimate:
        """Return the estimate on another scale, such as per cent; `factor` must be positive."""
        error = None if self.standard_error is None else factor * self.standard_error
        return Estimate(factor * self.value, error, factor * self.low, factor * self.high, self.n)


def percent(value: float | None) -> str:
    """Return a share as a percentage with one decimal, or "-" where there is none."""
    return "-" if value is None else f"{100 * value:.1f} %"


def share(successes: float, n: int) -> Share:
    """Return successes / n with the Wilson score interval (E. B. Wilson 1927), which is valid near 0 and 1 too.

    Successes may be fractional, as when ties count half.
    """
    if n == 0:
        return Share(None, 0.0, 1.0, 0)
    p = successes / n
    centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n))
    # At p = 0 and p = 1 one end is p itself, which rounding must not cross.
    return Share(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of one figure per seed, with Student's t interval (sample standard deviation).

    For more than 31 values the t of 31 is used, which makes the interval slightly too wide. Raises `ValueError` without
    values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a mean needs at least one value")
    average = math.fsum(values) / n
    if n == 1:
        return Mean(average, None, 1)
    variance = math.fsum((value - average) ** 2 for value in values) / (n - 1)
    return Mean(average, T_95[min(n - 1, len(T_95)) - 1] * math.sqrt(variance / n), n)


def estimate(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Return the mean of the values with its standard error (arXiv 2411.00640, sections 2.1 and 2.2).

    `clusters` names the cluster of each value, such as the prompt that two answers of a judge belong to; None where
    each value is independent of the others. The error is that of linear regression on a constant with clustered
    errors and the correction G / (G - 1) for G clusters. Without clusters it is s / sqrt(n). Up to 31 clusters the
    interval is Student's t, above that the normal one. Raises `ValueError` without values.

    >>> estimate([0.0, 1.0, 1.0, 1.0], clusters=["p", "p", "q", "q"]).standard_error
    0.25
    """
    import numpy as np

    found = np.asarray(values, dtype=np.float64)
    if not found.size:
        raise ValueError("an estimate needs at least one value")
    average = float(found.mean())
    numbers: dict[Hashable, int] = {}
    rows = [numbers.setdefault(name, len(numbers)) for name in (range(len(found)) if clusters is None else clusters)]
    groups = len(numbers)
    sums = np.bincount(rows, weights=found - average)
    if groups == 1:
        return Estimate(average, None, -math.inf, math.inf, 1)
    error = math.sqrt(float(sums @ sums) * groups / (groups - 1)) / len(found)
    half = (T_95[groups - 2] if groups - 2 < len(T_95) else Z_95) * error
    return Estimate(average, error, average - half, average + half, groups)


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
) -> Estimate:
    """Return the mean of first - second, unit by unit, as `estimate` does (arXiv 2411.00640, section 4.2)."""
    import numpy as np

    return estimate(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64), clusters)


def bootstrap(statistic: Callable[[np.ndarray], float | np.ndarray], units: int, rounds: int, key: str) -> np.ndarray:
    """Return a statistic of resamples of the units, shape (rounds, ...) (Efron 1979).

    `statistic` takes the indices of a resample, shape (units,), drawn with replacement, and returns a number or an
    array. The indices depend on `key`, `units` and the round alone.
    """
    import numpy as np

    from tpo_lite.seeds import generator, seed_of

    random = generator(seed_of(f"bootstrap/{key}"))
    return np.array([statistic(random.integers(0, units, units)) for _ in range(rounds)], dtype=np.float64)


def percentiles(resampled: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the percentile interval of a bootstrap, over its first axis.

    NaN, from resamples that have no such figure, is left out.
    """
    import numpy as np

    tail = (1 - level) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail], axis=0)
    return low, high


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the exact sign test; ties are left out, as is usual.

    >>> sign_test(3, 0)
    0.25
    """
    n = wins + losses
    tail = sum(math.comb(n, count) for count in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2**n))


def minimum_detectable_effect(standard_error: float) -> float:
    """Return the true effect that a two-sided 5 % test finds with a power of 80 % (arXiv 2411.00640, section 5).

    `standard_error` is that of the mean or of the paired difference which is tested, and the effect has its unit.
    """
    return (Z_95 + Z_80) * standard_error


def first_slot_rate(prompts: Iterable[Sequence[Comparison]]) -> Share:
    """Return the share of readable verdicts that are "A"; 0.5 without position bias when both orders are asked."""
    verdicts = [comparison.verdict for comparisons in prompts for comparison in comparisons]
    return share(verdicts.count("A"), verdicts.count("A") + verdicts.count("B"))


def flip_rate(prompts: Iterable[Sequence[Comparison]]) -> Share:
    """Return the share of pairs whose winner changes with the order, of those with a readable verdict in both orders.

    `prompts` holds one list of comparisons per prompt, since the ks of samples are unique within a prompt only.
    """
    flipped = pairs = 0
    for comparisons in prompts:
        verdicts = {(c.first, c.second): c.verdict for c in comparisons if c.verdict in ("A", "B")}
        for (first, second), verdict in verdicts.items():
            if first < second and (second, first) in verdicts:
                pairs += 1
                # The same slot twice means a different response each time.
                flipped += verdict == verdicts[second, first]
    return share(flipped, pairs)
