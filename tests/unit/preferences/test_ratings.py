"""Bradley-Terry against closed forms, choix and its published cases."""

from __future__ import annotations

import json
import math

import choix
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.shared import DATA
from tpo_lite.preferences.ratings import bradley_terry, elo, win_matrix
from tpo_lite.records import Comparison, Instruction, PromptJudgements, PromptSamples, Sample

NO_PRIOR = 1e-10


def matrix(size: int, games: list[list[int]]) -> np.ndarray:
    wins = np.zeros((size, size))
    for winner, loser in games:
        wins[winner, loser] += 1
    return wins


@pytest.mark.parametrize("case", [1, 2])
def test_published_cases(case: int) -> None:
    """Those of choix's own tests."""
    text = (DATA / f"bradley_terry/{case}.json").read_text()
    data = json.loads(text)
    strengths = bradley_terry(matrix(data["n_items"], data["data"]), NO_PRIOR)
    np.testing.assert_allclose(strengths, data["ml_est"], atol=1e-7)


def test_two_players_by_hand() -> None:
    # 3 wins to 1: P = 3/4 = sigma(d), so d = ln 3, half on each side of zero.
    strengths = bradley_terry(np.array([[0, 3], [1, 0]]), NO_PRIOR)
    np.testing.assert_allclose(strengths, [math.log(3) / 2, -math.log(3) / 2], atol=1e-8)


def test_prior_by_hand() -> None:
    # One win, precision 1/4: e solves sigma(-2e) = e / 4. At e = ln(3) / 2 the left side is 1/4.
    # So with wins w = prior * e / sigma(-2e) = ln(3) / 2 the strengths are exactly +- ln(3) / 2.
    strengths = bradley_terry(np.array([[0, math.log(3) / 2], [0, 0]]), 0.25)
    np.testing.assert_allclose(strengths, [math.log(3) / 2, -math.log(3) / 2], atol=1e-9)


def test_an_unbeaten_response_has_a_finite_rating() -> None:
    wins = np.triu(np.full((8, 8), 2.0), 1)
    strengths = bradley_terry(wins, 0.1)
    assert np.isfinite(strengths).all()
    assert (np.diff(strengths) < 0).all()
    assert np.isfinite(bradley_terry(1e6 * wins, NO_PRIOR)).all()


@pytest.mark.parametrize("size", [0, 1, 3])
def test_no_games(size: int) -> None:
    np.testing.assert_array_equal(bradley_terry(np.zeros((size, size)), 0.1), np.zeros(size))


@pytest.mark.parametrize(
    ("wins", "prior", "message"),
    [
        (np.zeros((2, 3)), 0.1, "square"),
        (np.array([[0, -1], [0, 0]]), 0.1, "negative"),
        (np.array([[0, np.nan], [0, 0]]), 0.1, "finite"),
        (np.zeros((2, 2)), 0.0, "prior"),
    ],
)
def test_bad_input(wins: np.ndarray, prior: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bradley_terry(wins, prior)


@st.composite
def connected_wins(draw: st.DrawFn) -> np.ndarray:
    """Whole wins in which everyone has beaten a neighbour in a ring, so that a maximum exists."""
    size = draw(st.integers(2, 8))
    cells = draw(st.lists(st.integers(0, 4), min_size=size * size, max_size=size * size))
    wins = np.array(cells, dtype=float).reshape(size, size) + np.roll(np.eye(size), 1, axis=1)
    np.fill_diagonal(wins, 0)
    return wins


@given(connected_wins())
@settings(max_examples=50, deadline=None)
def test_equals_choix(wins: np.ndarray) -> None:
    games = [(i, j) for i, j in zip(*np.nonzero(wins), strict=True) for _ in range(int(wins[i, j]))]
    expected = choix.opt_pairwise(len(wins), games, tol=1e-10)
    np.testing.assert_allclose(bradley_terry(wins, NO_PRIOR), expected - expected.mean(), atol=1e-4)


soft_wins = st.integers(2, 8).flatmap(
    lambda size: st.lists(st.floats(0, 2, allow_subnormal=False), min_size=size * size, max_size=size * size).map(
        lambda cells: np.array(cells).reshape(size, size)
    )
)


@given(wins=soft_wins, prior=st.sampled_from([1e-6, 0.1, 1.0]), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_maximum_of_the_posterior(wins: np.ndarray, prior: float, seed: int) -> None:
    strengths = bradley_terry(wins, prior)
    assert abs(strengths.sum()) < 1e-8
    np.fill_diagonal(wins, 0)
    p_win = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    gradient = wins.sum(1) - ((wins + wins.T) * p_win).sum(1) - prior * strengths
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    # The order of the responses does not matter, and neither side of a win is special.
    order = np.random.default_rng(seed).permutation(len(wins))
    np.testing.assert_allclose(bradley_terry(wins[np.ix_(order, order)], prior), strengths[order], atol=1e-6)
    np.testing.assert_allclose(bradley_terry(wins.T, prior), -strengths, atol=1e-6)


def test_elo() -> None:
    # 10 to 1 odds are 400 points.
    np.testing.assert_allclose(elo(np.array([0.0, math.log(10), -math.log(10)])), [1000, 1400, 600])


def prompt(*responses: str | None) -> PromptSamples:
    """Samples with these responses; None is a malformed one."""
    samples = [
        Sample(k, [k], "", "no_marker" if text is None else "ok", "", text or "", 0, len(text or ""))
        for k, text in enumerate(responses)
    ]
    return PromptSamples(Instruction("x", "?", "test"), [0], samples)


def judged(*comparisons: Comparison) -> PromptJudgements:
    return PromptJudgements("x", list(comparisons), len(comparisons), 0)


def test_win_matrix_hard_by_hand() -> None:
    # 0 beats 1 in both orders; 2 beats 0 in one order and the other is an error; 1 and 2 each win first.
    judgements = judged(
        Comparison(0, 1, 0.9, "A"),
        Comparison(1, 0, 0.2, "B"),
        Comparison(0, 2, 0.4, "B"),
        Comparison(2, 0, 0.8, "unparsed"),
        Comparison(1, 2, 0.6, "A"),
        Comparison(2, 1, 0.7, "A"),
    )
    ks, wins = win_matrix(judgements, prompt("a", "b", "c"), soft=False)
    assert ks == [0, 1, 2]
    np.testing.assert_array_equal(wins, [[0, 2, 0], [0, 0, 1], [1, 1, 0]])
    soft = win_matrix(judgements, prompt("a", "b", "c"), soft=True)[1]
    np.testing.assert_allclose(soft, [[0, 1.7, 0.6], [0.3, 0, 0.9], [1.4, 1.1, 0]])


def test_win_matrix_expands_identical_texts_and_leaves_malformed_out() -> None:
    judgements = judged(Comparison(0, 2, 0.75, "A"), Comparison(2, 0, 0.5, "unparsed"))
    ks, wins = win_matrix(judgements, prompt("a", None, "b", "a"), soft=False)
    assert ks == [0, 2, 3]
    np.testing.assert_array_equal(wins, [[0, 1, 0.5], [0, 0, 0], [0.5, 1, 0]])
    soft = win_matrix(judgements, prompt("a", None, "b", "a"), soft=True)[1]
    np.testing.assert_array_equal(soft, [[0, 1.25, 0.5], [0.75, 0, 0.75], [0.5, 1.25, 0]])


@pytest.mark.parametrize("soft", [False, True])
def test_a_comparison_too_long_for_the_judge_counts_for_nobody(soft) -> None:
    judgements = judged(Comparison(0, 1, 0.5, "overlong"), Comparison(0, 2, 1.0, "A"))
    np.testing.assert_array_equal(
        win_matrix(judgements, prompt("a", "b", "c"), soft)[1], [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    )


def test_win_matrix_of_identical_responses_is_even() -> None:
    wins = win_matrix(judged(), prompt("a", "a", "a"), soft=True)[1]
    np.testing.assert_array_equal(bradley_terry(wins, 0.1), [0, 0, 0])
    assert win_matrix(judged(), prompt(None, None), soft=True)[0] == []
