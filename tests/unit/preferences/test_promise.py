"""An adaptive tournament keeps its promise: a round robin of the same judge seldom puts another response ahead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tests.helpers.alphabet import prompt
from tpo_lite.preferences.forecast import HIGHEST, LOWEST, concentration_of, forecast
from tpo_lite.preferences.ratings import bradley_terry, win_matrix
from tpo_lite.preferences.tournament import MARGIN, Adaptive, round_robin, round_robin_noise
from tpo_lite.records import Comparison, PromptJudgements, PromptSamples

K, PRIOR, CONFIDENCE = 8, 0.1, 0.9
ROUND_ROBIN = K * (K - 1)


@dataclass
class MadeUp:
    """A judge of eight responses that answers a question always alike.

    Its margins for the first of two are the difference of their strengths, spread by 1, and what is added to that.
    """

    soft: bool = False
    noise: float = 0.0
    """Drawn anew for both orders of a pair: the answers flip."""
    against: float = 0.0
    """Drawn for a pair, the same in both orders: no scale of strengths explains it, and nothing flips."""
    first: float = 0.0
    """A liking for the first slot."""
    sharpness: float = 1.0
    """P(first) is the sigmoid of this many times the margin."""

    def table(self, numbers: np.random.Generator) -> np.ndarray:
        """P(first wins) (K, K)."""
        strengths = numbers.normal(size=K)
        upper = np.triu(numbers.normal(size=(K, K)), 1)
        margins = strengths[:, None] - strengths[None, :] + self.against * (upper - upper.T)
        margins += self.noise * numbers.normal(size=(K, K)) + self.first
        return 1 / (1 + np.exp(-self.sharpness * margins))


def answered(table: np.ndarray, matches: list[tuple[int, int]]) -> list[Comparison]:
    """What the judge says of these."""
    return [Comparison(*match, float(table[match]), "A" if table[match] > 0.5 else "B") for match in matches]


def ratings(samples: PromptSamples, comparisons: list[Comparison], soft: bool) -> np.ndarray:
    """Bradley-Terry ratings by these comparisons."""
    return bradley_terry(win_matrix(PromptJudgements("x", comparisons, 0, 0), samples, soft)[1], PRIOR)


def broken_and_calls(judge: MadeUp, prompts: int, seed: int) -> tuple[float, float]:
    """The share of bests and worsts that a round robin puts clearly behind another, and the calls of the tournament."""
    numbers = np.random.default_rng(seed)
    broken = calls = 0
    for index in range(prompts):
        table, samples = judge.table(numbers), prompt(*"abcdefgh", id=str(index))
        tournament = Adaptive(0, CONFIDENCE, judge.soft, PRIOR, 0.0)
        played: list[Comparison] = []
        while matches := tournament.next_round(samples, played):
            played += answered(table, matches)
        full = ratings(samples, answered(table, round_robin(samples)), judge.soft)
        allowed = MARGIN * np.sqrt(round_robin_noise(full, np.ones(K), PRIOR))
        for sign in (1, -1):
            chosen = int(np.argmax(sign * ratings(samples, played, judge.soft)))
            broken += bool((sign * (full - full[chosen]) > allowed[chosen] + 1e-9).any())
        calls += len(played)
    return broken / (2 * prompts), calls / (ROUND_ROBIN * prompts)


@pytest.mark.parametrize(
    ("judge", "seed", "most_calls"),
    [
        (MadeUp(noise=2.0), 3, 0.7),
        (MadeUp(against=2.0), 7, 0.55),
        (MadeUp(soft=True, noise=1.0), 7, 0.6),
        (MadeUp(soft=True, against=2.0), 7, 0.65),
        (MadeUp(soft=True, against=2.0, sharpness=10.0), 7, 0.6),
        (MadeUp(noise=1.0, first=2.0), 7, 0.8),
    ],
    ids=["hard", "intransitive", "soft", "soft intransitive", "sure of itself", "biased"],
)
def test_the_promise_holds_whatever_the_judge(judge: MadeUp, seed: int, most_calls: float) -> None:
    broken, calls = broken_and_calls(judge, prompts=40, seed=seed)
    assert broken <= 1 - CONFIDENCE
    assert calls <= most_calls


def test_answers_of_0_and_1_have_the_lowest_concentration_in_soft_mode_too() -> None:
    even = np.full(200, 0.5)
    assert concentration_of(np.tile([0.0, 1.0], 100), even) == LOWEST
    assert concentration_of(np.tile([1e-4, 1 - 1e-4], 100), even) == LOWEST
    assert concentration_of(even, even) == HIGHEST
    # The variance of a Beta distribution by its textbook formula: a = b = 1.5 has p (1 - p) / (1 + 3).
    drawn = np.random.default_rng(0).beta(1.5, 1.5, 4000)
    assert concentration_of(drawn, np.full(4000, 0.5)) == pytest.approx(3.0, rel=0.1)


def test_draws_are_the_ratings_where_nothing_is_left_to_ask() -> None:
    wins = np.array([[0, 2, 1, 2], [0, 0, 2, 1], [1, 0, 0, 2], [0, 1, 0, 0]], dtype=float)
    copies, numbers = np.array([1, 1, 2, 1]), np.random.default_rng(0)
    drawn = forecast(wins, np.zeros((4, 4)), copies, PRIOR, LOWEST, numbers).ratings
    # The third response twice: each copy has the same wins, and the two are even.
    rows = [0, 1, 2, 2, 3]
    whole = wins[np.ix_(rows, rows)]
    whole[2, 3] = whole[3, 2] = 0.5
    expected = bradley_terry(whole, PRIOR)[[0, 1, 2, 4]]
    assert drawn == pytest.approx(np.tile(expected, (len(drawn), 1)), abs=1e-6)


def test_draws_are_as_uncertain_as_all_that_may_still_be_answered() -> None:
    """Two even responses of which nothing is known: every draw is one of two clear wins, as often one as the other."""
    nothing = np.zeros((2, 2))
    drawn = forecast(nothing, 2 * (1 - np.eye(2)), np.ones(2), PRIOR, LOWEST, np.random.default_rng(0)).ratings[:, 0]
    clear = bradley_terry(np.array([[0.0, 2.0], [0.0, 0.0]]), PRIOR)[0]
    assert 0.35 < np.mean(drawn > 0) < 0.65
    assert np.mean(np.abs(drawn) > 0.8 * clear) > 0.6 and np.abs(drawn).max() < 1.01 * clear
