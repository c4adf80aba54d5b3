"""How many tokens a judge has to hold."""

from __future__ import annotations

from tpo_lite.recipe import Recipe
from tpo_lite.recipe_keys import JudgeSettings

PROMPT_TOKENS = 280
"""The longest prompt that comes with the package, in a chat template and without the texts: 252 tokens under
Llama-3.1's vocabulary and template, 279 under Llama-2's vocabulary with Gemma's template."""
CONVERSATION_TOKENS = 50
"""The chat template that a reward model reads the texts in."""


def prompt_tokens(judge: JudgeSettings) -> int:
    """Return the tokens that a judge reads besides the texts."""
    return CONVERSATION_TOKENS if judge.mode == "reward-model" else PROMPT_TOKENS


def longest_comparison(recipe: Recipe) -> int:
    """Return the tokens of the longest comparison, explanation included; or of one response where each is scored alone.

    Counted in the policy's tokens, with the longest instruction and outputs that the recipe allows.
    """
    judge = recipe.judge
    responses = 1 if judge.mode in ("score", "reward-model") else 2
    explanation = judge.explain_tokens if judge.mode == "explain" else 0
    texts = recipe.instructions.max_tokens + responses * recipe.sampling.max_new_tokens
    return prompt_tokens(judge) + texts + explanation
