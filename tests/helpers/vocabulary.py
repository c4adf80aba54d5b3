"""The vocabulary in a GGUF file, as llama.cpp reads it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import llama_cpp


class Vocabulary(NamedTuple):
    """What llama.cpp knows of a model's tokens."""

    texts: list[str]
    kinds: list[int]
    ends: list[int]
    """Tokens that end a turn."""
    adds_bos: bool
    chat_template: str | None


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a GGUF's vocabulary without its weights."""
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    ids = range(llama_cpp.llama_vocab_n_tokens(vocabulary))
    texts = [llama_cpp.llama_vocab_get_text(vocabulary, token).decode() for token in ids]
    kinds = [llama_cpp.llama_vocab_get_attr(vocabulary, token) for token in ids]
    ends = [token for token in ids if llama_cpp.llama_vocab_is_eog(vocabulary, token)]
    adds_bos = llama_cpp.llama_vocab_get_add_bos(vocabulary)
    template = llama_cpp.llama_model_chat_template(model, None)
    llama_cpp.llama_model_free(model)
    return Vocabulary(texts, kinds, ends, adds_bos, template and template.decode())
