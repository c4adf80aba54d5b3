"""Summaries of phases: they come back from JSON as they were, key by key, and damaged ones are named."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tpo_lite.errors import InputError
from tpo_lite.files import read_sealed, write_sealed
from tpo_lite.phase_order import PHASES, WARM_PHASES
from tpo_lite.phases import judges_summaries, summaries, warm_summaries
from tpo_lite.phases.summaries import GenerateSummary, PhaseSummary, read_summary
from tpo_lite.run import RunFolder

assert judges_summaries and warm_summaries  # more kinds
KINDS = {kind.phase: kind for kind in PhaseSummary.__subclasses__()}


def test_every_phase_has_a_summary():
    assert set(KINDS) == {"prepare", *WARM_PHASES, *PHASES, "merge_report"}


@pytest.mark.parametrize("phase", ["prepare", *PHASES])
def test_a_finished_runs_summaries_are_read_and_written_alike(phase, tiny_run):
    run = RunFolder(tiny_run)
    for arm, iteration in [(None, 0)] if phase == "prepare" else [("direct", 0), ("direct", 1)]:
        summary = read_summary(KINDS[phase], run, arm, iteration)
        assert json.dumps(summary.to_dict()) == json.dumps(run.done(phase, arm, iteration)["summary"])


def test_what_was_not_measured_is_left_out_or_null():
    sampled = {"engine": "gguf", "prompts": 1, "parse": {"ok": 0}, "thought_tokens": None, "response_tokens": None}
    assert GenerateSummary.from_dict(sampled).to_dict() == sampled
    assert GenerateSummary.from_dict(sampled | {"shift": 0.25}).to_dict() == sampled | {"shift": 0.25}


@pytest.mark.parametrize("damage", [{"calls": "many"}, {"colour": "red"}])
def test_a_damaged_summary_is_named_with_the_remedy(damage, tiny_run, tmp_path):
    run = RunFolder(shutil.copytree(tiny_run, tmp_path / "run"))
    path = run.done_path("judge", "direct", 0)
    done = read_sealed(path)
    write_sealed(path, done | {"summary": done["summary"] | damage})
    with pytest.raises(
        InputError, match=f"^{re.escape(str(path))} is damaged .*{next(iter(damage))}.* Delete that file"
    ):
        read_summary(summaries.JudgeSummary, run, "direct", 0)
