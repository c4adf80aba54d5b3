"""A random Llama policy with a tokenizer and chat template, small enough to load in no time."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tpo_lite.embedded.tokenizer import train_tokenizer


def write_tiny_model(folder: Path, *, hidden: int = 64, layers: int = 2, seed: int = 0, end: float = 0.15) -> Path:
    """Writes the model; at each step it ends its turn with about probability `end`, so that outputs are short."""
    tokenizer = train_tokenizer(["The answer is 7. Here is my thought process: Here is my response:"] * 50, 320)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # The last hidden dimension is made constant and large: after the final norm it is sqrt(hidden), and one
        # output row reads a constant logit from it. All other logits are near 0.
        model.model.embed_tokens.weight[:, -1] = 4.0
        logit = torch.logit(torch.tensor(end)) + math.log(len(tokenizer))
        model.lm_head.weight[tokenizer.eos_token_id, -1] = logit / math.sqrt(hidden)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
