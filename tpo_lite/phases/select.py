"""Phase "select": the judge compares each checkpoint with M_t; the best becomes M_{t+1} (the paper's training).

M_t itself is a candidate: if the judge prefers none of an iteration's checkpoints, the iteration changes nothing.
"""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("select")

from pathlib import Path

from tpo_lite.files import write_json
from tpo_lite.groups import in_groups
from tpo_lite.intervals import share
from tpo_lite.judges.open import open_judge, too_long
from tpo_lite.judges.protocol import Judge
from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device
from tpo_lite.phases.figures import average, final_response
from tpo_lite.phases.summaries import SelectSummary, WinRate
from tpo_lite.preferences.play import head_to_head
from tpo_lite.progress import Advance, progress
from tpo_lite.records import Instruction, MatchResult, PromptSamples, read_jsonl
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.settled import SettledRecipe
from tpo_lite.training.checkpoints import step_of

Responses = dict[str, str]
"""The response that counts of each validation instruction, by the instruction's id."""


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> SelectSummary:
    """Write validation/<checkpoint>-vs-M_<n>.jsonl and validation.json.

    A match counts 1 where the judge is sure of our response in both orders, and 0.5 at a tie. It also counts 0.5 where
    the responses do not fit the judge, and then the phase says so. The mean over the validation slice is a checkpoint's
    rating against M_t, whose own is 0.5. In a tie M_t wins, then the earlier checkpoint.
    """
    here = folder.iteration(arm, iteration)
    instructions = {x.id: x for x in read_jsonl(folder.instructions("validation"), Instruction)}
    checkpoints = checkpoint_responses(here)
    reference = final_responses(folder.validation_of(arm, iteration))
    base = final_responses(folder.validation_of(arm, 0))
    judge = open_judge(recipe.judge, device, folder.root / "judge-calls", folder.load_day())
    # One match per prompt here, so more prompts at a time.
    at_once = recipe.judge.prompts_at_once * recipe.sampling.k

    total = (len(checkpoints) + (iteration > 0)) * len(instructions)
    with progress(f"{arm} {iteration + 1} select", total, "matches") as advance:
        played: list[MatchResult] = []
        wins = {KEPT: [0.5] * len(instructions)}
        for name, ours in checkpoints.items():
            path = here / "validation" / f"{name}-vs-M_{iteration}.jsonl"
            results = matches(path, judge, instructions, ours, reference, at_once, advance)
            wins[name] = [match.win for match in results]
            played += results
        rates = {name: average(values) or 0.0 for name, values in wins.items()}
        chosen = max(rates, key=lambda name: rates[name])
        against_base = wins[chosen]
        if iteration > 0:
            path = here / "validation" / f"{chosen}-vs-M_0.jsonl"
            ours = reference if chosen == KEPT else checkpoints[chosen]
            results = matches(path, judge, instructions, ours, base, at_once, advance)
            against_base = [match.win for match in results]
            played += results
    if overlong := [match.id for match in played if match.overlong]:
        what = f"{len(overlong)} of {total} matches, counted as ties"
        print(too_long(what, list(dict.fromkeys(overlong)), recipe.judge, judge, "judge.context"), flush=True)
    summary = SelectSummary(
        chosen=chosen,
        checkpoints=rates,
        win_rate={"M_t": win_rate_of(wins[chosen]), "M_0": win_rate_of(against_base)},
    )
    write_json(here / "validation.json", summary.to_dict())
    return summary


def checkpoint_responses(here: Path) -> dict[str, Responses]:
    """Return what each checkpoint answered, by its name, in the order of training."""
    paths = [path for path in here.glob("validation/checkpoint-*.jsonl") if "-vs-" not in path.name]
    return {path.stem: final_responses(path) for path in sorted(paths, key=lambda path: step_of(path.stem))}


def final_responses(path: Path) -> Responses:
    """Return the responses in a file of validation samples."""
    return {record.instruction.id: final_response(record) for record in read_jsonl(path, PromptSamples)}


def matches(
    path: Path,
    judge: Judge,
    instructions: dict[str, Instruction],
    ours: Responses,
    theirs: Responses,
    at_once: int,
    advance: Advance,
) -> list[MatchResult]:
    """Play the matches that `path` does not hold yet, `at_once` at a time; return all in the instructions' order."""
    finished = {record.id: record for record in read_jsonl(path, MatchResult)}
    played: list[MatchResult] = []
    for group in in_groups(path, instructions, finished, at_once, lambda group: play(judge, group, ours, theirs)):
        advance(len(group))
        played += group
    return played


def play(judge: Judge, group: list[Instruction], ours: Responses, theirs: Responses) -> list[MatchResult]:
    """Let the judge decide one match per instruction."""
    texts = [instruction.conversation() for instruction in group]
    wins = head_to_head(judge, texts, [ours[x.id] for x in group], [theirs[x.id] for x in group])
    return [
        MatchResult(instruction.id, 0.5 if win is None else win, overlong=win is None)
        for instruction, win in zip(group, wins, strict=True)
    ]


def win_rate_of(wins: list[float]) -> WinRate:
    """Return the win rate with its 95 % Wilson interval."""
    rate = share(sum(wins), len(wins))
    return WinRate(value=rate.value, low=rate.low, high=rate.high)
