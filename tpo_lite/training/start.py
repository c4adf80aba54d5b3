"""The model that an iteration's training starts from: M_t, with a fresh block of ranks where the merge adds one."""

from __future__ import annotations

from typing import Any

from peft import set_peft_model_state_dict

from tpo_lite.adapters import Blocks, linear_shapes, rank_of, read_adapter, state_dict
from tpo_lite.kinds import Arm
from tpo_lite.recipe import Recipe
from tpo_lite.sampling.policy import Policy
from tpo_lite.training.blocks import with_fresh_block
from tpo_lite.training.dpo import freeze_older_blocks, trainable


def starting_model(base: Any, current: Policy, recipe: Recipe, arm: Arm, iteration: int) -> tuple[Any, int]:
    """Return `base` with a trainable adapter that makes it M_t, and the adapter's rank.

    `current` is M_t on disk. A fresh block changes nothing at first, since its B is zero. With `merge: fold` and
    `older_blocks: frozen`, only the fresh block learns.
    """
    older: Blocks | None = None
    scale = recipe.lora.alpha / recipe.lora.rank
    if current.adapter is not None:
        older, scale = read_adapter(current.adapter)
    grows = older is None or recipe.merge == "fold"
    rank = (rank_of(older) if older else 0) + (recipe.lora.rank if grows else 0)
    model = trainable(base, rank, scale)
    blocks = older if older and not grows else with_fresh_block(linear_shapes(model), older, recipe, arm, iteration)
    set_peft_model_state_dict(model, state_dict(blocks))
    if older and grows and recipe.train.older_blocks == "frozen":
        freeze_older_blocks(model, rank_of(older))
    return model, rank
