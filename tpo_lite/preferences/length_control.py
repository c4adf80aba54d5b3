"""Length control: a response's score without the part that is due to its length (the paper's "length control").

Over the K responses of one prompt, s_i = z(score_i) - rho * z(length_i). Length is that of the response in tokens; the
thought does not count.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

RHO_GRID = np.arange(51) / 100
"""The values that `auto_rho` tries: 0 to 0.5, the paper's range, in steps of 0.01."""


@dataclass(frozen=True)
class AutoRho:
    """What `auto_rho` found."""

    rho: float
    """The smallest rho of the grid that keeps chosen responses from being longer; 0.5 if none does."""
    reached: bool
    """Whether with that rho the chosen responses are on average not longer than the rejected ones."""
    chosen_length: float
    """Mean length in tokens of the chosen responses with that rho (0 without any preference)."""
    rejected_length: float
    """Mean length in tokens of the rejected responses with that rho (0 without any preference)."""


def z_scores(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return (v - mean) / std with the population's std, or zeros where all values are equal.

    >>> z_scores([1, 3])
    array([-1.,  1.])
    """
    values = np.asarray(values, dtype=np.float64)
    # Compare values, not the std: rounding gives equal numbers such as 0.1 a std of 1e-17.
    if values.size == 0 or values.min() == values.max():
        return np.zeros(len(values))
    scores: np.ndarray = (values - values.mean()) / values.std()
    return scores


def length_controlled(
    scores: Sequence[float] | np.ndarray, lengths: Sequence[int] | np.ndarray, rho: float
) -> np.ndarray:
    """Return s_i = z(score_i) - rho * z(length_i), shape (K,), for the K responses of one prompt.

    >>> length_controlled([1, 3], [10, 30], rho=0.5)
    array([-0.5,  0.5])
    """
    return z_scores(scores) - rho * z_scores(lengths)


def auto_rho(
    prompts: Iterable[tuple[Sequence[float], Sequence[int]]], usable: Iterable[Sequence[bool]] | None = None
) -> AutoRho:
    """Find the smallest rho in `RHO_GRID` with which chosen responses are on average not longer than rejected ones.

    Each prompt is (scores, lengths) of its well-formed responses. Chosen and rejected are the first highest and the
    first lowest s_i, as in `tpo_lite.preferences.pairs`. Prompts whose scores are all equal show no preference and do
    not count, nor do those whose chosen or rejected response is not `usable` (one flag per response; None: all are).
    If no rho is enough, the result is 0.5 with `reached` False.
    """
    chosen, rejected, counted = [], [], []
    flags = itertools.repeat(None) if usable is None else usable
    for (scores, lengths), flag in zip(prompts, flags, strict=False):  # `repeat` has no end
        score_z, length_z = z_scores(scores), z_scores(lengths)
        if not score_z.any():
            continue
        controlled = score_z - RHO_GRID[:, None] * length_z  # (rhos, K)
        best, worst = controlled.argmax(1), controlled.argmin(1)
        kept = np.ones(len(score_z), int) if flag is None else np.asarray(flag, int)
        counted.append(kept[best] * kept[worst])
        tokens = np.asarray(lengths)
        chosen.append(tokens[best] * counted[-1])
        rejected.append(tokens[worst] * counted[-1])
    if not chosen:
        return AutoRho(0.0, True, 0.0, 0.0)
    # Integer sums, so that equal means are equal.
    longer, shorter = np.sum(chosen, axis=0), np.sum(rejected, axis=0)
    fits = longer <= shorter
    at = int(fits.argmax()) if fits.any() else len(RHO_GRID) - 1
    pairs = max(1, int(np.sum(counted, axis=0)[at]))
    return AutoRho(float(RHO_GRID[at]), bool(fits.any()), float(longer[at] / pairs), float(shorter[at] / pairs))
