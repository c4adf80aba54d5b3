"""What a full round robin would say of a prompt's responses, as far as the answers so far tell: draws of its ratings.

The model is beta-binomial. Each pair of responses has a win probability of its own, drawn from a Beta distribution
around the Bradley-Terry probability sigma(e_a - e_b). So a judge may disagree with any one scale of strengths, and both
orders of a pair are less than two independent answers. Strengths e are normal with a variance that the answers weigh.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAWS = 160
"""Round robins that are drawn. A probability of 0.1 has a standard error of 0.024, and below 1 / 161 none shows."""
PRECISIONS = np.array([0.1, 0.4, 1.6])
"""Precisions 1 / variance that the strengths may have, in 1 / nat^2. A judge that is nearly random spreads them little,
and a wide prior would take its first few answers for large differences."""
LOWEST = 0.1
"""Concentration of the Beta distribution for a judge whose answers are 0 or 1: a pair's second answer is mostly the
first. That leaves room for judges whose answers contradict each other, which flips do not show."""
HIGHEST = 10.0
"""Concentration that no answers exceed."""


@dataclass(frozen=True)
class Forecast:
    """Draws of the ratings after a full round robin, and the belief behind them."""

    ratings: np.ndarray
    """(DRAWS, n): Bradley-Terry ratings of the distinct responses."""
    strengths: np.ndarray
    """(n,): the most probable true strengths, with the most probable precision."""
    belief: np.ndarray
    """(n, n): their covariance, by Laplace's approximation."""


def forecast(
    wins: np.ndarray,
    left: np.ndarray,
    copies: np.ndarray,
    prior: float,
    concentration: float,
    numbers: np.random.Generator,
) -> Forecast:
    """Draw the ratings after a full round robin of n distinct responses.

    `wins` (n, n) are those so far, `left` (n, n) counts the orders of each pair that are not asked, `copies` (n,) the
    samples with each response; `prior` as in `tpo_lite.preferences.ratings`, `concentration` is that of
    `concentration_of`.
    """
    modes, covariances, weights = _beliefs(wins, concentration)
    drawn = numbers.choice(len(weights), DRAWS, p=weights)
    spread = np.linalg.cholesky(covariances)[drawn] @ numbers.standard_normal((DRAWS, len(wins), 1))
    p_win = _p_win(modes[drawn] + spread[:, :, 0])
    first, second = np.triu_indices(len(wins), 1)
    p = concentration * p_win[:, first, second]
    share = numbers.beta(p + wins[first, second] + 1e-3, concentration - p + wins[second, first] + 1e-3)
    whole = np.repeat(wins[None], DRAWS, axis=0)
    whole[:, first, second] += left[first, second] * share
    whole[:, second, first] += left[first, second] * (1 - share)
    # In the ratings a comparison counts for every pair of samples with the two texts.
    whole *= np.outer(copies, copies)
    expected = _fit(whole.mean(0, keepdims=True), prior * copies, np.zeros((1, len(wins))), steps=12)
    best = int(weights.argmax())
    return Forecast(_fit(whole, prior * copies, expected, steps=2), modes[best], covariances[best])


def concentration_of(answers: np.ndarray, p_win: np.ndarray) -> float:
    """Return how near answers are to the probabilities `p_win` that strengths give them.

    An answer y with mean p and concentration c has the variance p (1 - p) / (1 + c), so that y (1 - y) is on average
    p (1 - p) c / (1 + c). Answers of 0 and 1 have the lowest concentration, whatever mode the judge is in.

    Two more answers of 0 or 1 to even questions count beside those that were given.

    >>> even = np.array([0.5, 0.5])
    >>> concentration_of(np.array([0.0, 1.0]), even), concentration_of(even, even)
    (0.1, 1.0)
    """
    kept = float((answers * (1 - answers)).sum() / (0.5 + (p_win * (1 - p_win)).sum()))
    return min(HIGHEST, max(LOWEST, kept / max(1e-9, 1 - kept)))


def _beliefs(wins: np.ndarray, concentration: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return modes (m, n), covariances (m, n, n) and weights (m,) of the posterior for each of the m precisions."""
    n, games = len(wins), wins + wins.T
    # All that a pair's answers tell of the strengths is one value with this concentration.
    told = (1 + concentration) * np.divide(wins, games, out=np.zeros_like(wins), where=games > 0)
    batch = np.repeat(told[None], len(PRECISIONS), axis=0)
    modes = _fit(batch, PRECISIONS[:, None], np.zeros((1, n)), steps=12)
    p_win = _p_win(modes)
    curvature = _curvature(batch, p_win, PRECISIONS[:, None])
    evidence = (told * np.log(p_win)).sum((1, 2)) - PRECISIONS / 2 * (modes**2).sum(1)
    evidence += n / 2 * np.log(PRECISIONS) - np.linalg.slogdet(curvature)[1] / 2
    weights = np.exp(evidence - evidence.max())
    return modes, np.linalg.inv(curvature), weights / weights.sum()


def _fit(wins: np.ndarray, prior: np.ndarray, start: np.ndarray, steps: int) -> np.ndarray:
    """Return Bradley-Terry ratings (s, n) for a batch of wins (s, n, n), by Newton's method from near by."""
    games = wins + wins.swapaxes(1, 2)
    ratings = np.repeat(start, len(wins) // len(start), axis=0)
    for _ in range(steps):
        p_win = _p_win(ratings)
        gradient = wins.sum(2) - (games * p_win).sum(2) - prior * ratings
        step = np.linalg.solve(_curvature(wins, p_win, prior), gradient[:, :, None])[:, :, 0]
        ratings = ratings + np.clip(step, -2.0, 2.0)
    return ratings


def _curvature(wins: np.ndarray, p_win: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Return minus the second derivative (s, n, n) of the log-posterior."""
    weights = (wins + wins.swapaxes(1, 2)) * p_win * p_win.swapaxes(1, 2)
    curvature: np.ndarray = np.eye(wins.shape[1]) * (weights.sum(2) + prior)[:, :, None] - weights
    return curvature


def _p_win(strengths: np.ndarray) -> np.ndarray:
    """Return the probability (s, n, n) that each beats each, for strengths (s, n)."""
    p: np.ndarray = 1.0 / (1.0 + np.exp(strengths[:, None, :] - strengths[:, :, None]))
    return p
