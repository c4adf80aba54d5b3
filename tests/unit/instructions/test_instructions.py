"""Reading, cleaning and slicing instructions."""

from __future__ import annotations

import json
import random
import re
import string
from pathlib import Path

import datasets
import pandas
import pytest

from tests.helpers.shared import DATA, SHARED
from tpo_lite.errors import InputError
from tpo_lite.instructions.conversations import WhichTurn
from tpo_lite.instructions.leakage import fingerprint
from tpo_lite.instructions.load import load
from tpo_lite.instructions.near_duplicates import near_duplicates
from tpo_lite.instructions.slices import prepare, slices
from tpo_lite.records import Instruction, PromptSamples

PROMPTS = SHARED / "data/prompts"


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def texts(source: Path | str, **options: bool) -> list[str]:
    return [instruction.text for instruction in load(source, **options).instructions]


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


def contexts(path: Path, turn: WhichTurn) -> list[tuple[str, str]]:
    """What is asked, and the turns before it as "role: content" joined by a bar."""
    rows = load(path, turn=turn).instructions
    return [(row.text, "|".join(f"{said['role']}: {said['content']}" for said in row.context or ())) for row in rows]


def test_first_turn_and_system_prompt() -> None:
    assert contexts(DATA / "prompts/trl.jsonl", "first") == [
        ("Why does bread rise?", ""),
        ("Where is my map?", "system: Answer as a pirate."),
        ("Name a river.", ""),
    ]
    assert contexts(DATA / "prompts/sharegpt.json", "first") == [
        ("What is a fjord?", "system: Be brief."),
        ("How do I boil an egg?", ""),
    ]


def test_last_turn_with_its_history() -> None:
    assert contexts(DATA / "prompts/trl.jsonl", "last") == [
        ("Why does bread rise?", ""),
        ("Where is my map?", "system: Answer as a pirate."),
        ("And where does it end?", "user: Name a river.|assistant: The Elbe."),
    ]
    # What the assistant says before the user has said anything is left out.
    assert contexts(DATA / "prompts/sharegpt.json", "last") == [
        ("What is a fjord?", "system: Be brief."),
        ("Soft, please.", "user: How do I boil an egg?|assistant: Soft or hard?"),
    ]


def system(*prompts: object) -> list[dict]:
    return [*({"role": "system", "content": prompt} for prompt in prompts), {"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "a", "system": " s\n"}, "s"),
        ({"question": "a", "System_Prompt": "s"}, "s"),
        ({"prompt": "a", "system": " "}, None),
        ({"prompt": "a", "system": None, "system_prompt": "s"}, "s"),
        ({"prompt": system("s"), "system": "other"}, "s"),
        ({"prompt": system(" "), "system": "s"}, "s"),
        ({"prompt": system(None)}, None),
        ({"prompt": system("s", "t")}, "s\n\nt"),
        ({"prompt": [{"role": "developer", "content": "s"}, {"role": "user", "content": "a"}]}, "s"),
        ({"conversations": [{"from": "system", "value": "s", "role": None}, {"from": "human", "value": "a"}]}, "s"),
    ],
)
def test_system_prompts(tmp_path: Path, row: dict, prompt: str | None) -> None:
    (found,) = load(write(tmp_path / "a.jsonl", json.dumps(row) + "\n")).instructions
    assert found.text == "a"
    assert found.context == ([{"role": "system", "content": prompt}] if prompt else None)


def test_last_prefers_a_conversation_to_the_prompt_that_repeats_its_first_turn(tmp_path: Path) -> None:
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    path = write(tmp_path / "a.jsonl", json.dumps({"prompt": "a", "messages": turns}) + "\n")
    assert contexts(path, "first") == [("a", "")]
    assert contexts(path, "last") == [("c", "user: a|assistant: b")]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (["a", "b"], "turn 2 should be the assistant's"),
        ([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}, "c"], "turn 2 should be the assistant's"),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": None}, "c"], "'turns' has no text in turn 2"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "s"}, "b"], "should be the assistant's"),
    ],
)
def test_a_history_that_cannot_be_read(tmp_path: Path, turns: list, message: str) -> None:
    path = write(tmp_path / "a.jsonl", GOOD + json.dumps({"turns": turns}) + "\n")
    with pytest.raises(InputError) as error:
        load(path, turn="last")
    assert f"{path}:2: 'turns' has no" in str(error.value) and message in str(error.value)
    assert load(path, turn="last", skip_bad=True).bad == 1
    assert texts(path) == ["a", "a"]


def test_the_context_is_part_of_what_an_instruction_is(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "a", "system": "s"}, {"prompt": "a", "system": "t"}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    plain, first, second = load(path).instructions
    assert plain.conversation() == "a" and first.conversation() == "System: s\n\nUser: a"
    assert plain.id == fingerprint("a") and len({plain.id, first.id, second.id}) == 3
    # The JSON of an instruction without a context is what it always was.
    assert plain.to_json() == json.dumps(
        {"id": plain.id, "text": "a", "source": f"{path}:1", "category": None, "answer": None}
    )
    samples = PromptSamples(plain, [1], [])
    assert samples.to_dict()["instruction"] == plain.to_dict()
    for row in (plain, first):
        assert Instruction.from_dict(json.loads(row.to_json())) == row
        assert PromptSamples.from_dict(json.loads(PromptSamples(row, [], []).to_json())).instruction == row


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


GOOD = '{"prompt": "a"}\n'


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


def instruction(text: str) -> Instruction:
    return Instruction(fingerprint(text), text, "test")


def after(history: str, text: str = "Go on.") -> Instruction:
    turns = [{"role": "user", "content": history}, {"role": "assistant", "content": "yes"}]
    return Instruction(fingerprint(history + text), text, "test", context=turns)


def test_prepare_counts_a_context() -> None:
    rows = [after("one two"), after("one three"), after("one two three four five"), after(LEAKED)]
    prepared = prepare(
        rows, token_count=lambda text: len(text.split()), max_tokens=2 + 2 + 1 + 2 * 8, allow_leakage=False
    )
    assert prepared.kept == rows[:2]
    assert (prepared.counts["leaked"], prepared.counts["too_long"]) == (1, 1)
    assert prepare(rows[3:], token_count=len, max_tokens=999, allow_leakage=True).counts["leaked_kept"] == 1


LEAKED = "What are the names of some famous actors that started their careers on Broadway?"


def test_prepare_counts_each_row_once() -> None:
    rows = [
        "Tell a joke.",
        "",
        " ",
        "tell  a JOKE.",
        LEAKED,
        LEAKED,
        "one two three four five",
        "Tell a joke!",
    ]
    prepared = prepare(
        [instruction(row) for row in rows],
        token_count=lambda text: len(text.split()),
        max_tokens=4,
        allow_leakage=False,
    )
    assert [row.text for row in prepared.kept] == ["Tell a joke."]
    assert prepared.counts == {
        "read": 8, "empty": 2, "duplicates": 2, "leaked": 1, "too_long": 1, "near_duplicates": 1, "kept": 1,
        "leaked_kept": 0,
    }  # fmt: skip


def test_allow_leakage() -> None:
    prepared = prepare([instruction(LEAKED)], token_count=len, max_tokens=999, allow_leakage=True)
    assert len(prepared.kept) == 1
    assert (prepared.counts["leaked"], prepared.counts["leaked_kept"]) == (0, 1)


# Sixty different words.
SIXTY = " ".join(a + b + "ord" for a in string.ascii_lowercase[:20] for b in "xyz")
SWAPS = "Swap the red cup and the blue cup. Swap the blue cup and the green cup. "
CUPS = "The ball is under the red cup. " + SWAPS * 6


@pytest.mark.parametrize(
    ("first", "second", "near"),
    [
        ("What is AI?", "what  is AI", True),
        (SIXTY, SIXTY + " please", True),
        (SIXTY, SIXTY.replace("gyord", "other"), True),
        (SIXTY, SIXTY.replace("gyord", "other").replace("myord", "another"), False),
        (SIXTY + " 3 4", SIXTY + " 3 5", False),
        (SIXTY + " 3.5", SIXTY + " 35", False),
        (SIXTY + " under cup B", SIXTY + " under cup C", False),
        (SIXTY + " x + y", SIXTY + " x * y", False),
        ("Add 3 then 4.", "Add 3 then 5.", False),
        ("Write a poem about the sea.", "Write a poem about the moon.", False),
        ("What is 3 + 4 + 3 + 4?", "What is 3 + 4?", False),
        (CUPS, CUPS.replace("red cup and the blue", "green cup and the blue", 1), False),
        (CUPS, CUPS.replace("red cup and the blue", "blue cup and the red", 1), False),
        ("???", "!!!", False),
        ("", "", False),
    ],
)
def test_near_duplicates(first: str, second: str, near: bool) -> None:
    assert near_duplicates([first, second]) == ({1} if near else set())
    assert near_duplicates([second, "Something else.", first]) == ({2} if near else set())


def test_near_duplicates_of_a_dropped_text_stay() -> None:
    # Each is near to the one before, the third not to the first.
    second = SIXTY.replace("gyord", "other")
    third = second.replace("myord", "another")
    assert near_duplicates([SIXTY, second, third]) == {1}
    assert near_duplicates([]) == set()


def test_the_search_misses_nothing() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(300)]
    texts = [rng.choices(words, k=rng.randint(40, 120)) for _ in range(8)]
    for _ in range(40):
        changed = list(rng.choice(texts))
        for _ in range(rng.randint(1, 2)):
            changed[rng.randrange(len(changed))] = rng.choice(words)
        texts.append(changed)
    lines = [" ".join(text) for text in texts]

    kept: list[int] = []
    for index, line in enumerate(lines):
        if not any(near_duplicates([lines[other], line]) for other in kept):
            kept.append(index)
    assert 8 < len(kept) < 48
    assert near_duplicates(lines) == set(range(len(lines))) - set(kept)


@pytest.mark.shared
def test_real_instructions_are_no_near_duplicates() -> None:
    rows = load(PROMPTS / "self_instruct_seed_tasks.jsonl").instructions
    prepared = prepare(rows, token_count=len, max_tokens=10_000, allow_leakage=False)
    assert prepared.counts["kept"] == 175


def test_our_own_instructions_are_no_near_duplicates() -> None:
    rows = load(DATA / "prompts/tasks.jsonl").instructions
    prepared = prepare(rows, token_count=len, max_tokens=10_000, allow_leakage=False)
    assert prepared.counts["read"] == prepared.counts["kept"] == 24


def test_slices() -> None:
    rows = [instruction(f"task {number}") for number in range(20)]
    sliced = slices(rows, seed=1, iterations=3, per_iteration=5, validation=4)
    assert len(sliced.validation) == 4 and [len(part) for part in sliced.iterations] == [5, 5, 5]
    used = [row.id for part in (sliced.validation, *sliced.iterations) for row in part]
    assert len(set(used)) == 19
    assert slices(rows[::-1], seed=1, iterations=3, per_iteration=5, validation=4) == sliced
    assert slices(rows, seed=2, iterations=3, per_iteration=5, validation=4) != sliced
    shorter = slices(rows, seed=1, iterations=1, per_iteration=5, validation=4)
    assert (shorter.validation, shorter.iterations) == (sliced.validation, sliced.iterations[:1])


def test_slices_running_out() -> None:
    rows = [instruction(f"task {number}") for number in range(18)]
    with pytest.raises(InputError) as error:
        slices(rows, seed=1, iterations=3, per_iteration=5, validation=4)
    assert "there are 18 usable instructions, but 19 are needed" in str(error.value)
