"""Engines load M_t ready to sample: a 4-bit base and one live adapter.

An engine is a module with one function, `load(model, adapter, device, max_length)`, that returns a
causal language model whose `generate` is Hugging Face's. `tpo_lite.sampling.Sampler` does the rest, so
both engines draw the same random numbers.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

from tpo_lite.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


DEVICE = "TPO_LITE_DEVICE"
"""Environment variable by which `train --gpu` and `--cpu` tell the phases where to work."""


def wants_cuda() -> bool:
    """Whether a run was started with --gpu; for phases that do not load torch."""
    return os.environ.get(DEVICE) == "cuda"


def device() -> str:
    """ "cuda" or "cpu": what `train` was told, else what is there.

    Raises `InputError` if CUDA was asked for and torch has none.
    """
    import torch

    if wants_cuda() and not torch.cuda.is_available():
        raise InputError(
            f"--gpu was given, but torch {torch.__version__} finds no usable CUDA device. "
            "Check `nvidia-smi`, install a CUDA build of torch, or use --cpu."
        )
    return os.environ.get(DEVICE) or ("cuda" if torch.cuda.is_available() else "cpu")


def engine_name(wanted: str, on: str) -> str:
    """The engine to sample with: "auto" is unsloth on CUDA where it is installed, else transformers."""
    if wanted != "auto":
        if wanted == "unsloth" and importlib.util.find_spec("unsloth") is None:
            raise InputError("engine: unsloth is not installed. Run `pip install 'tpo_lite[gpu]'`, or set engine: transformers.")
        return wanted
    return "unsloth" if on == "cuda" and importlib.util.find_spec("unsloth") else "transformers"


def load(engine: str, model: str, adapter: Path | None, on: str, max_length: int) -> Any:
    """M_t: the 4-bit base `model` with `adapter`, ready to sample sequences of `max_length` tokens."""
    if engine == "unsloth":
        from tpo_lite.engines import unsloth as module
    else:
        from tpo_lite.engines import transformers as module
    return module.load(model, adapter, on, max_length)
