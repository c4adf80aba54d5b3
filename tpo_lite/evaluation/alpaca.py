"""AlpacaEval 2: win rates of existing annotations, with intervals, and the length-controlled one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo_lite.evaluation.alpaca_annotations import BASELINE, OFFICIAL_JUDGE, Annotations
from tpo_lite.evaluation.layout import aligned, between
from tpo_lite.evaluation.length_controlled import LengthControlled, length_controlled
from tpo_lite.intervals import Estimate, Share, estimate, share

SIGNIFICANT_LENGTH = 30
"""A difference in characters above which one output counts as longer, as in AlpacaEval's own analysis."""


@dataclass(frozen=True)
class AlpacaScore:
    """A model's scores against the baseline, in per cent."""

    name: str
    """What the score may be called: "AlpacaEval 2" only with its own judge and baseline."""
    model: str
    """The model."""
    win_rate: Estimate
    """The mean of preference - 1: a judge that is not sure counts in part."""
    discrete_win_rate: Share
    """Wins plus half of the draws, as a share of all."""
    wins: int
    """Preferences above 1.5."""
    losses: int
    """Preferences below 1.5."""
    draws: int
    """Preferences of exactly 1.5."""
    length_controlled: LengthControlled | None
    """None where it was not asked for."""
    avg_length: int
    """Mean length of the model's outputs in characters, rounded down as on the leaderboard."""
    prefers_longer: Share
    """How often the longer output wins, where the lengths differ by more than 30 characters."""
    missing: list[int]
    """Numbers of the instructions without an annotation."""

    @property
    def n(self) -> int:
        """The number of annotations."""
        return self.win_rate.n

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as `eval alpaca --json` prints them."""
        controlled = self.length_controlled
        lc = None if controlled is None else controlled.value
        lc_interval = None if controlled is None else [controlled.low, controlled.high]
        return {
            "name": self.name,
            "model": self.model,
            "n": self.n,
            "win_rate": self.win_rate.value,
            "standard_error": self.win_rate.standard_error,
            "win_rate_interval": [self.win_rate.low, self.win_rate.high],
            "discrete_win_rate": 100 * (self.discrete_win_rate.value or 0.0),
            "discrete_win_rate_interval": [100 * self.discrete_win_rate.low, 100 * self.discrete_win_rate.high],
            "n_wins": self.wins,
            "n_losses": self.losses,
            "n_draws": self.draws,
            "length_controlled_winrate": lc,
            "length_controlled_interval": lc_interval,
            "length_controlled_standard_error": None if controlled is None else controlled.standard_error,
            "bootstrap_rounds": 0 if controlled is None else controlled.rounds,
            "avg_length": self.avg_length,
            "prefers_longer": dataclasses.asdict(self.prefers_longer),
            "missing": self.missing,
        }


def score(annotations: Annotations, difficulty: Path | None = None, gamed: Path | None = None) -> AlpacaScore:
    """Return the scores of one model's annotations; with both files, the length-controlled one too.

    Raises `InputError` as `length_controlled` does.
    """
    rows = annotations.rows
    preferences = [row.preference for row in rows]
    wins, losses = sum(value > 1.5 for value in preferences), sum(value < 1.5 for value in preferences)
    draws = len(rows) - wins - losses
    controlled = None
    if difficulty is not None and gamed is not None:
        controlled = length_controlled(annotations, difficulty, gamed)
    decided = [row for row in rows if abs(row.len_1 - row.len_2) > SIGNIFICANT_LENGTH and row.preference != 1.5]
    longer = sum((row.len_2 > row.len_1) == (row.preference > 1.5) for row in decided)
    return AlpacaScore(
        name_of(annotations),
        annotations.model,
        estimate([value - 1 for value in preferences]).times(100),
        share(wins + draws / 2, len(rows)),
        wins,
        losses,
        draws,
        controlled,
        sum(row.len_2 for row in rows) // len(rows),
        share(longer, len(decided)),
        annotations.missing,
    )


def name_of(annotations: Annotations) -> str:
    """Return what a score may be called.

    Only the leaderboard's judge and baseline make an AlpacaEval 2 score. Files that name neither, as the CSV form, are
    called by the prompts alone.
    """
    if annotations.judge == OFFICIAL_JUDGE and annotations.baseline == BASELINE:
        return "AlpacaEval 2"
    against = "" if annotations.baseline in (None, BASELINE) else f", against {annotations.baseline}"
    judge = "that the file does not name" if annotations.judge is None else annotations.judge
    return f"AlpacaEval prompts, judge {judge}{against}"


def as_text(score: AlpacaScore) -> str:
    """Return the scores as lines for a terminal."""
    controlled, discrete, longer = score.length_controlled, score.discrete_win_rate, score.prefers_longer
    rows = [
        ["", "%", "95 % interval", "n"],
        ["win rate", f"{score.win_rate.value:.2f}", between(score.win_rate.low, score.win_rate.high), str(score.n)],
        [
            "discrete win rate",
            f"{100 * (discrete.value or 0):.2f}",
            between(100 * discrete.low, 100 * discrete.high),
            str(discrete.n),
        ],
    ]
    if controlled is not None:
        interval = between(controlled.low, controlled.high)
        rows.append(["length-controlled win rate", f"{controlled.value:.2f}", interval, str(score.n)])
    if longer.value is not None:
        interval = between(100 * longer.low, 100 * longer.high)
        rows.append(["the longer output wins", f"{100 * longer.value:.2f}", interval, str(longer.n)])
    lines = [f"{score.name}: {score.model}", aligned(rows)]
    lines.append(
        f"standard error {score.win_rate.standard_error or 0:.2f}; wins, draws, losses: {score.wins}, {score.draws}, "
        f"{score.losses}; mean length {score.avg_length} characters"
    )
    if controlled is None:
        lines.append("No length-controlled win rate without --difficulty and --gamed, the leaderboard's files.")
    return "\n".join(lines)
