"""`tpo-lite doctor`: each check in its ok, warn and fail form, on machines made of given facts and on this one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tpo_lite.cli.doctor import doctor as command
from tpo_lite.machine import probes
from tpo_lite.machine.doctor import CUDA_WHEELS, Check, examine
from tpo_lite.machine.probes import InstalledGpu, Machine

CARD = InstalledGpu(0, "RTX 4090", 24.0, 0.5, 8.9, "580.65")
CARD_LINE = "RTX 4090, 24.0 GiB, driver 580.65"
LIBRARIES = {
    "torch": {"version": "2.13.0+cu130", "cuda": "13.0", "error": None},
    "bitsandbytes": {"device": "cuda", "right": True},
    "llama_cpp": {"gpu": True},
}
ON_CPU = {
    "torch": {"version": "2.13.0+cpu", "cuda": None, "error": "Torch not compiled with CUDA enabled"},
    "bitsandbytes": {"device": "cpu", "right": True},
    "llama_cpp": {"gpu": False},
}
VERSIONS = {"torch": "2.13.0", "trl": "1.14.2", "numpy": "2.3.1", "llama-cpp-python": "0.3.36", "unsloth": "2026.10.9"}
REINSTALL = "pip install --force-reinstall --no-cache-dir --no-deps "


class GivenMachine:
    """A machine with a 24 GB card on which all is well except for the given facts. A fact may be an error to raise."""

    tested = {name: VERSIONS[name] for name in ("torch", "trl", "llama-cpp-python", "unsloth")} | {
        "bitsandbytes": "0.50.2"
    }
    has_gpu = Machine.has_gpu

    def __init__(self, **facts):
        facts = {
            "python": (3, 11, 9),
            "kernel": "Linux 6.8.0-45-generic",
            "folder": Path("/home/ann/tpo"),
            "gpus": [CARD],
            "versions": VERSIONS,
            "libraries": LIBRARIES,
            "ram_gb": 32.0,
            "free": {"/home/ann/tpo": 100, "/cache": 100},
            "hub_cache": Path("/cache"),
            "logged_in": True,
        } | facts
        self.broken = {name: fact for name, fact in facts.items() if isinstance(fact, Exception)}
        self.__dict__.update({name: fact for name, fact in facts.items() if name not in self.broken})

    def __getattr__(self, name):
        raise self.broken[name]

    def requirements(self, extra=""):
        needed = {"torch": ">=2.11", "trl": ">=1.14.2,<1.15", "numpy": ">=2", "llama-cpp-python": ">=0.3.36"}
        return needed | ({"unsloth": "==2026.10.9"} if extra == "gpu" else {})

    def installed(self, package):
        return self.versions.get(package)

    def library(self, name):
        if isinstance(self.libraries[name], Exception):
            raise self.libraries[name]
        return self.libraries[name]

    def free_gb(self, folder):
        return self.free[str(folder)]


def lines(machine, *names):
    return [check for check in examine(machine) if check.name in names]


def library(name, facts):
    return {"libraries": LIBRARIES | {name: facts}}


def cpu(**facts):
    return {"gpus": [], "libraries": ON_CPU} | facts


NO_GPU = "no NVIDIA GPU; only the embedded recipe runs without one"
WSL_DRIVE = "Linux 6.6-microsoft-standard-WSL2: WSL 2 with /mnt/c/tpo on a Windows drive, where files are slow"


@pytest.mark.parametrize(
    ("facts", "name", "status", "found", "remedy"),
    [
        ({}, "Python", "ok", "3.11.9", None),
        ({"python": (3, 13, 1)}, "Python", "warn", "3.13.1; 3.11 is tested", "python3.11 -m venv .venv"),
        ({"python": (3, 9, 2)}, "Python", "fail", "3.9.2; 3.11 or newer is needed", "python3.11 -m venv .venv"),
        ({}, "system", "ok", "Linux 6.8.0-45-generic", None),
        (
            {"kernel": "Linux 6.6-microsoft-standard-WSL2"},
            "system", "ok", "Linux 6.6-microsoft-standard-WSL2: WSL 2", None,
        ),
        (
            {
                "kernel": "Linux 6.6-microsoft-standard-WSL2",
                "folder": Path("/mnt/c/tpo"),
                "free": {"/mnt/c/tpo": 9, "/cache": 99},
            },
            "system", "warn", WSL_DRIVE, "mkdir -p ~/tpo && cd ~/tpo",
        ),
        ({"kernel": "Windows 11"}, "system", "warn", "Windows 11; Linux is tested", "wsl --install"),
        (
            {"kernel": "Linux 4.4.0-19041-Microsoft"},
            "system", "fail", "Linux 4.4.0-19041-Microsoft: WSL 1 has no GPU", "wsl --set-version",
        ),
        ({}, "packages", "ok", "5 of 5 have the right version", None),
        (cpu(), "packages", "ok", "4 of 4 have the right version", None),
        (
            {"versions": VERSIONS | {"torch": "2.12.0"}},
            "torch", "warn", "2.12.0; 2.13.0 is tested", "pip install 'torch==2.13.0'",
        ),
        (
            {"versions": VERSIONS | {"trl": "1.15.0"}},
            "trl", "fail", "1.15.0; >=1.14.2,<1.15 is needed", "pip install 'trl==1.14.2'",
        ),
        ({"versions": VERSIONS | {"trl": None}}, "trl", "fail", "not installed", "pip install 'trl==1.14.2'"),
        (
            {"versions": VERSIONS | {"numpy": "1.26.4"}},
            "numpy", "fail", "1.26.4; >=2 is needed", "pip install 'numpy>=2'",
        ),
        (
            {"versions": VERSIONS | {"unsloth": None}},
            "unsloth", "warn", "not installed; optional, part of tpo_lite[gpu]", "pip install 'unsloth==2026.10.9'",
        ),
        (
            {"versions": VERSIONS | {"llama-cpp-python": "0.3.37"}},
            "llama-cpp-python", "warn", "0.3.37; 0.3.36 is tested",
            f"pip install 'llama-cpp-python==0.3.36' --extra-index-url {CUDA_WHEELS}",
        ),
        ({}, "GPU 0", "ok", f"{CARD_LINE}: fits llama-3.1-8b-24gb", None),
        (
            {"gpus": [InstalledGpu(1, "RTX 3060", 12.0, 0.1, 8.6, "580")]},
            "GPU 1", "ok", "RTX 3060, 12.0 GiB, driver 580: fits llama-3.2-3b-12gb", None,
        ),
        (
            {"gpus": [InstalledGpu(0, "RTX 2060", 6.0, 0.1, 7.5, "580")]},
            "GPU 0", "warn", "too small for any recipe with a hub model", "tpo-lite recipes list",
        ),
        (
            {"gpus": [InstalledGpu(0, "P40", 24.0, 0.1, 6.1, "580")]},
            "GPU 0", "warn", "no bfloat16, compute capability 6.1", "from 2020 on",
        ),
        (
            {"gpus": [InstalledGpu(0, "RTX 4090", 24.0, 9.25, 8.9, "580")]},
            "GPU 0", "warn", "9.2 GiB of it in use", "nvidia-smi",
        ),
        (cpu(), "GPU", "warn", NO_GPU, "install NVIDIA's driver"),
        (
            {"gpus": RuntimeError("Driver/library version mismatch")},
            "GPU", "fail", "nvidia-smi fails: Driver/library version mismatch", "restart the machine",
        ),
        ({}, "CUDA", "ok", "torch 2.13.0+cu130 with CUDA 13.0", None),
        (cpu(), "CUDA", "warn", "torch 2.13.0+cpu, on the CPU", "The embedded recipe needs no GPU"),
        (
            library("torch", ON_CPU["torch"]),
            "CUDA", "fail", "torch 2.13.0+cpu was built without CUDA",
            "--index-url https://pypi.org/simple torch==2.13.0",
        ),
        (
            library("torch", LIBRARIES["torch"] | {"error": "driver too old"}),
            "CUDA", "fail", "torch 2.13.0+cu130 cannot use the GPU: driver too old", "driver for CUDA 13.0",
        ),
        (
            library("torch", RuntimeError("No module named 'torch'")),
            "CUDA", "fail", "No module named 'torch'", f"{REINSTALL}'torch==2.13.0'",
        ),
        ({}, "bitsandbytes", "ok", "NF4 on cuda", None),
        (cpu(), "bitsandbytes", "ok", "NF4 on cpu", None),
        (
            library("bitsandbytes", ON_CPU["bitsandbytes"]),
            "bitsandbytes", "fail", "NF4 on cpu only: torch cannot use the GPU", "Fix CUDA first",
        ),
        (
            library("bitsandbytes", {"device": "cuda", "right": False}),
            "bitsandbytes", "fail", "NF4 on cuda gives wrong values", f"{REINSTALL}'bitsandbytes==0.50.2'",
        ),
        (
            library("bitsandbytes", RuntimeError("no libcudart")),
            "bitsandbytes", "fail", "no libcudart", f"{REINSTALL}'bitsandbytes==0.50.2'",
        ),
        ({}, "llama.cpp", "ok", "with GPU", None),
        (cpu(), "llama.cpp", "ok", "without GPU", None),
        (
            library("llama_cpp", {"gpu": False}),
            "llama.cpp", "fail", "built without CUDA: the judge cannot use the GPU",
            f"{REINSTALL}'llama-cpp-python==0.3.36' --extra-index-url {CUDA_WHEELS}",
        ),
        (
            cpu(libraries=ON_CPU | {"llama_cpp": RuntimeError("Illegal instruction")}),
            "llama.cpp", "fail", "Illegal instruction", f"{REINSTALL}'llama-cpp-python==0.3.36'",
        ),
        ({}, "disk", "ok", "100 GB free under /home/ann/tpo", None),
        (
            {"free": {"/home/ann/tpo": 2, "/cache": 99}},
            "disk", "warn", "2 GB free under /home/ann/tpo; a run folder needs up to 5 GB", "Free some space.",
        ),
        (cpu(free={"/home/ann/tpo": 2}), "disk", "ok", "2 GB free under /home/ann/tpo", None),
        (cpu(free={"/home/ann/tpo": 0.2}), "disk", "fail", "0 GB free under /home/ann/tpo", "du -xh"),
        ({}, "hub cache", "ok", "100 GB free under /cache", None),
        (
            {"free": {"/home/ann/tpo": 99, "/cache": 20}},
            "hub cache", "warn", "20 GB free under /cache; the default recipe's models, if not there yet, need 25 GB",
            "HF_HOME",
        ),
        ({}, "RAM", "ok", "32.0 GiB", None),
        ({"ram_gb": 7.7}, "RAM", "warn", "7.7 GiB; loading an 8B model may need 16 GiB", ".wslconfig"),
        (cpu(ram_gb=7.7), "RAM", "ok", "7.7 GiB", None),
        (cpu(ram_gb=1.0), "RAM", "fail", "1.0 GiB; a run needs 2 GiB", ".wslconfig"),
        ({}, "hub login", "ok", "yes", None),
        ({"logged_in": False}, "hub login", "warn", "no; Llama's weights are gated", "hf auth login"),
        (cpu(logged_in=False), "hub login", "ok", "no; the embedded recipe needs none", None),
        (
            {"logged_in": ImportError("no huggingface_hub")},
            "hub login", "fail", "no huggingface_hub", f"{REINSTALL}'huggingface_hub'",
        ),
    ],
)  # fmt: skip
def test_each_check(facts, name, status, found, remedy):
    (check,) = lines(GivenMachine(**facts), name)
    assert check.status == status
    assert found in check.found
    assert (check.remedy is None) == (remedy is None)
    assert remedy is None or remedy in check.remedy


def test_nothing_fails_on_a_machine_without_a_gpu():
    assert {check.status for check in examine(GivenMachine(**cpu(logged_in=False)))} == {"ok", "warn"}


def test_one_broken_fact_costs_one_line():
    broken = [check for check in examine(GivenMachine(ram_gb=ValueError("unknown"))) if check.status != "ok"]
    assert broken == [Check("RAM", "fail", "unknown")]


def test_every_problem_has_a_remedy():
    machines = (GivenMachine(python=(3, 9), kernel="Plan 9", versions={}, ram_gb=1.0), GivenMachine(**cpu(versions={})))
    checks = [check for machine in machines for check in examine(machine)]
    assert [check for check in checks if (check.status == "ok") != (check.remedy is None)] == []


@pytest.mark.parametrize(("facts", "code"), [({}, 0), ({"ram_gb": 7.0}, 0), ({"ram_gb": 1.0}, 1)])
def test_the_exit_code_says_whether_a_check_fails(monkeypatch, facts, code):
    monkeypatch.setattr(probes, "Machine", lambda: GivenMachine(**facts))
    done = CliRunner().invoke(command)
    assert done.exit_code == code
    as_json = CliRunner().invoke(command, ["--json"])
    assert (as_json.exit_code, json.loads(as_json.output)["ok"]) == (code, code == 0)


def test_lines_in_the_terminal(monkeypatch):
    monkeypatch.setattr(probes, "Machine", lambda: GivenMachine(logged_in=False))
    printed = CliRunner().invoke(command).output.splitlines()
    assert printed[0] == "ok    Python           3.11.9"
    assert printed[-2] == "warn  hub login        no; Llama's weights are gated"
    assert printed[-1].strip() == "Accept the licence of Llama on the hub, then run: hf auth login"


def test_this_machine_has_what_was_tested():
    checks = {check.name: check for check in examine(Machine())}
    assert checks["packages"].status == "ok"
    assert checks["bitsandbytes"].found.startswith("NF4 on ")
    assert checks["llama.cpp"].found.endswith(" GPU")
    assert checks["CUDA"].found.startswith("torch ")


def test_the_command_imports_no_heavy_library():
    code = "import sys, tpo_lite.cli.doctor, tpo_lite.machine.doctor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "bitsandbytes", "llama_cpp", "transformers"} & set(done.stdout.split())


def test_gpu_audit_12_a_llama_cpp_for_the_cpu_is_replaced_by_a_build_with_cuda():
    """CMAKE_ARGS alone needs a compiler, and in a comment it is overlooked: pip then builds one for the CPU."""
    machine = GivenMachine(**library("llama_cpp", {"gpu": False}))
    (found,) = (check for check in examine(machine) if check.name == "llama.cpp")
    assert found.status == "fail" and "/whl/cu1" in found.remedy and "--extra-index-url" in found.remedy
