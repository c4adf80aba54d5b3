"""The shipped list of evaluation instructions, against the published files."""

from __future__ import annotations

from importlib import resources

import pytest

from tests.helpers.shared import DATA, SHARED
from tpo_lite.instructions.leakage import fingerprint, is_leaked, main, normalize
from tpo_lite.instructions.load import load

TASKS = DATA / "prompts/tasks.jsonl"
PROMPTS = SHARED / "data/prompts"
ALPACA_EVAL = SHARED / "data/alpaca_eval2/instructions.jsonl"
ARENA_HARD = SHARED / "data/arena_hard/question_v0.1.jsonl"


def test_normalize() -> None:
    assert normalize(" Straße\t\u00a0ﬁne\n") == "strasse fine"
    assert fingerprint("What is  TPO?") == fingerprint("what is tpo? ") != fingerprint("What is TPO")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("path", "leaked", "rows"),
    [
        (ALPACA_EVAL, 805, 805),
        (ARENA_HARD, 500, 500),
        (PROMPTS / "vicuna_80.jsonl", 80, 80),
        (PROMPTS / "self_instruct_user_oriented_252.jsonl", 252, 252),
        (PROMPTS / "wizardlm_testset_218.jsonl", 1, 218),
        (PROMPTS / "self_instruct_seed_tasks.jsonl", 0, 175),
    ],
)
def test_published_sets(path, leaked: int, rows: int) -> None:
    instructions = load(path).instructions
    assert len(instructions) == rows
    assert sum(is_leaked(instruction.text) for instruction in instructions) == leaked


@pytest.mark.shared
def test_the_command_writes_the_shipped_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(ALPACA_EVAL), str(ARENA_HARD)]) == 0
    shipped = resources.files("tpo_lite.instructions").joinpath("leakage.txt").read_text("utf-8")
    assert capsys.readouterr().out == shipped
    assert len(shipped.splitlines()) == 1 + 805 + 500


def test_the_command_prints_a_list_of_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(TASKS)]) == 0
    comment, *lines = capsys.readouterr().out.splitlines()
    assert comment.startswith("# SHA-256 (first 16 hex digits, text normalized)")
    assert lines == sorted(fingerprint(row.text) for row in load(TASKS).instructions)
    assert len(lines) == 24 and all(len(line) == 16 for line in lines)


def test_the_shipped_list_holds_both_sets_and_none_of_our_own() -> None:
    shipped = resources.files("tpo_lite.instructions").joinpath("leakage.txt").read_text("utf-8").splitlines()
    assert len(shipped) == 1 + 805 + 500 and shipped[1:] == sorted(set(shipped[1:]))
    assert not any(is_leaked(row.text) for row in load(TASKS).instructions)


def test_the_command_without_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["missing.jsonl"]) == 2
    assert "missing.jsonl cannot be read" in capsys.readouterr().err
