"""The judge phase on a run folder made by hand: what it counts and says, and what it leaves out."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
import yaml

from tests.helpers.alphabet import Alphabet, prompt
from tpo_lite.machine.device import CPU
from tpo_lite.phases import judge as phase
from tpo_lite.records import JsonlAppender, PromptJudgements, read_jsonl
from tpo_lite.run import RunFolder

PROMPTS = [prompt(*"hgfedcba", id="x"), prompt("a", "b", "too long", "b", id="y"), prompt(*"abcdefgh", id="z")]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Three prompts with their samples, one prompt a unit of work, and a judge that knows the alphabet."""
    recipe = {"judge": {"prompts_at_once": 1}, "thought": {"style": "direct"}, "length_control": {"rho": "auto"}}
    recipe |= {"engine": "transformers"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with JsonlAppender(tmp_path / "direct/iteration-0/samples.jsonl") as out:
        out.append(*PROMPTS)
    monkeypatch.setattr(phase, "open_judge", lambda *_: Alphabet(longest=3))
    return RunFolder(tmp_path)


def set_recipe(run: RunFolder, **sections: dict) -> None:
    recipe = yaml.safe_load((run.root / "recipe.yaml").read_text())
    (run.root / "recipe.yaml").write_text(yaml.safe_dump(recipe | sections))


def test_what_is_too_long_is_dropped_counted_and_named(run, capsys, monkeypatch):
    monkeypatch.setattr("tpo_lite.progress.LINE_SECONDS", 0.0)
    set_recipe(run, tournament={"kind": "round-robin"})
    summary = phase.run(run, run.load_settled(), "direct", 0, "cpu")
    said = capsys.readouterr().out
    # Three distinct responses and four samples: of six comparisons four are too long, six more are of equal ones.
    assert (summary.calls, summary.overlong, summary.saved) == (56 + 2 + 56, 4, 6)
    assert "2/3 prompts" in said and "58 calls, 4 too long (saved: identical 6, tournament 0)" in said
    assert said.endswith(
        "too long for the 99 tokens that the judge was trained on: left out 4 comparisons in 1 of 3 prompts (y). "
        "Use a judge with a longer context, or set judge.overlong: truncate.\n"
    )
    # A run that goes on says the same.
    assert phase.run(run, run.load_settled(), "direct", 0, "cpu") == summary
    assert "left out 4 comparisons in 1 of 3 prompts (y). Use" in capsys.readouterr().out


def test_a_pointwise_judge_leaves_out_responses(run, capsys, monkeypatch):
    monkeypatch.setattr(phase, "open_judge", lambda *_: Alphabet(pointwise=True, longest=3))
    monkeypatch.setattr("tpo_lite.progress.LINE_SECONDS", 0.0)
    summary = phase.run(run, run.load_settled(), "direct", 0, "cpu")
    said = capsys.readouterr().out
    # Three of the second prompt's four samples fit, and two of these have the same text.
    assert (summary.calls, summary.overlong, summary.saved) == (8 + 2 + 8, 1, 1)
    assert (summary.flip_rate, summary.first_slot_rate) == (None, None)
    assert "18 calls, 1 too long (saved: identical 1, tournament 0)" in said
    assert "left out 1 responses in 1 of 3 prompts (y)" in said
    assert phase.run(run, run.load_settled(), "direct", 0, "cpu") == summary


@pytest.mark.parametrize(
    ("kind", "rho", "pointwise", "rated"),
    [
        ("adaptive", "auto", False, True),
        ("adaptive", 0.1, False, False),
        ("adaptive", "auto", True, False),
        ("round-robin", "auto", False, False),
        ("single", "auto", False, False),
    ],
)
def test_prompts_are_rated_only_for_a_tournament_that_asks_for_it(run, kind, rho, pointwise, rated, monkeypatch):
    calls, score = [], phase.score_prompt
    monkeypatch.setattr(phase, "score_prompt", lambda *some, **named: calls.append(some) or score(*some, **named))
    monkeypatch.setattr(phase, "open_judge", lambda *_: Alphabet(pointwise))
    set_recipe(run, tournament={"kind": kind}, length_control={"rho": rho})
    phase.run(run, run.load_settled(), "direct", 0, "cpu")
    assert len(calls) == (len(PROMPTS) if rated else 0)
    assert len(list(read_jsonl(run.iteration("direct", 0) / "judgements.jsonl", PromptJudgements))) == len(PROMPTS)


def test_the_judge_gets_the_date_on_which_the_run_started(run, monkeypatch):
    days = []
    monkeypatch.setattr(phase, "open_judge", lambda *given: days.append(given[-1]) or Alphabet(longest=3))
    run._write_settled(run.load_settled(), CPU, date(2025, 12, 31))
    phase.run(run, run.load_settled(), "direct", 0, "cpu")
    assert days == [date(2025, 12, 31)]
