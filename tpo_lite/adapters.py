"""LoRA blocks as plain tensors: read and write them, stack them, start a fresh one, measure them.

A LoRA update of one linear layer is scale * B @ A with A (rank, in) and B (out, rank). Concatenating ranks (A stacked,
B side by side) adds two updates exactly. That is this project's fold: M_{t+1} stays one adapter on the untouched 4-bit
base. A fresh block with B = 0 appended to it starts the next iteration at exactly M_{t+1}.
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
"""The files of an adapter folder, as peft names them."""
PREFIX = "base_model.model."
"""What peft puts before a layer's name."""


@dataclass(frozen=True)
class Block:
    """The two factors of one layer's update."""

    a: torch.Tensor
    """(rank, in)"""
    b: torch.Tensor
    """(out, rank)"""


Blocks = dict[str, Block]
"""Factors by the layer's name, such as "model.layers.0.self_attn.q_proj"."""


def fresh_block(shapes: dict[str, tuple[int, int]], rank: int, seed: str) -> Blocks:
    """Return a block that changes nothing yet: A random as in peft (Kaiming uniform, a = sqrt 5), B zero.

    `shapes`: (in, out) by layer. The numbers of a layer depend only on `seed` and the layer's name. See
    `tpo_lite.seeds` before changing anything here.
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
    """Return the exact sum of two updates of the same scale, as one adapter of the summed rank.

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
    """Return the update from `old` to `new` in factored form, of rank new + rank old. `old` is None for the base."""
    if old is None:
        return new
    return concatenate(new, {name: Block(block.a, -block.b) for name, block in old.items()})


def squared_norms(blocks: Blocks, scale: float) -> dict[str, float]:
    """Return the squared Frobenius norm of each layer's update, as <B'B, AA'>, without forming B @ A."""
    return {
        name: scale**2
        * ((block.b.T.double() @ block.b.double()) * (block.a.double() @ block.a.T.double())).sum().item()
        for name, block in blocks.items()
    }


def rank_of(blocks: Blocks) -> int:
    """Return the rank that all layers share."""
    return next(iter(blocks.values())).a.shape[0]


def read_adapter(folder: Path) -> tuple[Blocks, float]:
    """Read an adapter folder in peft's format. Returns its factors in float32 and its scale, alpha / rank.

    Raises `TpoError` for a file that is missing or damaged.
    """
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
    """Return the factors under peft's names."""
    state = {}
    for name, block in blocks.items():
        state[f"{PREFIX}{name}.lora_A.weight"] = block.a.contiguous()
        state[f"{PREFIX}{name}.lora_B.weight"] = block.b.contiguous()
    return state


def lora_config(rank: int, scale: float) -> Any:
    """Return peft's config of an adapter on all linear layers but the LM head, without dropout."""
    from peft import LoraConfig

    alpha = scale * rank
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # type: ignore[arg-type]  # peft accepts floats
        lora_dropout=0.0,
        target_modules="all-linear",
    )


def write_adapter(folder: Path, blocks: Blocks, scale: float, base_model: str, like: Path) -> None:
    """Write an adapter folder in peft's format. All other settings are copied from the adapter in `like`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((like / CONFIG).read_text())
    rank = rank_of(blocks)
    config |= {"r": rank, "lora_alpha": scale * rank, "base_model_name_or_path": base_model, "inference_mode": True}
    save_file(state_dict(blocks), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """Return (in, out) of every layer of a `PeftModel` that carries an adapter."""
    return {
        name.removeprefix(PREFIX): (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
