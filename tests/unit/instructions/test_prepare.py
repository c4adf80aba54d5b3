"""Which instructions are kept, and how they are cut into slices."""

from __future__ import annotations

import random
import string

import pytest

from tests.helpers.shared import DATA, SHARED
from tpo_lite.errors import InputError
from tpo_lite.instructions.leakage import fingerprint
from tpo_lite.instructions.load import load
from tpo_lite.instructions.near_duplicates import near_duplicates
from tpo_lite.instructions.slices import prepare, slices
from tpo_lite.records import Instruction


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
    rows = load(SHARED / "data/prompts/self_instruct_seed_tasks.jsonl").instructions
    prepared = prepare(rows, token_count=len, max_tokens=10_000, allow_leakage=False)
    assert prepared.counts["kept"] == 175


def test_our_own_instructions_are_no_near_duplicates() -> None:
    rows = load(DATA / "prompts/tasks.jsonl").instructions
    prepared = prepare(rows, token_count=len, max_tokens=10_000, allow_leakage=False)
    assert prepared.counts["read"] == prepared.counts["kept"] == 24


def test_slices() -> None:
    rows = [instruction(f"task {number}") for number in range(24)]
    sliced = slices(rows, seed=1, iterations=3, per_iteration=5, validation=4, test=3)
    assert len(sliced.validation) == 4 and [len(part) for part in sliced.iterations] == [5, 5, 5]
    assert len(sliced.test) == 3
    used = [row.id for part in (sliced.validation, sliced.test, *sliced.iterations) for row in part]
    assert len(set(used)) == len(used) == 22
    assert slices(rows[::-1], seed=1, iterations=3, per_iteration=5, validation=4, test=3) == sliced
    assert slices(rows, seed=2, iterations=3, per_iteration=5, validation=4, test=3) != sliced
    shorter = slices(rows, seed=1, iterations=1, per_iteration=5, validation=4, test=3)
    assert (shorter.validation, shorter.test, shorter.iterations) == (
        sliced.validation,
        sliced.test,
        sliced.iterations[:1],
    )
    untested = slices(rows, seed=1, iterations=3, per_iteration=5, validation=4, test=0)
    assert (untested.validation, untested.test, untested.iterations) == (sliced.validation, [], sliced.iterations)


def test_slices_running_out() -> None:
    rows = [instruction(f"task {number}") for number in range(21)]
    with pytest.raises(InputError) as error:
        slices(rows, seed=1, iterations=3, per_iteration=5, validation=4, test=3)
    assert str(error.value) == (
        "there are 21 usable instructions, but 22 are needed (4 for validation + 3 for test + 3 iterations x 5). "
        "Add instructions or set instructions.per_iteration=4."
    )
    with pytest.raises(InputError, match="Add instructions or lower these settings"):
        slices(rows[:9], seed=1, iterations=3, per_iteration=5, validation=4, test=3)
