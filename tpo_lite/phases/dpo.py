"""Phase "dpo": trains on this iteration's pairs, from M_t and against M_t (the paper's training)."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("dpo")

import dataclasses

from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device
from tpo_lite.phases.summaries import DpoSummary
from tpo_lite.records import Pair, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import policy
from tpo_lite.settled import SettledRecipe
from tpo_lite.training.iteration import train_on_pairs


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> DpoSummary:
    """Write train/checkpoint-<step>/ for every epoch, and TRL's log as train/log.json."""
    here = folder.iteration(arm, iteration)
    pairs = list(read_jsonl(here / "pairs.jsonl", Pair))
    current = policy(folder, recipe, arm, iteration)
    trained = train_on_pairs(current, pairs, recipe, here / "train", arm=arm, iteration=iteration, device=device)
    figures = dataclasses.asdict(trained.course)
    return DpoSummary(**figures, pairs=len(pairs), rank=trained.rank, reference=f"M_{iteration}")
