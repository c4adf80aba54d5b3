"""Writing a Llama that is in memory as a GGUF file for llama.cpp."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from tpo_lite.llamacpp.convert import convert


def write_gguf(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, path: Path, name: str) -> None:
    """Write `model` and `tokenizer` to `path` in 16 bits, with `name` in the metadata."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        convert(Path(folder), path, name=name)
