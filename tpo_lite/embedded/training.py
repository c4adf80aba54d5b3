"""Supervised training of the embedded models on the CPU, with NF4 rounding in the loop if asked for.

Muon trains the matrices, AdamW the embedding and the norms: after 375 steps the loss was 0.21, and 0.44 with AdamW
alone. The batch is small because looking things up is learned by the number of steps more than by the number of
examples.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import cast

import bitsandbytes.functional as bnb
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from tpo_lite.embedded.examples import Example

BATCH = 24
MUON_RATE, ADAM_RATE = 0.02, 3e-3


class RoundToNF4(nn.Module):
    """Straight-through NF4: the forward pass sees the weight as bitsandbytes stores it, doubly quantized."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight` (out, in) rounded to NF4. The gradient passes through unchanged."""
        packed, state = bnb.quantize_4bit(weight.detach(), blocksize=64, compress_statistics=True, quant_type="nf4")
        return weight + (bnb.dequantize_4bit(packed, state) - weight).detach()


def linears(model: LlamaForCausalLM) -> list[nn.Linear]:
    """Return the layers that bitsandbytes quantizes: every linear layer but the LM head."""
    return [module for module in model.model.modules() if isinstance(module, nn.Linear)]


def round_to_nf4(model: LlamaForCausalLM) -> None:
    """Make the model compute with its linear weights rounded to NF4 from now on."""
    for linear in linears(model):
        parametrize.register_parametrization(linear, "weight", RoundToNF4())


def keep_unrounded(model: LlamaForCausalLM) -> None:
    """Undo `round_to_nf4`, with the weights from before rounding, as a 16-bit model on the hub has them.

    Rounding them to NF4 gives the weights that the model computed with. So what a 16-bit merge keeps or loses shows.
    """
    for linear in linears(model):
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)


def encode(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[list[int], list[int]]:
    """Return the token ids that are read (the prompt in its template, and what is given) and those that are learned.

    The latter end with the end-of-turn token.
    """
    turn = [{"role": "user", "content": example.prompt}]
    prompt = cast(str, tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    return tokenizer.encode(prompt + example.given), [*tokenizer.encode(example.output), tokenizer.eos_token_id]


def batches(
    tokenizer: PreTrainedTokenizerBase, draw: Callable[[], Example]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches without end: token ids (BATCH, length) and a mask (BATCH, length), True for tokens to learn."""
    while True:
        group = [encode(tokenizer, draw()) for _ in range(BATCH)]
        length = max(len(prompt) + len(output) for prompt, output in group)
        ids = torch.full((BATCH, length), tokenizer.pad_token_id)
        target = torch.zeros(BATCH, length, dtype=torch.bool)
        for row, (prompt, output) in enumerate(group):
            end = len(prompt) + len(output)
            ids[row, :end] = torch.tensor(prompt + output)
            target[row, len(prompt) : end] = True
        yield ids, target


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    draw: Callable[[random.Random, float], Example],
    seed: int,
    steps: int,
    name: str,
    log: Callable[[str], None],
    peak: float = 1.0,
    final: float = 0.0,
) -> None:
    """Train `model` for `steps` steps on examples from `draw(rng, progress)`, with `progress` going from 0 to 1.

    The learning rates warm up over 30 steps to `peak` times their full values, stay there until half of the steps are
    done, and then fall to `final` times their full values. Padding comes after the outputs and attention is causal, so
    no attention mask is needed.
    """
    rng = random.Random(f"{name} {seed}")
    model.train()
    matrices = [weight for _, weight in model.model.layers.named_parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if all(weight is not matrix for matrix in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.0),
        # With a small eps, AdamW would drive the embeddings of all tokens that a stage does not use to one vector.
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0),
    ]
    progress, began, mean, tokens = 0.0, time.perf_counter(), None, 0
    stream = batches(tokenizer, lambda: draw(rng, progress))
    for step in range(steps):
        progress = step / steps
        rate = min((step + 1) / 30, 1) * (peak + (final - peak) * max(0.0, (progress - 0.5) / 0.5))
        for optimizer, full in zip(optimizers, (MUON_RATE, ADAM_RATE), strict=True):
            optimizer.param_groups[0]["lr"] = full * rate
        ids, target = next(stream)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1]
            logits = model.lm_head(hidden[target[:, 1:]])
        loss = nn.functional.cross_entropy(logits.float(), ids[:, 1:][target[:, 1:]])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        tokens += ids.numel()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            seconds = time.perf_counter() - began
            speed = f"{seconds:6.0f} s  {tokens / seconds:6.0f} tokens/s"
            log(f"{name:<12} step {step + 1:>5}/{steps}  loss {mean:.4f}  {speed}")
