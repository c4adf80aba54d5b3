"""What of a machine helps or hinders a run, line by line, with the command that mends it.

`Machine` finds facts, the functions below it judge them, and `examine` is what `tpo-lite doctor` prints. Every check
stands alone: one whose fact cannot be had fails by itself, with the reason. torch, bitsandbytes and llama.cpp are
asked in processes of their own, so that one that dies on import takes nothing with it.

Without a GPU nothing fails for want of one: the embedded recipe runs on a CPU.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tpo_lite.machine.cards import GIB, free_disk, nvidia_smi

PACKAGE = Path(__file__).parents[1]
# In a wheel beside this file, in a clone at its root.
CONSTRAINTS = (PACKAGE if (PACKAGE / "constraints.txt").exists() else PACKAGE.parent) / "constraints.txt"
TESTED_PYTHON = (3, 11)
PROBE_SECONDS = 120
"""Longest that importing one library may take; bitsandbytes takes 10 s on two old cores."""
EMBEDDED_GB, SMALL_CARD_GB, DEFAULT_CARD_GB = 2, 11.5, 22
"""RAM of the embedded recipe; the least that nvidia-smi shows of a 12 GB and of a 24 GB card (A10, L4). GiB."""
WEIGHTS_GB, RUN_GB, GPU_RAM_GB = 25, 5, 16
"""With a GPU: the default recipe's base model and judge in the hub's cache, a run folder, RAM to load shards with."""

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
"""Library -> what a process of its own does to find its `facts`."""


@dataclass(frozen=True)
class Check:
    """One line of `tpo-lite doctor`."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str | None = None
    """What mends it, mostly a command; None where all is well."""


@dataclass(frozen=True)
class Card:
    """One GPU, as nvidia-smi lists it."""

    index: int
    name: str
    total_gb: float
    """GiB, like `used_gb`."""
    used_gb: float
    compute: float
    """CUDA compute capability."""
    driver: str


class Machine:
    """Facts about this machine, each found when it is asked for; libraries are asked at once, in the background."""

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
        """Package -> the version of the tested set."""
        lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
        pins = (line.split("==") for line in lines if "==" in line)
        return {package.replace("_", "-"): version for package, version in pins}

    def requirements(self, extra: str = "") -> dict[str, str]:
        """Package -> the versions that tpo_lite allows, such as '>=1.14.2,<1.15'; those of an extra too."""
        from packaging.requirements import Requirement

        requirements = map(Requirement, importlib.metadata.requires("tpo_lite") or [])
        return {
            requirement.name: str(requirement.specifier)
            for requirement in requirements
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        }

    def installed(self, package: str) -> str | None:
        """A package's version without a local suffix such as +cu130, or None."""
        try:
            return importlib.metadata.version(package).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            return None

    @cached_property
    def cards(self) -> list[Card]:
        """All GPUs; none without a driver. Raises `RuntimeError` with nvidia-smi's words if it fails."""
        try:
            listed = nvidia_smi("index", "name", "memory.total", "memory.used", "compute_cap", "driver_version")
        except FileNotFoundError:
            return []
        return [
            Card(index, name, total / GIB, used / GIB, compute, driver)
            for index, name, total, used, compute, driver in listed
        ]

    @cached_property
    def has_gpu(self) -> bool:
        """Whether there is a GPU to be used; a driver that fails is a check of its own. Asked once: one may hang."""
        try:
            return bool(self.cards)
        except Exception:
            return False

    def library(self, name: str) -> dict[str, Any]:
        """A library's facts (`PROBES`). Raises `RuntimeError` with the last line of its complaint."""
        process = self._processes[name]
        try:
            said, complaint = process.communicate(timeout=PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RuntimeError(f"no answer within {PROBE_SECONDS} s") from None
        if process.returncode != 0:
            lines = complaint.strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"the process ended with code {process.returncode}")
        return json.loads(said.splitlines()[-1])

    @cached_property
    def ram_gb(self) -> float:
        """All RAM of this machine, GiB."""
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30

    def free_gb(self, folder: Path) -> float:
        """Free disk where `folder` is or would be, GB."""
        return free_disk(folder) / 1e9

    @cached_property
    def hub_cache(self) -> Path:
        """Where models of the hub are downloaded to."""
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE)

    @cached_property
    def logged_in(self) -> bool:
        """Whether there is a hub token. The token itself goes nowhere."""
        from huggingface_hub import get_token

        return get_token() is not None


def examine(machine: Machine) -> list[Check]:
    """All checks, in the order in which a run would meet them."""
    checks: list[Check] = []
    for name, (check, package) in CHECKS.items():
        try:
            checks += check(machine)
        except Exception as error:
            remedy = install(package, machine, anew=True) if package else None
            checks.append(Check(name, "fail", f"{error}", remedy))
    return checks


def python(machine: Machine) -> Iterator[Check]:
    """The interpreter."""
    version, tested = ".".join(map(str, machine.python)), ".".join(map(str, TESTED_PYTHON))
    remedy = f"Make a virtual environment with it: python{tested} -m venv .venv"
    if machine.python < TESTED_PYTHON:
        yield Check("Python", "fail", f"{version}; {tested} or newer is needed", remedy)
    elif machine.python[:2] != TESTED_PYTHON:
        yield Check("Python", "warn", f"{version}; {tested} is tested", remedy)
    else:
        yield Check("Python", "ok", version)


def system(machine: Machine) -> Iterator[Check]:
    """Linux, WSL or something else. WSL 2's kernel calls itself microsoft-standard-WSL2, WSL 1's Microsoft."""
    kernel = machine.kernel
    if not kernel.startswith("Linux"):
        yield Check("system", "warn", f"{kernel}; Linux is tested", "On Windows, run it under WSL 2: wsl --install")
    elif "microsoft" not in kernel.lower():
        yield Check("system", "ok", kernel)
    elif "WSL2" not in kernel:
        yield Check("system", "fail", f"{kernel}: WSL 1 has no GPU", "In PowerShell: wsl --set-version DISTRIBUTION 2")
    elif re.match(r"/mnt/[a-z](/|$)", str(machine.folder)):
        found = f"{kernel}: WSL 2 with {machine.folder} on a Windows drive, where files are slow"
        yield Check("system", "warn", found, "Work in the Linux file system: mkdir -p ~/tpo && cd ~/tpo")
    else:
        yield Check("system", "ok", f"{kernel}: WSL 2")


def packages(machine: Machine) -> Iterator[Check]:
    """Installed versions against those that tpo_lite allows and those that were tested together."""
    from packaging.specifiers import SpecifierSet

    needed = machine.requirements()
    wanted = machine.requirements("gpu") if machine.has_gpu else needed
    right = 0
    for package, allowed in sorted(wanted.items()):
        tested, installed = machine.tested.get(package), machine.installed(package)
        if installed is None and package not in needed:
            yield Check(package, "warn", "not installed; optional, of tpo_lite[gpu]", install(package, machine))
        elif installed is None:
            yield Check(package, "fail", "not installed", install(package, machine))
        elif not SpecifierSet(allowed).contains(installed, prereleases=True):
            yield Check(package, "fail", f"{installed}; {allowed} is needed", install(package, machine))
        elif tested and installed != tested:
            yield Check(package, "warn", f"{installed}; {tested} is tested", install(package, machine))
        else:
            right += 1
    yield Check("packages", "ok", f"{right} of {len(wanted)} as they should be")


def gpu(machine: Machine) -> Iterator[Check]:
    """Cards, their memory and what else holds it."""
    try:
        cards = machine.cards
    except Exception as error:
        remedy = "Restart the machine if the driver was just updated; else install NVIDIA's driver anew."
        yield Check("GPU", "fail", f"nvidia-smi fails: {error}", remedy)
        return
    if not cards:
        found = "no NVIDIA GPU; the embedded recipe runs without one, others do not"
        yield Check("GPU", "warn", found, "If there is one, install NVIDIA's driver, until nvidia-smi lists it.")
    for card in cards:
        name, found = f"GPU {card.index}", f"{card.name}, {card.total_gb:.1f} GiB, driver {card.driver}"
        if card.total_gb < SMALL_CARD_GB:
            remedy = "Recipes and their cards: tpo-lite recipes list"
            yield Check(name, "warn", f"{found}: too small for all of the recipes", remedy)
        elif card.compute < 8:
            remedy = "Expect slow training; a card of 2020 or newer (compute capability 8.0) has bfloat16."
            yield Check(name, "warn", f"{found}: no bfloat16, compute capability {card.compute}", remedy)
        elif card.used_gb > 1.5:
            remedy = "End what holds it; these are the processes: nvidia-smi"
            yield Check(name, "warn", f"{found}: {card.used_gb:.1f} GiB of it in use", remedy)
        else:
            fits = "llama-3.1-8b-24gb" if card.total_gb >= DEFAULT_CARD_GB else "llama-3.2-3b-12gb"
            yield Check(name, "ok", f"{found}: for {fits}")


def cuda(machine: Machine) -> Iterator[Check]:
    """Whether torch computes on the GPU."""
    facts = machine.library("torch")
    build = f"torch {facts['version']}"
    if facts["error"] is None:
        yield Check("CUDA", "ok", f"{build} with CUDA {facts['cuda']}")
    elif not machine.has_gpu:
        yield Check("CUDA", "warn", f"{build}, on the CPU", "None needed for the embedded recipe; others need a GPU.")
    elif facts["cuda"] is None:
        remedy = f"pip install --force-reinstall --index-url https://pypi.org/simple torch=={machine.tested['torch']}"
        yield Check("CUDA", "fail", f"{build} was built without CUDA", remedy)
    else:
        remedy = f"Install a driver for CUDA {facts['cuda']} or newer; nvidia-smi shows which CUDA yours is for."
        yield Check("CUDA", "fail", f"{build} cannot use the GPU: {facts['error']}", remedy)


def bitsandbytes(machine: Machine) -> Iterator[Check]:
    """Whether 4-bit weights are computed rightly, on the GPU if torch has one."""
    facts = machine.library("bitsandbytes")
    if not facts["right"]:
        remedy = install("bitsandbytes", machine, anew=True)
        yield Check("bitsandbytes", "fail", f"NF4 on {facts['device']} gives wrong values", remedy)
    elif machine.has_gpu and facts["device"] == "cpu":
        yield Check("bitsandbytes", "fail", "NF4 on cpu only: torch cannot use the GPU", "Mend CUDA first, see above.")
    else:
        yield Check("bitsandbytes", "ok", f"NF4 on {facts['device']}")


def llama_cpp(machine: Machine) -> Iterator[Check]:
    """Whether llama.cpp, which judges, was built for the GPU."""
    offloads = machine.library("llama_cpp")["gpu"]
    if machine.has_gpu and not offloads:
        remedy = install("llama-cpp-python", machine, anew=True)
        yield Check("llama.cpp", "fail", "built without CUDA: the judge cannot use the GPU", remedy)
    else:
        yield Check("llama.cpp", "ok", f"{'with' if offloads else 'without'} GPU")


def disk(machine: Machine) -> Iterator[Check]:
    """Room for the run folder and, with a GPU, for the weights in the hub's cache."""
    places = {"disk": (machine.folder, RUN_GB if machine.has_gpu else 0)}
    if machine.has_gpu:
        places["hub cache"] = (machine.hub_cache, WEIGHTS_GB)
    for name, (folder, wanted) in places.items():
        free = machine.free_gb(folder)
        found = f"{free:.0f} GB free under {folder}"
        if free < 1:
            yield Check(name, "fail", found, f"Free some space: du -xh -d 2 {folder} | sort -h | tail")
        elif free < wanted:
            remedy = "Free some space, or set HF_HOME to a larger disk." if name == "hub cache" else "Free some space."
            yield Check(name, "warn", f"{found}; {wanted} GB are needed unless they are filled already", remedy)
        else:
            yield Check(name, "ok", found)


def ram(machine: Machine) -> Iterator[Check]:
    """Memory of the machine; loading weights takes a shard of 5 GB."""
    found = f"{machine.ram_gb:.1f} GiB"
    remedy = "Under WSL, raise it in %UserProfile%\\.wslconfig: [wsl2] memory=16GB; then wsl --shutdown."
    if machine.ram_gb < EMBEDDED_GB:
        yield Check("RAM", "fail", f"{found}; {EMBEDDED_GB} are needed", remedy)
    elif machine.has_gpu and machine.ram_gb < GPU_RAM_GB:
        yield Check("RAM", "warn", f"{found}; loading an 8B model may need {GPU_RAM_GB}", remedy)
    else:
        yield Check("RAM", "ok", found)


def hub(machine: Machine) -> Iterator[Check]:
    """Whether a hub login exists; Llama's weights are gated."""
    if machine.logged_in:
        yield Check("hub login", "ok", "yes")
    elif machine.has_gpu:
        remedy = "Accept their licence on the hub, then: hf auth login"
        yield Check("hub login", "warn", "no; Llama's weights are gated", remedy)
    else:
        yield Check("hub login", "ok", "no; the embedded recipe needs none")


def install(package: str, machine: Machine, *, anew: bool = False) -> str:
    """The command that installs `package` as tested or allowed; `anew` where it is there and broken."""
    tested = machine.tested.get(package)
    versions = f"=={tested}" if tested else machine.requirements("gpu").get(package, "")
    build = "CMAKE_ARGS=-DGGML_CUDA=on " if package == "llama-cpp-python" and machine.has_gpu else ""
    flags = "--force-reinstall --no-cache-dir --no-deps " if anew else ""
    return f"{build}pip install {flags}'{package}{versions}'"


CHECKS: dict[str, tuple[Callable[[Machine], Iterator[Check]], str | None]] = {
    "Python": (python, None),
    "system": (system, None),
    "packages": (packages, "packaging"),
    "GPU": (gpu, None),
    "CUDA": (cuda, "torch"),
    "bitsandbytes": (bitsandbytes, "bitsandbytes"),
    "llama.cpp": (llama_cpp, "llama-cpp-python"),
    "disk": (disk, None),
    "RAM": (ram, None),
    "hub login": (hub, "huggingface_hub"),
}
"""Name -> the check, and the package that is to blame if its fact cannot be had."""
