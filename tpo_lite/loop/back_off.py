"""What a phase that ran out of memory tries next: batches of half the size, with the same result but for rounding.

Gradients accumulate up to the same effective batch. A sample's random numbers do not depend on its batch, and a
comparison does not depend on what is decoded beside it. So nothing here may change what a run computes. The context
that holds the judge's comparisons is only reduced to what the longest of them may need.
"""

from __future__ import annotations

from tpo_lite.judges.room import longest_comparison
from tpo_lite.phase_order import JUDGED, SAMPLED, as_asked, judge_key
from tpo_lite.recipe import divisors
from tpo_lite.settled import Limits, SettledRecipe

JUDGE_TOKENS = 1.5
"""Tokens that a judge with a smaller vocabulary may need for each of the policy's."""
PROMPT_MARGIN = 256
"""Tokens by which a judge prompt may be longer than the usual one."""


def smaller(phase: str, recipe: SettledRecipe) -> Limits:
    """Return the limits for `phase` after it ran out of memory under `recipe`; none if nothing is left to halve."""
    if phase in ("dpo", "warm_start"):
        return _micro_batch(recipe)
    samples = phase in ("warm_sample", *SAMPLED) or (phase == "fold" and recipe.merge == "requantize")
    if samples:
        return _halved("sampling.batch", recipe.sampling.batch, 1)
    if phase in ("prepare", *JUDGED):
        return _judge(as_asked(recipe, phase), judge_key(recipe, phase))
    return {}


def _halved(key: str, value: int, least: int) -> Limits:
    return {key: max(least, value // 2)} if value > least else {}


def _micro_batch(recipe: SettledRecipe) -> Limits:
    """Return the largest micro-batch of at most half the size that divides the batch.

    So the effective batch is unchanged.
    """
    half = min(recipe.train.micro_batch, recipe.train.batch) // 2
    fits = [size for size in divisors(recipe.train.batch) if size <= half]
    return {"train.micro_batch": fits[0]} if fits else {}


def _judge(recipe: SettledRecipe, key: str) -> Limits:
    """Return a smaller KV cache (or batch of a reward model) and fewer tokens per decode, which take work space."""
    judge = recipe.judge
    least = int(JUDGE_TOKENS * longest_comparison(recipe)) + PROMPT_MARGIN
    context = _halved(f"{key}.context", judge.context, least)
    if judge.mode == "reward-model":
        return context
    return _halved(f"{key}.batch", judge.batch, judge.sequences) | context
