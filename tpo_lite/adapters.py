"""LoRA blocks as plain tensors: stack them, start a fresh one, measure them.

A LoRA update of one linear layer is scale * B @ A with A (rank, in) and B (out, rank). Two updates add
up exactly when their ranks are concatenated: A stacked, B side by side. That is the fold of this
project: M_{t+1} stays one adapter on the untouched 4-bit base, and a fresh block with B = 0 behind it
starts the next iteration at exactly M_{t+1}.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tpo_lite.errors import TpoError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Block:
    """The factors of one layer's update."""

    a: torch.Tensor
    """(rank, in)"""
    b: torch.Tensor
    """(out, rank)"""


Blocks = dict[str, Block]
"""Factors by the layer's name, such as "model.layers.0.self_attn.q_proj"."""


def fresh_block(shapes: dict[str, tuple[int, int]], rank: int, seed: str) -> Blocks:
    """A block that changes nothing yet: A random as in peft (Kaiming uniform, a = sqrt 5), B zero.

    `shapes`: (in, out) by layer. Each layer's numbers depend on `seed` and its name alone.
    """
    blocks = {}
    for name, (inputs, outputs) in shapes.items():
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        bound = 1 / math.sqrt(inputs)
        a = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        blocks[name] = Block(a, torch.zeros(outputs, rank))
    return blocks


def concatenate(older: Blocks, newer: Blocks) -> Blocks:
    """The sum of two updates of the same scale, exactly, as one adapter of the summed rank.

    >>> one = {"q": Block(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]))}
    >>> two = {"q": Block(torch.tensor([[5.0, 0.0]]), torch.tensor([[-1.0]]))}
    >>> both = concatenate(one, two)["q"]
    >>> both.b @ both.a
    tensor([[-2.,  6.]])
    """
    return {
        name: Block(torch.cat([older[name].a, block.a]), torch.cat([older[name].b, block.b], dim=1))
        for name, block in newer.items()
    }


def difference(new: Blocks, old: Blocks | None) -> Blocks:
    """The update from `old` to `new` in factored form: rank new + rank old."""
    if old is None:
        return new
    return concatenate(new, {name: Block(block.a, -block.b) for name, block in old.items()})


def squared_norms(blocks: Blocks, scale: float) -> dict[str, float]:
    """Squared Frobenius norm of each layer's update, without forming it: <B'B, AA'>."""
    return {
        name: scale**2
        * ((block.b.T.double() @ block.b.double()) * (block.a.double() @ block.a.T.double())).sum().item()
        for name, block in blocks.items()
    }


def rank_of(blocks: Blocks) -> int:
    """The rank that all layers share."""
    return next(iter(blocks.values())).a.shape[0]


def read_adapter(folder: Path) -> tuple[Blocks, float]:
    """An adapter folder in peft's format: its factors in float32 and its scale alpha / rank."""
    try:
        config = json.loads((folder / CONFIG).read_text())
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise TpoError(
            f"adapter {folder} cannot be read ({error}). Delete it and run the same command again."
        ) from error
    blocks = {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            blocks[name] = Block(tensors[key].float(), tensors[f"{PREFIX}{name}.lora_B.weight"].float())
    return blocks, config["lora_alpha"] / config["r"]


def state_dict(blocks: Blocks) -> dict[str, torch.Tensor]:
    """The factors under peft's names."""
    state = {}
    for name, block in blocks.items():
        state[f"{PREFIX}{name}.lora_A.weight"] = block.a.contiguous()
        state[f"{PREFIX}{name}.lora_B.weight"] = block.b.contiguous()
    return state


def lora_config(rank: int, scale: float) -> Any:
    """peft's config of an adapter on all linear layers but the LM head, without dropout."""
    from peft import LoraConfig

    alpha = scale * rank
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
    )


def write_adapter(folder: Path, blocks: Blocks, scale: float, base_model: str, like: Path) -> None:
    """Writes an adapter folder; the other settings are those of the adapter in `like`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((like / CONFIG).read_text())
    rank = rank_of(blocks)
    config |= {"r": rank, "lora_alpha": scale * rank, "base_model_name_or_path": base_model, "inference_mode": True}
    save_file(state_dict(blocks), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """(in, out) of every layer that carries an adapter in a `PeftModel`."""
    return {
        name.removeprefix(PREFIX): (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
