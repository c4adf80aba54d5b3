"""Phase "merge_report": what every merge would make of the checkpoint that an iteration chose.

It is not part of a run's iterations; `tpo-lite merge-report` starts it for each iteration that is finished.
"""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("merge_report")

import gc
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from tpo_lite.adapters import difference, linear_shapes, rank_of, read_adapter, write_adapter
from tpo_lite.base_weights import load_base
from tpo_lite.kinds import Arm, MergeBase
from tpo_lite.machine.device import Device
from tpo_lite.phases.summaries import MergeCost, MergeReportSummary, MergeVariant
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.sampling.policy import policy
from tpo_lite.settled import SettledRecipe
from tpo_lite.training.blocks import with_fresh_block
from tpo_lite.training.divergence import (
    PromptAndOutput,
    divergence,
    log_probabilities,
    relative_norm,
    validation_sequences,
    with_adapter,
)
from tpo_lite.training.requantize import merge_to_disk

REQUANTIZED: dict[MergeVariant, MergeBase] = {"requantize w16": "w16", "requantize nf4": "nf4"}


@dataclass(frozen=True)
class Before:
    """The chosen checkpoint, which every merge is compared with."""

    sequences: list[PromptAndOutput]
    """What it answered on the validation slice."""
    log_probabilities: list[Tensor]
    """Its log-probabilities of each token of these sequences."""

    def cost(self, after: Any, seconds: float, written: Path) -> MergeCost:
        """Measure a merge that made the model `after` in `seconds` and wrote the folder `written`."""
        kl = divergence(self.log_probabilities, log_probabilities(after, self.sequences))
        return MergeCost(kl=kl, seconds=seconds, bytes=size(written))


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> MergeReportSummary:
    """Make M_{t+1} in each way, one after the other, in a folder that is removed again.

    In a run with `fold` or `continue` the requantized models are the original base with the updates of all iterations
    so far. In one with `requantize` each is the last iteration's model with one update.
    """
    here, precision = folder.iteration(arm, iteration), recipe.precision(device)
    if folder.chosen(arm, iteration) == KEPT:
        return MergeReportSummary(update_norm=0.0, rank=0, strategies={})
    current = policy(folder, recipe, arm, iteration)
    chosen = here / "train" / folder.chosen(arm, iteration)
    new, scale = read_adapter(chosen)
    old = read_adapter(current.adapter)[0] if current.adapter else None
    sequences = validation_sequences(folder, arm, iteration + 1)
    model = PeftModel.from_pretrained(load_base(current.model, device, precision), chosen).eval()
    before = Before(sequences, list(log_probabilities(model, sequences)))
    update_norm = relative_norm(model, difference(new, old), scale)
    work = here / "merge-report"
    costs: dict[MergeVariant, MergeCost] = {}

    if old is not None:
        costs["none"] = before.cost(with_adapter(model, old, scale, "none"), 0.0, work / "none")
    else:
        with model.disable_adapter():
            costs["none"] = before.cost(model, 0.0, work / "none")
    names: tuple[MergeVariant, ...] = ("fold", "continue")
    for name in names:
        start = time.monotonic()
        write_adapter(work / name, new, scale, current.model, like=chosen)
        seconds = time.monotonic() - start
        written = read_adapter(work / name)[0]
        if name == "fold":
            written = with_fresh_block(linear_shapes(model), written, recipe, arm, iteration + 1)
        costs[name] = before.cost(with_adapter(model, written, scale, name), seconds, work / name)
    del model
    for name, base in REQUANTIZED.items():
        if base == "nf4" and recipe.quantize != "nf4":
            continue  # the adapter was not trained on 4-bit weights
        start = time.monotonic()
        merge_to_disk(current.model, new, scale, work / base, base)
        seconds = time.monotonic() - start
        gc.collect()  # the model before this one: its parts refer to each other
        costs[name] = before.cost(load_base(str(work / base), device, precision).eval(), seconds, work / base)
        shutil.rmtree(work / base)  # 16 GB for an 8B model
    shutil.rmtree(work)
    return MergeReportSummary(update_norm=update_norm, rank=rank_of(new), strategies=costs)


def size(folder: Path) -> int:
    """Return the bytes of a folder's files; 0 for a folder that is not there."""
    return sum(file.stat().st_size for file in folder.glob("*"))
