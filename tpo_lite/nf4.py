"""Loading the 4-bit base and its adapter: transformers, bitsandbytes NF4 and peft, on a CPU or a GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tpo_lite.errors import InputError, OutOfMemory, first_line, is_out_of_memory, says_out_of_memory
from tpo_lite.machine.device import Device, check_torch


def compute_dtype(device: Device) -> torch.dtype:
    """Return bfloat16 on "cuda" and float32 on "cpu", where bfloat16 is no faster at these sizes."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def nf4(device: Device) -> BitsAndBytesConfig:
    """Return the project's one quantization: NF4 with double quantization (QLoRA, arXiv 2305.14314, section 3)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(device),
    )


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Turn the errors that libraries raise while they load `model` into `OutOfMemory` or `InputError`."""
    logger, report = logging.getLogger("transformers.modeling_utils"), _Warnings()
    before = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(report)
    try:
        yield
    except (MemoryError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error) or says_out_of_memory(f"{error} {report.text}"):
            raise OutOfMemory(
                f"model: {model} cannot be loaded: memory ran out. End other programs that use it, or take a smaller "
                "model."
            ) from error
        raise InputError(
            f"model: {model} cannot be loaded ({first_line(error)}). "
            "Check that it is a causal language model, that its files are complete and that the network works."
        ) from error
    finally:
        logger.removeHandler(report)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _Warnings(logging.Handler):
    """Collects the text of transformers' warnings.

    When quantizing a tensor fails, transformers logs the error and goes on. The exception that it raises at the end
    only says that there were errors.
    """

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Add the message of `record`."""
        self.text += record.getMessage()


def load_base(model: str, device: Device) -> Any:
    """Load the 4-bit base without an adapter.

    Raises `OutOfMemory` if memory runs out, `InputError` if the model cannot be loaded for another reason or torch
    cannot use the device.
    """
    check_torch(device)
    with loading(model):
        base = AutoModelForCausalLM.from_pretrained(
            model, quantization_config=nf4(device), dtype=compute_dtype(device), device_map={"": device}
        )
    for module in base.modules():
        if isinstance(module, Linear4bit):
            # On CPUs with AVX-512 bfloat16, the first forward pass in eval mode would repack the weights for a kernel
            # that has no backward pass. Training afterwards would silently lose the gradient of every linear layer.
            module.support_avx512bf16_for_cpu = False
    return base


def load(model: str, adapter: Path | None, device: Device) -> Any:
    """Load the 4-bit base, with its adapter if there is one, in eval mode. Raises as `load_base` does."""
    base = load_base(model, device)
    if adapter is not None:
        from peft import PeftModel

        base = PeftModel.from_pretrained(base, adapter)
    return base.eval()
