"""Writes a Llama that is in memory, with its tokenizer, as a GGUF file that llama.cpp reads."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from tpo_lite.llamacpp.convert import convert


def write_gguf(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, path: Path, name: str) -> None:
    """Writes `model` with `tokenizer` to `path` in 16 bits, `name` in its metadata."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        convert(Path(folder), path, name=name)
