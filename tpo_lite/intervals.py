"""Shares and means with their 95 % intervals, and the rates that show a judge's position bias."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tpo_lite.records import Comparison

Z_95 = 1.959964

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
