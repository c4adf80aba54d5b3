"""The checks of `tpo-lite doctor`: what helps or hinders a run on this machine, and the command that fixes it.

`tpo_lite.machine.probes` finds the facts, the functions below judge them, and `examine` runs them all. The checks are
independent: one whose fact cannot be found fails alone, and says why.

A missing GPU is never a failure: the embedded recipe runs on a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tpo_lite.machine.probes import Machine

TESTED_PYTHON = (3, 11)
EMBEDDED_GIB = 2
"""RAM that the embedded recipe needs."""
SMALL_CARD_GIB, DEFAULT_CARD_GIB = 11.5, 22
"""The least memory that nvidia-smi shows for a 12 GB card, and for a 24 GB card (A10, L4)."""
WEIGHTS_GB, RUN_GB, GPU_RAM_GIB = 25, 5, 16
"""With a GPU: disk for the default recipe's base model and judge, disk for a run folder, RAM to load shards with."""

CUDA_WHEELS = "https://abetlen.github.io/llama-cpp-python/whl/cu130"
"""Where llama-cpp-python's builds for CUDA 13 are, the CUDA of torch's own builds."""


@dataclass(frozen=True)
class Check:
    """One line of `tpo-lite doctor`."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str | None = None
    """How to fix it, usually a command; None if all is well."""


def examine(machine: Machine) -> list[Check]:
    """Run all checks, in the order in which a run would need what they check."""
    checks: list[Check] = []
    for name, (check, package) in CHECKS.items():
        try:
            checks += check(machine)
        except Exception as error:
            remedy = install(package, machine, reinstall=True) if package else None
            checks.append(Check(name, "fail", f"{error}", remedy))
    return checks


def check_python(machine: Machine) -> Iterator[Check]:
    """Check the version of Python."""
    version, tested = ".".join(map(str, machine.python)), ".".join(map(str, TESTED_PYTHON))
    remedy = f"Make a virtual environment with Python {tested}: python{tested} -m venv .venv"
    if machine.python < TESTED_PYTHON:
        yield Check("Python", "fail", f"{version}; {tested} or newer is needed", remedy)
    elif machine.python[:2] != TESTED_PYTHON:
        yield Check("Python", "warn", f"{version}; {tested} is tested", remedy)
    else:
        yield Check("Python", "ok", version)


def check_system(machine: Machine) -> Iterator[Check]:
    """Check for Linux or WSL 2. WSL 2's kernel is named microsoft-standard-WSL2, WSL 1's Microsoft."""
    kernel = machine.kernel
    if not kernel.startswith("Linux"):
        yield Check("system", "warn", f"{kernel}; Linux is tested", "On Windows, use WSL 2: wsl --install")
    elif "microsoft" not in kernel.lower():
        yield Check("system", "ok", kernel)
    elif "WSL2" not in kernel:
        yield Check("system", "fail", f"{kernel}: WSL 1 has no GPU", "In PowerShell: wsl --set-version DISTRIBUTION 2")
    elif re.match(r"/mnt/[a-z](/|$)", str(machine.folder)):
        found = f"{kernel}: WSL 2 with {machine.folder} on a Windows drive, where files are slow"
        yield Check("system", "warn", found, "Work in the Linux file system: mkdir -p ~/tpo && cd ~/tpo")
    else:
        yield Check("system", "ok", f"{kernel}: WSL 2")


def check_packages(machine: Machine) -> Iterator[Check]:
    """Compare the installed versions with those that tpo_lite allows and those that were tested together."""
    from packaging.specifiers import SpecifierSet

    needed = machine.requirements()
    wanted = machine.requirements("gpu") if machine.has_gpu else needed
    right = 0
    for package, allowed in sorted(wanted.items()):
        tested, installed = machine.tested.get(package), machine.installed(package)
        if installed is None and package not in needed:
            yield Check(package, "warn", "not installed; optional, part of tpo_lite[gpu]", install(package, machine))
        elif installed is None:
            yield Check(package, "fail", "not installed", install(package, machine))
        elif not SpecifierSet(allowed).contains(installed, prereleases=True):
            yield Check(package, "fail", f"{installed}; {allowed} is needed", install(package, machine))
        elif tested and installed != tested:
            yield Check(package, "warn", f"{installed}; {tested} is tested", install(package, machine))
        else:
            right += 1
    yield Check("packages", "ok", f"{right} of {len(wanted)} have the right version")


def check_gpu(machine: Machine) -> Iterator[Check]:
    """Check the GPUs, their memory and how much of it is in use."""
    try:
        gpus = machine.gpus
    except Exception as error:
        remedy = "If the driver was just updated, restart the machine. Otherwise reinstall NVIDIA's driver."
        yield Check("GPU", "fail", f"nvidia-smi fails: {error}", remedy)
        return
    if not gpus:
        found = "no NVIDIA GPU; only the embedded recipe runs without one"
        remedy = "If this machine has a GPU, install NVIDIA's driver, so that nvidia-smi lists it."
        yield Check("GPU", "warn", found, remedy)
    for card in gpus:
        name, found = f"GPU {card.index}", f"{card.name}, {card.total_gb:.1f} GiB, driver {card.driver}"
        if card.total_gb < SMALL_CARD_GIB:
            remedy = "Run the embedded recipe, or see what each recipe needs: tpo-lite recipes list"
            yield Check(name, "warn", f"{found}: too small for any recipe with a hub model", remedy)
        elif card.compute < 8:
            remedy = "Expect slow training. Cards from 2020 on (compute capability 8.0 or higher) have bfloat16."
            yield Check(name, "warn", f"{found}: no bfloat16, compute capability {card.compute}", remedy)
        elif card.used_gb > 1.5:
            remedy = "End the programs that use it. This lists them: nvidia-smi"
            yield Check(name, "warn", f"{found}: {card.used_gb:.1f} GiB of it in use", remedy)
        else:
            fits = "llama-3.1-8b-24gb" if card.total_gb >= DEFAULT_CARD_GIB else "llama-3.2-3b-12gb"
            yield Check(name, "ok", f"{found}: fits {fits}")


def check_cuda(machine: Machine) -> Iterator[Check]:
    """Check that torch can compute on the GPU."""
    facts = machine.library("torch")
    build = f"torch {facts['version']}"
    if facts["error"] is None:
        yield Check("CUDA", "ok", f"{build} with CUDA {facts['cuda']}")
    elif not machine.has_gpu:
        yield Check("CUDA", "warn", f"{build}, on the CPU", "The embedded recipe needs no GPU; the other recipes do.")
    elif facts["cuda"] is None:
        remedy = f"pip install --force-reinstall --index-url https://pypi.org/simple torch=={machine.tested['torch']}"
        yield Check("CUDA", "fail", f"{build} was built without CUDA", remedy)
    else:
        remedy = f"Install a driver for CUDA {facts['cuda']} or newer. nvidia-smi shows which CUDA yours supports."
        yield Check("CUDA", "fail", f"{build} cannot use the GPU: {facts['error']}", remedy)


def check_bitsandbytes(machine: Machine) -> Iterator[Check]:
    """Check that 4-bit weights give right values, on the GPU if torch can use one."""
    facts = machine.library("bitsandbytes")
    if not facts["right"]:
        remedy = install("bitsandbytes", machine, reinstall=True)
        yield Check("bitsandbytes", "fail", f"NF4 on {facts['device']} gives wrong values", remedy)
    elif machine.has_gpu and facts["device"] == "cpu":
        yield Check("bitsandbytes", "fail", "NF4 on cpu only: torch cannot use the GPU", "Fix CUDA first (see above).")
    else:
        yield Check("bitsandbytes", "ok", f"NF4 on {facts['device']}")


def check_llama_cpp(machine: Machine) -> Iterator[Check]:
    """Check that llama.cpp, which runs the judge, was built for the GPU."""
    offloads = machine.library("llama_cpp")["gpu"]
    if machine.has_gpu and not offloads:
        remedy = install("llama-cpp-python", machine, reinstall=True)
        yield Check("llama.cpp", "fail", "built without CUDA: the judge cannot use the GPU", remedy)
    else:
        yield Check("llama.cpp", "ok", f"{'with' if offloads else 'without'} GPU")


def check_disk(machine: Machine) -> Iterator[Check]:
    """Check for room for a run folder and, with a GPU, for the models in the hub's cache."""
    places = {"disk": (machine.folder, RUN_GB if machine.has_gpu else 0, "a run folder needs up to")}
    if machine.has_gpu:
        places["hub cache"] = (machine.hub_cache, WEIGHTS_GB, "the default recipe's models, if not there yet, need")
    for name, (folder, wanted, who) in places.items():
        free = machine.free_gb(folder)
        found = f"{free:.0f} GB free under {folder}"
        if free < 1:
            yield Check(
                name,
                "fail",
                found,
                f"Free some space. This lists the largest folders: du -xh -d 2 {folder} | sort -h | tail",
            )
        elif free < wanted:
            remedy = "Free some space, or set HF_HOME to a larger disk." if name == "hub cache" else "Free some space."
            yield Check(name, "warn", f"{found}; {who} {wanted} GB", remedy)
        else:
            yield Check(name, "ok", found)


def check_ram(machine: Machine) -> Iterator[Check]:
    """Check the machine's memory. Loading weights takes shards of 5 GB."""
    found = f"{machine.ram_gb:.1f} GiB"
    remedy = "Under WSL, raise it in %UserProfile%\\.wslconfig ([wsl2] memory=16GB), then run wsl --shutdown."
    if machine.ram_gb < EMBEDDED_GIB:
        yield Check("RAM", "fail", f"{found}; a run needs {EMBEDDED_GIB} GiB", remedy)
    elif machine.has_gpu and machine.ram_gb < GPU_RAM_GIB:
        yield Check("RAM", "warn", f"{found}; loading an 8B model may need {GPU_RAM_GIB} GiB", remedy)
    else:
        yield Check("RAM", "ok", found)


def check_hub(machine: Machine) -> Iterator[Check]:
    """Check for a hub login, which Llama's gated weights need."""
    if machine.logged_in:
        yield Check("hub login", "ok", "yes")
    elif machine.has_gpu:
        remedy = "Accept the licence of Llama on the hub, then run: hf auth login"
        yield Check("hub login", "warn", "no; Llama's weights are gated", remedy)
    else:
        yield Check("hub login", "ok", "no; the embedded recipe needs none")


def install(package: str, machine: Machine, *, reinstall: bool = False) -> str:
    """Return the command that installs `package` in the tested version, or an allowed one if none was tested.

    `reinstall`: replace a package that is installed and broken.
    """
    tested = machine.tested.get(package)
    versions = f"=={tested}" if tested else machine.requirements("gpu").get(package, "")
    # The package index has no build with CUDA, and building one needs CUDA's compiler.
    wheels = f" --extra-index-url {CUDA_WHEELS}" if package == "llama-cpp-python" and machine.has_gpu else ""
    flags = "--force-reinstall --no-cache-dir --no-deps " if reinstall else ""
    return f"pip install {flags}'{package}{versions}'{wheels}"


CHECKS: dict[str, tuple[Callable[[Machine], Iterator[Check]], str | None]] = {
    "Python": (check_python, None),
    "system": (check_system, None),
    "packages": (check_packages, "packaging"),
    "GPU": (check_gpu, None),
    "CUDA": (check_cuda, "torch"),
    "bitsandbytes": (check_bitsandbytes, "bitsandbytes"),
    "llama.cpp": (check_llama_cpp, "llama-cpp-python"),
    "disk": (check_disk, None),
    "RAM": (check_ram, None),
    "hub login": (check_hub, "huggingface_hub"),
}
"""Name -> the check, and the package to reinstall if the check itself fails."""
