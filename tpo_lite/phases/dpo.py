"""Phase "dpo": trains on this iteration's pairs, from M_t and against M_t (the paper's training)."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("dpo")

import math
import shutil
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict

from tpo_lite.adapters import (
    WEIGHTS,
    Blocks,
    concatenate,
    fresh_block,
    linear_shapes,
    rank_of,
    read_adapter,
    state_dict,
)
from tpo_lite.chat import load_tokenizer
from tpo_lite.errors import TpoError
from tpo_lite.files import write_json
from tpo_lite.machine.device import chosen_device
from tpo_lite.nf4 import load_base
from tpo_lite.progress import progress
from tpo_lite.recipe import Recipe
from tpo_lite.records import Pair, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import policy
from tpo_lite.training.dpo import COMPLETE, freeze_older_blocks, trainable, trainer

FIRST_MARGIN = 0.01
"""The first step's margin is 0 to rounding when the reference is M_t; bfloat16 rounds that far."""


def run(run: RunFolder, arm: str, iteration: int) -> dict[str, Any]:
    """Writes train/checkpoint-<step>/ for every epoch and TRL's log as train/log.json; returns its course."""
    recipe = run.recipe
    folder = run.iteration(arm, iteration)
    on = policy(run, recipe, arm, iteration)
    device = chosen_device()
    pairs = list(read_jsonl(folder / "pairs.jsonl", Pair))
    base = load_base(on.model, device)
    scale = recipe.lora.alpha / recipe.lora.rank
    older: Blocks | None = None
    if on.adapter is not None:
        older, scale = read_adapter(on.adapter)
    grows = older is None or recipe.merge == "fold"
    rank = (rank_of(older) if older else 0) + (recipe.lora.rank if grows else 0)
    model = trainable(base, rank, scale)
    set_peft_model_state_dict(model, state_dict(start_blocks(recipe, arm, iteration, linear_shapes(model), older)))
    if older and grows and recipe.train.older_blocks == "frozen":
        freeze_older_blocks(model, rank_of(older))

    out = folder / "train"
    if any(not (mark.parent / WEIGHTS).exists() for mark in out.glob(f"checkpoint-*/{COMPLETE}")):
        shutil.rmtree(out)  # a damaged checkpoint was deleted: a resume would not make it again
    steps = recipe.train.epochs * math.ceil(len(pairs) / recipe.train.batch)
    resume = last_complete_checkpoint(out)
    done = int(resume.name.rpartition("-")[2]) if resume else 0
    with progress(f"{arm} {iteration + 1} dpo", steps, "steps", done) as advance:
        tuner = trainer(model, load_tokenizer(on.model), pairs, recipe.train, recipe.seed, out, device, advance)
        tuner.train(resume_from_checkpoint=str(resume) if resume else None)
    log = tuner.state.log_history
    write_json(out / "log.json", log)
    drop_optimizer_state(out)
    return course(log) | {"pairs": len(pairs), "rank": rank, "reference": f"M_{iteration}"}


def start_blocks(
    recipe: Recipe, arm: str, iteration: int, shapes: dict[str, tuple[int, int]], older: Blocks | None
) -> Blocks:
    """The adapter that training starts from: the policy it makes is M_t, whatever the merge."""
    if older is not None and recipe.merge == "continue":
        return older
    fresh = fresh_block(shapes, recipe.lora.rank, f"{recipe.seed}/{arm}/{iteration}")
    return concatenate(older, fresh) if older else fresh


def last_complete_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint that was written to its end; half of one is removed."""
    complete = []
    for checkpoint in out.glob("checkpoint-*"):
        if (checkpoint / COMPLETE).exists():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def drop_optimizer_state(out: Path) -> None:
    """Frees the disk of what only a resume inside this phase needs."""
    for checkpoint in out.glob("checkpoint-*"):
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (checkpoint / name).unlink(missing_ok=True)


def course(log: list[dict[str, float]]) -> dict[str, Any]:
    """First and last figures of the training log. Raises `TpoError` if the reference was not M_t."""
    steps = [row for row in log if "loss" in row]
    first, last = steps[0], steps[-1]
    if not abs(first["rewards/margins"]) < FIRST_MARGIN:
        raise TpoError(
            f"the first step's margin is {first['rewards/margins']:.4f}, not 0: the reference is not the model that "
            "sampled the pairs. Remove this iteration's train folder and run again; if it stays, report it."
        )
    if not math.isfinite(last["loss"]):
        raise TpoError("training diverged (the loss is not finite). Lower train.learning_rate and start with --new.")
    return {
        "first_loss": first["loss"],
        "last_loss": last["loss"],
        "last_margin": last["rewards/margins"],
        "last_accuracy": last["rewards/accuracies"],
        "steps": len(steps),
    }
