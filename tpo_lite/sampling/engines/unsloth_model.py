"""Engine unsloth: the same base and adapter, with unsloth's kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unsloth import FastLanguageModel  # isort: skip  before transformers and peft, which it patches

from peft import PeftModel

from tpo_lite.base_weights import dtype_of, loading, smaller
from tpo_lite.kinds import Precision
from tpo_lite.machine.device import Device, leave_room


def load(model: str, adapter: Path | None, device: Device, precision: Precision, max_length: int) -> Any:
    """Load the base, with its adapter if there is one, for sequences of up to `max_length` tokens.

    unsloth's kernels read only the first active adapter, so there is never a second. Raises `OutOfMemory` if memory
    runs out, `InputError` if the model cannot be loaded for another reason.
    """
    leave_room(device)
    with loading(model, smaller(precision)):
        loaded, _ = FastLanguageModel.from_pretrained(
            model,
            max_seq_length=max_length,
            load_in_4bit=precision == "nf4",
            dtype=dtype_of(device, precision),
            # Otherwise unsloth takes a checkpoint of its own, quantized in another way than the base that is trained.
            use_exact_model_name=True,
        )
    if adapter is not None:
        loaded = PeftModel.from_pretrained(loaded, adapter)
    FastLanguageModel.for_inference(loaded)
    return loaded
