"""Compute a phase's summary from its records."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from tpo_lite.checking import is_right
from tpo_lite.intervals import first_slot_rate, flip_rate, mean, share
from tpo_lite.phases.summaries import (
    HeldOutFigures,
    JudgeSummary,
    MeanFigures,
    PairFigures,
    ShareFigures,
    ValidationFigures,
    well_formed_share,
)
from tpo_lite.preferences.pairs import Pairs
from tpo_lite.records import PromptJudgements, PromptSamples, Sample
from tpo_lite.thoughts import OUTCOMES, WELL_FORMED, Outcome


def average(values: Sequence[float]) -> float | None:
    """Return the mean, or None without values."""
    return fmean(values) if values else None


@dataclass(frozen=True)
class Outputs:
    """Outcomes of parsing some samples, and mean lengths over the well-formed ones."""

    parse: dict[Outcome, int]
    """Samples by outcome."""
    thought_tokens: float | None
    """Mean length of thoughts in tokens."""
    response_tokens: float | None
    """Mean length of responses in tokens."""


def output_figures(samples: Sequence[Sample]) -> Outputs:
    """Return the figures of these samples."""
    outcomes = Counter(sample.outcome for sample in samples)
    well_formed = [sample for sample in samples if sample.well_formed]
    return Outputs(
        parse={outcome: outcomes[outcome] for outcome in OUTCOMES},
        thought_tokens=average([sample.thought_tokens for sample in well_formed]),
        response_tokens=average([sample.response_tokens for sample in well_formed]),
    )


ENOUGH = 0.5
"""The share of well-formed outputs that the loop needs to find pairs for most prompts."""


def own_share(outcomes: dict[Outcome, int]) -> float:
    """Return the share of outputs that are well-formed by themselves: no thought's budget put the marker in."""
    return well_formed_share(outcomes) - outcomes.get("budget_forced", 0) / max(1, sum(outcomes.values()))


def shown(outcomes: Mapping[Outcome, int]) -> str:
    """Return how many outputs are well-formed, and what the others are."""
    good = sum(outcomes.get(outcome, 0) for outcome in WELL_FORMED)
    named = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if count and outcome != "ok")
    return f"{good} of {sum(outcomes.values())} well-formed" + (f" ({named})" if named else "")


def validation_figures(prompts: Sequence[PromptSamples]) -> ValidationFigures:
    """Return the figures of one output per prompt, with accuracy where instructions have an answer.

    Parse outcomes are those of the first attempt. Accuracy is that of the last attempt, the response that counts: an
    output that is malformed after all retries is wrong.
    """
    outputs = output_figures([prompt.samples[0] for prompt in prompts])
    right = _right(prompts)
    return ValidationFigures(
        prompts=len(prompts),
        accuracy=average(right),
        checked=len(right),
        parse=outputs.parse,
        thought_tokens=outputs.thought_tokens,
        response_tokens=outputs.response_tokens,
    )


def _right(prompts: Sequence[PromptSamples]) -> list[bool]:
    """Return whether the response that counts is right, for each instruction with an answer to check against."""
    checked = [prompt for prompt in prompts if prompt.instruction.answer is not None]
    return [is_right(final_response(prompt), prompt.instruction.answer or "") for prompt in checked]


def held_out_figures(prompts: Sequence[PromptSamples]) -> HeldOutFigures:
    """Return the same figures with their intervals, for the slice that models are reported on."""
    right = _right(prompts)
    first = [prompt.samples[0] for prompt in prompts]
    well_formed = [sample for sample in first if sample.well_formed]
    return HeldOutFigures(
        prompts=len(prompts),
        accuracy=share_figures(sum(right), len(right)),
        parse=output_figures(first).parse,
        parse_ok=share_figures(len(well_formed), len(first)),
        thought_tokens=mean_figures([sample.thought_tokens for sample in well_formed]),
        response_tokens=mean_figures([sample.response_tokens for sample in well_formed]),
    )


def share_figures(successes: float, n: int) -> ShareFigures:
    """Return successes / n with its 95 % Wilson interval."""
    return ShareFigures(**dataclasses.asdict(share(successes, n)))


def mean_figures(values: Sequence[float]) -> MeanFigures:
    """Return the mean with its 95 % t interval."""
    if not values:
        return MeanFigures(value=None, half_width=None, n=0)
    return MeanFigures(**dataclasses.asdict(mean(values)))


def final_response(prompt: PromptSamples) -> str:
    """Return the response of the last attempt; empty if that was malformed too."""
    return prompt.samples[-1].response


def judge_figures(records: Sequence[PromptJudgements]) -> JudgeSummary:
    """Return calls, calls saved, and how much the judge's answers depend on the order."""
    comparisons = [record.comparisons for record in records]
    every = [comparison for group in comparisons for comparison in group]
    return JudgeSummary(
        calls=sum(record.calls for record in records),
        saved=sum(record.saved for record in records),
        unparsed=sum(comparison.verdict == "unparsed" for comparison in every),
        overlong=sum(record.overlong() for record in records),
        flip_rate=flip_rate(comparisons).value,
        first_slot_rate=first_slot_rate(comparisons).value,
    )


def pair_figures(made: Pairs) -> PairFigures:
    """Return how many pairs there are, the lengths of best-worst pairs, and why prompts have none."""
    compared = [pair for pair in made.pairs if pair.kind == "best-worst"]
    return PairFigures(
        pairs=len(made.pairs),
        counts=made.counts,
        chosen_tokens=average([pair.chosen_response_tokens for pair in compared]),
        rejected_tokens=average([pair.rejected_response_tokens for pair in compared]),
    )
