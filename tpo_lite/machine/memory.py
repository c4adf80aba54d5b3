"""How much memory a phase takes, and whether the GPU has it back at the end. Imports no torch.

The host's peak counts what the kernel cannot take back. Files that are mapped into memory, such as a GGUF's weights or
a checkpoint while it is read, are left out: their pages make way for whatever needs the room.

A GPU has two peaks. torch's allocator knows what its tensors took and what it reserved for them. NVML (nvidia-ml-py,
part of the extra `gpu`) knows what the whole process holds, CUDA context and llama.cpp included.

Neither the kernel nor NVML keeps the peak of a process, so both are asked ten times a second. Allocators of a GPU keep
what they have reserved, so little is missed in between. RAM that is given back within a tenth of a second may be
missed.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

STATUS = Path("/proc/self/status")
INTERVAL = 0.1
"""Seconds between two looks at the process's memory."""
SLACK = 256 << 20
"""Bytes by which other programs on a desktop's card may come and go."""


class Gpu:
    """The memory of one GPU through NVML."""

    def __init__(self, nvml: Any, handle: Any):
        self.nvml, self.handle = nvml, handle

    def used(self) -> int:
        """Return the bytes in use by all processes."""
        return int(self.nvml.nvmlDeviceGetMemoryInfo(self.handle).used)

    def used_here(self) -> int:
        """Return the bytes in use by this process; 0 before it uses the GPU, or if NVML cannot tell (WSL)."""
        try:
            running = self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle)
        except self.nvml.NVMLError:
            return 0
        return sum(process.usedGpuMemory or 0 for process in running if process.pid == os.getpid())


def gpu(name: int | str | None) -> Gpu | None:
    """Return the GPU with this index (as nvidia-smi counts) or UUID; None if NVML does not know it."""
    if name is None:
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        if isinstance(name, int):
            return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(name))
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(name))
    except pynvml.NVMLError:
        return None


def held_by_host() -> int:
    """Return the bytes of RAM that this process holds and the kernel cannot take back.

    Where the kernel does not separate them from mapped files (macOS, WSL 1), return their joint peak so far.
    """
    lines = STATUS.read_text(encoding="ascii").splitlines() if STATUS.exists() else []
    held = [1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    if held:
        return sum(held)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


class PeakMemory:
    """Peak memory of this process, and of its share of `gpu`.

    It is watched from the creation of this object until `bytes` is called or a `with` block around it ends.
    """

    def __init__(self, gpu: Gpu | None = None) -> None:
        self._gpu = gpu
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
        """Return `host`, `gpu` (of the whole process), and of that `gpu_reserved` and `gpu_allocated` by torch.

        A figure that cannot be measured is left out.
        """
        self._ended.set()
        self._look()
        peak = {"host": self._host}
        torch = sys.modules.get("torch")  # not imported here: a phase without torch has no such figures
        if torch is not None and torch.cuda.is_initialized():
            peak["gpu_allocated"] = torch.cuda.max_memory_allocated()
            peak["gpu"] = peak["gpu_reserved"] = torch.cuda.max_memory_reserved()
        if self._gpu is not None:
            # Where NVML does not know processes, all that the card holds more than at the start counts as ours.
            peak["gpu"] = max(self._own or self._card, peak.get("gpu", 0))
        return peak


def wait_until_free(gpu: Gpu, before: int, seconds: float = 30.0) -> int:
    """Wait until the GPU holds no more than the `before` bytes it held earlier, give or take SLACK.

    Waits `seconds` at most and returns the bytes that are still missing, 0 if none are. The driver frees a process's
    memory some time after the process has ended.
    """
    deadline = time.monotonic() + seconds
    while (missing := gpu.used() - before) > SLACK:
        if time.monotonic() > deadline:
            return missing
        time.sleep(INTERVAL)
    return 0
