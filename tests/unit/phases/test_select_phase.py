"""The select phase on a run folder made by hand: what a match comes to, and what is said of those that do not fit."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
import yaml

from tests.helpers.alphabet import Alphabet, prompt
from tpo_lite.machine.device import CPU
from tpo_lite.phases import matches
from tpo_lite.phases import select as phase
from tpo_lite.records import Instruction, JsonlAppender, MatchResult, read_jsonl
from tpo_lite.run import RunFolder

ANSWERS = {
    "base-validation.jsonl": {"u": "b", "v": "b", "w": "b", "x": "b", "y": None, "z": "b"},
    "iteration-0/validation/checkpoint-1.jsonl": {"u": "a", "v": "c", "w": "b", "x": "too long", "y": "a", "z": None},
}
"""By file and id, M_0's responses and a checkpoint's; None is a malformed one."""
WINS = {"u": 0.95, "v": 0.05, "w": 0.5, "x": 0.5, "y": 1.0, "z": 0.0}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"engine": "transformers", "thought": {"style": "direct"}}))
    for file, answers in ANSWERS.items():
        with JsonlAppender(tmp_path / "direct" / file) as out:
            out.append(*(prompt(text, id=id) for id, text in answers.items()))
    with JsonlAppender(tmp_path / "instructions/validation.jsonl") as out:
        out.append(*(prompt(id=id).instruction for id in WINS))
    monkeypatch.setattr(matches, "open_judge", lambda *_: Alphabet(longest=3))
    return RunFolder(tmp_path)


def test_a_match_that_does_not_fit_the_judge_is_a_tie_and_is_named(run, capsys):
    validation = phase.run(run, run.load_settled(), "direct", 0, "cpu")
    path = run.root / "direct/iteration-0/validation/checkpoint-1-vs-M_0.jsonl"
    played = {match.id: match for match in read_jsonl(path, MatchResult)}
    assert {id: match.win for id, match in played.items()} == pytest.approx(WINS)
    assert [id for id, match in played.items() if match.overlong] == ["x"]
    assert validation.checkpoints == {"M_t": 0.5, "checkpoint-1": pytest.approx(0.5)}
    named = (
        "too long for the 99 tokens that the judge was trained on: 1 of 6 matches, counted as ties (x). "
        "Use a judge with a longer context, or set judge.overlong: truncate.\n"
    )
    assert capsys.readouterr().out.endswith(named)
    # A run that goes on says the same, and so does one that was begun before matches said whether they fit.
    path.write_text("".join(line.replace(', "overlong": false', "") + "\n" for line in path.read_text().splitlines()))
    assert phase.run(run, run.load_settled(), "direct", 0, "cpu") == validation
    assert capsys.readouterr().out.endswith(named)


def test_the_judge_of_a_match_sees_what_comes_before_an_instruction():
    judge = Alphabet()
    asked = Instruction("x", "Where?", "test", context=[{"role": "system", "content": "Be brief."}])
    assert matches.play(judge, [asked], {"x": "a"}, {"x": "b"})[0].win == pytest.approx(0.95)
    assert {request.instruction for request in judge.batches[0]} == {"System: Be brief.\n\nUser: Where?"}


def test_the_judge_gets_the_date_on_which_the_run_started(run, monkeypatch):
    days = []
    monkeypatch.setattr(matches, "open_judge", lambda *given: days.append(given[-1]) or Alphabet(longest=3))
    run._write_settled(run.load_settled(), CPU, date(2025, 12, 31))
    phase.run(run, run.load_settled(), "direct", 0, "cpu")
    assert days == [date(2025, 12, 31)]
