"""Opening a GGUF: its tokens, files and settings that cannot be used, and too little memory."""

from __future__ import annotations

import subprocess
import sys

import llama_cpp
import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf
from tpo_lite.errors import InputError
from tpo_lite.llamacpp.decoder import LlamaCpp
from tpo_lite.llamacpp.leaves import Leaf


def test_control_tokens_are_parsed_only_on_request(engine):
    assert engine.detokenize(engine.tokenize("a<|eot_id|>", special=False)) == "a<|eot_id|>"
    (eot,) = engine.tokenize("<|eot_id|>", special=True)
    assert eot in engine.end_tokens()
    assert (engine.detokenize([eot]), engine.detokenize([eot], special=True)) == ("", "<|eot_id|>")


def test_a_leaf_longer_than_the_model_was_trained_for_is_refused(tmp_path):
    short = LlamaCpp(write_tiny_gguf(tmp_path / "short.gguf", n_ctx=64), n_ctx=512, n_threads=1)
    with pytest.raises(InputError, match="fit 64"):
        short.decode([Leaf([1] * 65)])


def test_unusable_files_say_what_to_do(tmp_path, model):
    with pytest.raises(InputError, match="no such file"):
        LlamaCpp(tmp_path / "none.gguf")
    text = tmp_path / "text.gguf"
    text.write_text("no model")
    with pytest.raises(InputError, match="not a GGUF file"):
        LlamaCpp(text)
    with pytest.raises(InputError, match="holds a vocabulary and no weights"):
        LlamaCpp(write_tiny_gguf(tmp_path / "vocabulary.gguf", weights=False))
    with pytest.raises(InputError, match="embedding model"):
        LlamaCpp(write_tiny_gguf(tmp_path / "embedding.gguf", embedding=True))


@pytest.mark.parametrize("share", [0.9, 0.01])
def test_a_file_that_is_cut_short_is_recognized(tmp_path, model, share):
    data = model.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match="cut short: download it again"):
        LlamaCpp(cut)


def test_settings_that_exclude_each_other(model, monkeypatch):
    with pytest.raises(InputError, match="needs flash attention"):
        LlamaCpp(model, kv_type="q8_0", flash_attn=False)
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: False)
    with pytest.raises(InputError, match="built without GPU support"):
        LlamaCpp(model, n_gpu_layers=-1)


@pytest.mark.parametrize(
    ("n_ctx", "message"),
    [(1 << 22, "no context of 4194304 tokens"), (512, "There is not enough memory")],
    ids=["KV cache", "weights"],
)
def test_too_little_memory_is_an_input_error(tmp_path, n_ctx, message):
    wide = write_tiny_gguf(tmp_path / "wide.gguf", n_embd=512 if n_ctx == 512 else 64, n_layer=4)
    room = 10 << 20 if n_ctx == 512 else 1 << 30
    code = f"""
import resource
from tpo_lite.errors import InputError
from tpo_lite.llamacpp.decoder import LlamaCpp
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + {room},) * 2)
try:
    LlamaCpp({str(wide)!r}, n_ctx={n_ctx}, n_threads=1)
except InputError as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert message in output
