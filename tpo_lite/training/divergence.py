"""How far a merge moves a model: the KL divergence of its outputs and the norm of its update.

"Before" is the checkpoint that became M_{t+1}; "after" is the model that the next iteration starts from. Both read the
same token ids, the checkpoint's own answers on the validation slice, and the mean of

    KL(before || after) = sum over tokens v of p(v) * (log p(v) - log q(v)),   p before, q after,

over all output tokens says how many nats per token the merge costs. It is 0 to rounding for `merge: fold` and
`continue`; for `requantize` it shows what rounding anew does, to 4 bits or to 16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict

from tpo_lite.adapters import (
    Blocks,
    lora_config,
    rank_of,
    squared_norms,
    state_dict,
)
from tpo_lite.base_weights import unpacked
from tpo_lite.kinds import Arm
from tpo_lite.records import PromptSamples, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.training.room import KL_POSITIONS, KL_PROMPTS

PromptAndOutput = tuple[list[int], int]
"""Token ids of a prompt followed by its output, and the index at which the output begins."""


def validation_sequences(run: RunFolder, arm: Arm, model: int) -> list[PromptAndOutput]:
    """Return what the checkpoint that became M_model answered on the validation slice.

    The last answer to each of the first `KL_PROMPTS` prompts, cut to its first `KL_POSITIONS` tokens.
    """
    path = run.checkpoint_validation(arm, model - 1)
    return [
        (record.prompt_ids + record.samples[-1].token_ids[:KL_POSITIONS], len(record.prompt_ids))
        for record in list(read_jsonl(path, PromptSamples))[:KL_PROMPTS]
    ]


def with_adapter(model: PeftModel, blocks: Blocks, scale: float, name: str = "after") -> PeftModel:
    """Add `blocks` to `model` as its adapter `name`, make it the only active one, and return the model."""
    model.add_adapter(name, lora_config(rank_of(blocks), scale))
    set_peft_model_state_dict(model, state_dict(blocks), adapter_name=name)
    model.set_adapter(name)
    return model.eval()


@torch.inference_mode()
def log_probabilities(model: Any, sequences: Iterable[PromptAndOutput]) -> Iterator[torch.Tensor]:
    """Yield, for each sequence, the log-probabilities (output tokens, vocabulary) of each next output token.

    In float32 and on the CPU, where one model's are kept to compare with another's: 1 GB for an 8B model.
    """
    for ids, start in sequences:
        logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, start - 1 : -1]
        yield logits.float().log_softmax(-1).cpu()


def divergence(before: Iterable[torch.Tensor], after: Iterable[torch.Tensor]) -> float:
    """Return the mean KL(before || after) in nats per token, over all tokens of all sequences.

    Each sequence is a tensor (output tokens, vocabulary) of log-probabilities. Sequences are read one at a time, so
    that only one is in float64.
    """
    sums = [(_summed_divergence(old.double(), new), len(old)) for old, new in zip(before, after, strict=True)]
    return sum(total for total, _ in sums) / sum(tokens for _, tokens in sums)


def _summed_divergence(before: torch.Tensor, after: torch.Tensor) -> float:
    return (before.exp() * (before - after)).sum().item()


def relative_norm(model: PeftModel, update: Blocks, scale: float) -> float:
    """Return the Frobenius norm of `update` divided by that of the weights it is added to, over all layers."""
    weights = 0.0
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            weights += unpacked(layer.get_base_layer().weight).double().square().sum().item()
    return math.sqrt(max(0.0, sum(squared_norms(update, scale).values())) / weights)
