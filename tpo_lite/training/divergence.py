"""How far a merge moves a model: the KL divergence and the norm of the update."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import bitsandbytes
import torch
from peft import PeftModel, set_peft_model_state_dict

from tpo_lite.adapters import (
    Blocks,
    concatenate,
    fresh_block,
    linear_shapes,
    lora_config,
    rank_of,
    squared_norms,
    state_dict,
)
from tpo_lite.recipe import Recipe
from tpo_lite.records import PromptSamples, read_jsonl
from tpo_lite.run import RunFolder

KL_PROMPTS = 32


KL_POSITIONS = 64
"""Token positions a prompt: 32 * 64 rows of a 128k vocabulary are 1 GB in float32."""


Sequence = tuple[list[int], int]
"""Token ids of prompt and output, and where the output begins."""


def with_fresh_block(model: PeftModel, blocks: Blocks, recipe: Recipe, arm: str, iteration: int) -> Blocks:
    """The adapter that `iteration` starts from with `merge: fold`."""
    return concatenate(blocks, fresh_block(linear_shapes(model), recipe.lora.rank, f"{recipe.seed}/{arm}/{iteration}"))


def validation_sequences(run: RunFolder, arm: str, model: int) -> list[Sequence]:
    """What the checkpoint that became M_model answered on the validation slice, cut to what KL is measured on."""
    path = run.checkpoint_validation(arm, model - 1)
    return [
        (record.prompt_ids + record.samples[-1].token_ids[:KL_POSITIONS], len(record.prompt_ids))
        for record in list(read_jsonl(path, PromptSamples))[:KL_PROMPTS]
    ]


def with_adapter(model: PeftModel, blocks: Blocks, scale: float, name: str = "after") -> PeftModel:
    """`model` with `blocks`, as its adapter `name`, live in the place of those it has."""
    model.add_adapter(name, lora_config(rank_of(blocks), scale))
    set_peft_model_state_dict(model, state_dict(blocks), adapter_name=name)
    model.set_adapter(name)
    return model.eval()


@torch.inference_mode()
def log_probabilities(model: Any, sequences: list[Sequence]) -> Iterator[torch.Tensor]:
    """For each sequence in turn, log-probabilities (output tokens, vocabulary) of each next output token.

    In float32 and on the CPU, where those of one model are kept to be held against another's: 1 GB at 8B.
    """
    for ids, start in sequences:
        logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, start - 1 : -1]
        yield logits.float().log_softmax(-1).cpu()


def divergence(before: Iterable[torch.Tensor], after: Iterable[torch.Tensor]) -> float:
    """Mean KL(before || after) in nats a token, over all tokens of all sequences.

    One sequence at a time, so that no more than one is there in float64.
    """
    sums = [(_summed_divergence(p.double(), q), len(p)) for p, q in zip(before, after, strict=True)]
    return sum(total for total, _ in sums) / sum(tokens for _, tokens in sums)


def _summed_divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    return (p.exp() * (p - q)).sum().item()


def relative_norm(model: PeftModel, update: Blocks, scale: float) -> float:
    """Frobenius norm of the update over that of the 4-bit weights it is added to, over all layers."""
    weights = 0.0
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            weight = module.get_base_layer().weight
            full = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            weights += full.double().square().sum().item()
    return math.sqrt(max(0.0, sum(squared_norms(update, scale).values())) / weights)
