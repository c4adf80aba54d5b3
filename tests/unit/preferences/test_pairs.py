"""Best and worst of K, the share of malformed outputs, and why prompts have no pair."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import zscore

from tpo_lite.preferences.pairs import DROP_REASONS, make_pairs, score_prompt, score_prompts, trained_on
from tpo_lite.preferences.tournament import round_robin
from tpo_lite.records import (
    Comparison,
    Instruction,
    Pair,
    PromptJudgements,
    PromptSamples,
    PromptScores,
    ResponseScore,
    Sample,
    read_jsonl,
    write_jsonl,
)
from tpo_lite.seeds import keyed_hash
from tpo_lite.thoughts import WELL_FORMED


def prompt(id: str, *responses: str | None, output_tokens: int = 3) -> PromptSamples:
    """Samples with these responses, one token a letter; None is a malformed one. A prompt of 2 tokens."""
    samples = [
        Sample(
            k,
            [k] * output_tokens,
            "",
            "no_marker" if text is None else "ok",
            "z",
            text or "",
            1,
            len(text or ""),
        )
        for k, text in enumerate(responses)
    ]
    return PromptSamples(Instruction(id, "?", "test"), [7, 8], samples)


def scored(samples: PromptSamples, *controlled: float) -> PromptScores:
    """Scores of the well-formed samples, in order, without length control."""
    ks = [sample.k for sample in samples.samples if sample.well_formed]
    assert len(ks) == len(controlled)
    values = list(controlled)
    return PromptScores(samples.instruction.id, ks, values, values, [1] * len(ks), values)


def pairs_of(*rows: tuple[PromptSamples, tuple[float, ...]], share: float = 0.0, max_tokens: int = 99, seed: int = 0):
    samples = [row for row, _ in rows]
    scores = {row.instruction.id: scored(row, *values) for row, values in rows}
    return make_pairs(samples, scores, malformed_share=share, max_tokens=max_tokens, seed=seed)


def counts(**changed: int) -> dict[str, int]:
    return dict.fromkeys(("prompts", "best-worst", "malformed", *DROP_REASONS), 0) | {
        key.replace("best_worst", "best-worst"): value for key, value in changed.items()
    }


def test_best_and_worst() -> None:
    made = pairs_of((prompt("x", "aa", None, "b", "ccc"), (0.0, -1.0, 1.0)))
    assert made.pairs == [Pair("x", "best-worst", [7, 8], [3, 3, 3], [2, 2, 2], 3, 2, 3, 1)]
    assert made.counts == counts(prompts=1, best_worst=1)


def test_unusual_outputs_are_paired_like_others_and_those_of_older_runs_stay_malformed() -> None:
    samples = prompt("x", "aa", "b", "ccc", None).samples
    unusual = [replace(sample, outcome=outcome) for sample, outcome in zip(samples[:3], WELL_FORMED[1:4], strict=True)]
    made = pairs_of((PromptSamples(Instruction("x", "?", "test"), [7, 8], [*unusual, samples[3]]), (0.0, -1.0, 1.0)))
    assert made.pairs == [Pair("x", "best-worst", [7, 8], [2, 2, 2], [1, 1, 1], 2, 1, 3, 1)]
    old = [replace(sample, outcome="empty_thought", response="") for sample in samples[:2]]
    made = pairs_of((PromptSamples(Instruction("x", "?", "test"), [7, 8], [*old, samples[2]]), (1.0,)), share=1.0)
    assert [(pair.kind, pair.chosen_k) for pair in made.pairs] == [("malformed", 2)]


@pytest.mark.parametrize("budget_forced", [False, True])
def test_an_output_whose_thought_was_cut_is_trained_on_only_if_the_recipe_says_so(budget_forced: bool) -> None:
    """By default it is neither chosen, nor rejected, nor malformed."""
    sampled = prompt("x", "aaaa", "b", "ccc", "dd", None)
    samples = [replace(s, outcome="budget_forced") if s.k in (0, 1) else s for s in sampled.samples]
    (kept,) = trained_on([replace(sampled, samples=samples)], budget_forced)
    assert [sample.k for sample in kept.samples] == ([0, 1, 2, 3, 4] if budget_forced else [2, 3, 4])
    judgements = PromptJudgements("x", [Comparison(a, b, float(a < b), "A") for a, b in round_robin(kept)], 0, 0)
    score = score_prompt(kept, judgements, soft=True, prior=0.1, rho=0.0)
    (pair,) = make_pairs([kept], {"x": score}, malformed_share=0.0, max_tokens=99, seed=0).pairs
    assert (pair.chosen_k, pair.rejected_k) == ((0, 3) if budget_forced else (2, 3))
    made = make_pairs([kept], {"x": score}, malformed_share=1.0, max_tokens=99, seed=0)
    assert [(pair.kind, pair.rejected_k) for pair in made.pairs] == [("malformed", 4)]


def test_ties_go_to_the_lowest_k() -> None:
    (pair,) = pairs_of((prompt("x", "a", "b", "c", "d"), (-1.0, 1.0, 1.0, -1.0))).pairs
    assert (pair.chosen_k, pair.rejected_k) == (1, 0)


@pytest.mark.parametrize(
    ("responses", "values", "reason"),
    [
        ((None, None), (), "no_well_formed"),
        ((None, "a"), (0.0,), "one_response"),
        (("a", "a"), (0.0, 0.0), "one_response"),
        (("a", "b"), (0.0, 0.0), "tied"),
    ],
)
def test_dropped_with_the_reason(responses: tuple, values: tuple[float, ...], reason: str) -> None:
    made = pairs_of((prompt("x", *responses), values))
    assert (made.pairs, made.counts) == ([], counts(prompts=1, **{reason: 1}))


def test_equal_ratings_are_no_preference_whatever_the_lengths() -> None:
    samples = prompt("x", "a", "bbbb")
    judgements = PromptJudgements("x", [Comparison(0, 1, 0.8, "A"), Comparison(1, 0, 0.8, "A")], 2, 0)
    score = score_prompt(samples, judgements, soft=True, prior=0.1, rho=0.5)
    assert score.ratings == [0.0, 0.0] and score.controlled == [0.5, -0.5]
    made = make_pairs([samples], {"x": score}, malformed_share=0, max_tokens=99, seed=0)
    assert made.counts == counts(prompts=1, tied=1)


def test_without_a_preference_the_chosen_response_is_not_the_shortest_but_the_first() -> None:
    samples = prompt("x", "bbbb", None, "a", "ccc")
    nobody = [Comparison(first, second, 0.5, "tie") for first, second in round_robin(samples)]
    score = score_prompt(samples, PromptJudgements("x", nobody, 6, 0), soft=True, prior=0.1, rho=0.5)
    assert score.controlled.index(max(score.controlled)) == 1  # the response "a"
    (pair,) = make_pairs([samples], {"x": score}, malformed_share=1, max_tokens=99, seed=0).pairs
    assert (pair.kind, pair.chosen_k, pair.rejected_k) == ("malformed", 0, 1)


def test_errors_in_hard_mode_are_no_preference() -> None:
    """The judge gave no verdict by itself; what was read after an opened one counts as a soft win only."""
    samples = prompt("x", "a", "bbb")
    forced = PromptJudgements("x", [Comparison(0, 1, 0.99, "unparsed"), Comparison(1, 0, 0.01, "unparsed")], 2, 0)
    scores = [score_prompt(samples, forced, soft=soft, prior=0.1, rho=0.0) for soft in (False, True)]
    made = [make_pairs([samples], {"x": score}, malformed_share=0, max_tokens=99, seed=0) for score in scores]
    assert [made.counts["tied"] for made in made] == [1, 0]
    assert made[1].pairs[0].chosen_k == 0


def test_a_response_that_never_fitted_the_judge_is_neither_best_nor_worst() -> None:
    """Length control would otherwise reject the long one, of which the judge said nothing."""
    samples = prompt("x", "a", "bb", "c" * 9, "c" * 9)
    made = [Comparison(0, 1, 0.9, "A"), Comparison(1, 0, 0.2, "B")]
    lost = [Comparison(first, 2, 0.5, "overlong") for first in (0, 1)]
    score = score_prompt(samples, PromptJudgements("x", made + lost, 2, 0), soft=True, prior=0.1, rho=0.5)
    assert score.ks == [0, 1] and score.ratings[0] > score.ratings[1]

    nothing = score_prompt(samples, PromptJudgements("x", lost, 0, 0), soft=True, prior=0.1, rho=0.5)
    assert nothing.ks == nothing.controlled == []
    none = make_pairs([samples], {"x": nothing}, malformed_share=1.0, max_tokens=99, seed=0)
    assert none.counts == counts(prompts=1, not_judged=1)


def test_too_long_is_dropped_and_never_cut() -> None:
    rows = (
        (prompt("fits", "a", "b", output_tokens=8), (1.0, 0.0)),
        (prompt("long", "a", "b", output_tokens=9), (1.0, 0.0)),
    )
    made = pairs_of(*rows, max_tokens=10)
    assert [pair.id for pair in made.pairs] == ["fits"]
    assert made.counts == counts(prompts=2, best_worst=1, too_long=1)


def test_malformed_share() -> None:
    rows = [(prompt(f"p{i}", "a", None, "b", None), (1.0, 0.0)) for i in range(30)]
    made = pairs_of(*rows, share=0.1, seed=5)
    assert made.counts == counts(prompts=30, best_worst=27, malformed=3)
    assert [pair.id for pair in made.pairs] == [f"p{i}" for i in range(30)]
    malformed = {pair.id: pair for pair in made.pairs if pair.kind == "malformed"}
    assert set(malformed) == set(sorted((f"p{i}" for i in range(30)), key=lambda id: keyed_hash(5, id))[:3])
    for pair in malformed.values():
        assert pair.chosen_k == 0 and pair.rejected_k in (1, 3) and pair.rejected_response_tokens == 0
    assert {pair.rejected_k for pair in pairs_of(*rows, share=1).pairs} == {1, 3}


def test_malformed_share_of_0_29_is_29_in_100() -> None:
    rows = [(prompt(f"p{i}", "a", None, "b"), (1.0, 0.0)) for i in range(100)]
    assert pairs_of(*rows, share=0.29).counts["malformed"] == 29


def test_malformed_goes_first_to_prompts_that_have_no_other_pair() -> None:
    rows = [(prompt(f"p{i}", "a", None, "b"), (1.0, 0.0)) for i in range(9)]
    rows += [(prompt("single", None, "a"), (0.0,)), (prompt("tied", "a", "b", None), (0.0, 0.0))]
    made = pairs_of(*rows, share=0.1)
    # 10 pairs: 9 and one of the two; an eleventh would need a share of 2 / 11.
    assert made.counts == counts(prompts=11, best_worst=9, malformed=1) | {
        "tied" if any(pair.id == "single" for pair in made.pairs) else "one_response": 1
    }


def test_score_prompts_finds_rho() -> None:
    # One win of the long response in a single prompt: no rho turns two responses round.
    samples = [prompt("x", "aaaa", "b")]
    judgements = {"x": PromptJudgements("x", [Comparison(0, 1, 1.0, "A"), Comparison(1, 0, 0.0, "B")], 2, 0)}
    fixed = score_prompts(samples, judgements, soft=False, prior=0.1, rho=0.25, max_tokens=99)
    assert (fixed.rho, fixed.reached, fixed.scores["x"].controlled) == (0.25, None, [0.75, -0.75])
    automatic = score_prompts(samples, judgements, soft=False, prior=0.1, rho=None, max_tokens=99)
    assert (automatic.rho, automatic.reached, automatic.scores["x"].controlled) == (0.5, False, [0.5, -0.5])
    score = automatic.scores["x"]
    assert score.ks == [0, 1] and score.lengths == [4, 1]
    # 2 * sigma(-2e) = 0.1 * e
    assert 2 / (1 + math.exp(2 * score.ratings[0])) == pytest.approx(0.1 * score.ratings[0], abs=1e-8)
    assert score.elo[0] == pytest.approx(1000 + 400 * score.ratings[0] / math.log(10))


@given(st.lists(st.floats(0, 1), min_size=12, max_size=12), st.booleans())
def test_one_text_has_one_rating(p_first: list[float], soft: bool) -> None:
    samples = prompt("x", "a", "b", "a", "c", "b", "dd", "a")
    comparisons = [
        Comparison(first, second, p, "A" if p > 0.5 else "B")
        for (first, second), p in zip(round_robin(samples), p_first, strict=True)
    ]
    judgements = PromptJudgements("x", comparisons, 12, 30)
    ratings = score_prompt(samples, judgements, soft=soft, prior=0.1, rho=0.0).ratings
    assert ratings[0] == ratings[2] == ratings[6]
    assert ratings[1] == ratings[4]


RAW = [5.0, 4.9, 4.4, -40.0]
"""Scores with an outlier."""


def pointwise(*scores: float | None) -> PromptJudgements:
    """Scores of samples 0, 1, ..., whose responses are distinct."""
    return PromptJudgements("x", [], len(scores), 0, [ResponseScore(k, score) for k, score in enumerate(scores)])


def test_raw_scores_are_controlled_for_length_as_they_are() -> None:
    """The paper z-scores the raw reward. The outlier leaves no room between the others: the shortest is chosen."""
    samples = prompt("x", "a" * 9, "b" * 8, "c", "d" * 4)
    score = score_prompt(samples, pointwise(*RAW), soft=True, prior=0.1, rho=0.1)
    assert (score.ks, score.ratings, score.elo) == ([0, 1, 2, 3], RAW, None)
    assert score.controlled == pytest.approx(zscore(RAW) - 0.1 * zscore([9, 8, 1, 4]))
    (pair,) = make_pairs([samples], {"x": score}, malformed_share=0, max_tokens=99, seed=0).pairs
    assert (pair.chosen_k, pair.rejected_k) == (2, 3)
    # Bradley-Terry on the same answers loses the distances, and chooses another.
    compared = [
        Comparison(a, b, 1 / (1 + math.exp(RAW[b] - RAW[a])), "A" if RAW[a] > RAW[b] else "B")
        for a, b in round_robin(samples)
    ]
    ranked = score_prompt(samples, PromptJudgements("x", compared, 12, 0), soft=False, prior=0.1, rho=0.1)
    assert ranked.controlled.index(max(ranked.controlled)) == 0


def test_a_score_counts_for_every_sample_with_the_text() -> None:
    samples = prompt("x", "a", None, "b", "a", "c")
    scores = [ResponseScore(0, 2.0), ResponseScore(2, -1.0), ResponseScore(4, None)]
    score = score_prompt(samples, PromptJudgements("x", [], 2, 1, scores), soft=False, prior=0.1, rho=0.0)
    assert (score.ks, score.ratings) == ([0, 2, 3], [2.0, -1.0, 2.0])
    nothing = score_prompt(prompt("x", "a", "b"), pointwise(None, None), soft=True, prior=0.1, rho=0.5)
    assert (nothing.ks, nothing.ratings, nothing.controlled) == ([], [], [])


def test_judgements_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Those of a judge of pairs have no key for scores, as before."""
    compared = PromptJudgements("x", [Comparison(0, 1, 0.9, "A")], 1, 1)
    assert list(compared.to_dict()) == ["id", "comparisons", "calls", "saved"]
    records = [compared, pointwise(1.5, None), PromptJudgements("y", [], 0, 0, [])]
    write_jsonl(tmp_path / "judgements.jsonl", records)
    assert list(read_jsonl(tmp_path / "judgements.jsonl", PromptJudgements)) == records


def test_score_prompt_without_well_formed_samples() -> None:
    score = score_prompt(prompt("x", None), PromptJudgements("x", [], 0, 0), soft=True, prior=0.1, rho=0.2)
    assert score == PromptScores("x", [], [], [], [], [])


outputs = st.lists(st.none() | st.tuples(st.sampled_from("abc"), st.integers(-2, 2)), min_size=1, max_size=5)


@given(
    rows=st.lists(outputs, max_size=25),
    share=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
    max_tokens=st.sampled_from([4, 99]),
    seed=st.integers(0, 9),
)
def test_every_prompt_is_accounted_for(rows: list, share: float, max_tokens: int, seed: int) -> None:
    made_of = []
    for index, row in enumerate(rows):
        samples = prompt(f"p{index}", *(output and output[0] for output in row))
        made_of.append((samples, tuple(float(output[1]) for output in row if output)))
    made = pairs_of(*made_of, share=share, max_tokens=max_tokens, seed=seed)
    found = made.counts
    assert found["prompts"] == len(rows) == len(made.pairs) + sum(found[reason] for reason in DROP_REASONS)
    assert [pair.kind for pair in made.pairs].count("malformed") == found["malformed"] <= share * len(made.pairs) + 1e-9
    assert found["best-worst"] + found["malformed"] == len(made.pairs)
    by_id = {samples.instruction.id: samples.samples for samples, _ in made_of}
    for pair in made.pairs:
        chosen, rejected = by_id[pair.id][pair.chosen_k], by_id[pair.id][pair.rejected_k]
        assert chosen.well_formed and chosen.response != rejected.response
        assert rejected.well_formed == (pair.kind == "best-worst")
        assert (pair.chosen_ids, pair.rejected_ids) == (chosen.token_ids, rejected.token_ids)
    # Prompts are drawn by seed and id, not by their place.
    again = pairs_of(*reversed(made_of), share=share, max_tokens=max_tokens, seed=seed)
    assert again.pairs[::-1] == made.pairs and again.counts == found
