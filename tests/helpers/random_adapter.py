"""Random adapters, and how far llama.cpp's logits with one are from peft's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tpo_lite.adapters import Block, linear_shapes
from tpo_lite.llamacpp.convert import convert
from tpo_lite.llamacpp.decoder import LlamaCpp
from tpo_lite.llamacpp.leaves import Leaf


def random_adapter(model, rank, seed):
    """Blocks for all linear layers of a `PeftModel`, both factors far from zero."""
    generator = torch.Generator().manual_seed(seed)

    def factor(*shape):
        return torch.randn(shape, generator=generator) / 4

    shapes = linear_shapes(model).items()
    return {name: Block(factor(rank, inputs), factor(outputs, rank)) for name, (inputs, outputs) in shapes}


PROMPTS = [[5, 6, 7, 100, 200, 31, 9, 9, 12], [8, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70]]


def largest_difference(adapted, lora: Path, attached: bool = True) -> float:
    """Between the logits of llama.cpp and those of peft after PROMPTS, in 32 bits."""
    base = lora.with_name("base.gguf")
    convert(adapted.folder, base, "F32")
    engine = LlamaCpp(base, n_ctx=256, flash_attn=False, n_threads=1, adapter=lora)
    engine.attach_adapter(attached)
    ours = torch.tensor(np.stack([decoded.logits for decoded in engine.decode([Leaf(prompt) for prompt in PROMPTS])]))
    with torch.no_grad():
        theirs = torch.cat([adapted.model(torch.tensor([prompt])).logits[:, -1] for prompt in PROMPTS])
    return (ours - theirs).abs().max().item()
