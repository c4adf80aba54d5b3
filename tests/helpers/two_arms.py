"""A run with both arms of the embedded policy, for what compares thinking with direct answers."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.tiny_run import start
from tpo_lite.phases.process import run_phase
from tpo_lite.recipe import Recipe
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import LoadedPolicy, policy
from tpo_lite.sampling.to_file import sample_held_out
from tpo_lite.settled import as_settled

RECIPE = {
    "iterations": 1,
    "model": "embedded",
    "engine": "transformers",
    "quantize": "none",
    "baseline": True,
    "warm_start": {"kind": "none"},
    "instructions": {"source": "embedded", "per_iteration": 2, "validation": 2, "test": 6, "max_tokens": 96},
    "sampling": {"k": 3, "max_new_tokens": 96, "batch": 24},
    "judge": {"model": "embedded", "mode": "verdict", "prompts_at_once": 16},
}


def two_untrained_arms(root: Path) -> RunFolder:
    """Both arms at M_0, each with its answers to a test slice of six instructions, whose right answers are known."""
    recipe = as_settled(Recipe.model_validate(RECIPE))
    run = RunFolder(root)
    start(run, recipe)
    run_phase("prepare", root, None, 0)
    for arm in recipe.arms:
        loaded = LoadedPolicy(recipe, policy(run, recipe, arm, 0), "cpu")
        sample_held_out(run.base_answers(arm, "test"), loaded, run, arm, 0, "test", arm)
    return run
