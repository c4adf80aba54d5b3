"""Log-probabilities of sampled tokens without the logits of a whole batch.

With Llama-3's vocabulary, the float32 logits of 1,000 tokens take 0.5 GB, and a backward pass holds several copies.
Here the LM head is applied to a few tokens at a time, and only to those whose probability is asked for.

A token's log-probability is one number. So as soon as its logits are known, its gradient with respect to the token's
hidden state is known up to a factor. That gradient is kept in place of the hidden state; the backward pass multiplies
it by the factor.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable
from transformers.modeling_outputs import BaseModelOutputWithPast

from tpo_lite.training.room import LOGIT_CHUNK


def completion_log_probs(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_mask: torch.Tensor
) -> torch.Tensor:
    """Return the log-probability of each token of a completion given the tokens before it, in float32.

    `model`: a causal language model, with or without LoRA layers; its LM head gets no gradient. The other arguments
    are (rows, length), with `completion_mask` 1 where a token is part of the completion. Returns (rows, length - 1):
    the log-probabilities of all tokens but the first, 0 outside the completion.
    """
    outputs = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    asked = completion_mask[:, 1:].bool()
    hidden, targets = outputs.last_hidden_state[:, :-1][asked], input_ids[:, 1:][asked]
    log_probs: torch.Tensor = _TokenLogProbs.apply(hidden, targets, model)  # type: ignore[no-untyped-call]  # torch's
    return log_probs.new_zeros(asked.shape).masked_scatter(asked, log_probs)


class _TokenLogProbs(torch.autograd.Function):
    """Maps hidden states (tokens, hidden) and target ids (tokens,) to log-probabilities (tokens,)."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, model: Any) -> torch.Tensor:
        """Return the log-probabilities, and keep their gradients if `hidden` needs one."""
        log_probs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), LOGIT_CHUNK):
            chunk = slice(start, start + LOGIT_CHUNK)
            by_hidden = None if gradient is None else gradient[chunk]
            _chunk(model, hidden[chunk], targets[chunk], log_probs[chunk], by_hidden)
        ctx.save_for_backward(gradient)
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_log_probs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Multiply the gradients that were kept by those of the log-probabilities."""
        (gradient,) = ctx.saved_tensors
        return (by_log_probs[:, None] * gradient).to(gradient.dtype), None, None


def _chunk(
    model: Any, hidden: torch.Tensor, targets: torch.Tensor, log_probs: torch.Tensor, gradient: torch.Tensor | None
) -> None:
    """Fill in `log_probs` (tokens,) of the targets and their `gradient` with respect to `hidden` (tokens, hidden)."""
    states, targets = hidden.detach(), targets[:, None]
    with torch.set_grad_enabled(gradient is not None):
        logits = _head(model, states.requires_grad_(gradient is not None))
    every = torch.log_softmax(logits.detach(), -1, dtype=torch.float32)
    log_probs.copy_(every.gather(-1, targets).squeeze(-1))
    if gradient is not None:
        # d log p(target) / d logits = one-hot(target) - p
        by_logits = every.exp_().neg_().scatter_add_(-1, targets, torch.ones_like(targets, dtype=every.dtype))
        gradient.copy_(torch.autograd.grad(logits, states, by_logits.to(logits.dtype))[0])


class _KnownStates(torch.nn.Module):
    """Takes the place of a model's layers and returns hidden states that are known already."""

    def __init__(self, hidden: torch.Tensor):
        super().__init__()
        self.hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        """Return the known states, whatever the input."""
        return BaseModelOutputWithPast(last_hidden_state=cast(torch.FloatTensor, self.hidden))


def _head(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return logits (tokens, vocabulary) of last hidden states (tokens, hidden), by the model's own forward pass.

    Models differ in what comes after the layers: Gemma 2 caps the logits, Cohere multiplies and Granite divides them.
    """
    head = copy.copy(model)  # shares everything with the model except its layers
    head._modules = model._modules | {model.base_model_prefix: _KnownStates(hidden[None])}
    logits: torch.Tensor = type(model).forward(head).logits
    return logits.squeeze(0)
