"""What the thought browser knows of training and held-out prompts."""

import dataclasses

import pytest

from tests.helpers.written_run import K, written_run
from tpo_lite.people.browser import held_out_entry, index_line, instruction_entry, training_entry
from tpo_lite.people.held_out import held_out
from tpo_lite.people.training_prompts import training_prompts, why


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return written_run(tmp_path_factory.mktemp("written") / "run")


def test_a_training_prompt_is_joined_from_four_files(run):
    recipe = run.load_started()
    prompts = list(training_prompts(run, "thinking", 1))
    assert [found.prompt.instruction.id for found in prompts] == ["train-1-0", "train-1-1", "train-1-2"]
    found = prompts[0]
    assert found.scores.ks == [0, 1, 2] and len(found.comparisons) == 6 and found.flipped
    assert {(found.pair.chosen_k, found.pair.rejected_k)} == {(0, 2)} or found.pair.kind == "malformed"
    entry = training_entry(found, recipe)
    assert [sample["k"] for sample in entry["samples"]] == list(range(K))
    assert "text" in entry["samples"][K - 1] and "response" not in entry["samples"][K - 1]
    assert {"pair", "malformed", "flipped"} == set(entry["marks"])


def test_comparisons_of_a_right_and_a_wrong_answer_are_counted_by_hand(run):
    found = list(training_prompts(run, "thinking", 0))
    # Prompt 0 has no answer. In prompt 1 the responses are Rhône, Po, lake, so all are wrong. In prompt 2 they are Po,
    # lake and, as k = 2, Rhine, which is right: of its comparisons with 0 and 1, the judge prefers it once, as the
    # first of (2, 1).
    assert [list(each.gold_comparisons()) for each in found[:2]] == [[], []]
    assert sorted(found[2].gold_comparisons()) == [False, False, False, True]


def test_why_a_pair_was_made_or_not(run):
    recipe = run.load_started()
    found = next(iter(training_prompts(run, "thinking", 0)))
    best_worst = dataclasses.replace(found.pair, kind="best-worst", chosen_k=0, rejected_k=2)
    said = why(dataclasses.replace(found, pair=best_worst), recipe)
    assert said.startswith("Sample 0 has the highest score (+") and "Sample 2 has the lowest (\N{MINUS SIGN}" in said
    malformed = dataclasses.replace(found.pair, kind="malformed", rejected_k=K - 1)
    assert "malformed (no response marker)" in why(dataclasses.replace(found, pair=malformed), recipe)
    tied = dataclasses.replace(found.scores, ratings=[0.0] * 3, controlled=[0.0] * 3)
    none = dataclasses.replace(found, pair=None, scores=tied)
    assert why(none, recipe) == "No pair: the judge rated its responses equal."
    assert why(dataclasses.replace(none, paired=False), recipe) == "Judged, but not paired yet."
    assert why(dataclasses.replace(none, judgements=None), recipe) == "Not judged yet."


def test_held_out_prompts_have_the_answers_of_all_models(run):
    found = list(held_out(run, "thinking", "validation"))[1]
    assert [answer.model for answer in found.answers] == [0, 1, 2]
    assert [sorted(answer.wins) for answer in found.answers] == [[], [0], [0, 1]]
    assert found.win == 0.75
    entry = instruction_entry(found.instruction, "validation")
    entry["arms"]["thinking"] = held_out_entry(found)
    line = index_line(entry, 3)
    assert line["page"] == 3 and line["marks"] == {"thinking": ["won"]}
    assert entry["arms"]["thinking"]["answers"][2]["wins"] == {0: 0.75, 1: 0.75}
