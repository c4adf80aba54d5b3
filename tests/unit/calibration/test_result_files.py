"""Recorded judge outputs against what was published with them, and verdict parsing."""

from __future__ import annotations

import json
import re

import pytest

from tests.helpers.shared import DATA, SHARED
from tpo_lite.calibration.ask import judge_both_orders
from tpo_lite.calibration.gold_pairs import read_pairs
from tpo_lite.calibration.judged_pair import with_gold
from tpo_lite.calibration.report import report
from tpo_lite.calibration.result_files import label_parser, llmbar_explained_label, llmbar_label, read_outputs
from tpo_lite.errors import InputError
from tpo_lite.judges.protocol import Verdict
from tpo_lite.judges.verdicts import bracketed_label, final_label

OURS = DATA / "llmbar"
PLAIN = OURS / "judge_outputs/plain.jsonl"
LLMBAR = SHARED / "data/llmbar"
JUDGEBENCH = SHARED / "data/judgebench/arena_hard_o1-mini_on_gpt4o.jsonl"
ARENA_HARD = SHARED / "data/arena_hard/judgments_gpt4turbo_llama31_8b_82q.jsonl"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("[[A]]", "A"),
        ("Both are fine.\n\n[[B]]", "B"),
        ("a draw: [[C]]", "C"),
        ("My final verdict is: [[A>>B]]", "A>>B"),
        ("[[A>B]] as I said: [[A>B]]", "A>B"),
        ("[[A=B]]", "A=B"),
        ("[[B>A]]", "B>A"),
        ("[[B>>A]].", "B>>A"),
        ("[[A]] or [[B]]?", None),
        ("[[A>B]], no: [[A>>B]]", None),
        ("[[A<B]]", None),
        ("[A]", None),
        ("[[D]] [[]] [[a]]", None),
        ("", None),
    ],
)
def test_bracketed_labels(text, label):
    assert bracketed_label(text) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("[[A]]", "A"),
        ("[[A]] or [[B]]?", "B"),
        ("It says [[B]]. [[A>>B]]", "A>>B"),
        ("[[A]] [[D]]", "A"),
        ("[[A]] [[A<B]]", None),
        ("", None),
    ],
)
def test_final_labels(text, label):
    assert final_label(text) == label


@pytest.mark.parametrize(
    ("text", "explained", "plain"),
    [
        ("Output (a)", None, "A"),
        ("Output (b)\n", None, "B"),
        ("Sure.\n Output (b)", None, "B"),
        ("I prefer Output (b)", None, None),
        ("Output (a) is short. Therefore, Output (b) is better.", "B", "A"),
        # LLMBar looks for (a) first.
        ("Output (b) is better. Output (a) is better.", "A", "B"),
        ("Output (c)", None, None),
    ],
)
def test_llmbars_labels(text, explained, plain):
    assert llmbar_explained_label(text) == explained
    assert llmbar_label(text) == plain


def test_the_rule_that_reads_most():
    assert label_parser(["Output (a) x. Output (b) is better.", "Output (a)?"]) is llmbar_label
    assert label_parser(["Output (a) x. Output (b) is better.", "None."]) is llmbar_explained_label
    assert label_parser(["[[A]]", "?"]) is bracketed_label
    assert label_parser(["1.5", ""]) is None


@pytest.mark.shared
@pytest.mark.parametrize("name", ["GPT-4_CoT", "LLaMA2_Vanilla"])
def test_llmbar_comes_out_as_published(name):
    outputs = read_outputs(LLMBAR / f"judge_outputs/{name}.jsonl")
    published = json.loads((LLMBAR / f"judge_outputs/{name}.statistics.json").read_text())
    assert (len(outputs.pairs), outputs.recorded, outputs.differing) == (419, 838, [])
    assert list(dict.fromkeys(pair.group for pair in outputs.pairs)) == list(published)
    for group, figures in published.items():
        # "94 / 100 = 94.0%" -> 94.0
        expected = {key: float(re.search(r"([\d.]+)%", figures[key])[1]) for key in figures if "kappa" not in key}
        found = report([pair for pair in outputs.pairs if pair.group == group])
        assert {
            "correct_False": 100 * found.accuracy_in_order.value,
            "correct_True": 100 * found.accuracy_swapped.value,
            "correct_average": 100 * found.accuracy.value,
            "correct_both": 100 * found.both_right.value,
            "equal": 100 * found.agreement.value,
        } == pytest.approx(expected, abs=1e-9)
        assert f"/ {found.pairs} =" in figures["equal"]


@pytest.mark.shared
def test_judgebench_comes_out_as_published():
    outputs = read_outputs(JUDGEBENCH)
    assert (len(outputs.pairs), outputs.recorded, outputs.differing) == (350, 700, [])

    # JudgeBench's metrics.py, on the decisions that it recorded.
    flip = {"A>B": "B>A", "B>A": "A>B", "A=B": "A=B"}
    correct = inconsistent = 0
    for row in map(json.loads, JUDGEBENCH.read_text().splitlines()):
        decisions = [row["judgments"][0]["decision"], flip[row["judgments"][1]["decision"]]]
        correct += decisions.count(row["label"]) > decisions.count(flip[row["label"]])
        inconsistent += decisions[0] != decisions[1]
    found = report(outputs.pairs)
    assert found.more_right.value == correct / 350
    assert found.agreement.value == 1 - inconsistent / 350

    # What that comes to, in the paper's four categories.
    by_group = {
        group: round(100 * report([p for p in outputs.pairs if p.group == group]).more_right.value, 2)
        for group in ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")
    }
    assert list(by_group.values()) == [58.44, 62.24, 82.14, 78.57]
    assert round(100 * found.more_right.value, 2) == 65.71


@pytest.mark.shared
def test_arena_hard_labels_parse_as_recorded():
    outputs = read_outputs(ARENA_HARD)
    assert (len(outputs.pairs), outputs.recorded, outputs.differing) == (82, 164, [])
    rows = [json.loads(line) for line in ARENA_HARD.read_text().splitlines()]
    games = [game for row in rows for game in row["games"]]
    assert [bracketed_label(game["judgment"]) for game in games] == [game["score"] for game in games]
    found = report(outputs.pairs)
    assert (found.unparsed.value, found.ties.value) == (2 / 164, 17 / 164)
    assert found.accuracy.n == 0


@pytest.mark.parametrize("name", ["plain", "explained"])
def test_llmbars_form_by_hand(name):
    """Right in order and swapped: yes yes, yes yes, yes no, no no; and no yes, yes yes."""
    outputs = read_outputs(OURS / f"judge_outputs/{name}.jsonl")
    assert (len(outputs.pairs), outputs.recorded, outputs.differing) == (6, 12, [])
    expected = {"Natural": [75.0, 50.0, 62.5, 50.0, 75.0], "Adversarial_Manual": [50.0, 100.0, 75.0, 50.0, 50.0]}
    assert list(dict.fromkeys(pair.group for pair in outputs.pairs)) == list(expected)
    for group, figures in expected.items():
        found = report([pair for pair in outputs.pairs if pair.group == group])
        shares = found.accuracy_in_order, found.accuracy_swapped, found.accuracy, found.both_right, found.agreement
        assert [100 * share.value for share in shares] == figures


def test_judgebenchs_form_by_hand():
    """Right twice; once of two; wrong twice; a tie and once right."""
    outputs = read_outputs(DATA / "judgebench/outputs.jsonl")
    assert (len(outputs.pairs), outputs.recorded, outputs.differing) == (4, 8, [])
    found = report(outputs.pairs)
    assert (found.more_right.value, found.agreement.value) == (0.5, 0.5)


def test_arena_hards_form_by_hand():
    outputs = read_outputs(DATA / "arena_hard/judgments.jsonl")
    assert (len(outputs.pairs), outputs.recorded, outputs.differing) == (2, 4, [])
    found = report(outputs.pairs)
    assert (found.unparsed.value, found.ties.value) == (1 / 4, 1 / 4)
    assert found.accuracy.n == 0


def test_a_verdict_other_than_the_recorded_one_is_counted(tmp_path):
    lines = PLAIN.read_text().splitlines()[:3]
    row = json.loads(lines[1])
    row["winner_swapped"] = {"1": "2", "2": "1"}[row["winner_swapped"]]
    path = tmp_path / "outputs.jsonl"
    path.write_text("\n".join([lines[0], json.dumps(row), lines[2]]))
    outputs = read_outputs(path)
    assert outputs.differing == ["Natural:1"]
    assert outputs.pairs == read_outputs(PLAIN).pairs[:3]


def test_llmbars_own_result_json(tmp_path):
    """The list that its evaluator writes, rebuilt from the dataset and the recorded texts."""
    dataset = json.loads((OURS / "Natural.json").read_text())
    lines = (OURS / "judge_outputs/explained.jsonl").read_text().splitlines()[:4]
    for instance, row in zip(dataset, map(json.loads, lines), strict=True):
        instance["results"] = [
            {
                "swap = False": {"completion": [row["text"], "stop"], "winner": row["winner"]},
                "swap = True": {"completion": [row["text_swapped"], "stop"], "winner": row["winner_swapped"]},
            }
        ]
    path = tmp_path / "Natural.json"
    path.write_text(json.dumps(dataset, indent=2))
    outputs = read_outputs(path)
    recorded = read_outputs(OURS / "judge_outputs/explained.jsonl")
    assert outputs.differing == []
    assert outputs.pairs == with_gold(recorded.pairs, read_pairs(OURS / "Natural.json"))


def test_judgebenchs_own_lines_and_judges_without_readable_texts(tmp_path):
    common = {
        "pair_id": "p",
        "source": "mmlu-pro-law",
        "question": "x",
        "response_A": "aa",
        "response_B": "b",
        "label": "B>A",
    }
    nested = [{"judgment": {"response": "[[B>>A]]"}, "decision": "B>A"}, None]
    scores = [{"judgment": {"response": 0.5}, "decision": "A>B"}, {"judgment": {}, "decision": "A=B"}]
    path = tmp_path / "o.jsonl"
    path.write_text(json.dumps(common | {"judgments": nested}))
    (pair,) = read_outputs(path).pairs
    assert [c.verdict for c in pair.comparisons] == ["B", "unparsed"]
    assert (pair.label, pair.lengths, pair.group) == (2, [2, 1], "mmlu-pro")
    scores[0]["judgment"]["response"] = "0.5"
    path.write_text(json.dumps(common | {"judgments": scores}))
    outputs = read_outputs(path)
    assert [c.verdict for c in outputs.pairs[0].comparisons] == ["A", "tie"]
    assert outputs.recorded == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "o.jsonl:1 is not a judge's output"),
        ({"text_swapped": "x"}, "o.jsonl:1 is a damaged judgement .KeyError: 'text'"),
        (
            {"pair_id": "p", "label": "A>B", "judgments": [{"response": "", "decision": None}]},
            "judgments has 1 entries",
        ),
        ({"question_id": "q", "games": [{"judgment": 3, "score": None}] * 2}, "3 is not a text"),
        ({"comparisons": []}, "o.jsonl:1 is a damaged judgement"),
        (
            {"set": [1], "i": 0, "label": 1, "text": "", "winner": "1", "text_swapped": "", "winner_swapped": "1"},
            "o.jsonl:1 is a damaged judgement",
        ),
        (
            {"set": "s", "i": 0, "label": 1, "text": "", "winner": "3", "text_swapped": "", "winner_swapped": "1"},
            "o.jsonl:1 is a damaged judgement",
        ),
        (
            {"set": "s", "i": 0, "label": 9, "text": "", "winner": "1", "text_swapped": "", "winner_swapped": "1"},
            "o.jsonl:1: the label is 9",
        ),
    ],
)
def test_damaged_outputs_are_named(row, message, tmp_path):
    path = tmp_path / "o.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(InputError, match=message):
        read_outputs(path)


def line(said: dict | None = None, **changes: object) -> dict:
    """A line of `judge run`; `said` changes its first comparison."""
    comparisons = [{"first": 1, "second": 2}, {"first": 2, "second": 1}]
    comparisons = [each | {"p_first": 0.7, "verdict": "A"} for each in comparisons]
    comparisons[0] |= said or {}
    return {"id": "x", "group": "g", "label": 1, "lengths": [1, 2], "comparisons": comparisons, "soft": True} | changes


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (line({"second": 1}), "comparisons must be those of response 1 with 2 and of 2 with 1"),
        (line({"p_first": 1.5}), "p_first must be between 0 and 1"),
        (line({"verdict": ["A"]}), 'a verdict must be "A", "B", "tie"'),
        (line(id=["x"]), "id, group and judge must be texts"),
        (line(group=3), "id, group and judge must be texts"),
        (line(lengths=[1, "2"]), "lengths must be two numbers"),
        (line(lengths=12), "o.jsonl:1 is a damaged judgement"),
        (line(label="2>1"), "o.jsonl:1: the label is '2>1'"),
    ],
)
def test_damaged_lines_of_our_own_are_named(row, message, tmp_path):
    test_damaged_outputs_are_named(row, message, tmp_path)


def test_labels_are_read_as_in_gold_files(tmp_path):
    path = tmp_path / "o.jsonl"
    path.write_text(json.dumps(line(label="2")))
    assert read_outputs(path).pairs[0].label == 2


def test_a_pair_that_comes_twice_is_named(tmp_path):
    path = tmp_path / "o.jsonl"
    path.write_text(PLAIN.read_text() * 2)
    with pytest.raises(InputError, match="o.jsonl:7 judges the pair 'Natural:0' of .*o.jsonl:1 again. Give the file"):
        read_outputs(path)


def test_gold_chooses_and_checks(tmp_path):
    outputs = read_outputs(PLAIN).pairs
    manual = read_pairs(OURS / "Adversarial_Manual.json")
    joined = with_gold(outputs, manual)
    assert [pair.id for pair in joined] == [pair.id for pair in manual]
    assert [pair.lengths for pair in joined] == [pair.lengths for pair in manual]
    other_set = tmp_path / "Other.json"
    other_set.write_bytes((OURS / "Natural.json").read_bytes())
    with pytest.raises(InputError, match="none of the 6 judged pairs is in --gold, whose ids look like 'Other:0'"):
        with_gold(outputs, read_pairs(other_set))
    other = [pair.__class__(**vars(pair) | {"label": 3 - pair.label}) for pair in manual]
    with pytest.raises(InputError, match=r"recorded with label \d, but --gold says \d"):
        with_gold(outputs, other)


class PrefersLonger:
    """A judge that takes the longer response with P = 0.8."""

    def compare(self, requests):
        return [
            Verdict(0.8, "A") if len(request.response_a) > len(request.response_b) else Verdict(0.2, "B")
            for request in requests
        ]


def test_both_orders_are_asked_and_survive_the_file(tmp_path):
    pairs = read_pairs(OURS / "Natural.json")
    judged = judge_both_orders(PrefersLonger(), pairs, "longer")
    path = tmp_path / "out.jsonl"
    path.write_text("".join(pair.to_json() + "\n" for pair in judged))
    assert read_outputs(path).pairs == judged
    for pair, given in zip(judged, pairs, strict=True):
        assert [(c.first, c.second) for c in pair.comparisons] == [(1, 2), (2, 1)]
        if given.lengths[0] != given.lengths[1]:
            longer = 1 if given.lengths[0] > given.lengths[1] else 2
            assert [c.p_first for c in pair.comparisons] == [
                0.8 if c.first == longer else 0.2 for c in pair.comparisons
            ]
    assert report(judged).length_bias.longer_wins.value == 1.0
