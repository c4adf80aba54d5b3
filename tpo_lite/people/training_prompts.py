"""The training prompts of an iteration, each with its samples, what the judge said of them, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from tpo_lite.checking import is_right
from tpo_lite.intervals import flip_rate
from tpo_lite.kinds import Arm
from tpo_lite.people.words import DROP_WORDS, OUTCOME_WORDS, signed
from tpo_lite.preferences.pairs import make_pairs
from tpo_lite.records import (
    DROP_REASONS,
    Comparison,
    DropReason,
    Pair,
    PromptJudgements,
    PromptSamples,
    PromptScores,
    Sample,
    UnitRecord,
    read_jsonl,
)
from tpo_lite.run import RunFolder
from tpo_lite.settled import SettledRecipe

R = TypeVar("R", bound=UnitRecord)


@dataclass(frozen=True)
class TrainingPrompt:
    """One prompt of an iteration, with as much about it as the run has written so far."""

    prompt: PromptSamples
    """The instruction and its K samples."""
    judgements: PromptJudgements | None
    """None until the judge has compared the responses."""
    scores: PromptScores | None
    """None until the responses are rated."""
    pair: Pair | None
    """None until pairs are made, and where the prompt gave none."""
    paired: bool
    """Whether pairs have been made."""

    @property
    def comparisons(self) -> list[Comparison]:
        """Return what the judge was asked, and its answers."""
        return self.judgements.comparisons if self.judgements else []

    @property
    def flipped(self) -> bool:
        """Return whether the judge preferred different responses of a pair when their order changed."""
        return bool(flip_rate([self.comparisons]).value)

    def right(self, sample: Sample) -> bool | None:
        """Return whether a sample has the right answer; None where none is known."""
        answer = self.prompt.instruction.answer
        return None if answer is None else is_right(sample.response, answer)

    def gold_comparisons(self) -> Iterator[bool]:
        """Yield whether the judge preferred the right response, for each comparison of a right and a wrong one.

        A pointwise judge compares all responses: it prefers the one with the higher score.
        """
        if self.judgements is None or self.prompt.instruction.answer is None:
            return
        right = {sample.k: self.right(sample) for sample in self.prompt.samples}
        scores = [(each.k, each.score) for each in self.judgements.scores or [] if each.score is not None]
        for (one, score), (other, other_score) in combinations(scores, 2):
            if right[one] != right[other] and score != other_score:
                yield (score > other_score) == right[one]
        for comparison in self.comparisons:
            if comparison.verdict in ("A", "B") and right[comparison.first] != right[comparison.second]:
                yield (comparison.verdict == "A") == right[comparison.first]


def training_prompts(folder: RunFolder, arm: Arm, iteration: int) -> Iterator[TrainingPrompt]:
    """Yield the prompts of an iteration that have samples. Raises `InputError` for a damaged line."""
    here = folder.iteration(arm, iteration)
    paired = folder.is_done("pair", arm, iteration)
    judgements = _by_id(read_jsonl(here / "judgements.jsonl", PromptJudgements))
    scores = _by_id(read_jsonl(here / "scores.jsonl", PromptScores))
    pairs = _by_id(read_jsonl(here / "pairs.jsonl", Pair))
    for prompt in read_jsonl(here / "samples.jsonl", PromptSamples):
        id = prompt.instruction.id
        yield TrainingPrompt(prompt, judgements.get(id), scores.get(id), pairs.get(id), paired)


def _by_id(records: Iterator[R]) -> dict[str, R]:
    return {record.id: record for record in records}


def why(found: TrainingPrompt, recipe: SettledRecipe) -> str:
    """Say which samples became the pair and for what reason, or why there is none."""
    pair, scores = found.pair, found.scores
    if pair is None:
        return _why_none(found, recipe)
    if pair.kind == "malformed":
        outcome = found.prompt.samples[pair.rejected_k].outcome
        return (
            f"Sample {pair.chosen_k} has the highest score and was chosen. Sample {pair.rejected_k} is malformed "
            f"({OUTCOME_WORDS[outcome]}) and was rejected, as in at most "
            f"{100 * recipe.pairs.malformed_share:.0f} % of all pairs."
        )
    if scores is None:
        return f"Sample {pair.chosen_k} was chosen and sample {pair.rejected_k} rejected."
    score = dict(zip(scores.ks, scores.controlled, strict=True))
    return (
        f"Sample {pair.chosen_k} has the highest score ({signed(score[pair.chosen_k], '+.2f')}) and was chosen. "
        f"Sample {pair.rejected_k} has the lowest ({signed(score[pair.rejected_k], '+.2f')}) and was rejected."
    )


def _why_none(found: TrainingPrompt, recipe: SettledRecipe) -> str:
    if found.judgements is None:
        return "Not judged yet."
    if not found.paired or found.scores is None:
        return "Judged, but not paired yet."
    reason = drop_reason(found.prompt, found.scores, recipe)
    return f"No pair: {DROP_WORDS[reason]}." if reason else "No pair."


def drop_reason(prompt: PromptSamples, scores: PromptScores, recipe: SettledRecipe) -> DropReason | None:
    """Return why a prompt gives no pair of best and worst; the run records only how many prompts have each reason."""
    counts = make_pairs(
        [prompt],
        {prompt.instruction.id: scores},
        malformed_share=0,
        max_tokens=recipe.pairs.max_tokens,
        seed=recipe.seed,
    ).counts
    return next((reason for reason in DROP_REASONS if counts[reason]), None)
