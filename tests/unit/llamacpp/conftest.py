"""A tiny model, the decoder on it with either kind of cache, prompts, and llama_cpp.Llama as a reference."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf
from tpo_lite.llamacpp.decoder import LlamaCpp


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module", params=[True, False], ids=["unified", "streams"])
def kv_unified(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def engine(model: Path, kv_unified: bool) -> LlamaCpp:
    return LlamaCpp(model, n_ctx=4096, n_batch=128, n_seq_max=32, n_threads=1, kv_unified=kv_unified)


@pytest.fixture(scope="module")
def prompts(engine: LlamaCpp) -> list[list[int]]:
    """Three questions with four answers each: shared at two depths, one a prefix of another, two equal."""
    texts = [
        f"Which answer is better? Question {q}: what is {q} + {q}?\n{'The answer is ' * (a > 0)}{q + a}."
        for q in range(3)
        for a in range(4)
    ]
    texts += [texts[0], texts[0] + " And more."]
    return [[engine.bos, *engine.tokenize(text, special=False)] for text in texts]


@pytest.fixture(scope="module")
def reference(model: Path) -> llama_cpp.Llama:
    return llama_cpp.Llama(str(model), n_ctx=2048, n_threads=1, logits_all=True, flash_attn=True, verbose=False)
