"""Conversations: which turn is the instruction, and the system prompt and the turns before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.instruction_files import GOOD, texts, write
from tests.helpers.shared import DATA
from tpo_lite.errors import InputError
from tpo_lite.instructions.conversations import WhichTurn
from tpo_lite.instructions.leakage import fingerprint
from tpo_lite.instructions.load import load
from tpo_lite.records import Instruction, PromptSamples


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
