"""How many sequences and tokens training and merging hold at a time. Imports no torch."""

from __future__ import annotations

from tpo_lite.recipe import Recipe
from tpo_lite.sampling.room import longest_prompt

LOGIT_CHUNK = 256
"""Tokens whose logits training holds at a time (`tpo_lite.training.token_log_probs`). Enough of them that reading
the head's weights does not slow a GPU."""

KL_PROMPTS = 32
"""Validation prompts on which the fold phase compares two models (`tpo_lite.training.divergence`)."""

KL_POSITIONS = 64
"""Token positions of each: 32 * 64 rows of a 128k vocabulary are 1 GB in float32."""


def longest_pair(recipe: Recipe) -> int:
    """Return the tokens of the longer side of the longest pair that is trained on."""
    return min(recipe.pairs.max_tokens, longest_prompt(recipe) + recipe.sampling.max_new_tokens)
