"""Phase "crosscheck": the training judge plays the matches by which `select.judge` chose, and where they part is kept.

A policy that has learnt to please the training judge, rather than to answer better, shows here: that judge prefers it
and the other does not (reward hacking, with a judge for the reward).
"""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("crosscheck")

from collections.abc import Iterator

from tpo_lite.files import read_json
from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device
from tpo_lite.phases.judges_summaries import CrosscheckSummary, Parting
from tpo_lite.phases.matches import final_responses, open_referee
from tpo_lite.phases.select import best, checkpoint_responses, win_rate_of
from tpo_lite.phases.summaries import SelectSummary, WinRate
from tpo_lite.progress import progress
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.settled import SettledRecipe


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> CrosscheckSummary:
    """Write crosscheck/<checkpoint>-vs-M_<n>.jsonl, as the select phase does for its own judge."""
    here = folder.iteration(arm, iteration)
    selected = SelectSummary.from_dict(read_json(here / "validation.json"))
    checkpoints = checkpoint_responses(here)
    reference = final_responses(folder.validation_of(arm, iteration))
    referee = open_referee(folder, recipe, "crosscheck", device, "validation")
    total = (len(checkpoints) + (iteration > 0)) * len(referee.instructions)
    with progress(f"{arm} {iteration + 1} crosscheck", total, "matches") as advance:
        wins = {KEPT: [0.5] * len(referee.instructions)}
        for name, ours in checkpoints.items():
            path = here / "crosscheck" / f"{name}-vs-M_{iteration}.jsonl"
            wins[name] = referee.wins(path, ours, reference, advance)
        against_base = wins[selected.chosen]
        if iteration > 0:
            path = here / "crosscheck" / f"{selected.chosen}-vs-M_0.jsonl"
            ours = reference if selected.chosen == KEPT else checkpoints[selected.chosen]
            base = final_responses(folder.validation_of(arm, 0))
            against_base = referee.wins(path, ours, base, advance)
    referee.say_what_was_too_long()
    would_choose = best({name: sum(values) for name, values in wins.items()})
    rates = {name: win_rate_of(values) for name, values in wins.items()}
    by_base = win_rate_of(against_base)
    return CrosscheckSummary(
        would_choose=would_choose,
        checkpoints={name: rate for name, rate in rates.items() if name != KEPT},
        win_rate={"M_t": rates[selected.chosen], "M_0": by_base},
        partings=list(partings(iteration, selected, would_choose, rates[would_choose], by_base)),
    )


def partings(
    iteration: int, selected: SelectSummary, would_choose: str, preferred: WinRate, by_base: WinRate
) -> Iterator[Parting]:
    """Yield where the judges part; `preferred` and `by_base` are the training judge's figures.

    What it prefers to M_t is looked at, chosen or not, and M_{t+1} against M_0. In iteration 0 M_t is M_0, and a
    checkpoint that both are asked of is named once.
    """
    second = selected.checkpoints[would_choose]
    if part(preferred, second):
        yield Parting(model=would_choose, against=f"M_{iteration}", training=preferred.value or 0.0, second=second)
    if iteration == 0:
        return
    against_base = selected.win_rate["M_0"].value or 0.0
    if part(by_base, against_base):
        yield Parting(model=f"M_{iteration + 1}", against="M_0", training=by_base.value or 0.0, second=against_base)


def part(training: WinRate, second: float) -> bool:
    """Return whether the training judge is sure, at 95 %, of a preference that the second judge does not share."""
    return training.low > 0.5 > second
