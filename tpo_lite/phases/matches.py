"""Matches between two models' answers to held-out instructions: a judge decides them, and each is kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tpo_lite.groups import in_groups
from tpo_lite.judges.open import open_judge, too_long
from tpo_lite.judges.protocol import Judge
from tpo_lite.kinds import HeldOut
from tpo_lite.machine.device import Device
from tpo_lite.phase_order import as_asked, judge_key
from tpo_lite.phases.figures import final_response
from tpo_lite.preferences.play import head_to_head
from tpo_lite.progress import Advance
from tpo_lite.records import Instruction, MatchResult, PromptSamples, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.settled import SettledJudge, SettledRecipe

Responses = dict[str, str]
"""The response that counts of each held-out instruction, by the instruction's id."""


@dataclass
class Referee:
    """A judge for the matches on one slice."""

    judge: Judge
    settings: SettledJudge
    key: str
    """Where the recipe has these settings."""
    instructions: dict[str, Instruction]
    """The slice, by id."""
    at_once: int
    """Matches that make one unit of work."""
    played: list[MatchResult] = field(default_factory=list)
    """All matches so far."""

    def wins(self, path: Path, ours: Responses, theirs: Responses, advance: Advance) -> list[float]:
        """Play the matches that `path` does not hold yet; return what each comes to, in the instructions' order.

        A match counts 1 where the judge is sure of our response in both orders, and 0.5 at a tie. It also counts 0.5
        where the responses do not fit the judge.
        """
        finished = {record.id: record for record in read_jsonl(path, MatchResult)}
        found: list[MatchResult] = []

        def answer(group: list[Instruction]) -> list[MatchResult]:
            return play(self.judge, group, ours, theirs)

        for group in in_groups(path, self.instructions, finished, self.at_once, answer):
            advance(len(group))
            found += group
        self.played += found
        return [match.win for match in found]

    @property
    def overlong(self) -> list[str]:
        """Return the ids of the matches that did not fit the judge."""
        return [match.id for match in self.played if match.overlong]

    def say_what_was_too_long(self) -> None:
        """Print a line on the matches that did not fit the judge, if there are any."""
        if ids := self.overlong:
            what = f"{len(ids)} of {len(self.played)} matches, counted as ties"
            print(
                too_long(what, list(dict.fromkeys(ids)), self.settings, self.judge, f"{self.key}.context"), flush=True
            )


def open_referee(folder: RunFolder, recipe: SettledRecipe, phase: str, device: Device, held_out: HeldOut) -> Referee:
    """Load the judge that `phase` asks, for the matches on a slice. Raises as `open_judge` does."""
    key, settings = judge_key(recipe, phase), as_asked(recipe, phase).judge
    calls = folder.root / f"{key.replace('.', '-')}-calls"
    return Referee(
        judge=open_judge(settings, device, calls, folder.load_day()),
        settings=settings,
        key=key,
        instructions={x.id: x for x in read_jsonl(folder.instructions(held_out), Instruction)},
        # One match per prompt here, where a tournament has K responses, so more prompts at a time.
        at_once=settings.prompts_at_once * recipe.sampling.k,
    )


def final_responses(path: Path) -> Responses:
    """Return the responses in a file of answers to a held-out slice."""
    return {record.instruction.id: final_response(record) for record in read_jsonl(path, PromptSamples)}


def play(judge: Judge, group: Sequence[Instruction], ours: Responses, theirs: Responses) -> list[MatchResult]:
    """Let the judge decide one match per instruction."""
    texts = [instruction.conversation() for instruction in group]
    wins = head_to_head(judge, texts, [ours[x.id] for x in group], [theirs[x.id] for x in group])
    return [
        MatchResult(instruction.id, 0.5 if win is None else win, overlong=win is None)
        for instruction, win in zip(group, wins, strict=True)
    ]
