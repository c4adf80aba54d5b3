"""What a phase that ran out of memory tries next: batches of half the size, the same result but for rounding.

Gradients accumulate up to the same effective batch, a sample's random numbers do not depend on its batch, and
the judge's comparisons do not depend on what is decoded beside them. So nothing here may change what a run
computes; the context that holds the judge's comparisons is only cut down to what the longest may need.
"""

from __future__ import annotations

from tpo_lite.recipe import Recipe, divisors
from tpo_lite.settled import Limits

JUDGE_PROMPT = 512
"""Tokens left for the judge prompt around the texts."""
JUDGE_TOKENS = 1.5
"""Tokens that a judge with a smaller vocabulary may need for one of the policy's."""


def smaller(phase: str, recipe: Recipe) -> Limits:
    """What `phase` shall run with after it ran out of memory under `recipe`; empty if nothing is left to halve."""
    if phase == "dpo":
        return _micro_batch(recipe)
    if phase in ("generate", "validate") or (phase == "fold" and recipe.merge == "requantize"):  # which samples as well
        return _halved("sampling.batch", recipe.sampling.batch, 1)
    if phase in ("prepare", "judge", "select"):
        return _judge(recipe)
    return {}


def _halved(key: str, value: int, least: int) -> Limits:
    return {key: max(least, value // 2)} if value > least else {}


def _micro_batch(recipe: Recipe) -> Limits:
    """The largest micro-batch of at most half that divides the batch: the effective batch stays what it is."""
    half = min(recipe.train.micro_batch, recipe.train.batch) // 2
    fits = [size for size in divisors(recipe.train.batch) if size <= half]
    return {"train.micro_batch": fits[0]} if fits else {}


def _judge(recipe: Recipe) -> Limits:
    """A smaller KV cache (or batch of a reward model) and fewer tokens a decode, which llama.cpp's work space goes by."""
    judge = recipe.judge
    responses = 1 if judge.mode in ("score", "reward-model") else 2
    texts = recipe.instructions.max_tokens + responses * recipe.sampling.max_new_tokens
    explanation = judge.explain_tokens if judge.mode == "explain" else 0
    context = _halved("judge.context", judge.context, int(JUDGE_TOKENS * texts) + JUDGE_PROMPT + explanation)
    if judge.mode == "reward-model":
        return context
    return _halved("judge.batch", judge.batch, judge.sequences) | context
