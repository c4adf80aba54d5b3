"""Phase "validate": every checkpoint answers the held-out instructions."""

from __future__ import annotations

from tpo_lite.phases import phase_main

if __name__ == "__main__":
    phase_main("validate")

from pathlib import Path
from typing import Any

from peft import PeftModel, set_peft_model_state_dict

from tpo_lite.adapters import read_adapter, state_dict
from tpo_lite.phases.generate import sample_into
from tpo_lite.policy import LoadedPolicy, Policy, policy, sampling_key
from tpo_lite.records import Instruction, PromptSamples, read_jsonl
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.summaries import validation_summary


def run(run: RunFolder, arm: str, iteration: int) -> dict[str, Any]:
    """Writes validation/<checkpoint>.jsonl; returns parse outcomes and accuracy by checkpoint, and those of M_t."""
    recipe = run.recipe
    folder = run.iteration(arm, iteration)
    instructions = list(read_jsonl(run.instructions("validation"), Instruction))
    checkpoints = sorted(folder.glob("train/checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    base = policy(run, recipe, arm, iteration).model
    # All checkpoints draw from the numbers of M_{t+1}: what differs between them is the model.
    key = sampling_key(recipe, arm, iteration + 1, "validation")
    loaded = LoadedPolicy(recipe, Policy(base, checkpoints[0]))
    summary = {KEPT: validation_summary(list(read_jsonl(run.validation_of(arm, iteration), PromptSamples)))}
    for checkpoint in checkpoints:
        if checkpoint != checkpoints[0]:
            swap_adapter(loaded.model, checkpoint)
        path = folder / "validation" / f"{checkpoint.name}.jsonl"
        label = f"{arm} {iteration + 1} {checkpoint.name}"
        sample_into(path, loaded, instructions, arm, key, 1, recipe.evaluation.retries, label)
        summary[checkpoint.name] = validation_summary(list(read_jsonl(path, PromptSamples)))
    return summary


def swap_adapter(model: PeftModel, folder: Path) -> None:
    """Puts another adapter of the same shape in the place of the live one."""
    set_peft_model_state_dict(model, state_dict(read_adapter(folder)[0]))
