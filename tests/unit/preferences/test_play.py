"""Tournaments before a judge: what it is shown, in how many calls, and what is recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.alphabet import ADAPTIVE, Alphabet, prompt
from tpo_lite.intervals import flip_rate
from tpo_lite.judges.protocol import JudgeRequest
from tpo_lite.phases.figures import judge_figures
from tpo_lite.preferences.pairs import score_prompt
from tpo_lite.preferences.play import judge_prompts
from tpo_lite.preferences.tournament import RoundRobin, Single, Tournament
from tpo_lite.records import Comparison, PromptJudgements, ResponseScore


def test_a_round_robin_of_several_prompts_is_one_call() -> None:
    judge = Alphabet()
    prompts = [prompt("b", "a", "b"), prompt("c", None, id="y"), prompt("d", "c", id="z")]
    records = list(judge_prompts(judge, prompts, RoundRobin()))
    assert judge.batches == [[JudgeRequest("?", a, b) for a, b in ("ba", "ab", "dc", "cd")]]
    assert records[0].comparisons == [Comparison(0, 1, 0.05, "B", "because"), Comparison(1, 0, 0.95, "A", "because")]
    assert [(record.id, record.calls, record.saved) for record in records] == [("x", 2, 4), ("y", 0, 0), ("z", 2, 0)]


def test_a_judge_sees_what_comes_before_an_instruction() -> None:
    judge = Alphabet()
    history = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Elbe."}]
    samples = prompt("b", "a")
    samples = replace(samples, instruction=replace(samples.instruction, context=history))
    list(judge_prompts(judge, [samples], Single(0)))
    assert [request.instruction for request in judge.batches[0]] == [
        "User: Name a river.\n\nAssistant: The Elbe.\n\nUser: ?"
    ]


def test_rounds_of_several_prompts_go_together() -> None:
    judge = Alphabet()
    prompts = [prompt(*letters, id=letters) for letters in ("hgfedcba", "abcdefgh", "ab")]
    records = list(judge_prompts(judge, prompts, ADAPTIVE))
    assert len(judge.batches[0]) == 8 + 8 + 2
    # The third has played all there is to play, the others go on together.
    assert 2 <= len(judge.batches) <= 6
    assert sum(map(len, judge.batches)) == sum(record.calls for record in records)
    for record in records:
        assert record.calls == len(record.comparisons)
        assert record.calls + record.saved == len(record.id) * (len(record.id) - 1)
        assert [record] == list(judge_prompts(Alphabet(), [prompt(*record.id, id=record.id)], ADAPTIVE))


def test_a_prompt_is_given_when_it_is_over_and_not_when_all_are() -> None:
    judge = Alphabet()
    stream = judge_prompts(judge, [prompt("b", "a"), prompt(*"hgfedcba", id="y"), prompt("a", id="z")], ADAPTIVE)
    assert (next(stream).id, len(judge.batches)) == ("x", 1)
    assert [record.id for record in stream] == ["y", "z"]  # in order, though the last had nothing to play
    assert len(judge.batches) > 1


@pytest.mark.parametrize("tournament", [RoundRobin(), Single(0), ADAPTIVE])
def test_every_tournament_finds_the_best_and_the_worst(tournament: Tournament) -> None:
    samples = prompt(*"hcagdbef")
    (judgements,) = judge_prompts(Alphabet(), [samples], tournament)
    score = score_prompt(samples, judgements, soft=True, prior=0.1, rho=0.0)
    ranked = [letter for _, letter in sorted(zip(score.ratings, "hcagdbef", strict=True))]
    assert (ranked[0], ranked[-1]) == ("h", "a")


@pytest.mark.parametrize("tournament", [RoundRobin(), Single(0), ADAPTIVE])
def test_a_pointwise_judge_scores_each_distinct_response_once(tournament: Tournament) -> None:
    judge = Alphabet(pointwise=True)
    prompts = [prompt("b", "a", None, "b", "c"), prompt("a", "a", id="y"), prompt(None, id="z")]
    records = list(judge_prompts(judge, prompts, tournament))
    assert judge.scored == [[("?", letter) for letter in "baca"]] and judge.batches == []
    scores = [ResponseScore(0, 240.0), ResponseScore(1, 250.0), ResponseScore(4, 230.0)]
    assert records == [
        PromptJudgements("x", [], 3, 1, scores),
        PromptJudgements("y", [], 1, 1, [ResponseScore(0, 250.0)]),
        PromptJudgements("z", [], 0, 0, []),
    ]


@pytest.mark.parametrize("pointwise", [False, True])
def test_what_is_too_long_for_the_judge_is_neither_a_call_nor_saved(pointwise: bool) -> None:
    samples = prompt("a", "b", "too long")
    (record,) = judge_prompts(Alphabet(pointwise, longest=3), [samples], RoundRobin())
    assert record.overlong() == judge_figures([record]).overlong == (1 if pointwise else 4)
    assert (record.calls, record.saved) == (2, 0)
    (none,) = judge_prompts(Alphabet(pointwise, longest=0), [samples], RoundRobin())
    assert none.calls == 0


def test_flips_are_counted_over_pairs_asked_in_both_orders() -> None:
    both = [Comparison(0, 1, 0.9, "A"), Comparison(1, 0, 0.9, "A"), Comparison(0, 2, 0.9, "A")]
    assert (flip_rate([both]).value, flip_rate([both]).n) == (1.0, 1)
    (record,) = judge_prompts(Alphabet(), [prompt("a", "b", "c")], Single(0))
    assert judge_figures([record]).to_dict() == {
        "calls": 3,
        "saved": 3,
        "unparsed": 0,
        "overlong": 0,
        "flip_rate": None,
        "first_slot_rate": sum(c.verdict == "A" for c in record.comparisons) / 3,
    }
