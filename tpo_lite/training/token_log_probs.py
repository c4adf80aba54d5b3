"""Log-probabilities of sampled tokens without the logits of a whole batch.

Llama-3's vocabulary makes 0.5 GB of float32 logits per 1,000 tokens, several copies of them in a backward pass. Here
the LM head is applied to a few tokens at a time, and to none whose probability is not asked for. A token's
log-probability is one number, so its gradient with respect to the token's hidden state is known up to a factor as soon
as its logits are: it is kept in place of the hidden state, and the backward pass needs no logits again.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.modeling_outputs import BaseModelOutputWithPast

CHUNK = 256
"""Tokens whose logits are in memory at a time; enough that a GPU is not held up by reading the head's weights."""


def completion_log_probs(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_mask: torch.Tensor
) -> torch.Tensor:
    """Log-probability of each token of a completion given those before it, in float32.

    `model`: a causal language model, with LoRA layers or without; its LM head gets no gradient. The others
    are (rows, length), `completion_mask` 1 where a token is part of the completion. Returns (rows, length - 1): the
    log-probabilities of the second to last tokens, 0 outside of the completion.
    """
    outputs = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    asked = completion_mask[:, 1:].bool()
    log_probs = _TokenLogProbs.apply(outputs.last_hidden_state[:, :-1][asked], input_ids[:, 1:][asked], model)
    return log_probs.new_zeros(asked.shape).masked_scatter(asked, log_probs)


class _TokenLogProbs(torch.autograd.Function):
    """(tokens, hidden) and (tokens,) -> (tokens,)"""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, model: Any) -> torch.Tensor:
        log_probs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK):
            chunk = slice(start, start + CHUNK)
            by_hidden = None if gradient is None else gradient[chunk]
            _chunk(model, hidden[chunk], targets[chunk], log_probs[chunk], by_hidden)
        ctx.save_for_backward(gradient)
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_log_probs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (by_log_probs[:, None] * gradient).to(gradient.dtype), None, None


def _chunk(
    model: Any, hidden: torch.Tensor, targets: torch.Tensor, log_probs: torch.Tensor, gradient: torch.Tensor | None
) -> None:
    """Writes the targets' `log_probs` (tokens,) and their `gradient` with respect to `hidden` (tokens, hidden)."""
    states, targets = hidden.detach(), targets[:, None]
    with torch.set_grad_enabled(gradient is not None):
        logits = _head(model, states.requires_grad_(gradient is not None))
    every = torch.log_softmax(logits.detach(), -1, dtype=torch.float32)
    log_probs.copy_(every.gather(-1, targets).squeeze(-1))
    if gradient is not None:
        # d log p(target) / d logits = one-hot(target) - p
        by_logits = every.exp_().neg_().scatter_add_(-1, targets, torch.ones_like(targets, dtype=every.dtype))
        gradient.copy_(torch.autograd.grad(logits, states, by_logits.to(logits.dtype))[0])


class _Given(torch.nn.Module):
    """Stands where a model has its layers and puts out hidden states that are known already."""

    def __init__(self, hidden: torch.Tensor):
        super().__init__()
        self.hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=self.hidden)


def _head(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (tokens, vocabulary) of last hidden states (tokens, hidden), by the model's own forward pass.

    For what comes after the layers differs: Gemma 2 caps logits, Cohere multiplies and Granite divides them.
    """
    head = copy.copy(model)  # shares everything with the model but what stands for its layers
    head._modules = model._modules | {model.base_model_prefix: _Given(hidden[None])}
    return type(model).forward(head).logits.squeeze(0)
