"""What a phase's records come to: the figures that results.json and the tables show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from tpo_lite.checking import is_right
from tpo_lite.intervals import first_slot_rate, flip_rate
from tpo_lite.preferences.pairs import Pairs
from tpo_lite.records import PromptJudgements, PromptSamples, Sample
from tpo_lite.thoughts import OUTCOMES


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return fmean(values) if values else None


def sample_summary(prompts: Sequence[PromptSamples]) -> dict[str, Any]:
    """Parse outcomes over all samples, and mean lengths over the well-formed ones."""
    samples = [sample for prompt in prompts for sample in prompt.samples]
    return {"prompts": len(prompts)} | _lengths(samples)


def validation_summary(prompts: Sequence[PromptSamples]) -> dict[str, Any]:
    """The same for one output a prompt, and accuracy where the instruction has an answer.

    Parse outcomes are those of the first attempt. Accuracy is that of the response that counts: an
    output that stayed malformed after all retries is wrong.
    """
    first = [prompt.samples[0] for prompt in prompts]
    checked = [prompt for prompt in prompts if prompt.instruction.answer is not None]
    right = [is_right(final_response(prompt), prompt.instruction.answer or "") for prompt in checked]
    return {"prompts": len(prompts), "accuracy": mean(right), "checked": len(checked)} | _lengths(first)


def final_response(prompt: PromptSamples) -> str:
    """The response of the last attempt; empty if that was malformed too."""
    return prompt.samples[-1].response


def _lengths(samples: Sequence[Sample]) -> dict[str, Any]:
    outcomes = Counter(sample.outcome for sample in samples)
    well_formed = [sample for sample in samples if sample.outcome == "ok"]
    return {
        "parse": {outcome: outcomes[outcome] for outcome in OUTCOMES},
        "thought_tokens": mean([sample.thought_tokens for sample in well_formed]),
        "response_tokens": mean([sample.response_tokens for sample in well_formed]),
    }


def judge_summary(records: Sequence[PromptJudgements]) -> dict[str, Any]:
    """Calls, calls saved, and how far the judge's answer hangs on the order.

    The flip rate is that of the pairs asked in both orders. In an adaptive tournament these are the closer ones,
    so that it comes out higher than a round robin's.
    """
    comparisons = [record.comparisons for record in records]
    every = [comparison for group in comparisons for comparison in group]
    return {
        "calls": sum(record.calls for record in records),
        "saved": sum(record.saved for record in records),
        "unparsed": sum(comparison.verdict == "unparsed" for comparison in every),
        "overlong": sum(comparison.verdict == "overlong" for comparison in every),
        "flip_rate": flip_rate(comparisons).value,
        "first_slot_rate": first_slot_rate(comparisons).value,
    }


def pair_summary(made: Pairs) -> dict[str, Any]:
    """How many pairs, of what lengths, and why prompts have none. Lengths are of best-worst pairs."""
    compared = [pair for pair in made.pairs if pair.kind == "best-worst"]
    return {
        "pairs": len(made.pairs),
        "counts": made.counts,
        "chosen_tokens": mean([pair.chosen_response_tokens for pair in compared]),
        "rejected_tokens": mean([pair.rejected_response_tokens for pair in compared]),
    }
