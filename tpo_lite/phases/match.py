"""Phase "match": the judge compares M_{t+1} with M_0 on the test slice, and the thinking arm with the direct one.

After a warm start it also compares M_{t+1} with M_base, the model before that.
"""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("match")

from pathlib import Path

from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device
from tpo_lite.phases.figures import share_figures
from tpo_lite.phases.judges_summaries import MatchSummary
from tpo_lite.phases.matches import final_responses, open_referee
from tpo_lite.phases.summaries import ShareFigures
from tpo_lite.progress import progress
from tpo_lite.run import RunFolder
from tpo_lite.settled import SettledRecipe


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> MatchSummary:
    """Write the verdicts of test/<ours>-vs-<theirs>.jsonl that are not known from an earlier iteration.

    The arms meet in the phase of the last arm: by then both have their M_{t+1}, and in iteration 0 both M_0.
    """
    referee = open_referee(folder, recipe, "match", device, "test")
    model = iteration + 1
    both = [0, model] if iteration == 0 else [model]
    meet = both if len(recipe.arms) > 1 and arm == recipe.arms[-1] else []
    before = folder.warm_start(arm) / "before.jsonl"
    total = (1 + before.exists() + len(meet)) * len(referee.instructions)
    with progress(f"{arm} {model} match", total, "matches") as advance:

        def rate(path: Path, ours: Path, theirs: Path) -> ShareFigures:
            wins = referee.wins(path, final_responses(ours), final_responses(theirs), advance)
            return share_figures(sum(wins), len(wins))

        ours = folder.test_of(arm, model)
        against_start = rate(folder.match_with(arm, model, "M_0"), ours, folder.test_of(arm, 0))
        against_base = rate(folder.match_with(arm, model, "M_base"), ours, before) if before.exists() else None
        arms = {
            model: rate(folder.match_of_arms(model), folder.test_of("thinking", model), folder.test_of("direct", model))
            for model in meet
        }
    referee.say_what_was_too_long()
    return MatchSummary(
        win_rate=against_start,
        win_rate_base=against_base,
        overlong=len(referee.overlong),
        base_thinking_vs_direct=arms.get(0),
        thinking_vs_direct=arms.get(model),
    )
