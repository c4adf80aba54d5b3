"""Engine unsloth: the same 4-bit base and adapter, with unsloth's kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unsloth import FastLanguageModel  # isort: skip  before transformers and peft, which it patches

from peft import PeftModel

from tpo_lite.machine.device import Device
from tpo_lite.nf4 import compute_dtype, loading


def load(model: str, adapter: Path | None, device: Device, max_length: int) -> Any:
    """Load the 4-bit base, with its adapter if there is one, for sequences of up to `max_length` tokens.

    unsloth's kernels read only the first active adapter, so there is never a second. Raises `OutOfMemory` if memory
    runs out, `InputError` if the model cannot be loaded for another reason.
    """
    with loading(model):
        loaded, _ = FastLanguageModel.from_pretrained(
            model, max_seq_length=max_length, load_in_4bit=True, dtype=compute_dtype(device)
        )
    if adapter is not None:
        loaded = PeftModel.from_pretrained(loaded, adapter)
    FastLanguageModel.for_inference(loaded)
    return loaded
