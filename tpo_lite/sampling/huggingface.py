"""Sampling from a Hugging Face model: K samples per prompt, each with random numbers of its own.

A sample's random numbers (`tpo_lite.seeds`) depend only on its key (seed, arm, model, purpose, instruction, k), and
batches are planned over the whole list of prompts before anything is sampled. So a run that was killed goes on with
exactly the tokens that it would have drawn. (Rounding differs between batch sizes and between engines, so equal tokens
are not promised across those.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from tpo_lite.adapters import read_adapter, state_dict
from tpo_lite.insertion import Insertion, Insertions
from tpo_lite.sampling.sampler import ROUNDS, Sampler
from tpo_lite.seeds import uniforms
from tpo_lite.settled import SettledSampling

REFILL = 4
"""`ContinuousSampler` refills when one row in this many is free. Refilling rows one by one costs more than it gains."""


KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
"""Attention on a GPU, in the order of preference. unsloth asks for grouped heads with a mask, which the first two
refuse. By itself torch would then take the slow `MATH`, which repeats keys and values, before cuDNN's."""


def nucleus_choice(logits: torch.Tensor, draws: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Sample a token per row by inverting the cumulative distribution of the nucleus.

    `logits`: (rows, vocabulary). `draws`: (rows,), in [0, 1). Returns token ids (rows,). The nucleus is the smallest
    set of most likely tokens whose probability reaches `top_p` (Holtzman et al., arXiv 1904.09751), as in
    transformers.
    """
    probabilities, order = torch.softmax(logits.float() / temperature, dim=-1).sort(
        dim=-1, descending=True, stable=True
    )
    cumulative = probabilities.cumsum(dim=-1)
    inside = cumulative - probabilities < top_p
    mass = (probabilities * inside).sum(dim=-1)
    position = torch.searchsorted(cumulative, (draws.to(mass) * mass)[:, None], right=True)
    # Rounding can place a draw just past the last token of the nucleus.
    position = position.clamp(max=inside.sum(dim=-1, keepdim=True) - 1)
    return order.gather(-1, position).squeeze(-1)


class OwnRandomNumbers(LogitsProcessor):
    """Makes a greedy `generate` sample: all but the token drawn with the row's own numbers become -inf.

    Where tokens are put into an output, all but the one that is put in do. `insertions`: one for each row, or none.
    """

    def __init__(
        self,
        draws: torch.Tensor,
        prompt_length: int,
        temperature: float,
        top_p: float,
        insertions: Sequence[Insertions] = (),
    ):
        self.draws = draws  # (rows, max_new_tokens)
        self.prompt_length = prompt_length
        self.temperature, self.top_p = temperature, top_p
        self.insertions = insertions

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores (rows, vocabulary) that leave one token per row. `input_ids`: (rows, length so far)."""
        step = input_ids.shape[1] - self.prompt_length
        chosen = nucleus_choice(scores, self.draws[:, step], self.temperature, self.top_p)
        if self.insertions:
            outputs = input_ids[:, self.prompt_length :].tolist()
            rows = zip(self.insertions, outputs, chosen.tolist(), strict=True)
            chosen = chosen.new_tensor([insertions.next_token(output, token) for insertions, output, token in rows])
        only_chosen = torch.full_like(scores, float("-inf")).scatter_(-1, chosen[:, None], 0.0)
        return cast(torch.FloatTensor, only_chosen)


class GenerateSampler(Sampler):
    """Samples with the model's Hugging Face `generate`, which an engine may have replaced by a faster one.

    All rows of a call run until the longest of them ends, and each has its own prefill. `stops`: tokens that end a
    row. `pad`: the token that fills up prompts of unequal length.
    """

    def __init__(self, model: Any, stops: list[int], pad: int, settings: SettledSampling):
        self.model, self.stops, self.pad, self.settings = model, stops, pad, settings
        self.rows = settings.batch

    def stream(
        self, prompts: Sequence[list[int]], keys: Sequence[str], insertion: Insertion | None = None
    ) -> Iterator[tuple[int, list[int]]]:
        """See `Sampler`."""
        settings = self.settings
        insertions = [Insertions(insertion, row, self.stops) for row in range(len(prompts)) if insertion is not None]
        ids, mask = self._left_padded(prompts)
        length = ids.shape[1]
        draws = self._draws(keys)
        with torch.inference_mode(), sdpa_kernel(KERNELS, set_priority=True):
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=settings.max_new_tokens,
                do_sample=False,
                # The model's own defaults (Llama-3.1 ships temperature 0.6) must not change the scores first.
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=self.stops,
                pad_token_id=self.pad,
                logits_processor=LogitsProcessorList(
                    [OwnRandomNumbers(draws, length, settings.temperature, settings.top_p, insertions)]
                ),
            )
        yield from enumerate(self._until_stop(row) for row in output[:, length:].tolist())

    def probe(self, prompts: Sequence[list[int]]) -> float:
        """See `Sampler`. The model is a `PeftModel`."""
        change = 0.0
        with torch.inference_mode():
            for prompt in prompts:
                ids = torch.tensor([prompt], device=self.model.device)
                live = self.model(input_ids=ids).logits[0, -1].float().log_softmax(-1)
                with self.model.disable_adapter():
                    bare = self.model(input_ids=ids).logits[0, -1].float().log_softmax(-1)
                change = max(change, (live - bare).abs().max().item())
        return change

    def use_adapter(self, folder: Path) -> None:
        """See `Sampler`. The model is a `PeftModel`."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.model, state_dict(read_adapter(folder)[0]))

    def _left_padded(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and attention mask, both (prompts, longest)."""
        length = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (length - len(p)) + list(p) for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        return ids, mask

    def _draws(self, keys: Sequence[str]) -> torch.Tensor:
        """Return each row's random numbers: (rows, max_new_tokens)."""
        numbers = np.stack([uniforms(key, self.settings.max_new_tokens) for key in keys])
        return torch.tensor(numbers, device=self.model.device)

    def _until_stop(self, ids: list[int]) -> list[int]:
        """Return the tokens up to and including the first stop token."""
        for index, token in enumerate(ids):
            if token in self.stops:
                return ids[: index + 1]
        return ids


@dataclass
class Rows:
    """Sequences that are being continued together, padded on the left."""

    indices: list[int]
    """The prompts of the call that the rows continue, by index."""
    cache: DynamicCache
    """Keys and values of each layer: (rows, heads, length, head size)."""
    mask: torch.Tensor
    """(rows, length): 0 before a row begins."""
    logits: torch.Tensor
    """(rows, vocabulary), for the next token of each row."""

    def select(self, rows: list[int]) -> None:
        """Keep only these rows, and drop the columns before the first of them begins."""
        self.indices = [self.indices[row] for row in rows]
        at = torch.tensor(rows, device=self.mask.device)
        self.mask, self.logits = self.mask[at], self.logits[at]
        empty = int(self.mask.any(0).int().argmax())
        self.mask = self.mask[:, empty:]
        layer: Any
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[at, :, empty:], layer.values[at, :, empty:]

    def join(self, other: Rows) -> None:
        """Append the rows of `other`. The shorter of the two is padded on the left."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        self.indices += other.indices
        self.logits = torch.cat([self.logits, other.logits])
        self.mask = torch.cat([pad(part.mask, (length - part.mask.shape[1], 0)) for part in (self, other)])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            for name in ("keys", "values"):
                parts = [getattr(mine, name), getattr(theirs, name)]
                parts = [pad(part, (0, 0, length - part.shape[2], 0)) for part in parts]
                setattr(mine, name, torch.cat(parts))


class ContinuousSampler(GenerateSampler):
    """Samples with a loop of its own, in which equal prompts share a prefill and ended rows make room for new ones.

    At most `settings.batch` rows are in the KV cache at a time.
    """

    def __init__(self, model: Any, stops: list[int], pad: int, settings: SettledSampling):
        super().__init__(model, stops, pad, settings)
        self.rows = ROUNDS * settings.batch

    @torch.inference_mode()
    def stream(
        self, prompts: Sequence[list[int]], keys: Sequence[str], insertion: Insertion | None = None
    ) -> Iterator[tuple[int, list[int]]]:
        """See `Sampler`."""
        settings = self.settings
        draws = self._draws(keys)
        outputs: list[list[int]] = [[] for _ in prompts]
        insertions = [Insertions(insertion, row, self.stops) for row in range(len(prompts))]
        waiting = list(range(len(prompts)))
        live = self._prefill(prompts, waiting[: settings.batch])
        del waiting[: settings.batch]
        while True:
            steps = [len(outputs[index]) for index in live.indices]
            sampled = nucleus_choice(live.logits, draws[live.indices, steps], settings.temperature, settings.top_p)
            going, tokens = [], []
            for row, (index, choice) in enumerate(zip(live.indices, sampled.tolist(), strict=True)):
                token = insertions[index].next_token(outputs[index], choice)
                outputs[index].append(token)
                if token in self.stops or len(outputs[index]) == settings.max_new_tokens:
                    yield index, outputs[index]
                else:
                    going.append(row)
                    tokens.append(token)
            if going:
                if len(going) < len(live.indices):
                    live.select(going)
                live.mask = pad(live.mask, (0, 1), value=1)
                live.logits = self._next_logits(sampled.new_tensor(tokens)[:, None], live.cache, live.mask)
            free = settings.batch - len(going)
            if waiting and REFILL * free >= settings.batch:
                filled = self._prefill(prompts, waiting[:free])
                del waiting[:free]
                if going:
                    live.join(filled)
                else:
                    live = filled
            elif not going:
                return

    def _prefill(self, prompts: Sequence[list[int]], indices: list[int]) -> Rows:
        """Return rows for these prompts. A prompt that occurs several times is computed once."""
        number = {prompt: row for row, prompt in enumerate(dict.fromkeys(tuple(prompts[index]) for index in indices))}
        ids, mask = self._left_padded(list(number))
        cache = DynamicCache()
        rows = Rows(list(range(len(number))), cache, mask, self._next_logits(ids, cache, mask))
        rows.select([number[tuple(prompts[index])] for index in indices])
        rows.indices = indices
        return rows

    def _next_logits(self, ids: torch.Tensor, cache: DynamicCache, mask: torch.Tensor) -> torch.Tensor:
        """Run the model on `ids` (rows, new), the last columns of `mask`, and extend the cache.

        Returns the next token's logits: (rows, vocabulary).
        """
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits
        return logits[:, -1]
