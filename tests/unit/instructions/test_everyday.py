"""The instructions that come with the package: `instructions.source: everyday`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet
import pytest

from tests.helpers.shared import SHARED
from tpo_lite.chat import Chat, load_tokenizer
from tpo_lite.checking import final_answer, is_right
from tpo_lite.embedded.world import TASKS
from tpo_lite.hub import model_path
from tpo_lite.instructions.leakage import is_leaked
from tpo_lite.instructions.load import load
from tpo_lite.instructions.near_duplicates import near_duplicates
from tpo_lite.instructions.slices import prepare
from tpo_lite.phases.prepare import read_source
from tpo_lite.recipe import load_recipe
from tpo_lite.recipe_keys import Instructions

CATEGORIES = [
    "General Knowledge",
    "Math and Calculations",
    "Programming and Coding",
    "Reasoning and Problem-Solving",
    "Creative Writing",
    "Content Writing",
    "Art and Design",
    "Language and Translation",
    "Research and Analysis",
    "Conversational Dialogue",
    "Data Analysis and Visualization",
    "Business and Finance",
    "Education and Learning",
    "Science and Technology",
    "Health and Wellness",
    "Personal Development",
    "Entertainment and Humor",
    "Travel and Leisure",
    "Marketing and Sales",
    "Game Development",
]
"""The paper's, in its order."""
EVERYDAY = load("everyday").instructions
TEXTS = [instruction.text for instruction in EVERYDAY]


def test_thirty_in_each_category() -> None:
    assert Counter(instruction.category for instruction in EVERYDAY) == dict.fromkeys(CATEGORIES, 30)
    assert {task.category for task in TASKS.values()} <= set(CATEGORIES)


def test_ids_and_sources() -> None:
    assert len({instruction.id for instruction in EVERYDAY}) == 600
    assert [instruction.source for instruction in EVERYDAY] == [f"everyday:{line}" for line in range(1, 601)]


def test_the_file_holds_clean_rows() -> None:
    file = resources.files("tpo_lite.instructions").joinpath("everyday.jsonl")
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        assert list(row) in (["instruction", "category"], ["instruction", "category", "answer"])
        assert all(value and value == value.strip() for value in row.values())
    assert "CC0-1.0" in resources.files("tpo_lite.instructions").joinpath("everyday.jsonl.license").read_text("utf-8")


def test_lengths_vary() -> None:
    words = [len(text.split()) for text in TEXTS]
    assert (min(words), median(words), max(words)) == (5, 28, 163)
    assert sum(count <= 12 for count in words) >= 45
    assert sum(count >= 100 for count in words) >= 20


def test_answers_are_short_and_can_be_checked() -> None:
    answers = [instruction.answer for instruction in EVERYDAY if instruction.answer is not None]
    assert len(answers) == 144
    for answer in answers:
        assert final_answer(answer) and len(answer.split()) <= 3
        assert is_right(answer, answer)
        assert is_right(f"Let us see.\nThe answer is {answer}. That is all.", answer)
        assert not is_right("The answer is something else.", answer)


@pytest.mark.parametrize(
    ("start", "answer"),
    [
        ("What number does this query return?", "1"),
        ("How many comparisons does binary search need", "10"),
        ("In how many different ways can I put together", "12"),
        ("Five people sit in a row", "2"),
        ("A bakery in Osaka", "70"),
        ("Three volunteers have four jobs", "75"),
        ("I read a trial in which 200 people", "171"),
    ],
)
def test_answers_worked_out(start: str, answer: str) -> None:
    assert [row.answer for row in EVERYDAY if row.text.startswith(start)] == [answer]


def test_prepare_keeps_all() -> None:
    recipe = load_recipe("embedded", ["instructions.source=everyday"])
    found, bad = read_source(recipe)
    assert (found, bad) == (EVERYDAY, 0)
    # The embedded tokenizer needs about twice as many tokens as Llama 3's, of which the longest has 189.
    count = Chat(load_tokenizer(model_path("embedded"))).count
    prepared = prepare(found, token_count=count, max_tokens=Instructions().max_tokens, allow_leakage=False)
    assert prepared.kept == EVERYDAY


def test_none_is_near_another() -> None:
    assert near_duplicates(TEXTS) == set()
    assert max(closest(TEXTS, TEXTS)) < 0.3


def test_none_is_of_an_evaluation_set() -> None:
    assert not any(is_leaked(text) for text in TEXTS)


@pytest.mark.shared
def test_none_is_near_a_published_instruction() -> None:
    published = sorted({text for path in sorted((SHARED / "data").rglob("*")) for text in published_texts(path)})
    assert len(published) > 20_000
    assert all(index < len(published) for index in near_duplicates([*published, *TEXTS]))
    assert max(closest(published, TEXTS)) < 0.3


def published_texts(path: Path) -> Iterator[str]:
    """Every text in the columns of a data file that may hold an instruction."""
    if path.suffix == ".parquet":
        rows = pyarrow.parquet.read_table(path).to_pylist()
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    elif path.suffix == ".json":
        rows = json.loads(path.read_text())
    else:
        return
    for row in rows:
        if isinstance(row, dict):
            row = {name.casefold(): value for name, value in row.items()}
            for name in ("instruction", "input", "instances", "prompt", "question", "turns"):
                yield from strings(row.get(name))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def closest(texts: list[str], ours: list[str]) -> list[float]:
    """For each of `texts` the largest Jaccard similarity of its word 3-grams to another text of `ours`."""
    grams = [trigrams(text) for text in ours]
    having: dict[tuple[str, ...], list[int]] = {}
    for index, mine in enumerate(grams):
        for gram in mine:
            having.setdefault(gram, []).append(index)
    best = []
    for text in texts:
        others = trigrams(text)
        shared = Counter(index for gram in others for index in having.get(gram, ()) if ours[index] != text)
        best.append(max((n / (len(others) + len(grams[i]) - n) for i, n in shared.items()), default=0.0))
    return best


def trigrams(text: str) -> set[tuple[str, ...]]:
    words = "".join(sign if sign.isalnum() else " " for sign in text.casefold()).split()
    return set(zip(words, words[1:], words[2:], strict=False))
