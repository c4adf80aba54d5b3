"""What benchmarks share: the machine in words, memory caps, instructions to sample for, and adapters."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

from tpo_lite.errors import InputError
from tpo_lite.machine.cards import GIB
from tpo_lite.machine.memory import Gpu, gpu
from tpo_lite.records import Instruction

LATER_KERNELS = 256 << 20
"""Bytes that CUDA may take for kernels that are loaded when they are first called. Assumed, not measured."""
POOL = 800
"""Texts that instructions are chosen from."""


def machine(device: str) -> str:
    """Return in words what the benchmark runs on."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{os.cpu_count()} cores ({threads} threads), {platform.processor() or platform.machine()}, no GPU"


def visible_gpu(device: str) -> Gpu | None:
    """Return the first GPU that CUDA_VISIBLE_DEVICES leaves visible; None on a CPU and without NVML."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if not visible or device == "cpu":
        return None
    return gpu(int(visible) if visible.isdigit() else visible)


def cap_memory(device: str, gib: float | None) -> None:
    """Leave torch as much of the GPU as a card of `gib` GiB would; beyond that it raises its out-of-memory error.

    The CUDA context, which this call creates, and whatever else holds GPU memory now count as part of the `gib`.
    """
    if device == "cuda" and gib is not None:
        import torch

        free, total = torch.cuda.mem_get_info()
        left = gib * GIB - (total - free) - LATER_KERNELS
        torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, left / total)))


def need_gpu_offload(device: str) -> None:
    """Raise `InputError` if llama.cpp has no CUDA: it would use the CPU instead and say nothing."""
    import llama_cpp

    if device == "cuda" and not llama_cpp.llama_supports_gpu_offload():
        raise InputError("llama.cpp was built without CUDA. Install it again with CMAKE_ARGS=-DGGML_CUDA=on.")


def read_instructions(model: str, count: int, longest: int) -> list[Instruction]:
    """Return puzzles for the embedded policy, else `count` passages of at most `longest` tokens with a request.

    The longest passage comes first, whatever `count` is: it decides how much memory prompts take.
    """
    from benchmarks.texts import passages
    from tpo_lite.chat import Chat, load_tokenizer
    from tpo_lite.embedded import world
    from tpo_lite.hub import model_path

    if model == "embedded":
        return world.instructions(count, seed=20_000)
    chat = Chat(load_tokenizer(model_path(model)))
    lengths = {text: chat.count(text) for text, _ in passages(POOL)}
    texts = [text for text, length in lengths.items() if length <= longest]
    first = max(texts, key=lambda text: lengths[text])
    texts = [first, *(text for text in texts if text != first)]
    return [Instruction(str(number), text, "README") for number, text in enumerate(texts[:count])]


def write_adapter_to(work: Path, model: str, rank: int) -> None:
    """Write a fresh adapter of `model` to WORK/adapter: it changes nothing and costs what a trained one does."""
    from tpo_lite.adapters import fresh_block, lora_config, write_adapter

    lora_config(rank, 1.0).save_pretrained(work / "like")
    write_adapter(work / "adapter", fresh_block(layer_shapes(model), rank, "benchmark"), 1.0, model, work / "like")


def layer_shapes(model: str) -> dict[str, tuple[int, int]]:
    """Return (in, out) of every linear layer that an adapter changes, by name."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tpo_lite.hub import model_path

    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_path(model)))
    linears = {name: module for name, module in shell.named_modules() if isinstance(module, torch.nn.Linear)}
    return {name: (module.in_features, module.out_features) for name, module in linears.items() if name != "lm_head"}


def bytes_of(paths: Iterable[Path]) -> int:
    """Return the size of files on disk."""
    return sum(path.stat().st_size for path in paths)
