"""The fresh block of ranks that an iteration's training adds to the adapter of M_t."""

from __future__ import annotations

from typing import Literal

from tpo_lite.adapters import Blocks, concatenate, fresh_block
from tpo_lite.kinds import Arm
from tpo_lite.recipe import Recipe


def with_fresh_block(
    shapes: dict[str, tuple[int, int]],
    older: Blocks | None,
    recipe: Recipe,
    arm: Arm,
    iteration: int | Literal["warm_start"],
) -> Blocks:
    """Return `older`, if there is any, followed by the fresh block with which `iteration`, or the warm start, begins.

    `shapes` are those of the linear layers. The fresh block changes nothing, since its B is zero. Its A is drawn from
    the recipe's seed, the arm and the iteration.
    """
    fresh = fresh_block(shapes, recipe.lora.rank, f"{recipe.seed}/{arm}/{iteration}")
    return concatenate(older, fresh) if older else fresh
