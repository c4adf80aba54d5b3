"""Gold-labelled pairs: LLMBar's and JudgeBench's files, our own, and damaged ones."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.helpers.shared import DATA, SHARED
from tpo_lite.calibration.gold_pairs import ResponsePair, read_pairs
from tpo_lite.errors import InputError

LLMBAR_SIZES = {
    "Natural": 100,
    "Adversarial_Neighbor": 134,
    "Adversarial_GPTInst": 92,
    "Adversarial_GPTOut": 47,
    "Adversarial_Manual": 46,
    "MT-Bench200": 200,
    "LLMEval2_200": 200,
    "FairEval66": 66,
}


@pytest.mark.shared
@pytest.mark.parametrize("name", LLMBAR_SIZES)
def test_llmbar_as_it_is(name):
    path = SHARED / f"data/llmbar/{name}.json"
    pairs = read_pairs(path)
    rows = json.loads(path.read_text())
    assert len(pairs) == LLMBAR_SIZES[name]
    for i, (pair, row) in enumerate(zip(pairs, rows, strict=True)):
        texts = row["input"], row["output_1"], row["output_2"]
        assert pair == ResponsePair(f"{name}:{i}", name, *texts, row["label"])


@pytest.mark.shared
def test_judgebench_as_it_is():
    path = SHARED / "data/judgebench/pairs_gpt4o.jsonl"
    pairs = read_pairs(path)
    first = json.loads(path.read_text().split("\n")[0])
    assert pairs[0] == ResponsePair(
        first["pair_id"], "mmlu-pro", first["question"], first["response_A"], first["response_B"], 1
    )
    assert pairs[0].lengths == [len(first["response_A"]), len(first["response_B"])]
    assert Counter(pair.label for pair in pairs) == {1: 193, 2: 157}
    sizes = {"mmlu-pro": 154, "livebench-reasoning": 98, "livebench-math": 56, "livecodebench": 42}
    assert Counter(pair.group for pair in pairs) == sizes


def test_llmbars_form():
    path = DATA / "llmbar/Natural.json"
    pairs = read_pairs(path)
    assert [pair.label for pair in pairs] == [1, 2, 1, 2]
    for i, (pair, row) in enumerate(zip(pairs, json.loads(path.read_text()), strict=True)):
        texts = row["input"], row["output_1"], row["output_2"]
        assert pair == ResponsePair(f"Natural:{i}", "Natural", *texts, row["label"])


def test_judgebenchs_form():
    pairs = read_pairs(DATA / "judgebench/pairs.jsonl")
    doubt = "I looked at 0 for long, and I cannot tell."
    assert pairs[0] == ResponsePair("one", "mmlu-pro", "Question 0: is 0 an even number?", "0 is even.", doubt, 1)
    assert pairs[0].lengths == [10, 42]
    assert [pair.label for pair in pairs] == [1, 2, 1, 2]
    assert [pair.group for pair in pairs] == ["mmlu-pro", "mmlu-pro", "livecodebench", "livebench-math"]


def test_our_own_form(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '\ufeff{"instruction": "x", "response_1": "a\u2028b", "response_2": "", "label": 2}\n\n'
        '{"instruction": "x", "response_1": "a", "response_2": "b", "label": "1", "id": 7}\n'
        '{"instruction": "x", "response_1": "a", "response_2": "b"}',
        encoding="utf-8",
    )
    assert read_pairs(path) == [
        ResponsePair("mine:0", "mine", "x", "a\u2028b", "", 2),
        ResponsePair("7", "mine", "x", "a", "b", 1),
        ResponsePair("mine:2", "mine", "x", "a", "b", None),
    ]


GOOD = '{"instruction": "x", "response_1": "a", "response_2": "b", "id": "p"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bad.jsonl is empty"),
        ("[]", "bad.jsonl is empty"),
        (GOOD + "\n{", "bad.jsonl:2 is not JSON"),
        (GOOD + "\n3", "bad.jsonl:2 is not a JSON object"),
        ('[{"input": "x", "output_1": "a", "output_2": "b", "label": 1}, 4]', "bad.jsonl, item 1 is not a JSON object"),
        ("[{", "bad.jsonl is not JSON"),
        (
            '{"prompt": "x"}',
            "bad.jsonl:1 is not a pair of responses. Give one of these sets of keys: instruction, response_1",
        ),
        ('{"input": "x", "output_1": "a", "label": 1}', "bad.jsonl:1: output_2 is missing or not a text"),
        (
            '{"question": "x", "response_A": "a", "response_B": null}',
            "bad.jsonl:1: response_B is missing or not a text",
        ),
        (GOOD.replace('"id"', '"label": 3, "id"'), "bad.jsonl:1: the label is 3. Give 1 or 2"),
        (GOOD.replace('"id"', '"label": true, "id"'), "bad.jsonl:1: the label is True"),
        (GOOD.replace('"id"', '"label": [1], "id"'), r"bad.jsonl:1: the label is \[1\]"),
        (GOOD.replace('"id"', '"label": "A=B", "id"'), "bad.jsonl:1: the label is 'A=B'"),
        (GOOD + "\n" + GOOD, r"bad.jsonl:2 has the id 'p' of .*bad.jsonl:1"),
    ],
)
def test_damaged_files_are_named(text, message, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_pairs(path)


@pytest.mark.parametrize("form", ["{}", "[{}]"])
def test_halves_of_surrogate_pairs_are_replaced(form, tmp_path):
    path = tmp_path / "odd.jsonl"
    row = {"instruction": "a\ud800", "response_1": "\udfffb", "response_2": "😀 é", "id": "\\ud"}
    path.write_text(form.format(json.dumps(row)))
    (pair,) = read_pairs(path)
    texts = (pair.instruction, pair.response_1, pair.response_2, pair.id)
    assert texts == ("a\ufffd", "\ufffdb", "😀 é", "\\ud")


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="none.json cannot be read: No such file or directory"):
        read_pairs(tmp_path / "none.json")
    path = tmp_path / "latin.json"
    path.write_bytes('{"instruction": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match="latin.json cannot be read: it is not UTF-8 text"):
        read_pairs(path)
