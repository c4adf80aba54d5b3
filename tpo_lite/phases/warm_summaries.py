"""What the phases of a warm start return, as in `tpo_lite.phases.summaries`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tpo_lite.phases.summaries import HeldOutFigures, PhaseSummary
from tpo_lite.thoughts import Outcome


@dataclass(frozen=True, kw_only=True)
class WarmSampleSummary(PhaseSummary):
    """Whether there is a warm start, what the base answered before it, and what it trains on."""

    phase: ClassVar[str] = "warm_sample"
    needed: bool
    """Whether there is a warm start: with `warm_start.kind: auto` the probe decides."""
    probe: dict[Outcome, int] | None
    """The base's first outputs by outcome; null unless they decide."""
    before: HeldOutFigures | None
    """The base on the test slice, or on the validation slice of a run without one, with one attempt per instruction;
    null without a warm start."""
    sampled: dict[Outcome, int] | None
    """Outputs with markers put in, by outcome; null where none were sampled."""
    examples: int
    """Outputs that are trained on."""
    cut: int
    """Those of them whose response did not end in time, and was cut after its last whole sentence."""


@dataclass(frozen=True, kw_only=True)
class WarmStartSummary(PhaseSummary):
    """The course of supervised training."""

    phase: ClassVar[str] = "warm_start"
    steps: int
    """Optimizer steps; 0 without a warm start."""
    first_loss: float | None
    """Loss of the first optimizer step, in nats per token; null without a warm start."""
    last_loss: float | None
    """Loss of the last optimizer step."""
