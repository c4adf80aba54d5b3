"""Phase "fold": the chosen checkpoint becomes M_{t+1}, and what that changed is measured."""

from __future__ import annotations

from tpo_lite.phases import phase_main

if __name__ == "__main__":
    phase_main("fold")

import gc
import math
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import bitsandbytes
import torch
from peft import PeftModel, set_peft_model_state_dict

from tpo_lite import engines
from tpo_lite.adapters import (
    Blocks,
    concatenate,
    difference,
    fresh_block,
    linear_shapes,
    lora_config,
    rank_of,
    read_adapter,
    squared_norms,
    state_dict,
    write_adapter,
)
from tpo_lite.engines.transformers import load_base
from tpo_lite.phases.generate import sample_into
from tpo_lite.policy import LoadedPolicy, policy, sampling_key
from tpo_lite.recipe import Recipe
from tpo_lite.records import Instruction, PromptSamples, read_jsonl
from tpo_lite.requantize import merge_to_disk
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.summaries import validation_summary

KL_PROMPTS = 32
KL_POSITIONS = 64
"""Token positions a prompt: 32 * 64 rows of a 128k vocabulary are 1 GB in float32."""

Sequence = tuple[list[int], int]
"""Token ids of prompt and output, and where the output begins."""


def run(run: RunFolder, arm: str, iteration: int) -> dict[str, Any]:
    """Writes adapter/ (or model/, and what it answers on the validation slice) unless M_t was kept; returns the
    update's relative norm and KL(before || after) in nats a token.

    "Before" is the checkpoint that the judge chose, "after" is the model that the next iteration starts
    from: for `fold` with its fresh block already appended.
    """
    recipe = run.recipe
    folder = run.iteration(arm, iteration)
    on = policy(run, recipe, arm, iteration)
    old = read_adapter(on.adapter)[0] if on.adapter else None
    if run.chosen(arm, iteration) == KEPT:
        return {"merge": recipe.merge, "rank": rank_of(old) if old else 0, "update_norm": 0.0, "kl": 0.0}
    chosen = folder / "train" / run.chosen(arm, iteration)
    new, scale = read_adapter(chosen)
    device = engines.device()
    model = PeftModel.from_pretrained(load_base(on.model, device), chosen).eval()
    sequences = validation_sequences(run, arm, iteration + 1)
    before = list(log_probabilities(model, sequences))
    summary: dict[str, Any] = {
        "merge": recipe.merge,
        "rank": rank_of(new),
        "update_norm": relative_norm(model, difference(new, old), scale),
    }
    if recipe.merge == "requantize":
        merge_to_disk(on.model, new, scale, folder / "model", recipe.merge_base)
        del model
        gc.collect()  # a model's parts refer to each other: else there would be two on the GPU
        after_model = load_base(str(folder / "model"), device).eval()
    else:
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        write_adapter(folder / "adapter", new, scale, on.model, like=chosen)
        start = read_adapter(folder / "adapter")[0]
        if recipe.merge == "fold":
            start = with_fresh_block(model, start, recipe, arm, iteration + 1)
        after_model = with_adapter(model, start, scale)
    summary["kl"] = divergence(before, log_probabilities(after_model, sequences))
    if recipe.merge == "requantize":
        del after_model
        gc.collect()
        summary["validation"] = validate_merged(run, arm, iteration)
    return summary


def validate_merged(run: RunFolder, arm: str, iteration: int) -> dict[str, Any]:
    """Samples the validation slice from the merged M_{t+1}, which 4 bits have moved off the chosen checkpoint."""
    recipe = run.recipe
    path = run.validation_of(arm, iteration + 1)
    sample_into(
        path,
        LoadedPolicy(recipe, policy(run, recipe, arm, iteration + 1)),
        list(read_jsonl(run.instructions("validation"), Instruction)),
        arm,
        sampling_key(recipe, arm, iteration + 1, "validation"),
        1,
        recipe.evaluation.retries,
        f"{arm} {iteration + 1} merged",
    )
    return validation_summary(list(read_jsonl(path, PromptSamples)))


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
