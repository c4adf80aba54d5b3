"""Phase "fold": the chosen checkpoint becomes M_{t+1}, and what that changed is measured."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main
from tpo_lite.training.divergence import (
    divergence,
    log_probabilities,
    relative_norm,
    validation_sequences,
    with_adapter,
    with_fresh_block,
)

if __name__ == "__main__":
    phase_main("fold")

import gc
import shutil
from typing import Any

from peft import PeftModel

from tpo_lite.adapters import (
    difference,
    rank_of,
    read_adapter,
    write_adapter,
)
from tpo_lite.machine.device import chosen_device
from tpo_lite.nf4 import load_base
from tpo_lite.phases.generate import sample_into
from tpo_lite.phases.summaries import validation_summary
from tpo_lite.records import Instruction, PromptSamples, read_jsonl
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.sampling.policy import LoadedPolicy, policy, sampling_key
from tpo_lite.training.requantize import merge_to_disk


def run(run: RunFolder, arm: str, iteration: int) -> dict[str, Any]:
    """Writes adapter/ (or model/, and what it answers on the validation slice) unless M_t was kept; returns the
    update's relative norm and KL(before || after) in nats a token.

    "Before" is the checkpoint that the judge chose, "after" is the model that the next iteration starts
    from: for `fold` with its fresh block already appended.
    """
    recipe = run.recipe
    folder = run.iteration(arm, iteration)
    on = policy(run, recipe, arm, iteration)
    old = read_adapter(on.adapter)[0] if on.adapter else None
    if run.chosen(arm, iteration) == KEPT:
        return {"merge": recipe.merge, "rank": rank_of(old) if old else 0, "update_norm": 0.0, "kl": 0.0}
    chosen = folder / "train" / run.chosen(arm, iteration)
    new, scale = read_adapter(chosen)
    device = chosen_device()
    model = PeftModel.from_pretrained(load_base(on.model, device), chosen).eval()
    sequences = validation_sequences(run, arm, iteration + 1)
    before = list(log_probabilities(model, sequences))
    summary: dict[str, Any] = {
        "merge": recipe.merge,
        "rank": rank_of(new),
        "update_norm": relative_norm(model, difference(new, old), scale),
    }
    if recipe.merge == "requantize":
        merge_to_disk(on.model, new, scale, folder / "model", recipe.merge_base)
        del model
        gc.collect()  # a model's parts refer to each other: else there would be two on the GPU
        after_model = load_base(str(folder / "model"), device).eval()
    else:
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        write_adapter(folder / "adapter", new, scale, on.model, like=chosen)
        start = read_adapter(folder / "adapter")[0]
        if recipe.merge == "fold":
            start = with_fresh_block(model, start, recipe, arm, iteration + 1)
        after_model = with_adapter(model, start, scale)
    summary["kl"] = divergence(before, log_probabilities(after_model, sequences))
    if recipe.merge == "requantize":
        del after_model
        gc.collect()
        summary["validation"] = validate_merged(run, arm, iteration)
    return summary


def validate_merged(run: RunFolder, arm: str, iteration: int) -> dict[str, Any]:
    """Samples the validation slice from the merged M_{t+1}, which 4 bits have moved off the chosen checkpoint."""
    recipe = run.recipe
    path = run.validation_of(arm, iteration + 1)
    sample_into(
        path,
        LoadedPolicy(recipe, policy(run, recipe, arm, iteration + 1)),
        list(read_jsonl(run.instructions("validation"), Instruction)),
        arm,
        sampling_key(recipe, arm, iteration + 1, "validation"),
        1,
        recipe.evaluation.retries,
        f"{arm} {iteration + 1} merged",
    )
    return validation_summary(list(read_jsonl(path, PromptSamples)))
