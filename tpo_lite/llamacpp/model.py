"""A GGUF file opened with llama.cpp: weights, metadata and vocabulary, and errors that say what is wrong with it.

With `vocab_only` no weights are read, and within a second it is known whether an 8B judge can be used. Even then a
truncated file is noticed, because llama.cpp compares each tensor's place with the length of the file.
"""

from __future__ import annotations

import ctypes
import os
import struct
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import llama_cpp

from tpo_lite.errors import SIGNS, InputError, OutOfMemory, TpoError, says_out_of_memory

CELL_BYTES = 40
"""Bytes of a KV cell besides keys and values: its position, a shift and the set of its sequences (256 bits)."""

_VALUE_BYTES = {"f16": 2, "q8_0": 34 / 32}
_LOG: deque[str] = deque(maxlen=20)


def _keep_log(_level: int, text: bytes, _data: Any) -> None:
    """Keep llama.cpp's messages off stderr, and the last of them for our error messages."""
    _LOG.append(text.decode(errors="replace"))


def _last_words(reason: bytes) -> None:
    """Write to stderr why ggml aborts the process, which it does as soon as this returns.

    On CUDA it aborts if memory runs out while it computes: it logs "CUDA error: out of memory" and then gives only
    "CUDA error" as its reason. The orchestrator reads what is written here (`tpo_lite.loop.orchestrator`).
    """
    os.write(2, "".join(_LOG).encode() + reason + b"\n")


# llama.cpp keeps pointers to these, so they live as long as the process.
_LOG_CALLBACK = llama_cpp.llama_log_callback(_keep_log)
_ABORT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_last_words)


class GgufModel:
    """A loaded GGUF language model; `n_gpu_layers` is the number of layers on the GPU (-1: all).

    Raises `InputError` for a file that is missing, not a GGUF, truncated, without weights or an embedding model, and
    for GPU layers in a build without GPU support. Raises `OutOfMemory` if the weights do not fit.
    """

    def __init__(self, path: str | Path, n_gpu_layers: int = 0, vocab_only: bool = False):
        if n_gpu_layers and not llama_cpp.llama_supports_gpu_offload():
            raise InputError(
                f"n_gpu_layers is {n_gpu_layers}, but this llama-cpp-python was built without GPU support. "
                "`tpo-lite doctor` gives the command that installs one with it; or set n_gpu_layers to 0."
            )
        self.path = Path(path)
        llama_cpp.llama_log_set(_LOG_CALLBACK, None)
        # A function of ggml, for which llama_cpp has no binding.
        llama_cpp.llama_cpp._lib.ggml_set_abort_callback(_ABORT_CALLBACK)
        self._model = _load_model(self.path, n_gpu_layers, vocab_only)
        self._free_model = weakref.finalize(self, llama_cpp.llama_model_free, self._model)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.n_layer = self._number("block_count")
        if self._number("pooling_type") or self._metadata("attention.causal") == "false":
            raise self.embedding_error()

    def embedding_error(self) -> InputError:
        """Return the error for a model that computes embeddings."""
        return InputError(f"{self.path} is an embedding model and writes no text. Use a language model.")

    # Metadata

    def _metadata(self, key: str) -> str | None:
        """Return a value of the model's architecture as text; None if there is none."""
        return self._value(f"{self._value('general.architecture')}.{key}")

    def _value(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(64)
        size = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if size >= 0 else None

    def _number(self, key: str) -> int:
        """Return a number of the model's architecture; 0 if there is none, or one for each layer."""
        text = self._metadata(key) or ""
        return int(text) if text.isdecimal() else 0

    def check_context(self, n_ctx: int, kv_type: Literal["f16", "q8_0"], on_gpu: bool) -> None:
        """Raise `OutOfMemory` for a context that cannot fit the machine's free memory, before llama.cpp tries.

        llama.cpp allocates everything at once, and a machine short of memory would grind or kill the process. The
        estimate is a lower bound: llama.cpp has the last word, and on a GPU it fails at once.
        """
        heads, width = self._number("attention.head_count"), self._number("embedding_length")
        head_width = width // heads if heads else 0
        kv_width = sum(self._number(f"attention.{side}_length") or head_width for side in ("key", "value"))
        values = self.n_layer * (self._number("attention.head_count_kv") or 1) * kv_width
        needed = n_ctx * (CELL_BYTES + (0 if on_gpu else int(values * _VALUE_BYTES[kv_type])))
        free = _available_memory()
        if needed > free:
            raise OutOfMemory(
                f"{self.path}: no context of {n_ctx} tokens ({kv_type} KV cache) can be made: it takes at least "
                f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free. Use a smaller context."
            )

    # Vocabulary

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Return the text's tokens, without BOS; control tokens spelled in it are parsed only if `special`."""
        data = text.encode(errors="replace")
        tokens = (ctypes.c_int32 * (len(data) + 2))()
        n = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, len(tokens), False, special)
        if n < 0:
            raise TpoError(f"{self.path}: llama.cpp could not tokenize a text of {len(data)} bytes.")
        return tokens[:n]

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        """Return a token's bytes; control tokens are empty unless `special`."""
        buffer = ctypes.create_string_buffer(256)
        n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n] if n >= 0 else llama_cpp.llama_vocab_get_text(self._vocab, token)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> str:
        """Return the tokens' text; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(token, special) for token in tokens).decode(errors="replace")

    @property
    def bos(self) -> int | None:
        """The token that belongs in front of every sequence; None if the vocabulary asks for none."""
        wanted = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        return llama_cpp.llama_vocab_bos(self._vocab) if wanted else None

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template in the file's metadata."""
        template = llama_cpp.llama_model_chat_template(self._model, None)
        return template.decode() if template else None

    def special_token_text(self, which: Literal["bos", "eos"]) -> str:
        """Return the written form of a special token, as chat templates use it; empty if there is none."""
        token = getattr(llama_cpp, f"llama_vocab_{which}")(self._vocab)
        return llama_cpp.llama_vocab_get_text(self._vocab, token).decode() if token >= 0 else ""

    def control_tokens(self) -> dict[str, tuple[int, int]]:
        """Return (token id, llama.cpp's attribute bits) of all control tokens by their written form."""
        return {
            llama_cpp.llama_vocab_get_text(self._vocab, token).decode(): (
                token,
                llama_cpp.llama_vocab_get_attr(self._vocab, token),
            )
            for token in range(self.n_vocab)
            if llama_cpp.llama_vocab_is_control(self._vocab, token)
        }

    def end_tokens(self) -> frozenset[int]:
        """Return all tokens that end a turn or a text: EOS, EOT and the like."""
        return frozenset(t for t in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self._vocab, t))


def _load_model(path: Path, n_gpu_layers: int, vocab_only: bool) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file. Give the path of a GGUF model.")
    with path.open("rb") as file:
        header = file.read(24)
    if header[:4] != b"GGUF":
        raise InputError(f"{path} is not a GGUF file. Convert the model with llama.cpp, or use its GGUF.")
    if len(header) == 24 and struct.unpack_from("<Q", header, 8)[0] == 0:
        raise InputError(f"{path} holds a vocabulary and no weights. Give the path of the whole model.")
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers, params.vocab_only = n_gpu_layers, vocab_only
    _LOG.clear()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if model:
        return model
    if memory_ran_out():
        raise OutOfMemory(
            f"{path} cannot be loaded: {last_log()}. There is not enough memory: use fewer GPU layers "
            "(n_gpu_layers) or a smaller quantization."
        )
    log = "".join(_LOG).lower()
    if "file bounds" in log or "failed to read" in log:
        remedy = "The file is cut short: download it again."
    else:
        remedy = "Download it again, or use a model that this version of llama.cpp knows."
    raise InputError(f"{path} cannot be loaded: {last_log()}. {remedy}")


def clear_log() -> None:
    """Forget llama.cpp's messages, before a call whose own messages are wanted."""
    _LOG.clear()


def memory_ran_out() -> bool:
    """Return whether llama.cpp's last messages say that memory ran out."""
    return says_out_of_memory("".join(_LOG))


def last_log() -> str:
    """Return llama.cpp's last error messages in one line."""
    lines = "".join(_LOG).splitlines()
    signs = ("error", "fail", *SIGNS)
    errors = [line for line in lines if any(sign in line.lower() for sign in signs)]
    return " / ".join((errors or lines)[-3:]).strip().rstrip(".") or "llama.cpp gave no reason"


def _available_memory() -> int:
    """Return the bytes that Linux can give without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
