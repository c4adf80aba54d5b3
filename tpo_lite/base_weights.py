"""Loading the base, in 4-bit NF4 or unquantized, and its adapter: transformers, bitsandbytes and peft."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tpo_lite.errors import InputError, OutOfMemory, first_line, is_out_of_memory, says_out_of_memory
from tpo_lite.hub import to_download
from tpo_lite.kinds import Precision
from tpo_lite.machine.device import Device, check_torch, leave_room


def compute_dtype(device: Device) -> torch.dtype:
    """Return what 4-bit weights are unpacked to: bfloat16 on "cuda", float32 on "cpu"."""
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
def loading(model: str, smaller: str = "take a smaller model") -> Iterator[None]:
    """Turn the errors that libraries raise while they load `model` into `OutOfMemory` or `InputError`.

    `smaller`: what needs less memory.
    """
    logger, report = logging.getLogger("transformers.modeling_utils"), _Warnings()
    if downloading := to_download(model):
        print(downloading, file=sys.stderr, flush=True)
    before = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(report)
    try:
        yield
    except (MemoryError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error) or says_out_of_memory(f"{error} {report.text}"):
            raise OutOfMemory(
                f"model: {model} cannot be loaded: memory ran out. End other programs that use it, or {smaller}."
            ) from error
        raise InputError(
            f"model: {model} cannot be loaded ({first_line(error)}). "
            "Check that it is a causal language model, that its files are complete and that the network works."
        ) from error
    finally:
        logger.removeHandler(report)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def smaller(precision: Precision) -> str:
    """Return the remedy if a base in this precision does not fit the memory."""
    return "take a smaller model" if precision == "nf4" else "start again with --set quantize=nf4 --new"


class _Warnings(logging.Handler):
    """Collects the text of transformers' warnings.

    When quantizing a tensor fails, transformers logs the error and goes on. The exception that it raises at the end
    only says that there were errors.
    """

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Add the message of `record`."""
        self.text += record.getMessage()


def dtype_of(device: Device, precision: Precision) -> torch.dtype:
    """Return the type that a base computes in: of 4-bit weights `compute_dtype`, otherwise their own."""
    dtype: torch.dtype = compute_dtype(device) if precision == "nf4" else getattr(torch, precision)
    return dtype


def load_base(model: str, device: Device, precision: Precision) -> Any:
    """Load the base without an adapter. Its weights get no gradient; what trains is the adapter, in float32.

    Raises `OutOfMemory` if memory runs out, `InputError` if the model cannot be loaded for another reason or torch
    cannot use the device.
    """
    check_torch(device)
    leave_room(device)
    how: dict[str, Any] = {"dtype": dtype_of(device, precision)}
    if precision == "nf4":
        how["quantization_config"] = nf4(device)
    with loading(model, smaller(precision)):
        base = AutoModelForCausalLM.from_pretrained(model, device_map={"": device}, **how)
    for module in base.modules():
        if isinstance(module, Linear4bit):
            # On CPUs with AVX-512 bfloat16, the first forward pass in eval mode would repack the weights for a kernel
            # that has no backward pass. Training afterwards would silently lose the gradient of every linear layer.
            module.support_avx512bf16_for_cpu = False
    return base


def unpacked(weight: torch.nn.Parameter) -> torch.Tensor:
    """Return a weight (out, in) of the base as it is computed with: dequantized if it is in 4 bits."""
    state = getattr(weight, "quant_state", None)
    return weight.data if state is None else dequantize_4bit(weight.data, state)


def load(model: str, adapter: Path | None, device: Device, precision: Precision) -> Any:
    """Load the base, with its adapter if there is one, in eval mode. Raises as `load_base` does.

    On a GPU the adapter is in the type that the base computes in, as autocast has it in training. In float32 every
    layer would cast its input and its output.
    """
    base = load_base(model, device, precision)
    if adapter is not None:
        from peft import PeftModel

        base = PeftModel.from_pretrained(base, adapter)
        if device == "cuda":
            dtype = dtype_of(device, precision)
            for name, parameter in base.named_parameters():
                if ".lora_" in name:
                    parameter.data = parameter.data.to(dtype)
    return base.eval()
