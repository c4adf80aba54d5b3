"""The held-out prompts of a run, each with the answers of M_0, M_1, ... and how often the judge preferred them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tpo_lite.checking import is_right
from tpo_lite.kinds import Arm
from tpo_lite.records import Instruction, MatchResult, PromptSamples, Sample, read_jsonl
from tpo_lite.run import KEPT, PHASES, RunFolder


@dataclass(frozen=True)
class Answer:
    """What one model answered to a held-out instruction."""

    model: int
    """Which M it is."""
    kept: bool
    """The iteration kept M_t, so that this model is the one before it."""
    sample: Sample
    """The last attempt, which counts."""
    attempts: int
    """How often it was sampled: again while it was malformed."""
    right: bool | None
    """Whether it has the right answer; None where none is known."""
    wins: dict[int, MatchResult]
    """Matches against earlier models, by their number: M_0 and the model before."""


@dataclass(frozen=True)
class HeldOut:
    """A held-out instruction with the answers of one arm's models."""

    instruction: Instruction
    answers: list[Answer]
    """From M_0 to the last model."""

    @property
    def win(self) -> float | None:
        """Return the probability that the last answer is better than M_0's, as the judge says; None without one."""
        last = self.answers[-1]
        return last.wins[0].win if 0 in last.wins else None


def held_out(folder: RunFolder, arm: Arm, iterations: int) -> Iterator[HeldOut]:
    """Yield the held-out instructions that M_0 has answered, with the answers of every finished iteration."""
    finished = [t for t in range(iterations) if folder.is_done(PHASES[-1], arm, t)]
    models = {t + 1: _answers(folder, arm, t + 1) for t in finished}
    wins = {t + 1: _wins(folder, arm, t) for t in finished}
    for prompt in read_jsonl(folder.root / arm / "base-validation.jsonl", PromptSamples):
        id = prompt.instruction.id
        answers = [_answer(prompt, 0, False, {})]
        for model, found in models.items():
            if id in found:
                kept = folder.chosen(arm, model - 1) == KEPT
                against = {number: matches[id] for number, matches in wins[model].items() if id in matches}
                answers.append(_answer(found[id], model, kept, against))
        yield HeldOut(prompt.instruction, answers)


def _answers(folder: RunFolder, arm: Arm, model: int) -> dict[str, PromptSamples]:
    records = read_jsonl(folder.validation_of(arm, model), PromptSamples)
    return {record.instruction.id: record for record in records}


def _wins(folder: RunFolder, arm: Arm, iteration: int) -> dict[int, dict[str, MatchResult]]:
    """Return an iteration's matches by the number of the model that M_{t+1} was compared with, then by instruction."""
    here, chosen = folder.iteration(arm, iteration) / "validation", folder.chosen(arm, iteration)
    return {
        number: {match.id: match for match in read_jsonl(here / f"{chosen}-vs-M_{number}.jsonl", MatchResult)}
        for number in dict.fromkeys((0, iteration))
    }


def _answer(prompt: PromptSamples, model: int, kept: bool, wins: dict[int, MatchResult]) -> Answer:
    sample, answer = prompt.samples[-1], prompt.instruction.answer
    right = None if answer is None else is_right(sample.response, answer)
    return Answer(model, kept, sample, len(prompt.samples), right, wins)
