"""How many tokens and rows sampling has to hold."""

from __future__ import annotations

import math

from tpo_lite.recipe import Recipe
from tpo_lite.thoughts import thought_prompt

CHAT_TOKENS = 40
"""What a chat template puts around a prompt: headers, date, end of turn."""


CHARACTERS_A_TOKEN = 4


def longest_prompt(recipe: Recipe) -> int:
    """Tokens of the longest prompt that is sampled from."""
    around = max(len(thought_prompt(recipe.style(arm), "")) for arm in recipe.arms)
    return recipe.instructions.max_tokens + CHAT_TOKENS + math.ceil(around / CHARACTERS_A_TOKEN)


def gguf_room(recipe: Recipe, cuda: bool) -> tuple[int, int]:
    """Sequences and KV cells of the `gguf` engine, whose rows all reach their longest.

    A prompt in flight needs a sequence besides those of its samples, and so does what all prompts begin with. On a
    GPU a prompt's samples share its cells; on a CPU each sequence has its own (`tpo_lite.llamacpp.decoder`).
    """
    settings = recipe.sampling
    prompts = math.ceil(settings.batch / settings.k)
    sequences = settings.batch + prompts + 1
    if cuda:
        return sequences, settings.batch * settings.max_new_tokens + prompts * longest_prompt(recipe)
    return sequences, sequences * (settings.max_new_tokens + longest_prompt(recipe))
