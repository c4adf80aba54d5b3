"""The course of training, from TRL's log, and the checks that it is sound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tpo_lite.errors import TpoError

FIRST_MARGIN = 0.01
"""With M_t as the reference, the first step's margin is 0 except for rounding. In bfloat16 it stays below this."""


@dataclass(frozen=True)
class Course:
    """First and last figures of the training log."""

    first_loss: float
    """Loss of the first optimizer step."""
    last_loss: float
    """Loss of the last optimizer step."""
    last_margin: float
    """Mean margin of the implicit rewards in the last step."""
    last_accuracy: float
    """Share of pairs in the last step whose chosen output has the higher implicit reward."""
    steps: int
    """Optimizer steps."""


def course(log: list[dict[str, float]], out: Path) -> Course:
    """Read the course from the log of the training that wrote to `out`.

    Raises `TpoError` if the reference was not M_t or training diverged.
    """
    steps = [row for row in log if "loss" in row]
    first, last = steps[0], steps[-1]
    if not abs(first["rewards/margins"]) < FIRST_MARGIN:
        raise TpoError(
            f"the first step's margin is {first['rewards/margins']:.4f}, not 0: the reference is not the model that "
            f"sampled the pairs. Remove {out} and run again; if it happens again, report it."
        )
    if not math.isfinite(last["loss"]):
        raise TpoError("training diverged (the loss is not finite). Lower train.learning_rate and start with --new.")
    return Course(
        first_loss=first["loss"],
        last_loss=last["loss"],
        last_margin=last["rewards/margins"],
        last_accuracy=last["rewards/accuracies"],
        steps=len(steps),
    )
