"""The course of one arm over the iterations: its figures, and what the records of each iteration add to them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tpo_lite.files import read_json
from tpo_lite.intervals import Share, share
from tpo_lite.kinds import Arm
from tpo_lite.loop.results_schema import IterationResults, ValidationResults, WarmStartResults
from tpo_lite.people.training_prompts import TrainingPrompt
from tpo_lite.phases.summaries import HeldOutFigures, ValidationFigures
from tpo_lite.run import RunFolder
from tpo_lite.thoughts import Outcome

NO_SHARE = share(0, 0)


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
class ModelFigures:
    """What one model answered on the held-out slice that models are reported on, and what the judge says of it."""

    model: int
    """Which M it is."""
    prompts: int
    win_rate: Share
    """Against M_0; M_0's own has no value."""
    accuracy: float | None
    parse: dict[Outcome, int]
    thought_tokens: float | None
    response_tokens: float | None


@dataclass(frozen=True)
class Course:
    """One arm from M_0 to its last model."""

    arm: Arm
    base: ValidationFigures | None
    """M_0 on the validation slice; None until it was sampled."""
    base_test: HeldOutFigures | None
    """M_0 on the test slice; None until it was sampled, and without such a slice."""
    warm_start: WarmStartResults | None
    """How the base became M_0, if it did."""
    iterations: list[IterationResults]
    """The finished iterations."""
    tallies: list[Tally]
    """One for each finished iteration."""
    logs: list[Log]
    """One for each finished iteration."""

    @property
    def tested(self) -> bool:
        """Return whether models are reported on a test slice, on which nothing was chosen."""
        return self.base_test is not None

    def models(self) -> list[ModelFigures]:
        """Return the figures of M_0, M_1, ... on the test slice, or on the validation slice of a run without one."""
        base = self.base_test or self.base
        if base is None:
            return []
        found = [_model(0, base, NO_SHARE)]
        for number, data in enumerate(self.iterations, 1):
            if data.test is not None:
                found.append(_model(number, data.test, Share(**vars(data.test.win_rate))))
            else:
                rate = data.validation.win_rate["M_0"]
                wins = Share(rate.value, rate.low, rate.high, data.validation.prompts)
                found.append(_model(number, data.validation, wins, data.accuracy))
        return found

    @property
    def gold(self) -> Share:
        """Return how often the judge preferred the right response to a wrong one, over all iterations."""
        return share(sum(tally.gold_right for tally in self.tallies), sum(tally.gold for tally in self.tallies))


def _model(
    number: int,
    found: ValidationFigures | ValidationResults | HeldOutFigures,
    wins: Share,
    accuracy: float | None = None,
) -> ModelFigures:
    """Return a model's figures; `accuracy` is that of `ValidationResults`, which has none."""
    if isinstance(found, HeldOutFigures):
        thoughts, responses = found.thought_tokens.value, found.response_tokens.value
        return ModelFigures(number, found.prompts, wins, found.accuracy.value, found.parse, thoughts, responses)
    if isinstance(found, ValidationFigures):
        accuracy = found.accuracy
    return ModelFigures(number, found.prompts, wins, accuracy, found.parse, found.thought_tokens, found.response_tokens)


def read_log(folder: RunFolder, arm: Arm, iteration: int) -> Log:
    """Read the log of an iteration's training; without one, both lists are empty."""
    path = folder.iteration(arm, iteration) / "train" / "log.json"
    rows = [row for row in read_json(path) if "loss" in row] if path.exists() else []
    margins = [row["rewards/margins"] for row in rows if "rewards/margins" in row]
    return Log([row["loss"] for row in rows], margins)
