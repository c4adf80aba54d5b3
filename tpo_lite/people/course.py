"""The course of one arm over the iterations: its figures, and what the records of each iteration add to them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tpo_lite.files import read_json
from tpo_lite.intervals import Share, share
from tpo_lite.kinds import Arm
from tpo_lite.loop.results_schema import IterationResults
from tpo_lite.people.training_prompts import TrainingPrompt
from tpo_lite.phases.summaries import ValidationFigures
from tpo_lite.run import RunFolder


@dataclass
class Tally:
    """What is counted over the training prompts of an iteration."""

    spreads: list[float] = field(default_factory=list)
    """For each rated prompt, the rating of its best response minus that of its worst: in Elo points or, with a
    pointwise judge, on its own scale."""
    gold: int = 0
    """Comparisons of a right and a wrong response with a verdict."""
    gold_right: int = 0
    """Those in which the judge preferred the right one."""

    def add(self, found: TrainingPrompt) -> None:
        """Count a prompt."""
        if found.scores is not None and len(found.scores.ks) > 1:
            ratings = found.scores.elo or found.scores.ratings
            self.spreads.append(max(ratings) - min(ratings))
        for right in found.gold_comparisons():
            self.gold += 1
            self.gold_right += right


@dataclass(frozen=True)
class Log:
    """Training, optimizer step by optimizer step."""

    losses: list[float]
    """Loss of each step."""
    margins: list[float]
    """Mean margin of the implicit rewards in each step; empty if it was not logged."""


@dataclass(frozen=True)
class Course:
    """One arm from M_0 to its last model."""

    arm: Arm
    base: ValidationFigures | None
    """M_0 on the validation slice; None until it was sampled."""
    iterations: list[IterationResults]
    """The finished iterations."""
    tallies: list[Tally]
    """One for each finished iteration."""
    logs: list[Log]
    """One for each finished iteration."""

    @property
    def gold(self) -> Share:
        """Return how often the judge preferred the right response to a wrong one, over all iterations."""
        return share(sum(tally.gold_right for tally in self.tallies), sum(tally.gold for tally in self.tallies))


def read_log(folder: RunFolder, arm: Arm, iteration: int) -> Log:
    """Read the log of an iteration's training; without one, both lists are empty."""
    path = folder.iteration(arm, iteration) / "train" / "log.json"
    rows = [row for row in read_json(path) if "loss" in row] if path.exists() else []
    margins = [row["rewards/margins"] for row in rows if "rewards/margins" in row]
    return Log([row["loss"] for row in rows], margins)
