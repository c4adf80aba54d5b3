"""Checkpoints of training: which are complete, and what they keep. Imports no torch."""

from __future__ import annotations

import shutil
from pathlib import Path

COMPLETE = "complete"
"""The name of an empty file in each checkpoint that was written completely."""


def step_of(name: str) -> int:
    """Return the optimizer step after which a checkpoint was written.

    >>> step_of("checkpoint-12")
    12
    """
    return int(name.rpartition("-")[2])


def last_complete_checkpoint(out: Path) -> Path | None:
    """Return the newest complete checkpoint, and remove those that a kill left half written."""
    complete = []
    for checkpoint in out.glob("checkpoint-*"):
        if (checkpoint / COMPLETE).exists():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(complete, key=lambda path: step_of(path.name), default=None)


def drop_optimizer_state(out: Path) -> None:
    """Delete what only a resume inside training needs, to free the disk."""
    for checkpoint in out.glob("checkpoint-*"):
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (checkpoint / name).unlink(missing_ok=True)
