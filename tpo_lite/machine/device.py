"""The device that a run works on: the CPU, or one GPU."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Literal

from tpo_lite.errors import InputError
from tpo_lite.machine.cards import GIB, nvidia_smi

ROOM = 0.8 * GIB
"""Bytes of a GPU that torch's allocator leaves to CUDA's context, its kernels and libraries, and bitsandbytes. Without
room, these fail in ways that nobody can catch."""

Device = Literal["cpu", "cuda"]
"""What a process works on; "cuda" is the one GPU that is visible to it."""


@dataclass(frozen=True)
class Place:
    """Where a run works: on the CPU, or on one GPU of this machine."""

    gpu: int | None
    """The GPU's index, as nvidia-smi counts; None: the CPU."""

    @property
    def device(self) -> Device:
        """The same for a process that sees no other GPU."""
        return "cpu" if self.gpu is None else "cuda"

    def pin(self, environment: MutableMapping[str, str]) -> None:
        """Let a process with this environment see the one GPU, or none. Only before torch or llama.cpp is loaded."""
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi counts
        environment["CUDA_VISIBLE_DEVICES"] = "" if self.gpu is None else str(self.gpu)
        # A KV cache that grows by a token at a time would leave blocks that fit nothing later, until the card is full.
        environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


CPU = Place(None)


def place_of(gpu: int | None) -> Place:
    """Return the place that --gpu names, or the CPU. Raises `InputError` if nvidia-smi lists no such GPU."""
    if gpu is not None:
        check_gpu(gpu)
    return Place(gpu)


def default_place() -> Place:
    """Return the first GPU that nvidia-smi lists, or the CPU."""
    try:
        found = [number for (number,) in nvidia_smi("index")]
    except (FileNotFoundError, RuntimeError):
        found = []
    return Place(found[0]) if found else CPU


def check_gpu(index: int) -> None:
    """Raise `InputError` if nvidia-smi lists no GPU `index`."""
    try:
        found = [number for (number,) in nvidia_smi("index")]
    except FileNotFoundError:
        raise InputError(
            "--gpu: this machine has no nvidia-smi, so no NVIDIA driver. Install the driver, or use --cpu."
        ) from None
    except RuntimeError as error:
        raise InputError(f"--gpu {index}: nvidia-smi fails ({error}). Fix the driver, or use --cpu.") from None
    if index not in found:
        listed = ", ".join(map(str, found)) or "none"
        raise InputError(f"--gpu {index}: there is no such GPU; nvidia-smi lists {listed}.")


def check_torch(device: Device) -> None:
    """Raise `InputError` if the device is "cuda" and torch has no CUDA that works. Imports torch."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"--gpu was given, but torch {torch.__version__} finds no usable CUDA device. "
            "Check `nvidia-smi`, install a CUDA build of torch, or use --cpu."
        )


def leave_room(device: Device) -> None:
    """Let torch leave `ROOM` of a GPU to others, so that memory which runs out is an error of torch. Imports torch."""
    if device == "cpu":
        return
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(max(0.5, 1 - ROOM / total))
