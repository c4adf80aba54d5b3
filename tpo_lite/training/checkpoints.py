"""Checkpoints of training: which are complete, and what they keep. Imports no torch."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from tpo_lite.errors import InputError
from tpo_lite.files import checksum, read_sealed, write_sealed

COMPLETE = "complete"
"""The name of a file in each checkpoint that was written completely, with the checksums of the others."""


def step_of(name: str) -> int:
    """Return the optimizer step after which a checkpoint was written.

    >>> step_of("checkpoint-12")
    12
    """
    return int(name.rpartition("-")[2])


def mark_complete(checkpoint: Path) -> None:
    """Say that a checkpoint was written completely."""
    write_sealed(checkpoint / COMPLETE, {path.name: checksum(path) for path in sorted(checkpoint.iterdir())})


def last_complete_checkpoint(out: Path) -> Path | None:
    """Return the newest checkpoint after which training can go on.

    One that a kill left half written, or that was damaged since, is removed with all after it: training writes them
    again.
    """
    checkpoints = sorted(out.glob("checkpoint-*"), key=lambda path: step_of(path.name))
    complete = list(itertools.takewhile(is_complete, checkpoints))
    for checkpoint in checkpoints[len(complete) :]:
        shutil.rmtree(checkpoint)
    return complete[-1] if complete else None


def is_complete(checkpoint: Path) -> bool:
    """Return whether the files of a checkpoint are those that were written; `drop_optimizer_state` may have passed."""
    mark = checkpoint / COMPLETE
    if not mark.exists():
        return False
    try:
        written = read_sealed(mark) if mark.stat().st_size else {}  # an earlier version's is empty
        files = {name: checkpoint / name for name in written}
        return all(checksum(path) == written[name] for name, path in files.items() if path.exists())
    except (InputError, TypeError, AttributeError):
        return False


def drop_optimizer_state(out: Path) -> None:
    """Delete what only a resume inside training needs, to free the disk."""
    for checkpoint in out.glob("checkpoint-*"):
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (checkpoint / name).unlink(missing_ok=True)
