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
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import llama_cpp
import numpy as np

from tpo_lite.errors import InputError, OutOfMemory, TpoError
from tpo_lite.gguf_model import GgufModel, clear_log, last_log, memory_ran_out
from tpo_lite.nucleus import generator, nucleus_token
from tpo_lite.prefix_tree import Continuation, Decision, Decoded, Leaf, Segment, prefix_tree

__all__ = ["Continuation", "Decision", "Decoded", "Leaf", "LlamaCpp"]

ALLOC_FAILED = -2
"""What `llama_decode` returns where memory ran out (ggml's GGML_STATUS_ALLOC_FAILED)."""

SMALL_MODEL = 64 << 20
"""Bytes of weights below which one thread decodes: threads meet after every operation, and where operations
are this short, another process on one of the cores made two threads 60 times slower than one."""


class LlamaCpp(GgufModel):
    """A GGUF model with a unified KV cache, decoding many sequences at a time.

    `n_ctx` is the number of KV cells that all sequences in flight hold together, `n_batch` the most
    tokens in one decode, `n_seq_max` the most sequences in flight (at most 256, a limit of llama.cpp,
    and at most `n_batch`); a leaf takes one sequence and so does each shared prefix above it.
    `kv_type` is the type of keys and values alike; q8_0 needs `flash_attn`. `n_gpu_layers` is the number
    of layers on the GPU (-1: all). `n_threads` None takes the CPUs that this process may use, and one for
    a model smaller than SMALL_MODEL. `adapter` is a LoRA as GGUF (`tpo_lite.adapters_gguf`), attached.

    Raises `InputError` as `GgufModel` does, and `OutOfMemory` where the memory does not suffice.
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
        adapter: Path | None = None,
    ):
        if kv_type == "q8_0" and not flash_attn:
            raise InputError("A q8_0 KV cache needs flash attention. Turn it on, or take kv_type f16.")
        super().__init__(path, n_gpu_layers)
        self.n_ctx, self.n_batch = n_ctx, n_batch
        self.n_seq_max = min(n_seq_max, n_batch, llama_cpp.llama_max_parallel_sequences())
        self.tokens_decoded = 0
        """Tokens evaluated by all `decode` calls so far."""

        # Before the context, which sizes its graph for the adapters that the model has by then.
        self._adapter = None if adapter is None else _load_adapter(self._model, adapter)
        self._context = self._make_context(kv_type, flash_attn, n_threads, on_gpu=n_gpu_layers != 0)
        weakref.finalize(self, llama_cpp.llama_free, self._context)
        self.attach_adapter(adapter is not None)
        self._memory = llama_cpp.llama_get_memory(self._context)

        self.max_leaf = min(n_ctx, llama_cpp.llama_model_n_ctx_train(self._model))
        """Most tokens of one leaf, its continuation included: by the KV cache and the model's training."""
        self._allocate_batch()

    def _make_context(self, kv_type: str, flash_attn: bool, n_threads: int | None, on_gpu: bool) -> Any:
        self.check_context(self.n_ctx, kv_type, on_gpu)
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
        clear_log()
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            # Now, and not when the error is forgotten: whoever tries fewer GPU layers needs the memory.
            self._free_model()
            kind = OutOfMemory if memory_ran_out() else InputError
            raise kind(
                f"{self.path}: no context of {self.n_ctx} tokens ({kv_type} KV cache) could be made: "
                f"{last_log()}. Take a smaller context or, where memory ran out, kv_type q8_0."
            )
        pooled = llama_cpp.llama_pooling_type(context) != llama_cpp.LLAMA_POOLING_TYPE_NONE
        if pooled or not llama_cpp.llama_get_causal_attn(context):
            llama_cpp.llama_free(context)
            raise self.embedding_error()
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

    def attach_adapter(self, attached: bool) -> None:
        """Whether the next `decode` uses the adapter."""
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        llama_cpp.llama_set_adapters_lora(self._context, adapters, int(attached), (ctypes.c_float * 1)(1.0))

    # Decoding

    def decode(self, leaves: Sequence[Leaf]) -> list[Decoded]:
        """What becomes of all leaves, in the order given; see `stream`."""
        ended = dict(self.stream(leaves))
        return [ended[index] for index in range(len(leaves))]

    def stream(self, leaves: Sequence[Leaf]) -> Iterator[tuple[int, Decoded]]:
        """Decodes all leaves; gives each leaf's number and what became of it as soon as it has ended.

        Only one stream at a time: each begins with an empty cache. A leaf enters when a sequence and all the KV cells that it may need are free, so that nothing ever
        has to be taken back. Raises `InputError` naming a leaf that does not fit even alone, before any
        work is done; what no leaf may ask for, `Continuation` refuses.
        """
        for index, leaf in enumerate(leaves):
            if not leaf.tokens or leaf.room > self.max_leaf:
                raise InputError(
                    f"Leaf {index} needs {leaf.room} tokens ({len(leaf.tokens)} given); it must have one at "
                    f"least and fit {self.max_leaf}. Shorten it, or take a larger context."
                )
        yield from _Schedule(self, leaves).run()

    def _decode_batch(self, n_tokens: int) -> None:
        self._batch.n_tokens = n_tokens
        clear_log()
        status = llama_cpp.llama_decode(self._context, self._batch)
        if status != 0:
            kind = OutOfMemory if status == ALLOC_FAILED else TpoError
            raise kind(
                f"{self.path}: llama.cpp could not decode {n_tokens} tokens (status {status}): "
                f"{last_log()}. Take a smaller batch or context."
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
        self.ended: list[tuple[int, Decoded]] = []
        """What has ended in the last decode."""

    def run(self) -> Iterator[tuple[int, Decoded]]:
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
            yield from self.ended
            self.ended.clear()

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
        token = _next_token(segment, plan, self.engine._logits(row, None))
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
        self.ended.append((segment.leaf, Decoded(segment.sampled, ended, logits)))
        done: Segment | None = segment
        while done is not None and done.children == 0:
            llama_cpp.llama_memory_seq_rm(self.engine._memory, done.seq, -1, -1)
            self.free_sequences.append(done.seq)
            self.free_cells += done.cells
            self.resident.remove(done)
            done = done.parent
            if done is not None:
                done.children -= 1


def _next_token(segment: Segment, plan: Continuation, logits: np.ndarray) -> int:
    if plan.temperature == 0:
        return int(logits.argmax())
    if segment.random is None:
        segment.random = generator(plan.seed)
    return nucleus_token(logits, segment.random.random(), plan.temperature, plan.top_p)


def _load_adapter(model: Any, path: Path) -> Any:
    """A LoRA as GGUF, loaded beside the model that it belongs to; it is freed with the model."""
    clear_log()
    adapter = llama_cpp.llama_adapter_lora_init(model, str(path).encode())
    if not adapter:
        raise TpoError(f"{path} is no adapter of this model: {last_log()}. Delete it; it is made again.")
    return adapter
