"""How much memory a phase takes, what says that it did not suffice, and whether the GPU has it back at the end.

The host's peak is of what the kernel cannot take back: files that are mapped into memory, as a checkpoint is while
it is read and a GGUF's weights are, are left out, since their pages make way for whatever needs the room. A GPU has
two peaks: torch's allocator knows what its tensors took and what it reserved for them; NVML (nvidia-ml-py, part of
the extra `gpu`) knows what the whole process holds, CUDA context and llama.cpp included. Neither the kernel nor NVML
keeps such a peak of a process, so both are asked ten times a second. A GPU's allocators hold on to what they have
reserved, so nothing much is missed in between; of RAM, what is given back within a tenth of a second may be. Imports
no torch.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from tpo_lite.machine.device import DEVICE

STATUS = Path("/proc/self/status")
INTERVAL = 0.1
"""Seconds between two looks at the process's memory."""
SLACK = 256 << 20
"""Bytes that other programs on a desktop's card come and go by."""


class Gpu:
    """The memory of one GPU through NVML."""

    def __init__(self, nvml: Any, handle: Any):
        self.nvml, self.handle = nvml, handle

    def used(self) -> int:
        """Bytes in use by all processes."""
        return self.nvml.nvmlDeviceGetMemoryInfo(self.handle).used

    def used_here(self) -> int:
        """Bytes in use by this process; 0 before it uses the GPU, and where NVML cannot tell (WSL, containers)."""
        try:
            running = self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle)
        except self.nvml.NVMLError:
            return 0
        return sum(process.usedGpuMemory or 0 for process in running if process.pid == os.getpid())


def gpu() -> Gpu | None:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves visible; None without one, without NVML and with --cpu."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if not visible or os.environ.get(DEVICE) == "cpu":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        by = pynvml.nvmlDeviceGetHandleByIndex if visible.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
        return Gpu(pynvml, by(int(visible) if visible.isdigit() else visible))
    except pynvml.NVMLError:
        return None


def held_by_host() -> int:
    """Bytes of RAM that this process holds and the kernel cannot take back; where the kernel does not tell them from
    mapped files (macOS, WSL 1), the most of both that it has held so far."""
    lines = STATUS.read_text(encoding="ascii").splitlines() if STATUS.exists() else []
    held = [1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    if held:
        return sum(held)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


class PeakMemory:
    """Peak memory of this process, watched from the making of this object until `bytes` is asked for, or a `with` block
    with it ends."""

    def __init__(self) -> None:
        self._gpu = gpu()
        self._before = self._gpu.used() if self._gpu is not None else 0
        self._host, self._own, self._card = 0, 0, 0
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        self._host = max(self._host, held_by_host())
        if self._gpu is None:
            return
        self._own = max(self._own, self._gpu.used_here())
        self._card = max(self._card, self._gpu.used() - self._before)

    def bytes(self) -> dict[str, int]:
        """`host`; `gpu`, the whole process's; of that `gpu_reserved` and `gpu_allocated` by torch. Only what there is."""
        self._ended.set()
        self._look()
        peak = {"host": self._host}
        torch = sys.modules.get("torch")  # never imported for this: a phase without torch has no such figures
        if torch is not None and torch.cuda.is_initialized():
            peak["gpu_allocated"] = torch.cuda.max_memory_allocated()
            peak["gpu"] = peak["gpu_reserved"] = torch.cuda.max_memory_reserved()
        if self._gpu is not None:
            # Where NVML does not know processes, what the card holds more than at the start is taken for ours.
            peak["gpu"] = max(self._own or self._card, peak.get("gpu", 0))
        return peak


def wait_until_free(card: Gpu, before: int, seconds: float = 30.0) -> int:
    """Waits, at most so long, until the GPU holds no more than the `before` bytes it held, but for SLACK.

    Returns the bytes that are still missing: 0 if all are back. The driver frees a process's memory some time
    after the process has ended.
    """
    deadline = time.monotonic() + seconds
    while (missing := card.used() - before) > SLACK:
        if time.monotonic() > deadline:
            return missing
        time.sleep(INTERVAL)
    return 0
