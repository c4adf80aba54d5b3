"""The device that a process works on: the CPU, or one GPU."""

from __future__ import annotations

import os
from typing import Literal

from tpo_lite.errors import InputError

Device = Literal["cpu", "cuda"]
"""What a process works on; "cuda" is the one GPU that is visible to it."""

DEVICE = "TPO_LITE_DEVICE"
"""Environment variable by which `train --gpu` and `--cpu` tell the phases where to work."""


def wants_cuda() -> bool:
    """Whether a run was started with --gpu; for phases that do not load torch."""
    return os.environ.get(DEVICE) == "cuda"


def chosen_device() -> str:
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


def use_device(gpu: int | None) -> None:
    """Tells this process and its phases where to work: on GPU `gpu`, or on the CPU. Raises `InputError`."""
    if gpu is not None:
        check_gpu(gpu)
    os.environ["TPO_LITE_DEVICE"] = "cpu" if gpu is None else "cuda"
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if gpu is None else str(gpu)


def check_gpu(index: int) -> None:
    """Raises `InputError` if nvidia-smi lists no GPU `index`."""
    from tpo_lite.machine.cards import nvidia_smi

    try:
        found = [number for (number,) in nvidia_smi("index")]
    except FileNotFoundError:
        raise InputError(
            "--gpu: this machine has no nvidia-smi, so no NVIDIA driver. Install the driver, or use --cpu."
        ) from None
    except RuntimeError as error:
        raise InputError(f"--gpu {index}: nvidia-smi fails ({error}). Mend the driver, or use --cpu.") from None
    if index not in found:
        listed = ", ".join(map(str, found)) or "none"
        raise InputError(f"--gpu {index}: there is no such GPU; nvidia-smi lists {listed}.")
