"""Phase "test": M_{t+1}, as the next iteration starts from it, answers the test slice, on which models are reported."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("test")

import dataclasses

from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device
from tpo_lite.phases.figures import held_out_figures
from tpo_lite.phases.summaries import AnswerSummary
from tpo_lite.records import PromptSamples, read_jsonl
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.sampling.policy import LoadedPolicy, policy
from tpo_lite.sampling.to_file import sample_held_out
from tpo_lite.settled import SettledRecipe


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> AnswerSummary:
    """Write test/answers.jsonl unless M_t was kept, which has answered already."""
    path = folder.test_of(arm, iteration + 1)
    if folder.chosen(arm, iteration) == KEPT:
        answers = list(read_jsonl(path, PromptSamples))
    else:
        loaded = LoadedPolicy(recipe, policy(folder, recipe, arm, iteration + 1), device)
        answers = sample_held_out(path, loaded, folder, arm, iteration + 1, "test", f"{arm} {iteration + 1} test")
    figures = held_out_figures(answers)
    return AnswerSummary(**{field.name: getattr(figures, field.name) for field in dataclasses.fields(figures)})
