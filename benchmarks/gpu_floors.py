"""The least time that a step of `benchmarks.gpu` could have taken: what it must move, and what it must compute.

Weights are counted as they are stored, read once per pass. Of everything else, only what grows with the number of
tokens is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.sampling import K
from tpo_lite.machine.cards import Card
from tpo_lite.plan.memory import KV_BYTES
from tpo_lite.plan.shapes import GGUF_BITS, ModelShape
from tpo_lite.plan.weights import NF4_BITS, STATE_BITS, compute_bytes


@dataclass(frozen=True)
class Floor:
    """Seconds that moving alone and computing alone take at the machine's measured rates."""

    moving: float
    computing: float

    @property
    def seconds(self) -> float:
        """Return the longer of the two, since they can overlap."""
        return max(self.moving, self.computing)


def floor_of(
    kind: str, setting: dict[str, Any], measured: dict[str, Any], rates: dict[str, Any], model: ModelShape, card: Card
) -> Floor:
    """Return the floor of a finished step; `rates` are the figures of the step `floor`."""
    if kind == "requantize":
        # B A is computed twice: to merge, and to verify. The host computes, and the result goes to the disk.
        operations = 2 * 2 * setting["rank"] * model.linear_parameters
        return Floor(measured["bytes"] / rates["disk"], operations / rates["host_matmul"])
    work = {"sampling": sampling, "judging": judging, "training": training, "fold": fold}[kind]
    moved, operations = work(setting, measured, model, card)
    return Floor(moved / rates["copy"], operations / rates["matmul"])


def nf4_bytes(model: ModelShape, card: Card) -> float:
    """Return what a pass reads of the 4-bit base: all linears, and the LM head in the type that layers compute in."""
    return (
        model.linear_parameters * (NF4_BITS + STATE_BITS) / 8 + compute_bytes(card, "nf4") * model.embedding_parameters
    )


def sampling(setting: dict[str, Any], measured: dict[str, Any], model: ModelShape, card: Card) -> tuple[float, float]:
    """Return bytes and operations. Every prompt is computed once; every token reads the keys and values before it."""
    tokens, prompts = measured["tokens"], setting["prompts"]
    rows = min(setting["batch"], K * prompts)
    adapter = model.lora_parameters(setting["rank"])
    gguf = setting["engine"] == "gguf"
    weights = GGUF_BITS["Q4_K_M"] / 8 * model.parameters if gguf else nf4_bytes(model, card)
    number = KV_BYTES["f16"] if gguf else compute_bytes(card, "nf4")
    context = measured["prompt_tokens"] / prompts + tokens / (K * prompts) / 2
    moved = tokens / rows * (weights + 4 * adapter) + tokens * number * model.kv_elements(1) * context
    operations = (tokens + measured["prompt_tokens"]) * 2 * (model.linear_parameters + adapter)
    return moved, operations + tokens * 2 * model.embedding_parameters


def judging(setting: dict[str, Any], measured: dict[str, Any], model: ModelShape, card: Card) -> tuple[float, float]:
    """Return bytes and operations. Prompts fill whole batches; explanations written at once share a pass per token."""
    weights = measured["gpu_bytes"] if card.cuda else measured["file_bytes"]
    explanation = setting["explain_tokens"] if setting["mode"] == "explain" else 0
    written = measured["calls"] * explanation
    at_once = max(1, min(setting["sequences"], int(setting["context"] // (measured["prompt"] + explanation))))
    passes = (measured["tokens"] - written) / setting["batch"] + written / at_once
    cells = KV_BYTES[setting["kv_type"]] * model.kv_elements(1) * (measured["prompt"] + explanation / 2)
    operations = measured["tokens"] * 2 * model.linear_parameters
    operations += (written + measured["calls"]) * 2 * model.embedding_parameters
    return passes * weights + written * cells, operations


def training(setting: dict[str, Any], measured: dict[str, Any], model: ModelShape, card: Card) -> tuple[float, float]:
    """Return bytes and operations of one epoch.

    There are three passes: forward, again for gradient checkpointing, and backward without the frozen weights'
    gradients.
    """
    tokens = 2 * setting["pairs"] * setting["tokens"]
    passes = 3
    used = model.linear_parameters + model.lora_parameters(setting["rank"]) + model.embedding_parameters
    return setting["pairs"] * passes * nf4_bytes(model, card), passes * tokens * 2 * used


def fold(setting: dict[str, Any], measured: dict[str, Any], model: ModelShape, card: Card) -> tuple[float, float]:
    """Return bytes and operations: every sequence before and after the fold, and the weights for the update's norm."""
    operations = measured["tokens"] * 2 * (model.linear_parameters + model.lora_parameters(setting["rank"]))
    return (measured["sequences"] + 1) * nf4_bytes(model, card), operations
