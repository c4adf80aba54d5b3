"""What the phases return in which a judge compares models: "match" and "crosscheck"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tpo_lite.phases.summaries import Figures, PhaseSummary, ShareFigures, WinRate


@dataclass(frozen=True, kw_only=True)
class Parting(Figures):
    """A model that the training judge prefers to another, and the second judge does not."""

    model: str
    """A checkpoint's name, or "M_{t+1}" by its number."""
    against: str
    """The other model, such as "M_0"."""
    training: float
    """The model's win rate by the training judge."""
    second: float
    """The same by `select.judge`."""


@dataclass(frozen=True, kw_only=True)
class CrosscheckSummary(PhaseSummary):
    """What the training judge says of the matches by which `select.judge` chose M_{t+1}."""

    phase: ClassVar[str] = "crosscheck"
    would_choose: str
    """What the training judge would have chosen: a checkpoint's name, or "M_t"."""
    checkpoints: dict[str, WinRate]
    """Win rate against M_t by checkpoint."""
    win_rate: dict[Literal["M_t", "M_0"], WinRate]
    """The chosen candidate's win rate against each of these models."""
    partings: list[Parting]
    """Where the judges part: the training judge's 95 % interval lies above one half, and the second judge's win rate
    below. Asked of the checkpoint that the training judge would choose, against M_t, and of M_{t+1} against M_0."""


@dataclass(frozen=True, kw_only=True)
class MatchSummary(PhaseSummary):
    """What the judge says of M_{t+1}'s answers to the test slice. A match that does not fit the judge is a tie."""

    phase: ClassVar[str] = "match"
    optional: ClassVar[tuple[str, ...]] = ("win_rate_base", "base_thinking_vs_direct", "thinking_vs_direct")
    win_rate: ShareFigures
    """Against M_0, a tie counting 0.5."""
    win_rate_base: ShareFigures | None = None
    """Against the base before a warm start; None without one."""
    overlong: int
    """Matches that did not fit the judge."""
    base_thinking_vs_direct: ShareFigures | None = None
    """The thinking arm's M_0 against the direct arm's; in iteration 0 of the last arm of two."""
    thinking_vs_direct: ShareFigures | None = None
    """The thinking arm's M_{t+1} against the direct arm's; in the last arm of two."""
