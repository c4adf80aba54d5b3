"""A batched llama.cpp decoder for token sequences that share prefixes.

`llama_cpp.Llama` decodes one sequence at a time. This module uses the low-level functions of
llama-cpp-python 0.3.36 instead: `LlamaCpp.decode` takes leaves (whole token sequences), finds the
tree of their shared prefixes, decodes each shared prefix once, copies it between sequences
(`llama_memory_seq_cp`, a matter of labels in a unified KV cache), and lets the suffixes and
continuations of many leaves share each `llama_decode`. Works on token ids; knows nothing of judges.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import llama_cpp
import numpy as np

from tpo_lite.errors import InputError, TpoError

MIN_SHARED = 8
"""Tokens from which on a shared prefix is worth a sequence of its own."""

_LOG: deque[str] = deque(maxlen=20)
_MEMORY_SIGNS = ("out of memory", "failed to allocate", "unable to allocate", "bad_alloc", "cannot allocate")


@llama_cpp.llama_log_callback
def _keep_log(_level: int, text: bytes, _data: Any) -> None:
    """Keeps llama.cpp's chatter off stderr and its last lines for error messages."""
    _LOG.append(text.decode(errors="replace"))


@dataclass(frozen=True)
class Decision:
    """A point where a continuation is about to choose between a few tokens, and ends."""

    after: bytes
    """The continuation's text must end with these bytes."""
    among: tuple[int, ...]
    """It ends when one of these would come next; the result holds their logits."""
    force: tuple[int, ...]
    """Tokens appended to a continuation that ended without deciding, to read the logits after them."""


@dataclass(frozen=True)
class Continuation:
    """How a leaf is continued."""

    max_tokens: int
    """The most tokens sampled, the stop token included; at least 1."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus, taken after the temperature as transformers does."""
    seed: int = 0
    """Of this leaf alone: what it samples does not depend on its neighbours' seeds."""
    stop_tokens: frozenset[int] = frozenset()
    """The continuation ends with the first of these, which is part of it."""
    decision: Decision | None = None
    """A second way to end; none: only stop tokens and the limit end it."""


@dataclass(frozen=True)
class Leaf:
    """One token sequence to decode."""

    tokens: Sequence[int]
    """The whole sequence from position 0, shared prefix and BOS included; not empty."""
    continuation: Continuation | None = None
    """None: only the last token's logits are wanted."""
    logits_of: tuple[int, ...] | None = None
    """Without a continuation: the tokens whose logits are wanted; none: the whole vocabulary."""

    @property
    def room(self) -> int:
        """KV cells that it may need when it shares nothing."""
        plan = self.continuation
        if plan is None:
            return len(self.tokens)
        return len(self.tokens) + plan.max_tokens + (len(plan.decision.force) if plan.decision else 0)


@dataclass(frozen=True)
class Decoded:
    """What became of one leaf."""

    tokens: list[int]
    """The continuation, a stop token included; empty without one."""
    ended: Literal["prompt", "stop", "length", "decision"]
    """Why the continuation ended; "prompt" where there was none."""
    logits: np.ndarray | None
    """float32: of `logits_of` after the last token, or of `Decision.among` at the decision or after
    the forced tokens; None for a continuation without a decision."""


@dataclass(eq=False)
class _Segment:
    """Tokens at consecutive positions: a prefix shared by the segments below, or one leaf's own suffix."""

    tokens: np.ndarray
    start: int
    parent: _Segment | None
    cells: int = 0
    """KV cells reserved for it, a continuation's included."""
    children: int = 0
    """Segments below that are not finished."""
    leaf: int | None = None
    seq: int | None = None
    """Its llama.cpp sequence while it is in the KV cache."""
    done: int = 0
    """Tokens decoded so far."""
    sampler: Any = None
    sampled: list[int] = field(default_factory=list)
    text: bytes = b""
    """What was sampled, as text; kept where a decision is looked for."""
    ended: Literal["prompt", "stop", "length", "decision"] | None = None

    @property
    def complete(self) -> bool:
        return self.done == len(self.tokens)

    @property
    def ready(self) -> bool:
        return not self.complete and (self.parent is None or self.parent.complete)

    def follow_with(self, tokens: Sequence[int]) -> None:
        """Goes on with these tokens after the ones decoded."""
        self.start += len(self.tokens)
        self.tokens = np.array(tokens, np.int32)
        self.done = 0


class LlamaCpp:
    """A GGUF model with a unified KV cache, decoding many sequences at a time.

    `n_ctx` is the number of KV cells that all sequences in flight hold together, `n_batch` the most
    tokens in one decode, `n_seq_max` the most sequences in flight (at most 256, a limit of llama.cpp,
    and at most `n_batch`); a leaf takes one sequence and so does each shared prefix above it.
    `kv_type` is the type of keys and values alike; q8_0 needs `flash_attn`. `n_gpu_layers` is the number
    of layers on the GPU (-1: all). `n_threads` None takes the CPUs that this process may use.

    Raises `InputError` for a file that is missing, no GGUF, cut short, without weights or an embedding
    model, for GPU layers in a build without GPU, and where the memory does not suffice.
    """

    def __init__(
        self,
        path: str | Path,
        n_ctx: int = 8192,
        n_batch: int = 512,
        n_seq_max: int = 64,
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
        params.n_threads = params.n_threads_batch = n_threads or len(os.sched_getaffinity(0))
        _LOG.clear()
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            llama_cpp.llama_model_free(self._model)
            raise InputError(
                f"{self.path}: no context of {self.n_ctx} tokens ({kv_type} KV cache) could be made: {_last_log()}. "
                "Take a smaller context or, where memory ran out, kv_type q8_0."
            )
        pooled = llama_cpp.llama_pooling_type(context) != llama_cpp.LLAMA_POOLING_TYPE_NONE
        if pooled or not llama_cpp.llama_get_causal_attn(context):
            _free(context, self._model)
            raise InputError(f"{self.path} is an embedding model and cannot write text. Take a language model.")
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
        return llama_cpp.llama_vocab_bos(self._vocab) if llama_cpp.llama_vocab_get_add_bos(self._vocab) else None

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
                    f"Leaf {index} needs {leaf.room} tokens ({len(leaf.tokens)} given); it must have at least 1 and fit "
                    f"{self.max_leaf}. Shorten it, or take a larger context."
                )
        return _Schedule(self, leaves).run()

    def _decode_batch(self, n_tokens: int) -> None:
        self._batch.n_tokens = n_tokens
        _LOG.clear()
        status = llama_cpp.llama_decode(self._context, self._batch)
        if status != 0:
            raise TpoError(
                f"{self.path}: llama.cpp could not decode {n_tokens} tokens (status {status}): {_last_log()}. "
                "Take a smaller batch or context."
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
        self.waiting = deque(_prefix_tree(leaves, max_depth=engine.n_seq_max))
        self.resident: list[_Segment] = []
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
            segment: _Segment | None = self.waiting[0]
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

    def _copy_prefix(self, segment: _Segment) -> None:
        llama_cpp.llama_memory_seq_cp(self.engine._memory, segment.parent.seq, segment.seq, -1, -1)

    def _fill_batch(self) -> list[tuple[int, _Segment]]:
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

    def _advance(self, segment: _Segment, row: int) -> None:
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

    def _finish(self, segment: _Segment, ended: Any, logits: np.ndarray | None) -> None:
        self.results[segment.leaf] = Decoded(segment.sampled, ended, logits)
        if segment.sampler is not None:
            llama_cpp.llama_sampler_free(segment.sampler)
        done: _Segment | None = segment
        while done is not None and done.children == 0:
            llama_cpp.llama_memory_seq_rm(self.engine._memory, done.seq, -1, -1)
            self.free_sequences.append(done.seq)
            self.free_cells += done.cells
            self.resident.remove(done)
            done = done.parent
            if done is not None:
                done.children -= 1


def _prefix_tree(leaves: Sequence[Leaf], max_depth: int) -> list[_Segment]:
    """The leaves' own segments in depth-first order, linked to the prefixes they share.

    Every leaf keeps at least its last token to itself, whose logits it needs; so equal leaves need no
    special case. Paths from root to leaf have at most `max_depth` segments.

    With MIN_SHARED = 1, leaves [1, 2, 3], [1, 2, 4] and [1, 2, 3] become the prefix [1, 2] with the
    suffixes [3], [3] and [4].
    """
    tokens = [np.asarray(leaf.tokens, np.int32) for leaf in leaves]
    order = sorted(range(len(leaves)), key=lambda i: tuple(leaves[i].tokens))
    shared = [_shared(tokens[a], tokens[b]) for a, b in zip(order, order[1:])]
    suffixes: list[_Segment] = []

    def place(low: int, high: int, parent: _Segment | None, start: int, depth: int) -> None:
        """Places the leaves order[low:high], which agree up to `start`, where `parent` ends."""
        first = low
        for i in range(low, high):
            if i + 1 < high and depth < max_depth and shared[i] >= start + MIN_SHARED:
                continue
            # order[first : i + 1] is a run whose neighbours share more than the parent.
            if i > first:
                end = min(shared[first:i])
                prefix = _Segment(tokens[order[i]][start:end], start, parent, cells=end - start)
                place(first, i + 1, prefix, end, depth + 1)
            else:
                leaf = order[i]
                cells = leaves[leaf].room - start
                suffixes.append(_Segment(tokens[leaf][start:], start, parent, cells=cells, leaf=leaf))
            if parent is not None:
                parent.children += 1
            first = i + 1

    place(0, len(order), None, 0, 1)
    return suffixes


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix, short of either's last token."""
    n = min(len(a), len(b)) - 1
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


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
        raise InputError(f"{path} is not a GGUF file. Convert the model with llama.cpp, or download its GGUF.")
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
    errors = [line for line in lines if any(sign in line.lower() for sign in ("error", "fail", *_MEMORY_SIGNS))]
    return " / ".join((errors or lines)[-3:]).strip().rstrip(".") or "llama.cpp gave no reason"


def _free(context: Any, model: Any) -> None:
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
