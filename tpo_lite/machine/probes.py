"""Facts about this machine, for `tpo-lite doctor`: versions, GPUs, what the libraries can do, memory, disk, hub login.

torch, bitsandbytes and llama.cpp are asked in processes of their own, so that one that crashes on import does not take
this process with it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tpo_lite.machine.cards import GIB, free_disk, nvidia_smi

PACKAGE = Path(__file__).parents[1]
# In a wheel the file is inside the package, in a clone beside it.
CONSTRAINTS = (PACKAGE if (PACKAGE / "constraints.txt").exists() else PACKAGE.parent) / "constraints.txt"
PROBE_SECONDS = 120
"""The longest that importing one library may take. bitsandbytes takes 10 s on two old cores."""

PROBES = {
    "torch": """
import torch
facts = {"version": torch.__version__, "cuda": torch.version.cuda, "error": None}
try: (torch.ones(1, device="cuda") + 1).item()
except Exception as error: facts["error"] = str(error)
""",
    "bitsandbytes": """
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
device = "cuda" if torch.cuda.is_available() else "cpu"
ones = torch.ones(64, 64, device=device)
facts = {"device": device, "right": bool((dequantize_4bit(*quantize_4bit(ones, quant_type="nf4")) == ones).all())}
""",
    "llama_cpp": """
import llama_cpp
facts = {"gpu": llama_cpp.llama_supports_gpu_offload()}
""",
}
"""Library -> the code that finds its `facts`, run in a process of its own."""


@dataclass(frozen=True)
class InstalledGpu:
    """One GPU, as nvidia-smi lists it."""

    index: int
    name: str
    total_gb: float
    """GiB."""
    used_gb: float
    """GiB in use by all programs."""
    compute: float
    """CUDA compute capability."""
    driver: str


class Machine:
    """Facts about this machine. Libraries are probed in the background from the start, the rest when asked for."""

    def __init__(self) -> None:
        self._processes = {
            library: subprocess.Popen(
                [sys.executable, "-c", f"{code}\nimport json; print(json.dumps(facts))"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for library, code in PROBES.items()
        }
        self.python: tuple[int, ...] = sys.version_info[:3]
        self.kernel = f"{platform.system()} {platform.release()}"
        self.folder = Path.cwd()

    @cached_property
    def tested(self) -> dict[str, str]:
        """Package -> its version in the set that was tested together (constraints.txt)."""
        lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
        pins = (line.split("==") for line in lines if "==" in line)
        return {package.replace("_", "-").lower(): version for package, version in pins}

    def requirements(self, extra: str = "") -> dict[str, str]:
        """Return package -> the versions that tpo_lite allows, such as '>=1.14.2,<1.15', those of an extra included."""
        from packaging.requirements import Requirement

        requirements = map(Requirement, importlib.metadata.requires("tpo_lite") or [])
        return {
            requirement.name: str(requirement.specifier)
            for requirement in requirements
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        }

    def installed(self, package: str) -> str | None:
        """Return a package's version without a local suffix such as +cu130, or None if it is not installed."""
        try:
            return importlib.metadata.version(package).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            return None

    @cached_property
    def gpus(self) -> list[InstalledGpu]:
        """All GPUs, or an empty list without a driver. Raises `RuntimeError` with nvidia-smi's words if it fails."""
        try:
            listed = nvidia_smi("index", "name", "memory.total", "memory.used", "compute_cap", "driver_version")
        except FileNotFoundError:
            return []
        return [
            InstalledGpu(index, name, total / GIB, used / GIB, compute, driver)
            for index, name, total, used, compute, driver in listed
        ]

    @cached_property
    def has_gpu(self) -> bool:
        """Whether there is a GPU; False if the driver fails, which has a check of its own.

        Asked only once, since a broken driver may hang.
        """
        try:
            return bool(self.gpus)
        except Exception:
            return False

    def library(self, name: str) -> dict[str, Any]:
        """Return a library's facts (`PROBES`). Raises `RuntimeError` with the last line of its error output."""
        process = self._processes[name]
        try:
            output, errors = process.communicate(timeout=PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RuntimeError(f"no answer within {PROBE_SECONDS} s") from None
        if process.returncode != 0:
            lines = errors.strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"the process ended with code {process.returncode}")
        facts: dict[str, Any] = json.loads(output.splitlines()[-1])
        return facts

    @cached_property
    def ram_gb(self) -> float:
        """The RAM of this machine, in GiB."""
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30

    def free_gb(self, folder: Path) -> float:
        """Return the free space where `folder` is or would be, in GB."""
        return free_disk(folder) / 1e9

    @cached_property
    def hub_cache(self) -> Path:
        """The folder into which models are downloaded from the hub."""
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE)

    @cached_property
    def logged_in(self) -> bool:
        """Whether there is a hub token. The token itself is not kept."""
        from huggingface_hub import get_token

        return get_token() is not None
