"""The held-out prompts of a run, each with the answers of M_0, M_1, ... and what the judge says of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tpo_lite.checking import is_right
from tpo_lite.kinds import Arm, HeldOut
from tpo_lite.phase_order import phases_of
from tpo_lite.records import Instruction, MatchResult, PromptSamples, Sample, read_jsonl
from tpo_lite.run import KEPT, RunFolder


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
class HeldOutPrompt:
    """A held-out instruction with the answers of one arm's models."""

    instruction: Instruction
    answers: list[Answer]
    """From M_0 to the last model."""

    @property
    def win(self) -> float | None:
        """Return the probability that the last answer is better than M_0's, as the judge says; None without one."""
        last = self.answers[-1]
        return last.wins[0].win if 0 in last.wins else None


def held_out(folder: RunFolder, arm: Arm, part: HeldOut) -> Iterator[HeldOutPrompt]:
    """Yield the instructions of a held-out slice that M_0 has answered, with the answers of each finished iteration."""
    recipe = folder.load_started()
    phases = phases_of(recipe)
    finished = [t for t in range(recipe.iterations) if all(folder.is_done(phase, arm, t) for phase in phases)]
    models = {t + 1: _answers(folder, arm, part, t + 1) for t in finished}
    wins = {t + 1: _wins(folder, arm, part, t) for t in finished}
    for prompt in read_jsonl(folder.base_answers(arm, part), PromptSamples):
        id = prompt.instruction.id
        answers = [_answer(prompt, 0, False, {})]
        for model, found in models.items():
            if id in found:
                kept = folder.chosen(arm, model - 1) == KEPT
                against = {number: matches[id] for number, matches in wins[model].items() if id in matches}
                answers.append(_answer(found[id], model, kept, against))
        yield HeldOutPrompt(prompt.instruction, answers)


def _answers(folder: RunFolder, arm: Arm, part: HeldOut, model: int) -> dict[str, PromptSamples]:
    path = folder.test_of(arm, model) if part == "test" else folder.validation_of(arm, model)
    records = read_jsonl(path, PromptSamples)
    return {record.instruction.id: record for record in records}


def _wins(folder: RunFolder, arm: Arm, part: HeldOut, iteration: int) -> dict[int, dict[str, MatchResult]]:
    """Return an iteration's matches by the number of the model that M_{t+1} was compared with, then by instruction."""
    if part == "test":
        paths = {0: folder.match_with(arm, iteration + 1, "M_0")}
    else:
        here, chosen = folder.iteration(arm, iteration) / "validation", folder.chosen(arm, iteration)
        paths = {number: here / f"{chosen}-vs-M_{number}.jsonl" for number in (0, iteration)}
    return {number: {match.id: match for match in read_jsonl(path, MatchResult)} for number, path in paths.items()}


def _answer(prompt: PromptSamples, model: int, kept: bool, wins: dict[int, MatchResult]) -> Answer:
    sample, answer = prompt.samples[-1], prompt.instruction.answer
    right = None if answer is None else is_right(sample.response, answer)
    return Answer(model, kept, sample, len(prompt.samples), right, wins)
