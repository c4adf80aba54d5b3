"""How many tokens a judge has to hold."""

from __future__ import annotations

from tpo_lite.recipe import Recipe

PROMPT_TOKENS = 220
"""The Self-Taught Evaluator's prompt around the texts."""


def longest_comparison(recipe: Recipe) -> int:
    """Return the tokens of the longest comparison, explanation included; or of one response where each is scored alone.

    Counted in the policy's tokens, with the longest instruction and outputs that the recipe allows.
    """
    judge = recipe.judge
    responses = 1 if judge.mode in ("score", "reward-model") else 2
    explanation = judge.explain_tokens if judge.mode == "explain" else 0
    return PROMPT_TOKENS + recipe.instructions.max_tokens + responses * recipe.sampling.max_new_tokens + explanation
