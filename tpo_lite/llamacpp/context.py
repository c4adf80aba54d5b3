"""A GGUF model with a llama.cpp context: a KV cache of many sequences, and decodes of batches of their tokens.

`llama_cpp.Llama` decodes one sequence at a time. This module uses the low-level functions of llama-cpp-python 0.3.36
instead.

The KV cache is unified or in streams. In a unified cache all sequences share the cells, copying a prefix only labels
cells, and attention visits every cell in use and masks those of other sequences. In streams each sequence has its own
cells, copying a prefix copies them, and attention visits no others. On a CPU masked cells cost more than copies: with
32 sequences of 800 tokens a prompt token took 835 microseconds in a unified cache and 262 in streams, and one step of
the continuations 90 and 60 milliseconds (4 layers of width 512, Q4_K_M, one thread). On a GPU flash attention visits
masked cells too. A small model gains more from large batches of uneven parts, which streams cannot decode together.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import llama_cpp
import numpy as np

from tpo_lite.errors import InputError, OutOfMemory, TpoError
from tpo_lite.llamacpp.leaves import CELLS
from tpo_lite.llamacpp.model import GgufModel, clear_log, last_log, memory_ran_out
from tpo_lite.llamacpp.prefix_tree import Segment
from tpo_lite.machine.threads import cores

ALLOC_FAILED = -2
"""What `llama_decode` returns if memory ran out (ggml's GGML_STATUS_ALLOC_FAILED)."""

SMALL_MODEL = 64 << 20
"""Bytes of weights below which one thread decodes and the KV cache is unified. Threads meet after every operation, and
the operations of a small model are so short that another process on one of the cores made two threads 60 times slower
than one."""


class LlamaContext(GgufModel):
    """A GGUF model and its KV cache.

    `n_ctx` is the number of KV cells that all sequences in flight hold together, `n_batch` the most tokens in one
    decode, `n_seq_max` the most sequences in flight (at most 256, a limit of llama.cpp, and at most `n_batch`).
    `n_gpu_layers` is the number of layers on the GPU (-1: all). `kv_type` is the type of keys and values; q8_0 needs
    `flash_attn`. `n_threads` None uses the cores that this process may use, and one for a model smaller than
    SMALL_MODEL. `adapter` is a LoRA in a GGUF file (`tpo_lite.llamacpp.adapter`), attached. `kv_unified` None chooses a
    unified cache for a model smaller than SMALL_MODEL.

    Raises `InputError` as `GgufModel` does, and `OutOfMemory` if there is not enough memory.
    """

    memory: Any
    """llama.cpp's handle of the KV cache."""

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
        kv_unified: bool | None = None,
    ):
        if kv_type == "q8_0" and not flash_attn:
            raise InputError("A q8_0 KV cache needs flash attention. Turn it on, or use kv_type f16.")
        super().__init__(path, n_gpu_layers)
        self.n_ctx, self.n_batch = n_ctx, n_batch
        self.n_seq_max = min(n_seq_max, n_batch, llama_cpp.llama_max_parallel_sequences())
        small = llama_cpp.llama_model_size(self._model) < SMALL_MODEL
        self.kv_unified = small if kv_unified is None else kv_unified
        if n_threads is None:
            n_threads = 1 if small else cores()
        self.tokens_decoded = 0
        """Tokens evaluated by all `decode` calls so far."""
        self.check_context(n_ctx, kv_type, on_gpu=n_gpu_layers != 0)

        # Before the context is made: llama.cpp sizes its graph for the adapters that the model has by then.
        self._adapter: Any = None if adapter is None else _load_adapter(self._model, adapter)
        self._adapter_attached = adapter is not None
        self._params = self._context_params(kv_type, flash_attn, n_threads)
        self._context: Any = None
        self._free_context: Callable[[], Any] = lambda: None
        self.max_leaf = min(n_ctx, llama_cpp.llama_model_n_ctx_train(self._model))
        """The most tokens of one sequence, by the KV cache and the model's training."""
        self._make_context(self.n_seq_max if self.kv_unified else max(1, min(self.n_seq_max, n_ctx // CELLS)))
        self._copied = (ctypes.c_uint8 * 0)()
        self._allocate_batch()

    def _context_params(self, kv_type: str, flash_attn: bool, n_threads: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_batch = params.n_ubatch = self.n_batch
        params.kv_unified = self.kv_unified
        params.type_k = params.type_v = getattr(llama_cpp, f"GGML_TYPE_{kv_type.upper()}")
        params.flash_attn_type = int(flash_attn)
        params.offload_kqv = True
        params.n_threads = params.n_threads_batch = n_threads
        return params

    def _make_context(self, sequences: int) -> None:
        """Make a context for this number of sequences, in place of the one before."""
        self._free_context()
        params = self._params
        params.n_ctx = self.n_ctx
        if sequences > 1 and not self.kv_unified:  # llama.cpp would round each stream's share of the cells up
            params.n_ctx = sequences * (self.n_ctx // sequences // CELLS * CELLS)
        params.n_seq_max = params.n_outputs_max = sequences
        clear_log()
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            # Free it now, not when the error is handled: the next try with fewer GPU layers needs the memory.
            self._free_model()
            kind = OutOfMemory if memory_ran_out() else InputError
            kv_type = "q8_0" if params.type_k == llama_cpp.GGML_TYPE_Q8_0 else "f16"
            raise kind(
                f"{self.path}: no context of {self.n_ctx} tokens ({kv_type} KV cache) could be made: "
                f"{last_log()}. Use a smaller context or, if memory ran out, kv_type q8_0."
            )
        pooled = llama_cpp.llama_pooling_type(context) != llama_cpp.LLAMA_POOLING_TYPE_NONE
        if pooled or not llama_cpp.llama_get_causal_attn(context):
            llama_cpp.llama_free(context)
            raise self.embedding_error()
        self._context, self._sequence_count = context, sequences
        self._free_context = weakref.finalize(self, llama_cpp.llama_free, context)
        self.memory = llama_cpp.llama_get_memory(context)
        if self._adapter is not None:
            self.attach_adapter(self._adapter_attached)

    def use_streams(self, sequences: int) -> None:
        """Give the KV cache this number of streams, if it has another."""
        if sequences != self._sequence_count:
            self._make_context(sequences)

    def _allocate_batch(self) -> None:
        n = self.n_batch
        self._tokens, self._positions = np.zeros(n, np.int32), np.zeros(n, np.int32)
        self._sequences, self._wanted = np.zeros(n, np.int32), np.zeros(n, np.int8)
        self._ones = np.ones(n, np.int32)
        # llama.cpp takes a pointer to an array of sequence ids for each token. Ours hold one id, in self._sequences.
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
        """Choose whether the adapter is used from the next decode on."""
        self._adapter_attached = attached
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        llama_cpp.llama_set_adapters_lora(self._context, adapters, int(attached), (ctypes.c_float * 1)(1.0))

    def decode_batch(self, parts: Sequence[tuple[Segment, int]]) -> list[Segment]:
        """Decode the given number of tokens of each segment, and return the segments that this completes."""
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        completed, wanted = [], []
        for segment, take in parts:
            start = segment.start + segment.done
            tokens.extend(segment.tokens[segment.done : segment.done + take])
            positions += range(start, start + take)
            sequences += [segment.seq] * take
            segment.done += take
            if segment.complete:
                completed.append(segment)
                if segment.leaf is not None:
                    wanted.append(len(tokens) - 1)
        n = len(tokens)
        self._tokens[:n], self._positions[:n], self._sequences[:n] = tokens, positions, sequences
        self._wanted[:n] = 0
        self._wanted[wanted] = 1
        self._batch.n_tokens = n
        clear_log()
        status = llama_cpp.llama_decode(self._context, self._batch)
        if status != 0:
            kind = OutOfMemory if status == ALLOC_FAILED else TpoError
            raise kind(
                f"{self.path}: llama.cpp could not decode {n} tokens (status {status}): "
                f"{last_log()}. Use a smaller batch or context."
            )
        self.tokens_decoded += n
        return completed

    def copy_sequence(self, source: int, target: int) -> None:
        """Copy the cells of one stream to another, which is empty.

        `llama_memory_seq_cp` would copy unused cells too, and lay out the compute graph again after each copy.
        """
        size = llama_cpp.llama_state_seq_get_size(self._context, source)
        if len(self._copied) < size:
            self._copied = (ctypes.c_uint8 * size)()
        read = llama_cpp.llama_state_seq_get_data(self._context, self._copied, size, source)
        if read != size or llama_cpp.llama_state_seq_set_data(self._context, self._copied, size, target) != size:
            raise TpoError(f"{self.path}: llama.cpp could not copy a sequence of {size} bytes: {last_log()}.")

    def all_logits(self, rows: int) -> np.ndarray:
        """Return the last decode's logits after the last tokens of completed leaves, in their order.

        (rows, vocabulary), float32: a view of llama.cpp's memory, valid until the next decode.
        """
        if rows == 0:
            return np.empty((0, self.n_vocab), np.float32)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), (rows, self.n_vocab))


def _load_adapter(model: Any, path: Path) -> Any:
    """Load a LoRA adapter in a GGUF file for `model`; it is freed with the model."""
    clear_log()
    adapter = llama_cpp.llama_adapter_lora_init(model, str(path).encode())
    if not adapter:
        raise TpoError(f"{path} is not an adapter of this model: {last_log()}. Delete it; it is made again.")
    return adapter
