"""Plain supervised training of the embedded models on the CPU, with NF4 rounding in the loop where it is asked for.

Muon for the matrices, AdamW for the embedding and the norms: after 375 steps the loss was 0.21, with AdamW alone 0.44.
The batch is small because looking things up is learned by the number of steps more than by the number of examples.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import bitsandbytes.functional as bnb
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from tpo_lite.embedded.examples import Example

BATCH = 24
MUON_RATE, ADAM_RATE = 0.02, 3e-3


class RoundToNF4(nn.Module):
    """Straight-through NF4: forward sees the weight as bitsandbytes stores it (double quantisation included)."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`weight` (out, in) rounded to NF4; its gradient passes through unchanged."""
        packed, state = bnb.quantize_4bit(weight.detach(), blocksize=64, compress_statistics=True, quant_type="nf4")
        return weight + (bnb.dequantize_4bit(packed, state) - weight).detach()


def linears(model: LlamaForCausalLM) -> list[nn.Linear]:
    """The layers that bitsandbytes quantises: every linear layer but the LM head."""
    return [module for module in model.model.modules() if isinstance(module, nn.Linear)]


def round_to_nf4(model: LlamaForCausalLM) -> None:
    """From now on the model computes with its linear weights rounded to NF4."""
    for linear in linears(model):
        parametrize.register_parametrization(linear, "weight", RoundToNF4())


def keep_unrounded(model: LlamaForCausalLM) -> None:
    """Ends `round_to_nf4` with the weights from before rounding, as a hub's 16-bit model has them: NF4 of these is
    what the model computed with, and what a 16-bit merge loses or keeps shows."""
    for linear in linears(model):
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)


def encode(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[list[int], list[int]]:
    """Token ids of what is read (the prompt in its template, and what is given) and of what is learned, with its end."""
    turn = [{"role": "user", "content": example.prompt}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(prompt + example.given), [*tokenizer.encode(example.output), tokenizer.eos_token_id]


def batches(
    tokenizer: PreTrainedTokenizerBase, draw: Callable[[], Example]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of token ids (BATCH, length) and of a mask (BATCH, length), True for the tokens to be learned."""
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
    """Trains `model` for `steps` steps on examples that `draw(rng, progress)` invents, progress running from 0 to 1.

    The learning rates warm up over 30 steps to `peak` times their full values, stay there for half of the steps and
    fall to `final` times these.
    Padding comes after the outputs and attention is causal, so no attention mask is needed.
    """
    rng = random.Random(f"{name} {seed}")
    model.train()
    matrices = [weight for _, weight in model.model.layers.named_parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if all(weight is not matrix for matrix in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.0),
        # With a small eps, AdamW drives the embeddings of all tokens that a stage does not use into one vector.
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0),
    ]
    progress, began, mean, tokens = 0.0, time.perf_counter(), None, 0
    stream = batches(tokenizer, lambda: draw(rng, progress))
    for step in range(steps):
        progress = step / steps
        rate = min((step + 1) / 30, 1) * (peak + (final - peak) * max(0.0, (progress - 0.5) / 0.5))
        for optimizer, full in zip(optimizers, (MUON_RATE, ADAM_RATE)):
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
