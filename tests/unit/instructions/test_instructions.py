"""Reading, cleaning and slicing instructions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pandas
import pytest

from tests.helpers.instruction_files import GOOD, texts, write
from tests.helpers.shared import DATA, SHARED
from tpo_lite.errors import InputError
from tpo_lite.instructions.leakage import fingerprint
from tpo_lite.instructions.load import load
from tpo_lite.records import Instruction

PROMPTS = SHARED / "data/prompts"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"instruction": "Add.", "prompt": "no"}, "Add."),
        ({"instruction": "Add.", "input": "3 4"}, "Add.\n\n3 4"),
        ({"instruction": "Add.", "input": " "}, "Add."),
        ({"instruction": "Add.", "instances": [{"input": "3 4", "output": "7"}]}, "Add.\n\n3 4"),
        ({"Instruction": " Add.\n"}, "Add."),
        ({"prompt": "a\u2028b"}, "a\u2028b"),
        ({"prompt": [{"role": "user", "content": "a"}]}, "a"),
        ({"question": "a", "answer": 4}, "a"),
        ({"text": "a <|eot_id|>"}, "a <|eot_id|>"),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]}, "a"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "a"),
        ({"conversations": [{"from": "gpt", "value": "s"}, {"from": "human", "value": "a"}]}, "a"),
        ({"conversation": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "a"),
        ({"turns": ["a", "b"]}, "a"),
        ({"turns": [{"content": "a"}]}, "a"),
        ({"text": None}, ""),
        ({"instruction": None, "prompt": "a"}, "a"),
    ],
)
def test_columns(tmp_path: Path, row: dict, text: str) -> None:
    assert texts(write(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=False) + "\n")) == [text]


def test_a_column_called_input_is_not_added_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set/train.jsonl", '{"input": "Add."}\n')
    assert texts(f"hub:{tmp_path}/set:train:input") == ["Add."]


def test_jsonl_record(tmp_path: Path) -> None:
    row = '{"prompt": "Add 3, 4", "category": "Math", "answer": 7}'
    path = write(tmp_path / "a.jsonl", f"\ufeff\r\n{row}\r\n\r\n")
    assert load(path).instructions == [
        Instruction(fingerprint("Add 3, 4"), "Add 3, 4", f"{path}:2", category="Math", answer="7")
    ]


def test_plain_text(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.txt", '{"a": 1}\r\n\nb\x85c')) == ['{"a": 1}', "", "b\x85c"]


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'id,prompt,answer\n1,"two\nlines, ""quoted""",x\n\n2,b\u2028c,\n')
    assert [(row.text, row.source, row.answer) for row in load(path).instructions] == [
        ('two\nlines, "quoted"', f"{path}:2", "x"),
        ("b\u2028c", f"{path}:5", ""),
    ]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    turns = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]
    pandas.DataFrame({"messages": turns, "score": [1, 2], "category": ["x", None]}).to_parquet(path)
    rows = load(path).instructions
    assert [(row.text, row.source, row.category) for row in rows] == [
        ("a", f"{path}:1", "x"),
        ("b", f"{path}:2", None),
    ]


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set/train.jsonl", '{"prompt": "a", "other": "c"}\n')
    write(tmp_path / "set/test.jsonl", '{"prompt": "b", "other": "d"}\n')
    name = f"hub:{tmp_path}/set"
    assert texts(name) == ["a"]
    assert texts(f"{name}:test") == ["b"]
    assert texts(f"{name}:test:other") == ["d"]
    with pytest.raises(InputError, match="has no column 'none'. Name one of those it has: prompt, other"):
        load(f"{name}:test:none")
    with pytest.raises(InputError, match=r"cannot be loaded .*Check its name, its split"):
        load(f"{name}:validation")


def test_json_array(tmp_path: Path) -> None:
    path = write(tmp_path / "a.JSON", '\ufeff[\r\n{"prompt": "a"},\n\n"b", {"prompt":\n"c"}\r\n]\n')
    assert [(row.text, row.source) for row in load(path).instructions] == [
        ("a", f"{path}:2 (item 1)"),
        ("b", f"{path}:4 (item 2)"),
        ("c", f"{path}:4 (item 3)"),
    ]


def test_alpaca_array() -> None:
    path = DATA / "prompts/alpaca.json"
    assert [(row.text, row.source) for row in load(path).instructions] == [
        ("Name three things that float.", f"{path}:2 (item 1)"),
        ("Put the sentence into the past tense.\n\nThe baker opens at six.", f"{path}:7 (item 2)"),
    ]


def test_conversations() -> None:
    assert texts(DATA / "prompts/trl.jsonl") == ["Why does bread rise?", "Where is my map?", "Name a river."]
    assert texts(DATA / "prompts/sharegpt.json") == ["What is a fjord?", "How do I boil an egg?"]


def test_gsm8k() -> None:
    assert [row.answer for row in load(DATA / "prompts/gsm8k.jsonl").instructions] == ["17", "2500"]


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("It loses 3.\n#### -3.50\n", "-3.50"),
        ("#### 1,234,567", "1234567"),
        ("#### Summary\n4", "#### Summary\n4"),
        ("#### 5 apples", "#### 5 apples"),
        ("1,000", "1,000"),
        (["4"], None),
        (None, None),
    ],
)
def test_only_an_answer_in_gsm8ks_form_is_cut(tmp_path: Path, given: object, answer: str | None) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"question": "a", "answer": given}) + "\n")
    assert load(path).instructions[0].answer == answer


@pytest.mark.shared
def test_published_gsm8k() -> None:
    for name, rows in (("train", 7473), ("test", 1319)):
        answers = [row.answer for row in load(SHARED / f"data/gsm8k/{name}.jsonl").instructions]
        assert len(answers) == rows and all(re.fullmatch(r"-?\d+(\.\d+)?", answer or "") for answer in answers)


@pytest.mark.shared
def test_published_arrays_and_conversations() -> None:
    alpaca = json.loads((PROMPTS / "alpaca_en_demo.json").read_text("utf-8"))
    joined = [f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"] for row in alpaca]
    assert texts(PROMPTS / "alpaca_en_demo.json") == [text.strip() for text in joined]
    assert len(texts(SHARED / "data/ifeval/input_data.json")) == 541
    wildchat = pandas.read_parquet(PROMPTS / "wildchat_if_train.parquet")["prompt"]
    assert texts(PROMPTS / "wildchat_if_train.parquet") == [turns[0]["content"].strip() for turns in wildchat]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "rows", "first"),
    [
        ("self_instruct_seed_tasks", 175, "Is there anything I can eat for a breakfast"),
        ("vicuna_80", 80, "How can I improve my time management skills?"),
        ("mt_bench_80", 80, "Compose an engaging travel blog post"),
        ("wizardlm_testset_218", 218, "If a car travels 120 miles in 2 hours"),
        ("oasst_rlhf2_llama30b_K_samples", 250, "Can you tell me about GLaDOS?"),
    ],
)
def test_published_files(name: str, rows: int, first: str) -> None:
    found = texts(PROMPTS / f"{name}.jsonl")
    assert len(found) == rows and found[0].startswith(first) and all(found)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD + "{\n", "a.jsonl:2: not JSON"),
        ("a.jsonl", GOOD + "[" * 100_000 + "\n", "a.jsonl:2: not JSON"),
        ("a.jsonl", GOOD + "3\n", "a.jsonl:2: it is not a JSON object but int"),
        ("a.jsonl", GOOD + '{"story": "a"}\n', "a.jsonl:2: it has none of the columns instruction, prompt"),
        ("a.jsonl", GOOD + '{"prompt": 3}\n', "a.jsonl:2: 'prompt' is not text but int"),
        ("a.jsonl", GOOD + '{"messages": []}\n', "a.jsonl:2: 'messages' has no user turn"),
        ("a.jsonl", GOOD + '{"messages": [{"role": "system", "content": "a"}]}\n', "no user turn"),
        (
            "a.jsonl",
            GOOD + '{"prompt": "a", "system": 3}\n',
            "a.jsonl:2: it has a system prompt that is not text but int",
        ),
        ("a.jsonl", GOOD + '{"prompt": "b", "system": "\\ud800"}\n', "a.jsonl:2: it holds half a surrogate pair"),
        ("a.jsonl", GOOD + '{"prompt": "\\ud800"}\n', "a.jsonl:2: it holds half a surrogate pair"),
        ("a.json", f"[{GOOD},\n3]", "a.json:3 (item 2): it is not a JSON object but int"),
        ("a.json", f'[{{"text": []}}, {GOOD}]', "a.json:1 (item 1): 'text' has no user turn"),
        ("a.csv", "prompt,b\na,b\nc\n", "a.csv:3: 1 columns, but the header has 2"),
        ("a.csv", 'prompt\na\n"b"c\n', "a.csv:3: not CSV"),
        ("a.csv", 'prompt\na\n"open\n', "a.csv:3: not CSV"),
    ],
)
def test_malformed_lines(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError) as error:
        load(path)
    assert message in str(error.value) and "--skip-bad" in str(error.value)
    loaded = load(path, skip_bad=True)
    assert ([row.text for row in loaded.instructions], loaded.bad) == (["a"], 1)


def test_lines_behind_an_open_quote_are_counted_as_lost(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'prompt\na\n"open\nb\nc\n')
    loaded = load(path, skip_bad=True)
    assert ([row.text for row in loaded.instructions], loaded.bad) == (["a"], 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", None, "a.jsonl cannot be read (No such file or directory)"),
        ("a.parquet", None, "a.parquet cannot be read as Parquet"),
        ("a.parquet", "PAR1", "a.parquet cannot be read as Parquet"),
        ("a.xlsx", "", "unknown suffix '.xlsx'. Instruction files end in .jsonl, .json, .csv, .parquet, .txt"),
        ("a.xls", "[]", "unknown suffix"),
        ("a.json", "[]", "a.json holds no instructions (0 malformed lines)"),
        ("a.json", " \n", "a.json is empty. Give a JSON array"),
        ("a.json", "a", "a.json is not JSON (Expecting value"),
        ("a.json", '{"prompt": ["a"]}', "a.json holds an object, not a JSON array. Put the rows into an array"),
        ("a.json", '"a"', "a.json holds a single value, not a JSON array"),
        ("a.json", GOOD + GOOD, "a.json is not a JSON array but JSON Lines: one value after another. Rename it"),
        ("a.json", f"[{GOOD},\n]", "a.json:3 is not JSON (Expecting value"),
        ("a.json", f"[{GOOD}", "a.json:2 is not JSON (Expecting ',' or ']'"),
        ("a.json", f"[{GOOD}]\n[]", "a.json:3 is not JSON (There is more text after the array"),
        ("a.json", "[\n" + "[" * 100_000, "a.json:2: item 1 cannot be read (maximum recursion depth"),
        ("a.json", "[1" + "0" * 5000 + "]", "a.json:1: item 1 cannot be read (Exceeds the limit"),
        ("a.txt", b"a\nb\xff\n", "a.txt:2 is not UTF-8"),
        ("a.txt", "", "a.txt holds no instructions (0 malformed lines)"),
        ("a.jsonl", "\n", "a.jsonl holds no instructions"),
        ("a.csv", "prompt\n", "a.csv holds no instructions"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(InputError) as error:
        load(path, skip_bad=True)
    assert message in str(error.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        load(tmp_path / "a.jsonl")


def test_a_file_of_bad_lines_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no instructions \(2 malformed lines\)"):
        load(write(tmp_path / "a.jsonl", "{\n{\n"), skip_bad=True)
