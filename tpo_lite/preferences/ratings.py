"""Ratings of a prompt's responses: Bradley-Terry maximum likelihood with a weak prior.

The paper, with its pairwise judge, maximizes sum B_mn log sigma(e_m - e_n) and calls it Elo. That fit diverges where
one response wins everything, so a Gaussian prior with a small precision is put on the log-strengths. Then the objective
is strictly concave with one maximum, whose mean is zero, and the order of matches does not matter.
"""

from __future__ import annotations

import math

import numpy as np

from tpo_lite.records import PromptJudgements, PromptSamples

ELO_MEAN = 1000.0
ELO_PER_NAT = 400.0 / math.log(10.0)


def bradley_terry(wins: np.ndarray, prior: float) -> np.ndarray:
    """Return the log-strengths e (K,) that maximize sum B_mn log sigma(e_m - e_n) - prior / 2 * sum e_m^2.

    `wins` (K, K), not negative: B_mn is how often m beat n, in whole or fractional (soft) wins; the diagonal is
    ignored. `prior` is the precision 1 / variance of the Gaussian on each log-strength, in 1 / nat^2; 0.1 lets
    strengths differ by several hundred Elo. The scale is that of the natural logarithm, with mean zero:
    P(m beats n) = sigma(e_m - e_n). As prior -> 0 this is the maximum-likelihood fit, where there is one.

    Raises `ValueError` for a matrix that is not square or has negative or non-finite wins, and for a
    prior that is not positive.

    >>> bradley_terry(np.array([[0.0, 3.0], [1.0, 0.0]]), prior=1e-9).round(4)  # ln 3 apart
    array([ 0.5493, -0.5493])
    """
    wins = np.array(wins, dtype=np.float64)
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1]:
        raise ValueError(f"wins must be a square matrix, not of shape {wins.shape}")
    np.fill_diagonal(wins, 0.0)
    if not np.isfinite(wins).all() or (wins < 0).any():
        raise ValueError("wins must be finite and not negative")
    if not prior > 0:
        raise ValueError(f"prior must be > 0, not {prior}; without it an unbeaten response has no finite rating")

    count = len(wins)
    strengths = np.zeros(count)
    if count < 2:
        return strengths
    games = wins + wins.T
    objective = _log_posterior(strengths, wins, prior)
    while True:
        p_win = _sigmoid(strengths[:, None] - strengths[None, :])
        gradient = wins.sum(1) - (games * p_win).sum(1) - prior * strengths
        weights = games * p_win * p_win.T
        # The likelihood is flat along (1, ..., 1), where the gradient is 0; adding a constant keeps the
        # system well conditioned there and leaves the step as it is.
        curvature = np.diag(weights.sum(1) + prior) - weights + weights.max()
        step = np.linalg.solve(curvature, gradient)
        step -= step.mean()
        # Newton's decrement is twice the gain still expected. Once it is near what rounding hides in the objective, a
        # last full step squares the error.
        if gradient @ step <= 1e-14 * max(1.0, games.sum()):
            return strengths + step
        size = 1.0
        while (moved := _log_posterior(strengths + size * step, wins, prior)) <= objective:
            size /= 2
            if size < 1e-9:
                return strengths
        strengths = strengths + size * step
        objective = moved


def elo(strengths: np.ndarray) -> np.ndarray:
    """Return log-strengths (K,) on the Elo scale: 1000 + 400 / ln(10) * e."""
    return ELO_MEAN + ELO_PER_NAT * np.asarray(strengths, dtype=np.float64)


def win_matrix(judgements: PromptJudgements, samples: PromptSamples, soft: bool) -> tuple[list[int], np.ndarray]:
    """Return the well-formed samples' ks, in order, and their wins B (W, W).

    A comparison counts for every pair of samples with the same two response texts. Hard wins are the paper's B_mn =
    1[r^mn = 1] + 1[r^nm = -1], where r is 0 for a tie and for an error: a verdict that could not be read, or that the
    judge did not give by itself. Soft wins are p_first for the first and 1 - p_first for the second. They count what
    was read after a verdict had been opened for the judge (`tpo_lite.judges.protocol.Verdict.forced`). Two samples with
    the same text have half a win each. A comparison that is too long for the judge was not made and counts for neither.
    """
    responses = {sample.k: sample.response for sample in samples.samples if sample.well_formed}
    ks = sorted(responses)
    rows: dict[str, list[int]] = {}
    for row, k in enumerate(ks):
        rows.setdefault(responses[k], []).append(row)

    wins = np.zeros((len(ks), len(ks)))
    for same in rows.values():
        wins[np.ix_(same, same)] = 0.5
    np.fill_diagonal(wins, 0.0)
    for comparison in judgements.comparisons:
        if comparison.verdict == "overlong":
            continue
        if soft:
            first_wins, second_wins = comparison.p_first, 1.0 - comparison.p_first
        else:
            first_wins, second_wins = float(comparison.verdict == "A"), float(comparison.verdict == "B")
        first, second = rows[responses[comparison.first]], rows[responses[comparison.second]]
        wins[np.ix_(first, second)] += first_wins
        wins[np.ix_(second, first)] += second_wins
    return ks, wins


def _log_posterior(strengths: np.ndarray, wins: np.ndarray, prior: float) -> float:
    # log sigma(d) = -log(1 + exp(-d))
    likelihood = -(wins * np.logaddexp(0.0, strengths[None, :] - strengths[:, None])).sum()
    return float(likelihood - prior / 2 * (strengths**2).sum())


def _sigmoid(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.exp(-np.logaddexp(0.0, -values))
    return result
