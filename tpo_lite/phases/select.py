"""Phase "select": the judge compares each checkpoint with M_t; the best becomes M_{t+1} (the paper's training).

M_t itself is a candidate: an iteration whose checkpoints the judge likes no better changes nothing.
"""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("select")

from pathlib import Path
from typing import Any

from tpo_lite.files import write_json
from tpo_lite.intervals import share
from tpo_lite.judges.open import open_judge, too_long
from tpo_lite.judges.protocol import Judge
from tpo_lite.phases.summaries import final_response, mean
from tpo_lite.preferences.judging import head_to_head
from tpo_lite.progress import Advance, progress
from tpo_lite.records import Instruction, JsonlAppender, MatchResult, PromptSamples, read_jsonl
from tpo_lite.run import KEPT, RunFolder


def run(run: RunFolder, arm: str, iteration: int) -> dict[str, Any]:
    """Writes validation/<checkpoint>-vs-M_<n>.jsonl and validation.json; returns the win rates.

    A match counts 1 where our response is preferred in both orders with certainty, 0.5 at a tie and where the
    responses do not fit the judge, which is told. Its mean over the validation slice is the checkpoint's rating
    against M_t, whose own is 0.5; the first of equal ones is chosen, and M_t before any checkpoint.
    """
    recipe = run.recipe
    folder = run.iteration(arm, iteration)
    responses = {}
    for path in sorted(folder.glob("validation/checkpoint-*.jsonl")):
        if "-vs-" not in path.name:
            responses[path.stem] = final_responses(path)
    checkpoints = sorted(responses, key=lambda name: int(name.rpartition("-")[2]))
    instructions = {x.id: x for x in read_jsonl(run.instructions("validation"), Instruction)}
    reference = final_responses(run.validation_of(arm, iteration))
    base = final_responses(run.validation_of(arm, 0))
    judge = open_judge(recipe.judge, run.root / "judge-calls")
    at_once = recipe.judge.prompts_at_once * recipe.sampling.k  # one match a prompt here, so more prompts a call

    overlong: list[str] = []

    def play(name: str, against: str, theirs: dict[str, str], advance: Advance) -> list[float]:
        path = folder / "validation" / f"{name}-vs-{against}.jsonl"
        played = matches(path, judge, instructions, responses[name], theirs, at_once, advance)
        overlong.extend(match.id for match in played if match.overlong)
        return [match.win for match in played]

    responses[KEPT] = reference
    total = (len(checkpoints) + (iteration > 0)) * len(instructions)
    with progress(f"{arm} {iteration + 1} select", total, "matches") as advance:
        wins = {KEPT: [0.5] * len(instructions)}
        wins |= {name: play(name, f"M_{iteration}", reference, advance) for name in checkpoints}
        rates = {name: mean(values) or 0.0 for name, values in wins.items()}
        chosen = max(rates, key=lambda name: rates[name])
        against_base = play(chosen, "M_0", base, advance) if iteration > 0 else wins[chosen]
    if overlong:
        what = f"{len(overlong)} of {total} matches, counted as ties"
        print(too_long(what, list(dict.fromkeys(overlong)), recipe.judge, judge, "judge.context"), flush=True)
    result = {
        "chosen": chosen,
        "checkpoints": rates,
        "win_rate": {"M_t": interval(wins[chosen]), "M_0": interval(against_base)},
    }
    write_json(folder / "validation.json", result)
    return result


def final_responses(path: Path) -> dict[str, str]:
    """The response that counts of each validation instruction, by id."""
    return {record.instruction.id: final_response(record) for record in read_jsonl(path, PromptSamples)}


def matches(
    path: Path,
    judge: Judge,
    instructions: dict[str, Instruction],
    ours: dict[str, str],
    theirs: dict[str, str],
    at_once: int,
    advance: Advance,
) -> list[MatchResult]:
    """Plays what `path` does not hold yet, `at_once` instructions a call; returns all matches in order."""
    finished = {record.id: record for record in read_jsonl(path, MatchResult)}
    ids = list(instructions)
    with JsonlAppender(path) as out:
        for start in range(0, len(ids), at_once):
            group = ids[start : start + at_once]
            if any(id not in finished for id in group):
                texts = [instructions[id].text for id in group]
                wins = head_to_head(judge, texts, [ours[id] for id in group], [theirs[id] for id in group])
                played = [
                    MatchResult(id, 0.5 if win is None else win, overlong=win is None)
                    for id, win in zip(group, wins, strict=True)
                ]
                fresh = [match for match in played if match.id not in finished]
                out.append(*fresh)
                finished |= {match.id: match for match in fresh}
            advance(len(group))
    return [finished[id] for id in ids]


def interval(wins: list[float]) -> dict[str, float | None]:
    """The win rate with its 95 % Wilson interval."""
    rate = share(sum(wins), len(wins))
    return {"value": rate.value, "low": rate.low, "high": rate.high}
