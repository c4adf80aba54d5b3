"""A batched llama.cpp decoder for token sequences that share prefixes.

`llama_cpp.Llama` decodes one sequence at a time. This module uses the low-level functions of
llama-cpp-python 0.3.36 instead: `LlamaCpp.decode` takes leaves (whole token sequences), builds the
tree of their shared prefixes (`tpo_lite.prefix_tree`), decodes each shared prefix once, copies it
between sequences (`llama_memory_seq_cp`, a matter of labels in a unified KV cache), and lets the
suffixes and continuations of many leaves share each `llama_decode`. Works on token ids; knows nothing
of judges.

The same leaves in the same order with the same settings give bit-identical results on one machine:
the schedule depends on the leaves alone, and every call starts from an empty cache.
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
import numpy as np

from tpo_lite.errors import InputError, TpoError
from tpo_lite.prefix_tree import Continuation, Decision, Decoded, Leaf, Segment, prefix_tree

__all__ = ["Continuation", "Decision", "Decoded", "Leaf", "LlamaCpp"]

SMALL_MODEL = 64 << 20
"""Bytes of weights below which one thread decodes: threads meet after every operation, and where operations
are this short, another process on one of the cores made two threads 60 times slower than one."""

_LOG: deque[str] = deque(maxlen=20)
_MEMORY_SIGNS = ("out of memory", "failed to allocate", "unable to allocate", "bad_alloc", "cannot allocate")


@llama_cpp.llama_log_callback
def _keep_log(_level: int, text: bytes, _data: Any) -> None:
    """Keeps llama.cpp's chatter off stderr and its last lines for error messages."""
    _LOG.append(text.decode(errors="replace"))


class LlamaCpp:
    """A GGUF model with a unified KV cache, decoding many sequences at a time.

    `n_ctx` is the number of KV cells that all sequences in flight hold together, `n_batch` the most
    tokens in one decode, `n_seq_max` the most sequences in flight (at most 256, a limit of llama.cpp,
    and at most `n_batch`); a leaf takes one sequence and so does each shared prefix above it.
    `kv_type` is the type of keys and values alike; q8_0 needs `flash_attn`. `n_gpu_layers` is the number
    of layers on the GPU (-1: all). `n_threads` None takes the CPUs that this process may use, and one for
    a model smaller than SMALL_MODEL.

    Raises `InputError` for a file that is missing, no GGUF, cut short, without weights or an embedding
    model, for GPU layers in a build without GPU, and where the memory does not suffice.
    """

    def __init__(
        self,
        path: str | Path,
        n_ctx: int = 8192,
        n_batch: int = 512,
        n_seq_max: int = 32,
        n_gpu_layers: int = 0,
        kv_type: Literal["f16", "q8_0"] = "f16",
        flash_attn: bool = True,
        n_threads: int | None = None,
    ):
        if kv_type == "q8_0" and not flash_attn:
            raise InputError("A q8_0 KV cache needs flash attention. Turn it on, or take kv_type f16.")
        if n_gpu_layers and not llama_cpp.llama_supports_gpu_offload():
            raise InputError(
                f"n_gpu_layers is {n_gpu_layers}, but this llama-cpp-python was built without GPU support. "
                'Reinstall it with CMAKE_ARGS="-DGGML_CUDA=on", or set n_gpu_layers to 0.'
            )
        self.path = Path(path)
        self.n_ctx, self.n_batch = n_ctx, n_batch
        self.n_seq_max = min(n_seq_max, n_batch, llama_cpp.llama_max_parallel_sequences())
        self.tokens_decoded = 0
        """Tokens evaluated by all `decode` calls so far."""

        llama_cpp.llama_log_set(_keep_log, None)
        self._model = _load_model(self.path, n_gpu_layers)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._context = self._make_context(kv_type, flash_attn, n_threads)
        self._memory = llama_cpp.llama_get_memory(self._context)
        weakref.finalize(self, _free, self._context, self._model)

        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.max_leaf = min(n_ctx, llama_cpp.llama_model_n_ctx_train(self._model))
        """Most tokens of one leaf, its continuation included: by the KV cache and the model's training."""
        self._allocate_batch()

    def _make_context(self, kv_type: str, flash_attn: bool, n_threads: int | None) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.n_ctx
        params.n_batch = params.n_ubatch = self.n_batch
        params.n_seq_max = params.n_outputs_max = self.n_seq_max
        params.kv_unified = True
        params.type_k = params.type_v = getattr(llama_cpp, f"GGML_TYPE_{kv_type.upper()}")
        params.flash_attn_type = int(flash_attn)
        params.offload_kqv = True
        if n_threads is None:
            small = llama_cpp.llama_model_size(self._model) < SMALL_MODEL
            n_threads = 1 if small else len(os.sched_getaffinity(0))
        params.n_threads = params.n_threads_batch = n_threads
        _LOG.clear()
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            llama_cpp.llama_model_free(self._model)
            raise InputError(
                f"{self.path}: no context of {self.n_ctx} tokens ({kv_type} KV cache) could be made: "
                f"{_last_log()}. Take a smaller context or, where memory ran out, kv_type q8_0."
            )
        pooled = llama_cpp.llama_pooling_type(context) != llama_cpp.LLAMA_POOLING_TYPE_NONE
        if pooled or not llama_cpp.llama_get_causal_attn(context):
            _free(context, self._model)
            raise InputError(f"{self.path} is an embedding model and writes no text. Take a language model.")
        return context

    def _allocate_batch(self) -> None:
        n = self.n_batch
        self._tokens, self._positions = np.zeros(n, np.int32), np.zeros(n, np.int32)
        self._sequences, self._wanted = np.zeros(n, np.int32), np.zeros(n, np.int8)
        self._ones = np.ones(n, np.int32)
        # A token's sequences are a pointer to an array of ids; each of ours has one, in self._sequences.
        ids = ctypes.POINTER(ctypes.c_int32)
        address = self._sequences.ctypes.data
        self._sequence_pointers = (ids * n)(*[ctypes.cast(address + 4 * i, ids) for i in range(n)])
        self._batch = llama_cpp.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(ids),
            embd=None,
            pos=self._positions.ctypes.data_as(ids),
            n_seq_id=self._ones.ctypes.data_as(ids),
            seq_id=self._sequence_pointers,
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    # Vocabulary

    def tokenize(self, text: str, special: bool) -> list[int]:
        """The text's tokens, without BOS; control tokens written in it are parsed only if `special`."""
        data = text.encode(errors="replace")
        tokens = (ctypes.c_int32 * (len(data) + 2))()
        n = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, len(tokens), False, special)
        if n < 0:
            raise TpoError(f"{self.path}: llama.cpp could not tokenize a text of {len(data)} bytes.")
        return tokens[:n]

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        """What a token stands for; control tokens are empty unless `special`."""
        buffer = ctypes.create_string_buffer(256)
        n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n] if n >= 0 else llama_cpp.llama_vocab_get_text(self._vocab, token)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> str:
        """The tokens' text; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(token, special) for token in tokens).decode(errors="replace")

    @property
    def bos(self) -> int | None:
        """The token that the vocabulary wants in front of every sequence; None if it wants none."""
        wanted = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        return llama_cpp.llama_vocab_bos(self._vocab) if wanted else None

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template in the file's metadata."""
        template = llama_cpp.llama_model_chat_template(self._model, None)
        return template.decode() if template else None

    def special_token_text(self, which: Literal["bos", "eos"]) -> str:
        """The written form of a special token, as chat templates use it; empty if there is none."""
        token = getattr(llama_cpp, f"llama_vocab_{which}")(self._vocab)
        return llama_cpp.llama_vocab_get_text(self._vocab, token).decode() if token >= 0 else ""

    def control_tokens(self) -> dict[str, tuple[int, int]]:
        """Written form -> (token id, llama.cpp's attribute bits) of all control tokens."""
        return {
            llama_cpp.llama_vocab_get_text(self._vocab, token).decode(): (
                token,
                llama_cpp.llama_vocab_get_attr(self._vocab, token),
            )
            for token in range(self.n_vocab)
            if llama_cpp.llama_vocab_is_control(self._vocab, token)
        }

    def end_tokens(self) -> frozenset[int]:
        """Every token that ends a turn or a text: EOS, EOT and the like."""
        return frozenset(t for t in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self._vocab, t))

    # Decoding

    def decode(self, leaves: Sequence[Leaf]) -> list[Decoded]:
        """Decodes all leaves, in the order given.

        A leaf enters when a sequence and all the KV cells that it may need are free, so that nothing ever
        has to be taken back. Raises `InputError` naming a leaf that does not fit even alone, before any
        work is done.
        """
        for index, leaf in enumerate(leaves):
            if not leaf.tokens or leaf.room > self.max_leaf:
                raise InputError(
                    f"Leaf {index} needs {leaf.room} tokens ({len(leaf.tokens)} given); it must have one at "
                    f"least and fit {self.max_leaf}. Shorten it, or take a larger context."
                )
        return _Schedule(self, leaves).run()

    def _decode_batch(self, n_tokens: int) -> None:
        self._batch.n_tokens = n_tokens
        _LOG.clear()
        status = llama_cpp.llama_decode(self._context, self._batch)
        if status != 0:
            raise TpoError(
                f"{self.path}: llama.cpp could not decode {n_tokens} tokens (status {status}): "
                f"{_last_log()}. Take a smaller batch or context."
            )
        self.tokens_decoded += n_tokens

    def _logits(self, row: int, tokens: Sequence[int] | None) -> np.ndarray:
        pointer = llama_cpp.llama_get_logits_ith(self._context, row)
        if tokens is None:
            return np.ctypeslib.as_array(pointer, (self.n_vocab,)).copy()
        return np.array([pointer[token] for token in tokens], np.float32)


class _Schedule:
    """The state of one `LlamaCpp.decode` call."""

    def __init__(self, engine: LlamaCpp, leaves: Sequence[Leaf]):
        self.engine, self.leaves = engine, leaves
        self.waiting = deque(prefix_tree(leaves, max_depth=engine.n_seq_max))
        self.resident: list[Segment] = []
        """Segments in the KV cache, in the order of admission."""
        self.free_sequences = list(reversed(range(engine.n_seq_max)))
        self.free_cells = engine.n_ctx
        self.results: list[Decoded | None] = [None] * len(leaves)

    def run(self) -> list[Decoded]:
        llama_cpp.llama_memory_clear(self.engine._memory, False)
        while self.waiting or self.resident:
            self._admit()
            finished = self._fill_batch()
            for row, segment in finished:
                if segment.leaf is None:
                    for child in self.resident:
                        if child.parent is segment:
                            self._copy_prefix(child)
                else:
                    self._advance(segment, row)
        return self.results

    def _admit(self) -> None:
        """Takes waiting leaves, depth first, until a decode is full or room runs out.

        Depth-first order makes this free of deadlock: when no admitted leaf is left, all that is resident
        is shared prefixes of the next leaf, and `decode` has checked that one leaf fits alone.
        """
        pending = sum(len(s.tokens) - s.done for s in self.resident if s.ready)
        while self.waiting and pending < self.engine.n_batch:
            path = []
            segment: Segment | None = self.waiting[0]
            while segment is not None and segment.seq is None:
                path.append(segment)
                segment = segment.parent
            cells = sum(s.cells for s in path)
            if len(path) > len(self.free_sequences) or cells > self.free_cells:
                return
            self.waiting.popleft()
            self.free_cells -= cells
            for segment in reversed(path):
                segment.seq = self.free_sequences.pop()
                self.resident.append(segment)
                if segment.parent is not None and segment.parent.complete:
                    self._copy_prefix(segment)
                if segment.ready:
                    pending += len(segment.tokens)

    def _copy_prefix(self, segment: Segment) -> None:
        llama_cpp.llama_memory_seq_cp(self.engine._memory, segment.parent.seq, segment.seq, -1, -1)

    def _fill_batch(self) -> list[tuple[int, Segment]]:
        """Decodes one batch; returns the segments it completed with the row of their last token."""
        engine = self.engine
        n, completed = 0, []
        # Continuations first: each needs one token, and n_batch has room for one of every sequence.
        for segment in sorted((s for s in self.resident if s.ready), key=lambda s: not s.sampled):
            take = min(len(segment.tokens) - segment.done, engine.n_batch - n)
            if take == 0:
                break
            rows = slice(n, n + take)
            engine._tokens[rows] = segment.tokens[segment.done : segment.done + take]
            engine._positions[rows] = np.arange(take) + segment.start + segment.done
            engine._sequences[rows] = segment.seq
            engine._wanted[rows] = 0
            segment.done += take
            n += take
            if segment.complete:
                engine._wanted[n - 1] = segment.leaf is not None
                completed.append((n - 1, segment))
        engine._decode_batch(n)
        return completed

    def _advance(self, segment: Segment, row: int) -> None:
        """Takes the logits of a leaf's last token: ends the leaf or gives it the tokens that come next."""
        leaf = self.leaves[segment.leaf]
        plan = leaf.continuation
        if plan is None:
            return self._finish(segment, "prompt", self.engine._logits(row, leaf.logits_of))
        decision = plan.decision
        if segment.ended is not None:
            return self._finish(segment, segment.ended, self.engine._logits(row, decision.among))
        if segment.sampler is None:
            segment.sampler = _make_sampler(plan)
        token = llama_cpp.llama_sampler_sample(segment.sampler, self.engine._context, row)
        if decision is not None:
            if token in decision.among and segment.text.endswith(decision.after):
                return self._finish(segment, "decision", self.engine._logits(row, decision.among))
            segment.text += self.engine.token_bytes(token)
        segment.sampled.append(token)
        following = [] if token in plan.stop_tokens else [token]
        if not following:
            segment.ended = "stop"
        elif len(segment.sampled) == plan.max_tokens:
            segment.ended = "length"
        if segment.ended is None:
            return segment.follow_with(following)
        if decision is None:
            return self._finish(segment, segment.ended, None)
        following += decision.force
        if following:
            return segment.follow_with(following)
        self._finish(segment, segment.ended, self.engine._logits(row, decision.among))

    def _finish(self, segment: Segment, ended: Any, logits: np.ndarray | None) -> None:
        self.results[segment.leaf] = Decoded(segment.sampled, ended, logits)
        if segment.sampler is not None:
            llama_cpp.llama_sampler_free(segment.sampler)
        done: Segment | None = segment
        while done is not None and done.children == 0:
            llama_cpp.llama_memory_seq_rm(self.engine._memory, done.seq, -1, -1)
            self.free_sequences.append(done.seq)
            self.free_cells += done.cells
            self.resident.remove(done)
            done = done.parent
            if done is not None:
                done.children -= 1


def _make_sampler(plan: Continuation) -> Any:
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if plan.temperature == 0:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_greedy())
    else:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_temp(plan.temperature))
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_p(plan.top_p, 1))
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_dist(plan.seed))
    return chain


def _load_model(path: Path, n_gpu_layers: int) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file. Give the path of a GGUF model.")
    with path.open("rb") as file:
        header = file.read(24)
    if header[:4] != b"GGUF":
        raise InputError(f"{path} is not a GGUF file. Convert the model with llama.cpp, or take its GGUF.")
    if len(header) == 24 and struct.unpack_from("<Q", header, 8)[0] == 0:
        raise InputError(f"{path} holds a vocabulary and no weights. Give the path of the whole model.")
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = n_gpu_layers
    _LOG.clear()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if model:
        return model
    log = "".join(_LOG).lower()
    if any(sign in log for sign in _MEMORY_SIGNS):
        remedy = "There is not enough memory: take fewer GPU layers (n_gpu_layers) or a smaller quantisation."
    elif "file bounds" in log or "failed to read" in log:
        remedy = "The file is cut short: download it again."
    else:
        remedy = "Download it again, or take a model that this version of llama.cpp knows."
    raise InputError(f"{path} cannot be loaded: {_last_log()}. {remedy}")


def _last_log() -> str:
    """llama.cpp's last complaints, in one line."""
    lines = "".join(_LOG).splitlines()
    signs = ("error", "fail", *_MEMORY_SIGNS)
    errors = [line for line in lines if any(sign in line.lower() for sign in signs)]
    return " / ".join((errors or lines)[-3:]).strip().rstrip(".") or "llama.cpp gave no reason"


def _free(context: Any, model: Any) -> None:
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
