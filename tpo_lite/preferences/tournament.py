"""Which comparisons a judge is asked for: all of them (the paper's round robin), half, or those that matter.

Of K responses only the best and the worst become a pair (`tpo_lite.preferences.pairs`). `Adaptive` asks about these two
until a full round robin would not be expected to choose others. This is identification of the best and worst arm from
noisy duels, with a posterior over what a round robin would say (`tpo_lite.preferences.forecast`); Chen et al. 2013,
"Pairwise ranking aggregation in a crowdsourced setting", use a posterior over strengths to choose comparisons. A
tournament keeps no state: what to ask next follows from the answers so far, so a resumed run asks the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Protocol

import numpy as np

from tpo_lite.preferences.forecast import DRAWS, LOWEST, Forecast, concentration_of, forecast
from tpo_lite.preferences.length_control import z_scores
from tpo_lite.preferences.ratings import bradley_terry, win_matrix
from tpo_lite.records import Comparison, PromptJudgements, PromptSamples
from tpo_lite.seeds import generator, keyed_hash, seed_of

Match = tuple[int, int]
"""The ks of the samples whose responses are shown first and second."""

MARGIN = 0.5
"""Ratings closer than this count as equal. The unit is the standard error that Bradley-Terry gives their difference in
a full round robin (`round_robin_noise`). benchmarks/results/tournaments.md shows what this costs and saves."""


class Tournament(Protocol):
    """Chooses comparisons for one prompt, one round at a time."""

    def next_round(self, prompt: PromptSamples, played: Sequence[Comparison]) -> list[Match]:
        """Return what to ask next, given all that was `played` for this prompt; empty when the tournament is over."""
        ...


@dataclass(frozen=True)
class RoundRobin:
    """Every pair in both orders: K(K - 1) comparisons of K distinct responses (the paper's judges)."""

    def next_round(self, prompt: PromptSamples, played: Sequence[Comparison]) -> list[Match]:
        """All comparisons in one round."""
        return [] if played else round_robin(prompt)


@dataclass(frozen=True)
class Single:
    """Every pair once, in an order drawn by a hash of (seed, instruction, pair): K(K - 1) / 2 comparisons."""

    seed: int
    """Decides which response of a pair is shown first."""

    def next_round(self, prompt: PromptSamples, played: Sequence[Comparison]) -> list[Match]:
        """All comparisons in one round."""
        if played:
            return []
        prompt_id = prompt.instruction.id
        return [
            (a, b) if keyed_hash(self.seed, f"{prompt_id}/{a}/{b}")[0] % 2 else (b, a)
            for a, b in combinations(distinct_responses(prompt), 2)
        ]


@dataclass(frozen=True)
class Adaptive:
    """Asks until the best and the worst are settled, at most a full round robin.

    First every response plays two others, once in each slot. Then each round asks, in both orders, the few pairs that
    tell most about the responses that may still be better than the leader or worse than the last. It ends when both are
    settled: the probability that the rating of a round robin, length control included, would put any other response
    ahead by more than `MARGIN` is at most 1 - confidence, for the best and for the worst. That holds for hard and soft
    wins, and for judges that prefer a slot or contradict themselves: benchmarks/results/tournaments.md counts.
    """

    seed: int
    """Decides who plays whom in the first round."""
    confidence: float
    """How sure best and worst have to be, between 0 and 1."""
    soft: bool
    """Whether wins are probabilities, as in `tpo_lite.preferences.ratings`."""
    prior: float
    """Precision of the prior, as in `tpo_lite.preferences.ratings`."""
    rho: float
    """Weight of the length, as in `tpo_lite.preferences.length_control`."""

    def next_round(self, prompt: PromptSamples, played: Sequence[Comparison]) -> list[Match]:
        """Return one comparison per response at first, then both orders of a quarter as many pairs (at least 2)."""
        ks = distinct_responses(prompt)
        if not played:
            return self._first_round(prompt.instruction.id, ks)
        asked = {(comparison.first, comparison.second) for comparison in played}
        left = np.array([[((a, b) not in asked) + ((b, a) not in asked) for b in ks] for a in ks])
        np.fill_diagonal(left, 0)
        if not left.any():
            return []
        gain = self._gain(prompt, played, ks, left)
        pairs = [pair for pair in combinations(range(len(ks)), 2) if gain[pair] > 0]
        pairs = sorted(pairs, key=lambda pair: -gain[pair])[: max(2, len(ks) // 4)]
        orders = [(ks[a], ks[b]) for i, j in pairs for a, b in ((i, j), (j, i))]
        return [match for match in orders if match not in asked]

    def _first_round(self, id: str, ks: list[int]) -> list[Match]:
        # A ring in random order is the smallest balanced plan that connects all responses.
        ring = sorted(ks, key=lambda k: keyed_hash(self.seed, f"{id}/{k}"))
        return list(zip(ring, ring[1:] + ring[:1], strict=True)) if len(ring) > 1 else []

    def _gain(self, prompt: PromptSamples, played: Sequence[Comparison], ks: list[int], left: np.ndarray) -> np.ndarray:
        """Return what a comparison of each pair is worth (n, n); zeros when best and worst are settled.

        `left` (n, n) counts the orders of each pair that are not asked yet.
        """
        sample_ks, wins = win_matrix(PromptJudgements(prompt.instruction.id, list(played), 0, 0), prompt, self.soft)
        rows = [sample_ks.index(k) for k in ks]
        strengths = bradley_terry(wins, self.prior)
        lengths = z_scores([prompt.sample(k).response_tokens for k in sample_ks])[rows]
        responses = [prompt.sample(k).response for k in sample_ks]
        copies = np.array([responses.count(prompt.sample(k).response) for k in ks])
        # Proportional to s = z(strength) - rho * z(length).
        scores = strengths[rows] - self.rho * strengths.std() * lengths

        concentration = self._concentration(played, ks, strengths[rows])
        expected = forecast(
            wins[np.ix_(rows, rows)],
            left,
            copies,
            self.prior,
            concentration,
            generator(seed_of(f"{self.seed}/tournament/{prompt.instruction.id}")),
        )
        spread = np.sqrt(np.average(expected.ratings**2, axis=1, weights=copies))  # their mean is zero
        drawn = expected.ratings - self.rho * spread[:, None] * lengths
        # Answers of 0 and 1 cannot tell such ratings apart. Probabilities can, the better the less they vary.
        noise = round_robin_noise(expected.ratings.mean(0), copies, self.prior) * LOWEST / concentration
        gain = np.zeros_like(noise)
        for sign in (1.0, -1.0):
            leader = int(np.argmax(sign * scores))
            ahead = sign * (drawn - drawn[:, [leader]]) > MARGIN * np.sqrt(noise[leader])
            # One more draw counts as ahead, since so few show no probability near 0.
            if (ahead.any(1).sum() + 1) / (DRAWS + 1) > 1.0 - self.confidence:
                gain += _information(expected, (ahead.sum(0) + 1) / (DRAWS + 1), leader, left)
        return np.where(left > 0, gain, 0.0)

    def _concentration(self, played: Sequence[Comparison], ks: list[int], strengths: np.ndarray) -> float:
        if not self.soft:
            return LOWEST
        made = [each for each in played if each.verdict != "overlong"]
        p_win = _p_win(strengths)
        expected = [p_win[ks.index(each.first), ks.index(each.second)] for each in made]
        return concentration_of(np.array([each.p_first for each in made]), np.array(expected))


def _information(expected: Forecast, risk: np.ndarray, leader: int, left: np.ndarray) -> np.ndarray:
    """Return how much a comparison of each pair tells of the responses that may be ahead of the leader (n, n).

    That is the share of the variance of strength_leader - strength_j that each further comparison of (a, b) removes,
    summed over j with the weights `risk` (n,).
    """
    p_win = _p_win(expected.strengths)
    per_game = p_win * p_win.T
    belief, contrasts = expected.belief, _contrasts(expected.belief)
    differences = belief[leader] - belief  # (j, a): covariance of that difference with strength_a
    covariance = differences[:, :, None] - differences[:, None, :]  # (j, a, b)
    taken = per_game * covariance**2 / (1.0 + left * per_game * contrasts)
    told: np.ndarray = np.einsum("j,jab->ab", risk / np.maximum(contrasts[leader], 1e-12), taken)
    return told


def round_robin_noise(strengths: np.ndarray, copies: np.ndarray, prior: float) -> np.ndarray:
    """Return the variance (n, n) that Bradley-Terry gives the difference of each two ratings after a full round robin.

    It is that of an answer drawn with the probability that `strengths` (n,) give, carried to the ratings. A judge that
    always answers the same has no such variance; the figure then says how finely K(K - 1) such answers can resolve
    ratings. `copies` (n,) counts the samples with each response; `prior` as in `tpo_lite.preferences.ratings`.
    """
    p_win = _p_win(strengths)
    per_game = 2 * p_win * p_win.T
    # In the ratings a comparison counts for every pair of samples with the two texts.
    weight = np.outer(copies, copies)
    # Ratings move by full^-1 times the sum over comparisons of weight * (outcome - expected outcome).
    full = np.linalg.inv(_laplacian(weight * per_game) + prior * np.diag(copies))
    return _contrasts(full @ _laplacian(weight**2 * per_game) @ full)


def distinct_responses(samples: PromptSamples) -> list[int]:
    """Return the ks that play: of the well-formed samples, the lowest k of each response text."""
    representatives: dict[str, int] = {}
    for sample in samples.samples:
        if sample.well_formed:
            representatives.setdefault(sample.response, sample.k)
    return list(representatives.values())


def round_robin(samples: PromptSamples) -> list[Match]:
    """Return every pair of distinct responses in both orders: responses a, b, a make (0, 1) and (1, 0)."""
    return list(permutations(distinct_responses(samples), 2))


def saved_calls(samples: PromptSamples, asked: int) -> int:
    """Return how many more questions a round robin over all W well-formed samples asks: W(W - 1) - asked."""
    well_formed = sum(sample.well_formed for sample in samples.samples)
    return well_formed * (well_formed - 1) - asked


def _p_win(strengths: np.ndarray) -> np.ndarray:
    """Return the probability (n, n) that each beats each."""
    p: np.ndarray = 1.0 / (1.0 + np.exp(strengths[None, :] - strengths[:, None]))
    return p


def _laplacian(weights: np.ndarray) -> np.ndarray:
    """Return the Fisher information of comparisons with weights (n, n): sum of w_ab x x^T over pairs, x = e_a - e_b."""
    information: np.ndarray = np.diag(weights.sum(1)) - weights
    return information


def _contrasts(covariance: np.ndarray) -> np.ndarray:
    """Return the variance (n, n) of the difference of each two variables."""
    variances = np.diag(covariance)
    differences: np.ndarray = variances[:, None] + variances[None, :] - 2.0 * covariance
    return differences
