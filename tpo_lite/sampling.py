"""K samples a prompt, each with random numbers of its own.

A sample's random numbers depend on (seed, purpose, iteration, prompt, k) and on nothing else, and
batches are planned over the whole list of prompts before anything is sampled. So a run that was killed
goes on with the very tokens it would have drawn. (Across batch sizes and engines rounding differs, so
equal tokens are not promised there.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from tpo_lite.recipe import Sampling


class Sampler(Protocol):
    """Draws one continuation for each prompt of a batch."""

    def sample(self, prompts: Sequence[list[int]], keys: Sequence[str]) -> list[list[int]]:
        """`prompts`: token ids; `keys`: what seeds each row. Returns ids up to and with the stop token."""
        ...


def uniforms(key: str, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) that depend on `key` alone (Philox, keyed by SHA-256)."""
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big"))).random(count)


def nucleus_choice(logits: torch.Tensor, draws: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Samples by inverting the cumulative distribution of the nucleus.

    logits (rows, vocabulary), draws (rows,) in [0, 1). Returns token ids (rows,). The nucleus is the
    smallest set of most likely tokens whose probability reaches `top_p`, as in transformers.
    """
    probabilities, order = torch.softmax(logits.float() / temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.cumsum(dim=-1)
    inside = cumulative - probabilities < top_p
    mass = (probabilities * inside).sum(dim=-1)
    position = torch.searchsorted(cumulative, (draws.to(mass) * mass)[:, None], right=True)
    # Rounding can put a draw just past the last token of the nucleus.
    position = position.clamp(max=inside.sum(dim=-1, keepdim=True) - 1)
    return order.gather(-1, position).squeeze(-1)


class OwnRandomNumbers(LogitsProcessor):
    """Makes greedy `generate` sample: all but the token drawn from the row's own numbers become -inf."""

    def __init__(self, draws: torch.Tensor, prompt_length: int, temperature: float, top_p: float):
        self.draws = draws  # (rows, max_new_tokens)
        self.prompt_length = prompt_length
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        step = input_ids.shape[1] - self.prompt_length
        chosen = nucleus_choice(scores, self.draws[:, step], self.temperature, self.top_p)
        return torch.full_like(scores, float("-inf")).scatter_(-1, chosen[:, None], 0.0)


class GenerateSampler:
    """Samples with a model's Hugging Face `generate`; serves both engines."""

    def __init__(self, model: Any, stops: list[int], pad: int, settings: Sampling):
        self.model, self.stops, self.pad, self.settings = model, stops, pad, settings

    def sample(self, prompts: Sequence[list[int]], keys: Sequence[str]) -> list[list[int]]:
        """See `Sampler`."""
        length = max(map(len, prompts))
        device = self.model.device
        ids = torch.tensor([[self.pad] * (length - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
        limit = self.settings.max_new_tokens
        draws = torch.tensor(np.stack([uniforms(key, limit) for key in keys]), device=device)
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=limit,
                do_sample=False,
                # A model's own defaults (Llama-3.1 ships temperature 0.6) must not work on the scores first.
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=self.stops,
                pad_token_id=self.pad,
                logits_processor=LogitsProcessorList(
                    [OwnRandomNumbers(draws, length, self.settings.temperature, self.settings.top_p)]
                ),
            )
        return [self._until_stop(row) for row in output[:, length:].tolist()]

    def _until_stop(self, ids: list[int]) -> list[int]:
        for index, token in enumerate(ids):
            if token in self.stops:
                return ids[: index + 1]
        return ids


def batches(prompts: Sequence[list[int]], size: int) -> list[list[int]]:
    """Indices of `prompts` in batches of at most `size`, prompts of like length together.

    >>> batches([[1, 2, 3], [1], [1, 2]], 2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    return [order[start : start + size] for start in range(0, len(order), size)]


def probe_adapter(model: Any, prompts: Sequence[list[int]]) -> float:
    """The largest change in next-token log-probability that the live adapter makes on `prompts`.

    Zero means that the engine ignores the adapter and would sample M_0 for ever.
    `model` is a `PeftModel`.
    """
    change = 0.0
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt], device=model.device)
            live = model(input_ids=ids).logits[0, -1].float().log_softmax(-1)
            with model.disable_adapter():
                bare = model(input_ids=ids).logits[0, -1].float().log_softmax(-1)
            change = max(change, (live - bare).abs().max().item())
    return change
