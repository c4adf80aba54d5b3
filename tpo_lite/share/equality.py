"""Whether an export is the model that was trained: the log-probs that both give to the run's own answers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tpo_lite.base_weights import load, load_base
from tpo_lite.errors import TpoError
from tpo_lite.kinds import Precision
from tpo_lite.machine.device import Device
from tpo_lite.records import PromptSamples, read_jsonl
from tpo_lite.sampling.policy import Policy
from tpo_lite.share.chosen import Chosen
from tpo_lite.training.divergence import PromptAndOutput, divergence, log_probabilities

PROMPTS, POSITIONS = 8, 64
"""Held-out answers that are read, and tokens of each: 8 * 64 rows of a 128k vocabulary are 262 MB in float32."""

LogProbs = list[torch.Tensor]
"""Of each answer: log-probabilities (tokens, vocabulary) in float32."""


@dataclass(frozen=True)
class Bound:
    """How far an export may be from what it is compared with."""

    largest: float
    """Of the log-probability of any token of the run's answers, in nats."""
    kl: float
    """Of the mean KL divergence, in nats per token."""


SAME = Bound(1e-3, 1e-4)
"""The same weights in the same precision."""
ROUNDED = Bound(0.25, 5e-3)
"""The same model with its weights, or what is computed with them, rounded to 16 bits."""
QUANTIZED = {"Q8_0": Bound(1.0, 0.02), "Q4_K_M": Bound(float("inf"), 1.0)}
"""A GGUF, quantized anew."""


@dataclass(frozen=True)
class Distance:
    """What was measured; the figures of `Bound`, and the number of tokens."""

    of: str
    """What was compared with what."""
    largest: float
    kl: float
    tokens: int

    def __str__(self) -> str:
        """Return it in one line."""
        return (
            f"{self.of}: largest log-prob difference {self.largest:.1e}, KL {self.kl:.1e} nats ({self.tokens} tokens)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return this as plain data."""
        return asdict(self)


def answers(chosen: Chosen) -> list[PromptAndOutput]:
    """Return the beginnings of the model's own answers to the validation slice."""
    path = chosen.folder.validation_of(chosen.arm, chosen.model)
    return [
        (record.prompt_ids + record.samples[-1].token_ids[:POSITIONS], len(record.prompt_ids))
        for record in list(read_jsonl(path, PromptSamples))[:PROMPTS]
    ]


def read_by(open_model: Callable[[], Any], sequences: Sequence[PromptAndOutput]) -> LogProbs:
    """Load a model, let it read the sequences, and free it: there is room for one model at a time."""
    model = open_model().eval()
    found = list(log_probabilities(model, sequences))
    del model
    gc.collect()  # a model's parts refer to each other
    return found


def read_by_run(policy: Policy, device: Device, precision: Precision, sequences: Sequence[PromptAndOutput]) -> LogProbs:
    """Return what the model gives as the run itself loads it."""
    return read_by(lambda: load(policy.model, policy.adapter, device, precision), sequences)


def read_by_peft(
    base: str, adapter: Path, device: Device, precision: Precision, sequences: Sequence[PromptAndOutput]
) -> LogProbs:
    """Return what an exported adapter gives by plain `PeftModel.from_pretrained`."""
    from peft import PeftModel

    return read_by(lambda: PeftModel.from_pretrained(load_base(base, device, precision), adapter), sequences)


def read_by_llama_cpp(
    gguf: Path, adapter: Path | None, device: Device, sequences: Sequence[PromptAndOutput]
) -> LogProbs:
    """Return what a GGUF file gives in llama.cpp, with a GGUF LoRA on it if there is one."""
    from tpo_lite.llamacpp.decoder import LlamaCpp
    from tpo_lite.llamacpp.leaves import Leaf, whole_cells

    contexts = [[ids[:end] for end in range(start, len(ids))] for ids, start in sequences]
    longest = max(len(context) for each in contexts for context in each)
    layers = -1 if device == "cuda" else 0
    decoder = LlamaCpp(gguf, n_ctx=4 * whole_cells(longest), n_seq_max=8, n_gpu_layers=layers, adapter=adapter)
    found = []
    for each in contexts:
        rows = [torch.from_numpy(decoded.logits) for decoded in decoder.decode([Leaf(context) for context in each])]
        found.append(torch.stack(rows).float().log_softmax(-1))
    return found


def distance(of: str, trained: LogProbs, exported: LogProbs, sequences: Sequence[PromptAndOutput]) -> Distance:
    """Return how far the exported model is from the trained one on the run's answers."""
    largest, tokens = 0.0, 0
    for before, after, (ids, start) in zip(trained, exported, sequences, strict=True):
        targets = torch.tensor(ids[start:])[:, None]
        difference = before.gather(-1, targets) - after.gather(-1, targets)
        largest, tokens = max(largest, difference.abs().max().item()), tokens + len(targets)
    return Distance(of, largest, divergence(trained, exported), tokens)


def require(found: Distance, bound: Bound) -> Distance:
    """Return `found` if it is within `bound`. Raises `TpoError` if it is not."""
    if found.largest <= bound.largest and found.kl <= bound.kl:
        return found
    raise TpoError(
        f"the export is not the model that was trained ({found}; at most {bound.largest:g} and {bound.kl:g} were "
        "expected). Nothing was written. Check that the base is the one that the run was started with; for a GGUF, "
        "--type Q8_0 is nearer."
    )
