"""The course of training, from TRL's log, and the checks that it is sound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tpo_lite.errors import TpoError

FIRST_MARGIN = 0.01
"""With M_t as the reference, the first step's margin is 0 except for rounding, because the reference was computed in
other batches. For outputs of up to `MARGIN_TOKENS` tokens and a beta of `MARGIN_BETA` it stays below this."""
MARGIN_TOKENS, MARGIN_BETA = 500, 0.1
"""Each token's log-probability has a rounding error, and the margin is beta times their sum. In bfloat16 the mean over
outputs of 1,000 tokens may reach 0.008 (an estimate)."""


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


def first_margin_limit(tokens: float, beta: float) -> float:
    """Return the largest margin that rounding may give the first step, for outputs of `tokens` tokens on average.

    >>> first_margin_limit(200, 0.1), first_margin_limit(1000, 0.1)
    (0.01, 0.02)
    """
    return FIRST_MARGIN * max(1.0, tokens / MARGIN_TOKENS) * max(1.0, beta / MARGIN_BETA)


def course(log: list[dict[str, float]], out: Path, limit: float = FIRST_MARGIN) -> Course:
    """Read the course from the log of the training that wrote to `out`. `limit`: of the first margin.

    Raises `TpoError` if the reference was not M_t or training diverged.
    """
    steps = [row for row in log if "loss" in row]
    first, last = steps[0], steps[-1]
    if not abs(first["rewards/margins"]) < limit:
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
