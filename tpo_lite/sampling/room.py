"""How many tokens and rows sampling has to hold. Imports no torch."""

from __future__ import annotations

import math

from tpo_lite.recipe import Recipe
from tpo_lite.settled import SettledRecipe
from tpo_lite.thoughts import thought_prompt

CHAT_TOKENS = 40
"""What a chat template puts around a prompt: headers, date, end of turn."""

PROBE_PROMPTS = 32
"""Validation prompts on which the base shows whether it needs a warm start (`warm_start.kind: auto`)."""

CHARACTERS_A_TOKEN = 4
"""Of English text, roughly."""


def longest_prompt(recipe: Recipe) -> int:
    """Return the tokens of the longest prompt that is sampled from."""
    around = max(len(thought_prompt(recipe.style(arm), "")) for arm in recipe.arms)
    return recipe.instructions.max_tokens + CHAT_TOKENS + math.ceil(around / CHARACTERS_A_TOKEN)


def gguf_room(recipe: SettledRecipe) -> tuple[int, int]:
    """Return the sequences and KV cells that the `gguf` engine needs when all its rows reach their longest.

    Each prompt in flight needs a sequence besides those of its samples, and so does the beginning that all prompts
    share. Each sequence has cells of its own (`tpo_lite.llamacpp.context`).
    """
    settings = recipe.sampling
    prompts = math.ceil(settings.batch / settings.k)
    sequences = settings.batch + prompts + 1
    return sequences, sequences * (settings.max_new_tokens + longest_prompt(recipe))
