"""Phase "warm_start": supervised training on the examples makes the base M_0, before the first iteration."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("warm_start")

from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device
from tpo_lite.phases.summaries import read_summary
from tpo_lite.phases.warm_summaries import WarmSampleSummary, WarmStartSummary
from tpo_lite.records import Example, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import bare_base
from tpo_lite.settled import SettledRecipe


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> WarmStartSummary:
    """Write warm_start/adapter/ if there is a warm start. The direct arm trains for as many steps as the thinking arm.

    The optimizer steps of both arms are the same, so that neither model has learned longer than the other.
    """
    if not read_summary(WarmSampleSummary, folder, arm, 0).needed:
        return WarmStartSummary(steps=0, first_loss=None, last_loss=None)
    from tpo_lite.training.sft import train_on_examples  # seconds of imports that nobody needs above

    here = folder.warm_start(arm)
    examples = list(read_jsonl(here / "examples.jsonl", Example))
    follows = arm != recipe.arms[0]
    steps = read_summary(WarmStartSummary, folder, recipe.arms[0], 0).steps if follows else None
    trained = train_on_examples(bare_base(folder, recipe), examples, recipe, here, arm=arm, steps=steps, device=device)
    return WarmStartSummary(steps=trained.steps, first_loss=trained.first_loss, last_loss=trained.last_loss)
