"""What each phase returns: one typed summary, kept as JSON in `done/<phase>.json`.

results.json and the tables are made from these. Imports no model library and no numpy.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tpo_lite.errors import InputError
from tpo_lite.kinds import Arm, Engine, Merge
from tpo_lite.records import PairCount
from tpo_lite.run import RunFolder
from tpo_lite.thoughts import WELL_FORMED, Outcome

S = TypeVar("S", bound="PhaseSummary")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures that are kept as a JSON object, field by field in this order."""

    __pydantic_config__: ClassVar = ConfigDict(use_attribute_docstrings=True, extra="forbid")
    optional: ClassVar[tuple[str, ...]] = ()
    """Fields that the JSON leaves out where they are None; the others are null there."""

    def to_dict(self) -> dict[str, Any]:
        """Return these figures as plain dicts, strings and numbers."""
        data = dataclasses.asdict(self)
        return {key: value for key, value in data.items() if value is not None or key not in self.optional}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read what `to_dict` gave. Raises pydantic's `ValidationError` for anything else."""
        return TypeAdapter(cls).validate_python(data)


@dataclass(frozen=True, kw_only=True)
class PhaseSummary(Figures):
    """What a phase found, in figures."""

    phase: ClassVar[str]
    """The phase's name."""


def read_summary(kind: type[S], folder: RunFolder, arm: Arm | None, iteration: int) -> S:
    """Read the summary of a finished phase. Raises `InputError` if its file is missing or damaged."""
    data = folder.done(kind.phase, arm, iteration)
    try:
        return kind.from_dict(data["summary"])
    except (KeyError, TypeError, ValidationError) as error:
        path = folder.done_path(kind.phase, arm, iteration)
        raise InputError(
            f"{path} is damaged ({' '.join(str(error).split())}). Delete that file and run the same command again."
        ) from error


@dataclass(frozen=True, kw_only=True)
class PrepareSummary(PhaseSummary):
    """Counts of instructions; each one that was dropped is under the first reason that holds."""

    phase: ClassVar[str] = "prepare"
    bad: int
    """Malformed lines of the source that were left out (`instructions.skip_bad`)."""
    read: int
    """Instructions that were read."""
    empty: int
    """Dropped: no text."""
    duplicates: int
    """Dropped: equal to an earlier one up to case and white space."""
    leaked: int
    """Dropped: in an evaluation set."""
    too_long: int
    """Dropped: longer than `instructions.max_tokens`."""
    near_duplicates: int
    """Dropped: equal to an earlier one but for a few words."""
    kept: int
    """Instructions that are left, before slices are cut."""
    leaked_kept: int
    """Kept although they are in an evaluation set (`instructions.allow_leakage`)."""


def well_formed_share(parse: dict[Outcome, int]) -> float:
    """Return the share of well-formed outputs among those that `parse` counts by outcome; 0 without any.

    Older run folders do not count "no_thought_marker". There only "ok" was well-formed.
    """
    outcomes: tuple[Outcome, ...] = WELL_FORMED if "no_thought_marker" in parse else ("ok",)
    return sum(parse.get(outcome, 0) for outcome in outcomes) / max(1, sum(parse.values()))


@dataclass(frozen=True, kw_only=True)
class ValidationFigures(Figures):
    """What a model answered on the validation slice, one output per instruction.

    Parse outcomes and lengths are those of the first attempt.
    """

    prompts: int
    """Instructions answered."""
    accuracy: float | None
    """Share of right final answers, a malformed output counting as wrong; null where no instruction has an answer."""
    checked: int
    """Instructions with an answer to check against."""
    parse: dict[Outcome, int]
    """Outputs by outcome (`tpo_lite.thoughts.parse`)."""
    thought_tokens: float | None
    """Mean length of well-formed thoughts in tokens; null without any."""
    response_tokens: float | None
    """Mean length of well-formed responses in tokens; null without any."""


@dataclass(frozen=True, kw_only=True)
class ShareFigures(Figures):
    """A share of n with its 95 % Wilson interval."""

    value: float | None
    """Between 0 and 1; null where n is 0."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """The number counted."""


@dataclass(frozen=True, kw_only=True)
class MeanFigures(Figures):
    """A mean with its 95 % t interval, value +- half_width."""

    value: float | None
    """Null where n is 0."""
    half_width: float | None
    """Half the interval's width; null where n is below 2."""
    n: int
    """The number of values."""


@dataclass(frozen=True, kw_only=True)
class HeldOutFigures(Figures):
    """What a model answered on the test slice, one output per instruction.

    Parse outcomes and lengths are those of the first attempt; lengths are of well-formed outputs.
    """

    prompts: int
    """Instructions answered."""
    accuracy: ShareFigures
    """Right final answers, of the instructions with an answer to check against; a malformed output counts as wrong."""
    parse: dict[Outcome, int]
    """Outputs by outcome."""
    parse_ok: ShareFigures
    """Well-formed outputs."""
    thought_tokens: MeanFigures
    """Length of thoughts in tokens."""
    response_tokens: MeanFigures
    """Length of responses in tokens."""


@dataclass(frozen=True, kw_only=True)
class GenerateSummary(PhaseSummary):
    """What was sampled for training."""

    phase: ClassVar[str] = "generate"
    optional: ClassVar[tuple[str, ...]] = ("probe", "base", "base_test", "shift")
    engine: Engine
    """What sampled."""
    probe: float | None = None
    """Largest change in log-probability (nats) that the live adapter makes; None where M_t has no adapter."""
    base: ValidationFigures | None = None
    """M_0 on the validation slice; in iteration 0 only."""
    base_test: HeldOutFigures | None = None
    """M_0 on the test slice, if there is one; in iteration 0 only."""
    shift: float | None = None
    """Mean KL(sampler || trainer) in nats per token; engine gguf only."""
    prompts: int
    """Instructions sampled."""
    parse: dict[Outcome, int]
    """Samples by outcome (`tpo_lite.thoughts.parse`)."""
    thought_tokens: float | None
    """Mean length of well-formed thoughts in tokens; null without any."""
    response_tokens: float | None
    """Mean length of well-formed responses in tokens; null without any."""


@dataclass(frozen=True, kw_only=True)
class JudgeSummary(PhaseSummary):
    """What the judge was asked, and how much its answers depend on the order.

    The flip rate is that of the pairs asked in both orders. An adaptive tournament asks the closer pairs in both
    orders, so its flip rate is higher than that of a round robin.
    """

    phase: ClassVar[str] = "judge"
    calls: int
    """Questions put to the judge."""
    saved: int
    """Questions that a round robin over all samples, or a pointwise judge's score for each of them, would have asked on
    top."""
    unparsed: int
    """Comparisons without a readable verdict."""
    overlong: int
    """Comparisons, or with a pointwise judge responses, that did not fit its context."""
    flip_rate: float | None
    """Share of pairs, asked in both orders, whose winner changes with the order; null without such a pair."""
    first_slot_rate: float | None
    """Share of readable verdicts for the response shown first; null without any."""


@dataclass(frozen=True, kw_only=True)
class PairFigures(Figures):
    """The pairs of an iteration."""

    pairs: int
    """Pairs made."""
    counts: dict[PairCount, int]
    """What became of the prompts: prompts = pairs + dropped."""
    chosen_tokens: float | None
    """Mean length of the chosen responses of best-worst pairs in tokens; null without any."""
    rejected_tokens: float | None
    """Mean length of the rejected responses of best-worst pairs in tokens; null without any."""


@dataclass(frozen=True, kw_only=True)
class LengthControlFigures(Figures):
    """How strongly scores were controlled for length."""

    rho: float
    """Weight of the length."""
    rho_reached: bool | None
    """Whether an automatic rho kept chosen responses from being longer; null where rho was given."""


@dataclass(frozen=True, kw_only=True)
class PairSummary(PhaseSummary, PairFigures, LengthControlFigures):
    """Length control and pairs; in the JSON, length control comes first."""

    phase: ClassVar[str] = "pair"


@dataclass(frozen=True, kw_only=True)
class DpoSummary(PhaseSummary):
    """The course of training."""

    phase: ClassVar[str] = "dpo"
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
    pairs: int
    """Pairs trained on."""
    rank: int
    """Rank of the trained adapter."""
    reference: str
    """The reference model, such as "M_0"."""


@dataclass(frozen=True, kw_only=True)
class ValidateSummary(PhaseSummary):
    """What every candidate for M_{t+1} answered on the validation slice."""

    phase: ClassVar[str] = "validate"
    models: dict[str, ValidationFigures]
    """By the checkpoint's name, and "M_t" for the model that the iteration started from."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON: the object of the models itself."""
        return {name: figures.to_dict() for name, figures in self.models.items()}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read what `to_dict` gave. Raises pydantic's `ValidationError` for anything else."""
        return cls(models=TypeAdapter(dict[str, ValidationFigures]).validate_python(data))


@dataclass(frozen=True, kw_only=True)
class WinRate(Figures):
    """A win rate over the validation slice with its 95 % Wilson interval."""

    value: float | None
    """Mean win, a tie counting 0.5; null without a match."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


@dataclass(frozen=True, kw_only=True)
class SelectFigures(Figures):
    """Which candidate the judge prefers."""

    chosen: str
    """M_{t+1}: a checkpoint's name, or "M_t" where no checkpoint was preferred to it."""
    checkpoints: dict[str, float]
    """Win rate against M_t by candidate; that of "M_t" itself is 0.5."""
    win_rate: dict[Literal["M_t", "M_0"], WinRate]
    """The chosen candidate's win rate against each of these models."""


@dataclass(frozen=True, kw_only=True)
class SelectSummary(PhaseSummary, SelectFigures):
    """What `validation.json` holds, too."""

    phase: ClassVar[str] = "select"


@dataclass(frozen=True, kw_only=True)
class MergeFigures(Figures):
    """How M_{t+1} was made from the chosen checkpoint, and what that changed."""

    merge: Merge
    """How."""
    rank: int
    """Rank of the chosen checkpoint's adapter; where M_t was kept, of its adapter (0 without one)."""
    update_norm: float
    """Frobenius norm of the iteration's update over that of the weights; 0 where M_t was kept."""
    kl: float
    """KL(chosen checkpoint || M_{t+1}) in nats per token; 0 where M_t was kept."""


@dataclass(frozen=True, kw_only=True)
class FoldSummary(PhaseSummary, MergeFigures):
    """The merge, and with `merge: requantize` what the merged model answers."""

    phase: ClassVar[str] = "fold"
    optional: ClassVar[tuple[str, ...]] = ("validation",)
    validation: ValidationFigures | None = None
    """M_{t+1} on the validation slice, where merging may have moved it away from the chosen checkpoint."""


@dataclass(frozen=True, kw_only=True)
class AnswerSummary(PhaseSummary, HeldOutFigures):
    """M_{t+1} on the test slice."""

    phase: ClassVar[str] = "test"


MergeVariant = Literal["none", "fold", "continue", "requantize w16", "requantize nf4"]
"""What a merge report tries; "none" is M_t, the result of a merge that loses the whole update."""


@dataclass(frozen=True, kw_only=True)
class MergeCost(Figures):
    """What one merge would cost."""

    kl: float
    """KL(base + adapter || M_{t+1}) in nats per token."""
    seconds: float
    """Time that the merge takes."""
    bytes: int
    """Size on disk of what it writes."""


@dataclass(frozen=True, kw_only=True)
class MergeReportSummary(PhaseSummary):
    """What each merge would make of the checkpoint that an iteration chose."""

    phase: ClassVar[str] = "merge_report"
    update_norm: float
    """Frobenius norm of the iteration's update over that of the weights; 0 where M_t was kept."""
    rank: int
    """Rank of the chosen checkpoint's adapter; 0 where M_t was kept."""
    strategies: dict[MergeVariant, MergeCost]
    """Empty where M_t was kept."""
