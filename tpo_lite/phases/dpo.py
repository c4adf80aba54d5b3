"""Phase "dpo": trains on this iteration's pairs, from M_t and against M_t (the paper's training)."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("dpo")

import dataclasses
import math
import shutil

from tpo_lite.adapters import WEIGHTS
from tpo_lite.chat import load_tokenizer
from tpo_lite.files import write_json
from tpo_lite.machine.device import Device
from tpo_lite.nf4 import load_base
from tpo_lite.phases.summaries import DpoSummary
from tpo_lite.progress import progress
from tpo_lite.recipe import Arm
from tpo_lite.records import Pair, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import policy
from tpo_lite.settled import SettledRecipe
from tpo_lite.training.checkpoints import COMPLETE, drop_optimizer_state, last_complete_checkpoint, step_of
from tpo_lite.training.course import course
from tpo_lite.training.dpo import trainer
from tpo_lite.training.start import starting_model


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> DpoSummary:
    """Write train/checkpoint-<step>/ for every epoch, and TRL's log as train/log.json."""
    here = folder.iteration(arm, iteration)
    pairs = list(read_jsonl(here / "pairs.jsonl", Pair))
    current = policy(folder, recipe, arm, iteration)
    model, rank = starting_model(load_base(current.model, device), current, recipe, arm, iteration)

    out = here / "train"
    if any(not (mark.parent / WEIGHTS).exists() for mark in out.glob(f"checkpoint-*/{COMPLETE}")):
        shutil.rmtree(out)  # someone deleted a damaged checkpoint, which a resume would not make again
    steps = recipe.train.epochs * math.ceil(len(pairs) / recipe.train.batch)
    resume = last_complete_checkpoint(out)
    done = step_of(resume.name) if resume else 0
    with progress(f"{arm} {iteration + 1} dpo", steps, "steps", done) as advance:
        tuner = trainer(model, load_tokenizer(current.model), pairs, recipe.train, recipe.seed, out, device, advance)
        tuner.train(resume_from_checkpoint=str(resume) if resume else None)
    log = tuner.state.log_history
    write_json(out / "log.json", log)
    drop_optimizer_state(out)
    return DpoSummary(**dataclasses.asdict(course(log)), pairs=len(pairs), rank=rank, reference=f"M_{iteration}")
