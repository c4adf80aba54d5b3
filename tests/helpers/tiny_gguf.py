"""Tiny Llama GGUFs with random weights. The vocabulary is made here (byte-level BPE, SentencePiece) or a real one."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""Llama-3's form: BOS is part of the template."""

CONTROLS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
MERGES = ["[ [", "] ]", "t h", "th e", "a n", "i n", "e r", "Ġ the", "Ġ a", "Ċ Ċ"]


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    n_layer: int = 2,
    n_embd: int = 64,
    n_head: int = 2,
    n_ctx: int = 4096,
    chat_template: str | None = CHAT_TEMPLATE,
    left_out: str = "",
    extra_merges: tuple[str, ...] = (),
    extra_controls: tuple[str, ...] = (),
    embedding: bool = False,
    weights: bool = True,
    name: str = "tiny",
    pre_tokenizer: str = "llama-bpe",
    script: tuple[str, ...] = (),
) -> Path:
    """Write a random Llama; `left_out` are symbols that the vocabulary lacks.

    With a `script`, e.g. ("ĊĊ", "O", "k", "[[", "A"), the model says the next of these tokens after each of
    them, whatever came before: its layers add nothing, and its output row of each token points to the
    embedding of the token before.
    """
    symbols = [symbol for symbol in byte_symbols() if symbol not in left_out]
    merges = [*MERGES, *extra_merges]
    controls = [*CONTROLS, *extra_controls]
    tokens = [*symbols, *(merge.replace(" ", "") for merge in merges), *controls]
    normal = len(tokens) - len(controls)
    writer = gguf.GGUFWriter(path, "llama")
    _add_shape(writer, name, len(tokens), n_layer=n_layer, n_embd=n_embd, n_head=n_head, n_ctx=n_ctx)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * normal + [gguf.TokenType.CONTROL] * len(controls))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(normal)
    writer.add_eos_token_id(normal + 1)
    writer.add_eot_token_id(normal + 4)
    writer.add_add_bos_token(True)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    if embedding:
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    if weights:
        _add_weights(writer, tokens, np.random.default_rng(seed), n_layer=n_layer, n_embd=n_embd, script=script)
    return _finished(writer, path)


def write_tiny_sentencepiece(path: Path, chat_template: str) -> Path:
    """Write a random Llama on a SentencePiece vocabulary: bytes, printable ASCII and some longer pieces."""
    letters = ["\u2581", *(chr(code) for code in range(33, 127))]
    pieces = ["[[", "]]", "th", "es", "yes", "\u2581the", "\u2581W", "\u2581y", "\u2581yes"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *pieces]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    writer = gguf.GGUFWriter(path, "llama")
    _add_shape(writer, "tiny", len(tokens), n_layer=1, n_embd=64, n_head=2, n_ctx=4096)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * (len(tokens) - len(kinds))])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(chat_template)
    _add_weights(writer, tokens, np.random.default_rng(0), n_layer=1, n_embd=64)
    return _finished(writer, path)


def _add_shape(
    writer: gguf.GGUFWriter, name: str, n_vocab: int, *, n_layer: int, n_embd: int, n_head: int, n_ctx: int
) -> None:
    writer.add_name(name)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(2 * n_embd)
    writer.add_head_count(n_head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(n_vocab)


def _add_weights(
    writer: gguf.GGUFWriter,
    tokens: list[str],
    rng: np.random.Generator,
    *,
    n_layer: int,
    n_embd: int,
    script: tuple[str, ...] = (),
) -> None:
    """Random matrices; with a `script`, those that `write_tiny_gguf` describes."""
    residual = 0.0 if script else 1.0

    def matrix(name: str, rows: int, columns: int, scale: float = 1.0) -> None:
        writer.add_tensor(name, (scale * rng.normal(0, columns**-0.5, (rows, columns))).astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(n_embd, np.float32))

    embeddings = rng.normal(0, 1, (len(tokens), n_embd)).astype(np.float32)
    writer.add_tensor("token_embd.weight", embeddings)
    for layer in range(n_layer):
        norm(f"blk.{layer}.attn_norm.weight")
        norm(f"blk.{layer}.ffn_norm.weight")
        for name in ("attn_q", "attn_k", "attn_v"):
            matrix(f"blk.{layer}.{name}.weight", n_embd, n_embd)
        matrix(f"blk.{layer}.attn_output.weight", n_embd, n_embd, residual)
        matrix(f"blk.{layer}.ffn_gate.weight", 2 * n_embd, n_embd)
        matrix(f"blk.{layer}.ffn_up.weight", 2 * n_embd, n_embd)
        matrix(f"blk.{layer}.ffn_down.weight", n_embd, 2 * n_embd, residual)
    norm("output_norm.weight")
    output = rng.normal(0, n_embd**-0.5, (len(tokens), n_embd)).astype(np.float32)
    for before, after in pairwise(script):
        output[tokens.index(after)] += embeddings[tokens.index(before)]
    writer.add_tensor("output.weight", output)


def _finished(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_gguf_on_vocabulary(
    path: Path, vocabulary: Path, chat_template: str, *, n_layer: int = 1, n_embd: int = 32, n_head: int = 1
) -> Path:
    """A random Llama on the vocabulary of a vocabulary-only Llama GGUF, which stays as it is, byte for byte.

    Only the numbers that give the model's shape are overwritten, and a chat template and tensors (F16,
    norms F32) are appended: a GGUF is a header, key-value pairs, tensor descriptions, aligned data.
    """
    data = bytearray(vocabulary.read_bytes())
    shape = {
        "block_count": n_layer,
        "embedding_length": n_embd,
        "feed_forward_length": 2 * n_embd,
        "attention.head_count": n_head,
        "attention.head_count_kv": n_head,
        "rope.dimension_count": n_embd // n_head,
    }
    for key, value in shape.items():
        name = _gguf_string(f"llama.{key}")
        struct.pack_into("<I", data, data.index(name) + len(name) + 4, value)
    at = data.index(name := _gguf_string("llama.vocab_size")) + len(name) + 4
    (n_vocab,) = struct.unpack_from("<I", data, at)

    tensors = {"token_embd.weight": (n_embd, n_vocab), "output.weight": (n_embd, n_vocab)}
    tensors["output_norm.weight"] = (n_embd,)
    for layer in range(n_layer):
        tensors |= {f"blk.{layer}.{name}.weight": (n_embd,) for name in ("attn_norm", "ffn_norm")}
        tensors |= {f"blk.{layer}.attn_{name}.weight": (n_embd, n_embd) for name in ("q", "k", "v", "output")}
        tensors |= {f"blk.{layer}.ffn_{name}.weight": (n_embd, 2 * n_embd) for name in ("gate", "up")}
        tensors[f"blk.{layer}.ffn_down.weight"] = (2 * n_embd, n_embd)

    kv_count = struct.unpack_from("<Q", data, 16)[0] + 1
    struct.pack_into("<QQ", data, 8, len(tensors), kv_count)
    data += _gguf_string("tokenizer.chat_template") + struct.pack("<I", gguf.GGUFValueType.STRING)
    data += _gguf_string(chat_template)

    rng = np.random.default_rng(0)
    weights = bytearray()
    for name, dims in tensors.items():
        kind = gguf.GGMLQuantizationType.F16 if len(dims) == 2 else gguf.GGMLQuantizationType.F32
        data += _gguf_string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        data += struct.pack("<IQ", kind, len(weights))
        if len(dims) == 2:
            scale = 1.0 if name == "token_embd.weight" else dims[0] ** -0.5
            values = (scale * rng.standard_normal(dims[::-1], np.float32)).astype(np.float16)
        else:
            values = np.ones(dims, np.float32)
        weights += values.tobytes()
        weights += bytes(-len(weights) % 32)
    data += bytes(-len(data) % 32)
    path.write_bytes(data + weights)
    return path


def _gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
