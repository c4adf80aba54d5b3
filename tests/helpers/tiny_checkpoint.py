"""Random checkpoints of each architecture, and their logits by transformers and by llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tpo_lite.embedded.tokenizer import train_tokenizer
from tpo_lite.llamacpp.decoder import LlamaCpp
from tpo_lite.llamacpp.leaves import Leaf

IDS = [0, 17, 42, 5, 99, 7, 7, 200, 31, 64, 3, 11, 250, 8, 90, 91] * 4

MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def write_checkpoint(folder: Path, architecture: str = "llama", **changes: Any) -> Path:
    """A random model with its tokenizer whose attention depends strongly on positions."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["The answer is 7."] * 50, 300)
    config = {
        "vocab_size": 304,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
    }
    config_class, model_class = MODELS[architecture]
    model = model_class(config_class(**(config | changes)))
    for name, weight in model.named_parameters():
        if name.endswith(("bias", "q_norm.weight", "k_norm.weight")):  # all 0 or 1 in a new model
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def logits_of_both(folder: Path, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Logits after the last of IDS, by transformers in float32 and by llama.cpp."""
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        expected = model(torch.tensor([IDS])).logits[0, -1].numpy()
    return expected, LlamaCpp(out, n_ctx=128, flash_attn=False).decode([Leaf(IDS)])[0].logits
