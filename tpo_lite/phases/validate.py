"""Phase "validate": every checkpoint answers the held-out instructions."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("validate")

import dataclasses

from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device
from tpo_lite.phases.figures import validation_figures
from tpo_lite.phases.summaries import ValidateSummary
from tpo_lite.records import PromptSamples, read_jsonl
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.sampling.policy import LoadedPolicy, policy
from tpo_lite.sampling.to_file import sample_held_out
from tpo_lite.settled import SettledRecipe
from tpo_lite.training.checkpoints import step_of


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> ValidateSummary:
    """Write validation/<checkpoint>.jsonl for every checkpoint; return the figures of each and of M_t."""
    here = folder.iteration(arm, iteration)
    checkpoints = sorted(here.glob("train/checkpoint-*"), key=lambda path: step_of(path.name))
    first = dataclasses.replace(policy(folder, recipe, arm, iteration), adapter=checkpoints[0])
    loaded = LoadedPolicy(recipe, first, device)
    models = {KEPT: validation_figures(list(read_jsonl(folder.validation_of(arm, iteration), PromptSamples)))}
    for checkpoint in checkpoints:
        if checkpoint != checkpoints[0]:
            loaded.sampler.use_adapter(checkpoint)
        path = here / "validation" / f"{checkpoint.name}.jsonl"
        label = f"{arm} {iteration + 1} {checkpoint.name}"
        answers = sample_held_out(path, loaded, folder, arm, iteration + 1, "validation", label)
        models[checkpoint.name] = validation_figures(answers)
    return ValidateSummary(models=models)
