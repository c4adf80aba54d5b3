"""Phase "fold": the chosen checkpoint becomes M_{t+1}, and what that changed is measured."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("fold")

import gc
import shutil

from peft import PeftModel

from tpo_lite.adapters import difference, linear_shapes, rank_of, read_adapter, write_adapter
from tpo_lite.base_weights import load_base
from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device
from tpo_lite.phases.figures import validation_figures
from tpo_lite.phases.summaries import FoldSummary, ValidationFigures
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.sampling.policy import LoadedPolicy, policy
from tpo_lite.sampling.to_file import sample_held_out
from tpo_lite.settled import SettledRecipe
from tpo_lite.training.blocks import with_fresh_block
from tpo_lite.training.divergence import (
    divergence,
    log_probabilities,
    relative_norm,
    validation_sequences,
    with_adapter,
)
from tpo_lite.training.requantize import merge_to_disk


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> FoldSummary:
    """Write adapter/ (or model/, and what it answers on the validation slice) unless M_t was kept.

    The summary's KL compares the checkpoint that the judge chose with the model that the next iteration starts from;
    with `merge: fold` its fresh block is already appended.
    """
    here, precision = folder.iteration(arm, iteration), recipe.precision(device)
    current = policy(folder, recipe, arm, iteration)
    old = read_adapter(current.adapter)[0] if current.adapter else None
    if folder.chosen(arm, iteration) == KEPT:
        return FoldSummary(merge=recipe.merge, rank=rank_of(old) if old else 0, update_norm=0.0, kl=0.0)
    chosen = here / "train" / folder.chosen(arm, iteration)
    new, scale = read_adapter(chosen)
    model = PeftModel.from_pretrained(load_base(current.model, device, precision), chosen).eval()
    sequences = validation_sequences(folder, arm, iteration + 1)
    before = list(log_probabilities(model, sequences))
    update_norm = relative_norm(model, difference(new, old), scale)
    if recipe.merge == "requantize":
        merge_to_disk(current.model, new, scale, here / "model", recipe.merge_base)
        del model
        gc.collect()  # a model's parts refer to each other; without this two would be on the GPU
        after = load_base(str(here / "model"), device, precision).eval()
    else:
        shutil.rmtree(here / "adapter", ignore_errors=True)
        write_adapter(here / "adapter", new, scale, current.model, like=chosen)
        start = read_adapter(here / "adapter")[0]
        if recipe.merge == "fold":
            start = with_fresh_block(linear_shapes(model), start, recipe, arm, iteration + 1)
        after = with_adapter(model, start, scale)
    kl = divergence(before, log_probabilities(after, sequences))
    validation = None
    if recipe.merge == "requantize":
        del after
        gc.collect()
        validation = validate_merged(folder, recipe, arm, iteration, device)
    return FoldSummary(merge=recipe.merge, rank=rank_of(new), update_norm=update_norm, kl=kl, validation=validation)


def validate_merged(
    folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device
) -> ValidationFigures:
    """Let the merged M_{t+1} answer the validation slice: rounding has moved it away from the chosen checkpoint."""
    loaded = LoadedPolicy(recipe, policy(folder, recipe, arm, iteration + 1), device)
    path = folder.validation_of(arm, iteration + 1)
    label = f"{arm} {iteration + 1} merged"
    return validation_figures(sample_held_out(path, loaded, folder, arm, iteration + 1, "validation", label))
