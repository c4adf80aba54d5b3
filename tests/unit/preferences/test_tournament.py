"""Which comparisons are asked for, and that an adaptive tournament finds the round robin's best and worst."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.tournaments import Case, Outcome, play, simulated
from tests.helpers.alphabet import ADAPTIVE, prompt
from tests.helpers.shared import SHARED
from tpo_lite.judges.protocol import JudgeRequest, Verdict
from tpo_lite.preferences.ratings import bradley_terry, win_matrix
from tpo_lite.preferences.tournament import (
    Adaptive,
    RoundRobin,
    Single,
    Tournament,
    round_robin,
    round_robin_noise,
    saved_calls,
)
from tpo_lite.records import Comparison, Instruction, PromptJudgements, PromptSamples, Sample


def played(
    tournament: Tournament, samples: PromptSamples, p_first: np.ndarray, label: str | None = None
) -> list[Comparison]:
    """The whole tournament before a judge with this table of probabilities (K, K)."""
    comparisons: list[Comparison] = []
    while matches := tournament.next_round(samples, comparisons):
        for first, second in matches:
            p = float(p_first[first, second])
            comparisons.append(Comparison(first, second, p, label or ("A" if p > 0.5 else "B")))
    return comparisons


def pairs(comparisons: list[Comparison]) -> list[tuple[int, int]]:
    """The matches of these comparisons."""
    return [(comparison.first, comparison.second) for comparison in comparisons]


@pytest.mark.parametrize(
    ("responses", "comparisons", "saved"),
    [
        (["a", "b"], [(0, 1), (1, 0)], 0),
        (["a", "b", "c"], [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)], 0),
        (["a", "b", "a"], [(0, 1), (1, 0)], 4),
        ([None, "a", None, "b"], [(1, 3), (3, 1)], 0),
        (["a", "a", "a"], [], 6),
        (["a", None], [], 0),
        ([None], [], 0),
    ],
)
def test_round_robin(responses: list, comparisons: list[tuple[int, int]], saved: int) -> None:
    samples = prompt(*responses)
    assert round_robin(samples) == comparisons
    assert pairs(played(RoundRobin(), samples, np.full((4, 4), 0.5))) == comparisons
    assert saved_calls(samples, len(comparisons)) == saved


def test_the_papers_56_calls() -> None:
    assert len(round_robin(prompt(*"abcdefgh"))) == 56


def test_single_asks_each_pair_once_in_an_order_of_the_seed_and_the_prompt() -> None:
    table = np.full((8, 8), 0.5)
    asked = pairs(played(Single(0), prompt(*"abcdefgh"), table))
    assert len(asked) == len({frozenset(match) for match in asked}) == 28
    assert 7 <= sum(first < second for first, second in asked) <= 21
    assert asked == pairs(played(Single(0), prompt(*"abcdefgh"), table))
    assert asked != pairs(played(Single(1), prompt(*"abcdefgh"), table))
    assert asked != pairs(played(Single(0), prompt(*"abcdefgh", id="y"), table))


def test_adaptive_begins_with_each_response_once_in_each_slot() -> None:
    first, second = zip(*ADAPTIVE.next_round(prompt(*"abcdefgh"), []), strict=True)
    assert sorted(first) == sorted(second) == list(range(8))


@given(
    st.lists(st.none() | st.sampled_from("abcdef"), min_size=1, max_size=8),
    st.lists(st.floats(0, 1), min_size=64, max_size=64),
    st.booleans(),
    st.sampled_from([None, "unparsed", "overlong"]),
    st.floats(0, 0.5),
)
@settings(deadline=None)
def test_adaptive_ends_and_asks_nothing_twice(
    responses: list[str | None], p_first: list[float], soft: bool, label: str | None, rho: float
) -> None:
    samples = prompt(*responses)
    tournament = Adaptive(seed=0, confidence=0.9, soft=soft, prior=0.1, rho=rho)
    asked = pairs(played(tournament, samples, np.reshape(p_first, (8, 8)), label))
    assert len(set(asked)) == len(asked)
    assert set(asked) <= set(round_robin(samples))
    # Who plays at all plays early on.
    assert {k for match in asked for k in match} == {k for match in round_robin(samples) for k in match}


def clear_table(strengths: list[float]) -> np.ndarray:
    """P(first wins) (K, K) by Bradley-Terry."""
    e = np.array(strengths)
    return 1 / (1 + np.exp(e[None, :] - e[:, None]))


def test_adaptive_asks_most_about_those_that_may_be_best_or_worst() -> None:
    samples = prompt(*"abcdefgh")
    comparisons = played(ADAPTIVE, samples, clear_table([0, 9, 0, 0.5, 0, -0.5, -9, 0]))
    games = [sum(k in match for match in pairs(comparisons)) for k in range(8)]
    assert len(comparisons) <= 28
    assert min(games[1], games[6]) > max(games[k] for k in (0, 2, 3, 4, 5, 7))
    ring = set(ADAPTIVE.next_round(samples, []))
    later = set(pairs(comparisons)) - ring
    assert later and all((second, first) in later | ring for first, second in later)


def test_confidence_decides_how_many_comparisons_are_made() -> None:
    table = clear_table([1.5, 1, 0.5, 0, 0, -0.5, -1, -1.5])
    counts = [
        len(played(Adaptive(0, confidence, True, 0.1, 0.0), prompt(*"abcdefgh"), table))
        for confidence in (0.05, 0.5, 0.9, 0.999999)
    ]
    assert counts == sorted(counts)
    assert counts[0] <= 16 and 14 <= counts[2] <= 24 and counts[3] == 56


def test_adaptive_looks_for_the_best_after_length_control() -> None:
    """Response 0 is rated best and is by far the longest: with rho = 0.5 the best is response 1."""
    samples = prompt(*"abcdefgh")
    samples.samples[0] = Sample(0, [0], "", "ok", "", "a", 0, 50)
    table = clear_table([2, 1.8, 0, 0, 0, 0, 0, -4])

    def games(rho: float) -> list[int]:
        comparisons = played(Adaptive(0, 0.9, True, 0.1, rho), samples, table)
        return [sum(k in match for match in pairs(comparisons)) for k in range(8)]

    assert max(range(8), key=games(0.0).__getitem__) == 0
    assert max(range(8), key=games(0.5).__getitem__) == 1


def test_the_noise_of_a_round_robin_is_that_of_the_ratings_when_answers_vary() -> None:
    """The delta method by hand: each answer is moved a little, through the ratings. Two responses are identical."""
    samples, prior, step = prompt("a", "b", "a", "c"), 0.1, 1e-5
    ks = [0, 1, 3]
    table = clear_table([0.8, 0.1, 0.0, -0.6])  # by k; sample 2 is never shown
    matches = round_robin(samples)

    def ratings(moved: tuple[int, int] | None) -> np.ndarray:
        comparisons = [Comparison(*match, table[match] + step * (match == moved), "A") for match in matches]
        return bradley_terry(win_matrix(PromptJudgements("x", comparisons, 6, 6), samples, soft=True)[1], prior)[ks]

    strengths = ratings(None)
    variances = np.zeros((3, 3))
    for first, second in matches:
        change = (ratings((first, second)) - strengths) / step
        gap = strengths[ks.index(first)] - strengths[ks.index(second)]
        p = 1 / (1 + np.exp(-gap))
        variances += p * (1 - p) * (change[:, None] - change[None, :]) ** 2
    assert round_robin_noise(strengths, np.array([2, 1, 1]), prior) == pytest.approx(variances, rel=1e-3, abs=1e-9)


@pytest.mark.shared
def test_adaptive_chooses_as_the_round_robin_does_for_half_the_calls() -> None:
    """GPT-4 Turbo's scores of eight real answers each, and the noise and position bias that GPT-4 has on LLMBar."""
    data = SHARED / "data"
    case = simulated(data, data / "llmbar" / "judge_outputs" / "GPT-4_CoT.jsonl", soft=True, rho=0.0, count=200)
    reference, ours = play(case, RoundRobin(), case.answers), play(case, ADAPTIVE, case.answers)
    again = play(case, RoundRobin(), case.again or {})
    assert sum(ours.calls) <= 0.45 * sum(reference.calls)

    def agreement(side: str, other: Outcome) -> float:
        return float(np.mean(np.array(getattr(reference, side)) == np.array(getattr(other, side))))

    assert agreement("best", ours) >= 0.95 and agreement("worst", ours) >= 0.95
    # A second judge with the same noise, asked in full, is further from the first round robin.
    assert agreement("best", again) < agreement("best", ours) and agreement("worst", again) < agreement("worst", ours)


def noisy_case(prompts: int, noise: float, seed: int) -> Case:
    """Eight responses to each prompt, and a judge with logistic noise, a lean to the first slot, and soft answers."""
    numbers = np.random.default_rng(seed)
    strengths = {str(index): numbers.normal(0, 3, 8) for index in range(prompts)}

    def answers() -> dict[JudgeRequest, Verdict]:
        said = {}
        for index, e in strengths.items():
            margins = e[:, None] - e[None, :] + 0.2 + noise * numbers.logistic(size=(8, 8))
            for i, j in np.argwhere(~np.eye(8, dtype=bool)):
                p = 1 / (1 + math.exp(-margins[i, j]))
                said[JudgeRequest(index, f"response {i}", f"response {j}")] = Verdict(p, "A" if p > 0.5 else "B")
        return said

    samples = [
        PromptSamples(
            Instruction(index, index, "test"),
            [0],
            [Sample(k, [k], "", "ok", "", f"response {k}", 0, 1) for k in range(8)],
        )
        for index in strengths
    ]
    return Case("made up", samples, answers(), True, 0.0, lambda samples, k: 0.0, answers())


def test_adaptive_chooses_as_the_round_robin_does_with_a_judge_made_up() -> None:
    case = noisy_case(60, 1.0, seed=0)
    reference, ours = play(case, RoundRobin(), case.answers), play(case, ADAPTIVE, case.answers)
    second = play(case, RoundRobin(), case.again or {})
    assert sum(ours.calls) <= 0.5 * sum(reference.calls)
    for side in ("best", "worst"):
        first, adaptive, again = (np.array(getattr(outcome, side)) for outcome in (reference, ours, second))
        assert np.mean(first == again) < np.mean(first == adaptive)
        assert np.mean(first == adaptive) >= 0.95
