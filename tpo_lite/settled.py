"""A recipe with every choice made."""

from __future__ import annotations

from tpo_lite.recipe import Recipe, value_of, with_keys

Limits = dict[str, int]
"""The largest values for which there was memory, by the recipe's key."""


def limited(recipe: Recipe, limits: Limits) -> Recipe:
    """`recipe` with no value above its limit. Raises `InputError` for limits that no recipe can have."""
    lowered = with_keys(recipe, limits)
    return with_keys(recipe, {key: min(value_of(recipe, key), value_of(lowered, key)) for key in limits})
