"""The crosscheck phase on a run folder made by hand: whose verdicts lie where, and when the judges part."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.helpers.alphabet import Alphabet, prompt
from tpo_lite.judges.protocol import Verdict
from tpo_lite.phases import crosscheck as phase
from tpo_lite.phases import matches, select
from tpo_lite.phases.summaries import SelectSummary, WinRate
from tpo_lite.records import JsonlAppender
from tpo_lite.run import RunFolder

IDS = [f"x{number}" for number in range(40)]


class Backwards(Alphabet):
    """Prefers what comes later in the alphabet."""

    def verdict(self, a: str, b: str) -> Verdict:
        return super().verdict(b, a)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The policy has learnt to answer "a", which the training judge likes."""
    recipe = {
        **{"engine": "transformers", "thought": {"style": "direct"}, "instructions": {"test": 0}},
        "judge": {"model": "training.gguf"},
        "select": {"judge": {"model": "second.gguf", "prompts_at_once": 1}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    answers = {"base-validation.jsonl": "b", "iteration-0/validation/checkpoint-2.jsonl": "a"}
    for file, answer in answers.items():
        with JsonlAppender(tmp_path / "direct" / file) as out:
            out.append(*(prompt(answer, id=id) for id in IDS))
    with JsonlAppender(tmp_path / "instructions/validation.jsonl") as out:
        out.append(*(prompt(id=id).instruction for id in IDS))
    judges = {"training.gguf": Alphabet(), "second.gguf": Backwards()}
    monkeypatch.setattr(matches, "open_judge", lambda settings, device, calls, day: judges[settings.model])
    return RunFolder(tmp_path)


def test_what_the_training_judge_alone_prefers_is_kept_apart(run):
    recipe = run.load_settled()
    selected = select.run(run, recipe, "direct", 0, "cpu")
    assert selected.chosen == "M_t" and selected.checkpoints["checkpoint-2"] == pytest.approx(0.05)
    found = phase.run(run, recipe, "direct", 0, "cpu")
    assert found.would_choose == "checkpoint-2" and found.checkpoints["checkpoint-2"].value == pytest.approx(0.95)
    (parting,) = found.partings
    assert (parting.model, parting.against) == ("checkpoint-2", "M_0")
    assert (parting.training, parting.second) == (pytest.approx(0.95), pytest.approx(0.05))
    files = {str(path.relative_to(run.root / "direct/iteration-0")) for path in run.root.rglob("*-vs-*.jsonl")}
    assert files == {"validation/checkpoint-2-vs-M_0.jsonl", "crosscheck/checkpoint-2-vs-M_0.jsonl"}


def rate(value: float, low: float) -> WinRate:
    return WinRate(value=value, low=low, high=1.0)


@pytest.mark.parametrize(
    ("preferred", "by_base", "second", "second_by_base", "named"),
    [
        (rate(0.62, 0.53), rate(0.7, 0.6), 0.47, 0.55, [("checkpoint-2", "M_1")]),
        (rate(0.62, 0.49), rate(0.7, 0.6), 0.47, 0.55, []),  # the training judge is not sure
        (rate(0.62, 0.53), rate(0.7, 0.6), 0.5, 0.5, []),  # the second judge sees no loss
        (rate(0.62, 0.53), rate(0.7, 0.6), 0.51, 0.4, [("M_2", "M_0")]),
        (rate(0.62, 0.53), rate(0.7, 0.6), 0.4, 0.4, [("checkpoint-2", "M_1"), ("M_2", "M_0")]),
    ],
)
def test_judges_part_where_one_is_sure_of_what_the_other_does_not_prefer(
    preferred, by_base, second, second_by_base, named
):
    selected = SelectSummary(
        chosen="checkpoint-4",
        checkpoints={"M_t": 0.5, "checkpoint-2": second, "checkpoint-4": 0.55},
        win_rate={"M_t": rate(0.55, 0.4), "M_0": rate(second_by_base, 0.3)},
    )
    found = list(phase.partings(1, selected, "checkpoint-2", preferred, by_base))
    assert [(parting.model, parting.against) for parting in found] == named
    (only_first,) = [*phase.partings(0, selected, "checkpoint-2", preferred, by_base)] or [None]
    assert (only_first is not None) == (bool(named) and named[0][0] == "checkpoint-2")
