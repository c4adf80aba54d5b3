"""One iteration of DPO: from M_t and its pairs to checkpoints of M_{t+1} (the paper's training)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tpo_lite.adapters import WEIGHTS
from tpo_lite.base_weights import load_base
from tpo_lite.chat import load_tokenizer
from tpo_lite.files import write_json
from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device
from tpo_lite.progress import progress
from tpo_lite.records import Pair
from tpo_lite.sampling.policy import Policy
from tpo_lite.settled import SettledRecipe
from tpo_lite.training.checkpoints import COMPLETE, drop_optimizer_state, last_complete_checkpoint, step_of
from tpo_lite.training.course import Course, course, first_margin_limit
from tpo_lite.training.dpo import trainer
from tpo_lite.training.start import starting_model


@dataclass(frozen=True)
class Trained:
    """The result of one iteration of DPO."""

    checkpoint: Path
    """The folder of the last epoch's adapter."""
    rank: int
    """Rank of the adapter."""
    course: Course
    """The first and last figures of the training log."""


def train_on_pairs(
    current: Policy,
    pairs: Sequence[Pair],
    recipe: SettledRecipe,
    out: Path,
    *,
    arm: Arm = "thinking",
    iteration: int = 0,
    device: Device = "cpu",
) -> Trained:
    """Train M_t, which is `current`, on `pairs`; write OUT/checkpoint-<step>/ for every epoch and OUT/log.json.

    The reference is M_t itself. Training that was stopped goes on after its last complete checkpoint. Raises
    `TpoError` if the first step's margin is not 0 or if training diverges.
    """
    model, rank = starting_model(
        load_base(current.model, device, recipe.precision(device)), current, recipe, arm, iteration
    )
    if any(not (mark.parent / WEIGHTS).exists() for mark in out.glob(f"checkpoint-*/{COMPLETE}")):
        shutil.rmtree(out)  # someone deleted a damaged checkpoint, which a resume would not make again
    steps = recipe.train.epochs * math.ceil(len(pairs) / recipe.train.batch)
    resume = last_complete_checkpoint(out)
    done = step_of(resume.name) if resume else 0
    with progress(f"{arm} {iteration + 1} dpo", steps, "steps", done) as advance:
        tokenizer = load_tokenizer(current.model)
        tuner = trainer(model, tokenizer, list(pairs), recipe.train, recipe.seed, out, device, advance)
        tuner.train(resume_from_checkpoint=str(resume) if resume else None)
    log = tuner.state.log_history
    write_json(out / "log.json", log)
    drop_optimizer_state(out)
    last = last_complete_checkpoint(out)
    assert last is not None  # TRL saves one after every epoch
    tokens = fmean(len(ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids))
    return Trained(last, rank, course(log, out, first_margin_limit(tokens, recipe.train.beta)))
