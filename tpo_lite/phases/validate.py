"""Phase "validate": every checkpoint answers the held-out instructions."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("validate")

import dataclasses
from typing import Any

from tpo_lite.phases.generate import sample_into
from tpo_lite.phases.summaries import validation_summary
from tpo_lite.records import Instruction, PromptSamples, read_jsonl
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.sampling.policy import LoadedPolicy, policy, sampling_key


def run(run: RunFolder, arm: str, iteration: int) -> dict[str, Any]:
    """Writes validation/<checkpoint>.jsonl; returns parse outcomes and accuracy by checkpoint, and those of M_t."""
    recipe = run.recipe
    folder = run.iteration(arm, iteration)
    instructions = list(read_jsonl(run.instructions("validation"), Instruction))
    checkpoints = sorted(folder.glob("train/checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    on = dataclasses.replace(policy(run, recipe, arm, iteration), adapter=checkpoints[0])
    # All checkpoints draw from the numbers of M_{t+1}: what differs between them is the model.
    key = sampling_key(recipe, arm, iteration + 1, "validation")
    loaded = LoadedPolicy(recipe, on)
    summary = {KEPT: validation_summary(list(read_jsonl(run.validation_of(arm, iteration), PromptSamples)))}
    for checkpoint in checkpoints:
        if checkpoint != checkpoints[0]:
            loaded.sampler.use_adapter(checkpoint)
        path = folder / "validation" / f"{checkpoint.name}.jsonl"
        label = f"{arm} {iteration + 1} {checkpoint.name}"
        sample_into(path, loaded, instructions, arm, key, 1, recipe.evaluation.retries, label)
        summary[checkpoint.name] = validation_summary(list(read_jsonl(path, PromptSamples)))
    return summary
