"""Phase "select": the judge compares each checkpoint with M_t; the best becomes M_{t+1} (the paper's training).

M_t itself is a candidate: if the judge prefers none of an iteration's checkpoints, the iteration changes nothing.
"""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("select")

from collections.abc import Mapping
from pathlib import Path

from tpo_lite.files import write_json
from tpo_lite.intervals import share
from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device
from tpo_lite.phases.figures import average
from tpo_lite.phases.matches import Responses, final_responses, open_referee
from tpo_lite.phases.summaries import SelectSummary, WinRate
from tpo_lite.progress import progress
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.settled import SettledRecipe
from tpo_lite.training.checkpoints import step_of


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> SelectSummary:
    """Write validation/<checkpoint>-vs-M_<n>.jsonl and validation.json.

    The mean of the matches over the validation slice is a checkpoint's rating against M_t, whose own is 0.5.
    """
    here = folder.iteration(arm, iteration)
    checkpoints = checkpoint_responses(here)
    reference = final_responses(folder.validation_of(arm, iteration))
    base = final_responses(folder.validation_of(arm, 0))
    referee = open_referee(folder, recipe, "select", device, "validation")
    total = (len(checkpoints) + (iteration > 0)) * len(referee.instructions)
    with progress(f"{arm} {iteration + 1} select", total, "matches") as advance:
        wins = {KEPT: [0.5] * len(referee.instructions)}
        for name, ours in checkpoints.items():
            path = here / "validation" / f"{name}-vs-M_{iteration}.jsonl"
            wins[name] = referee.wins(path, ours, reference, advance)
        rates = {name: average(values) or 0.0 for name, values in wins.items()}
        chosen = best(rates)
        against_base = wins[chosen]
        if iteration > 0:
            path = here / "validation" / f"{chosen}-vs-M_0.jsonl"
            ours = reference if chosen == KEPT else checkpoints[chosen]
            against_base = referee.wins(path, ours, base, advance)
    referee.say_what_was_too_long()
    summary = SelectSummary(
        chosen=chosen,
        checkpoints=rates,
        win_rate={"M_t": win_rate_of(wins[chosen]), "M_0": win_rate_of(against_base)},
    )
    write_json(here / "validation.json", summary.to_dict())
    return summary


def best(rates: Mapping[str, float]) -> str:
    """Return the name with the highest rate. In a tie the first counts: M_t, then the earlier checkpoint."""
    return max(rates, key=lambda name: rates[name])


def checkpoint_responses(here: Path) -> dict[str, Responses]:
    """Return what each checkpoint answered, by its name, in the order of training."""
    paths = [path for path in here.glob("validation/checkpoint-*.jsonl") if "-vs-" not in path.name]
    return {path.stem: final_responses(path) for path in sorted(paths, key=lambda path: step_of(path.stem))}


def win_rate_of(wins: list[float]) -> WinRate:
    """Return the win rate with its 95 % Wilson interval."""
    rate = share(sum(wins), len(wins))
    return WinRate(value=rate.value, low=rate.low, high=rate.high)
