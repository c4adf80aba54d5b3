"""The match phase on a run folder made by hand: who meets whom, where the verdicts are, and what is not asked twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.helpers.alphabet import Alphabet, prompt
from tpo_lite.errors import InputError
from tpo_lite.files import write_json
from tpo_lite.phases import match as phase
from tpo_lite.phases import matches
from tpo_lite.phases.process import check_order
from tpo_lite.records import JsonlAppender, MatchResult, read_jsonl
from tpo_lite.run import KEPT, RunFolder

ANSWERS = {
    "thinking/base-test.jsonl": {"u": "b", "v": "b", "w": "b"},
    "thinking/iteration-0/test/answers.jsonl": {"u": "a", "v": "b", "w": None},
    "direct/base-test.jsonl": {"u": "c", "v": "a", "w": "b"},
}
"""By file and id; None is a malformed one. The judge prefers the letter that comes first, with 0.95."""
CHOSEN = {("thinking", 0): "checkpoint-2", ("direct", 0): KEPT, ("thinking", 1): KEPT, ("direct", 1): KEPT}


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Alphabet:
    found = Alphabet(longest=3)
    monkeypatch.setattr(matches, "open_judge", lambda *_: found)
    return found


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    recipe = {"engine": "transformers", "baseline": True, "iterations": 2, "instructions": {"test": 3}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for file, answers in ANSWERS.items():
        with JsonlAppender(tmp_path / file) as out:
            out.append(*(prompt(text, id=id) for id, text in answers.items()))
    with JsonlAppender(tmp_path / "instructions/test.jsonl") as out:
        out.append(*(prompt(id=id).instruction for id in "uvw"))
    folder = RunFolder(tmp_path)
    for (arm, iteration), chosen in CHOSEN.items():
        write_json(folder.iteration(arm, iteration) / "validation.json", {"chosen": chosen})
    return folder


def wins(path: Path) -> dict[str, float]:
    return {match.id: round(match.win, 3) for match in read_jsonl(path, MatchResult)}


def test_the_first_arm_meets_its_base_only(run, judge):
    summary = phase.run(run, run.load_settled(), "thinking", 0, "cpu")
    assert wins(run.root / "thinking/iteration-0/test/M_1-vs-M_0.jsonl") == {"u": 0.95, "v": 0.5, "w": 0.0}
    assert (summary.win_rate.value, summary.win_rate.n) == (pytest.approx(1.45 / 3), 3)
    assert summary.thinking_vs_direct is summary.base_thinking_vs_direct is summary.win_rate_base is None


def test_after_a_warm_start_the_model_before_it_is_met_too(run, judge):
    with JsonlAppender(run.root / "thinking/warm_start/before.jsonl") as out:
        out.append(*(prompt(text, id=id) for id, text in {"u": "c", "v": "a", "w": None}.items()))
    summary = phase.run(run, run.load_settled(), "thinking", 0, "cpu")
    assert wins(run.root / "thinking/iteration-0/test/M_1-vs-M_base.jsonl") == {"u": 0.95, "v": 0.05, "w": 0.5}
    assert (summary.win_rate_base.value, summary.win_rate_base.n) == (pytest.approx(0.5), 3)
    assert summary.win_rate.value == pytest.approx(1.45 / 3)


def test_the_last_arm_meets_the_first_with_m_0_and_with_its_new_model(run, judge):
    summary = phase.run(run, run.load_settled(), "direct", 0, "cpu")
    assert summary.win_rate.value == 0.5  # its M_1 is M_0
    assert wins(run.root / "direct/base-thinking-vs-direct.jsonl") == {"u": 0.95, "v": 0.05, "w": 0.5}
    assert wins(run.root / "direct/iteration-0/test/thinking-vs-direct.jsonl") == {"u": 0.95, "v": 0.05, "w": 0.0}
    assert summary.base_thinking_vs_direct.value == pytest.approx(0.5)
    assert summary.thinking_vs_direct.value == pytest.approx(1 / 3)


def test_models_that_were_kept_are_not_judged_again(run, judge):
    for arm in ("thinking", "direct"):
        phase.run(run, run.load_settled(), arm, 0, "cpu")
    asked = len(judge.batches)
    again = [phase.run(run, run.load_settled(), arm, 1, "cpu") for arm in ("thinking", "direct")]
    assert len(judge.batches) == asked and not (run.root / "direct/iteration-1/test").exists()
    assert again[0].win_rate.value == pytest.approx(1.45 / 3)
    assert again[1].thinking_vs_direct.value == pytest.approx(1 / 3) and again[1].base_thinking_vs_direct is None


def test_the_last_arm_waits_for_the_answers_of_the_first(run):
    phases = ("generate", "judge", "pair", "dpo", "validate", "select", "fold", "test")
    run.mark_done("prepare", None, 0, {}, {})
    for name in phases:
        run.mark_done(name, "direct", 0, {}, {})
    with pytest.raises(InputError, match="match of direct, iteration 0, comes after test of iteration 0 of thinking"):
        check_order(run, run.load_settled(), "match", "direct", 0)
    run.mark_done("test", "thinking", 0, {}, {})
    check_order(run, run.load_settled(), "match", "direct", 0)
