"""An adaptive tournament keeps its promise: a round robin of the same judge seldom puts another response ahead."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest

from benchmarks.made_up_judges import JUDGES, PRIOR, promise
from tpo_lite.preferences.forecast import HIGHEST, LOWEST, concentration_of, forecast
from tpo_lite.preferences.ratings import bradley_terry

CONFIDENCE = 0.9


@pytest.mark.parametrize(
    ("judge", "seed", "most_calls"),
    [
        ("noisy, hard wins", 3, 0.7),
        ("contradicts itself, hard wins", 7, 0.55),
        ("likes the first slot, hard wins", 7, 0.8),
        ("noisy, soft wins", 7, 0.6),
        ("contradicts itself, soft wins", 7, 0.65),
        ("contradicts itself, sure, soft wins", 7, 0.6),
    ],
)
def test_the_promise_holds_whatever_the_judge(judge: str, seed: int, most_calls: float) -> None:
    kept = promise(JUDGES[judge], prompts=40, seed=seed, confidence=CONFIDENCE)
    assert fmean(kept.broken_best + kept.broken_worst) <= 1 - CONFIDENCE
    assert fmean(kept.calls) <= most_calls


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
