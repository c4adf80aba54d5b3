"""`tpo-lite doctor`: each check in its ok, warn and fail form, on machines made of given facts; and on this one."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.specifiers import SpecifierSet

from tpo_lite.cli.doctor import doctor as command
from tpo_lite.errors import InputError
from tpo_lite.machine import cards, doctor
from tpo_lite.machine.cards import choose_card
from tpo_lite.machine.device import check_gpu
from tpo_lite.machine.doctor import Card, Check, examine

CARD = Card(0, "RTX 4090", 24.0, 0.5, 8.9, "580.65")
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
    """A machine with a 24 GB card on which all is well but for the facts given. An exception is raised when asked for."""

    tested = {name: VERSIONS[name] for name in ("torch", "trl", "llama-cpp-python", "unsloth")} | {
        "bitsandbytes": "0.50.2"
    }
    has_gpu = doctor.Machine.has_gpu

    def __init__(self, **facts):
        facts = {
            "python": (3, 11, 9),
            "kernel": "Linux 6.8.0-45-generic",
            "folder": Path("/home/ann/tpo"),
            "cards": [CARD],
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
    return {"cards": [], "libraries": ON_CPU} | facts


NO_GPU = "no NVIDIA GPU; the embedded recipe runs without one, others do not"
WSL_DRIVE = "Linux 6.6-microsoft-standard-WSL2: WSL 2 with /mnt/c/tpo on a Windows drive, where files are slow"


@pytest.mark.parametrize(
    ("facts", "name", "status", "found", "remedy"),
    [
        ({}, "Python", "ok", "3.11.9", None),
        ({"python": (3, 13, 1)}, "Python", "warn", "3.13.1; 3.11 is tested", "python3.11 -m venv .venv"),
        ({"python": (3, 9, 2)}, "Python", "fail", "3.9.2; 3.11 or newer is needed", "python3.11 -m venv .venv"),
        ({}, "system", "ok", "Linux 6.8.0-45-generic", None),
        ({"kernel": "Linux 6.6-microsoft-standard-WSL2"}, "system", "ok", "Linux 6.6-microsoft-standard-WSL2: WSL 2", None),
        (
            {"kernel": "Linux 6.6-microsoft-standard-WSL2", "folder": Path("/mnt/c/tpo"), "free": {"/mnt/c/tpo": 9, "/cache": 99}},
            "system", "warn", WSL_DRIVE, "mkdir -p ~/tpo && cd ~/tpo",
        ),
        ({"kernel": "Windows 11"}, "system", "warn", "Windows 11; Linux is tested", "wsl --install"),
        ({"kernel": "Linux 4.4.0-19041-Microsoft"}, "system", "fail", "Linux 4.4.0-19041-Microsoft: WSL 1 has no GPU", "wsl --set-version"),
        ({}, "packages", "ok", "5 of 5 as they should be", None),
        (cpu(), "packages", "ok", "4 of 4 as they should be", None),
        ({"versions": VERSIONS | {"torch": "2.12.0"}}, "torch", "warn", "2.12.0; 2.13.0 is tested", "pip install 'torch==2.13.0'"),
        ({"versions": VERSIONS | {"trl": "1.15.0"}}, "trl", "fail", "1.15.0; >=1.14.2,<1.15 is needed", "pip install 'trl==1.14.2'"),
        ({"versions": VERSIONS | {"trl": None}}, "trl", "fail", "not installed", "pip install 'trl==1.14.2'"),
        ({"versions": VERSIONS | {"numpy": "1.26.4"}}, "numpy", "fail", "1.26.4; >=2 is needed", "pip install 'numpy>=2'"),
        (
            {"versions": VERSIONS | {"unsloth": None}},
            "unsloth", "warn", "not installed; optional, of tpo_lite[gpu]", "pip install 'unsloth==2026.10.9'",
        ),
        (
            {"versions": VERSIONS | {"llama-cpp-python": "0.3.37"}},
            "llama-cpp-python", "warn", "0.3.37; 0.3.36 is tested", "CMAKE_ARGS=-DGGML_CUDA=on pip install 'llama-cpp-python==0.3.36'",
        ),
        ({}, "GPU 0", "ok", f"{CARD_LINE}: for llama-3.1-8b-24gb", None),
        ({"cards": [Card(1, "RTX 3060", 12.0, 0.1, 8.6, "580")]}, "GPU 1", "ok", "RTX 3060, 12.0 GiB, driver 580: for llama-3.2-3b-12gb", None),
        ({"cards": [Card(0, "RTX 2060", 6.0, 0.1, 7.5, "580")]}, "GPU 0", "warn", "too small for all of the recipes", "tpo-lite recipes list"),
        ({"cards": [Card(0, "P40", 24.0, 0.1, 6.1, "580")]}, "GPU 0", "warn", "no bfloat16, compute capability 6.1", "2020 or newer"),
        ({"cards": [Card(0, "RTX 4090", 24.0, 9.25, 8.9, "580")]}, "GPU 0", "warn", "9.2 GiB of it in use", "nvidia-smi"),
        (cpu(), "GPU", "warn", NO_GPU, "install NVIDIA's driver"),
        ({"cards": RuntimeError("Driver/library version mismatch")}, "GPU", "fail", "nvidia-smi fails: Driver/library version mismatch", "Restart"),
        ({}, "CUDA", "ok", "torch 2.13.0+cu130 with CUDA 13.0", None),
        (cpu(), "CUDA", "warn", "torch 2.13.0+cpu, on the CPU", "None needed for the embedded recipe"),
        (library("torch", ON_CPU["torch"]), "CUDA", "fail", "torch 2.13.0+cpu was built without CUDA", "--index-url https://pypi.org/simple torch==2.13.0"),
        (
            library("torch", LIBRARIES["torch"] | {"error": "driver too old"}),
            "CUDA", "fail", "torch 2.13.0+cu130 cannot use the GPU: driver too old", "driver for CUDA 13.0",
        ),
        (library("torch", RuntimeError("No module named 'torch'")), "CUDA", "fail", "No module named 'torch'", f"{REINSTALL}'torch==2.13.0'"),
        ({}, "bitsandbytes", "ok", "NF4 on cuda", None),
        (cpu(), "bitsandbytes", "ok", "NF4 on cpu", None),
        (library("bitsandbytes", ON_CPU["bitsandbytes"]), "bitsandbytes", "fail", "NF4 on cpu only: torch cannot use the GPU", "Mend CUDA first"),
        (
            library("bitsandbytes", {"device": "cuda", "right": False}),
            "bitsandbytes", "fail", "NF4 on cuda gives wrong values", f"{REINSTALL}'bitsandbytes==0.50.2'",
        ),
        (library("bitsandbytes", RuntimeError("no libcudart")), "bitsandbytes", "fail", "no libcudart", f"{REINSTALL}'bitsandbytes==0.50.2'"),
        ({}, "llama.cpp", "ok", "with GPU", None),
        (cpu(), "llama.cpp", "ok", "without GPU", None),
        (
            library("llama_cpp", {"gpu": False}),
            "llama.cpp", "fail", "built without CUDA: the judge cannot use the GPU", f"CMAKE_ARGS=-DGGML_CUDA=on {REINSTALL}'llama-cpp-python==0.3.36'",
        ),
        (
            cpu(libraries=ON_CPU | {"llama_cpp": RuntimeError("Illegal instruction")}),
            "llama.cpp", "fail", "Illegal instruction", f"{REINSTALL}'llama-cpp-python==0.3.36'",
        ),
        ({}, "disk", "ok", "100 GB free under /home/ann/tpo", None),
        ({"free": {"/home/ann/tpo": 2, "/cache": 99}}, "disk", "warn", "2 GB free under /home/ann/tpo; 5 GB", "Free some space."),
        (cpu(free={"/home/ann/tpo": 2}), "disk", "ok", "2 GB free under /home/ann/tpo", None),
        (cpu(free={"/home/ann/tpo": 0.2}), "disk", "fail", "0 GB free under /home/ann/tpo", "du -xh"),
        ({}, "hub cache", "ok", "100 GB free under /cache", None),
        ({"free": {"/home/ann/tpo": 99, "/cache": 20}}, "hub cache", "warn", "20 GB free under /cache; 25 GB", "HF_HOME"),
        ({}, "RAM", "ok", "32.0 GiB", None),
        ({"ram_gb": 7.7}, "RAM", "warn", "7.7 GiB; loading an 8B model may need 16", ".wslconfig"),
        (cpu(ram_gb=7.7), "RAM", "ok", "7.7 GiB", None),
        (cpu(ram_gb=1.0), "RAM", "fail", "1.0 GiB; 2 are needed", ".wslconfig"),
        ({}, "hub login", "ok", "yes", None),
        ({"logged_in": False}, "hub login", "warn", "no; Llama's weights are gated", "hf auth login"),
        (cpu(logged_in=False), "hub login", "ok", "no; the embedded recipe needs none", None),
        ({"logged_in": ImportError("no huggingface_hub")}, "hub login", "fail", "no huggingface_hub", f"{REINSTALL}'huggingface_hub'"),
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


def test_whatever_is_not_well_has_a_remedy():
    machines = (GivenMachine(python=(3, 9), kernel="Plan 9", versions={}, ram_gb=1.0), GivenMachine(**cpu(versions={})))
    checks = [check for machine in machines for check in examine(machine)]
    assert [check for check in checks if (check.status == "ok") != (check.remedy is None)] == []


@pytest.fixture
def quick_probes(monkeypatch):
    """Probes that answer at once."""
    monkeypatch.setattr(doctor, "PROBES", {name: f"facts = {facts!r}" for name, facts in ON_CPU.items()})


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("raise ImportError('no libcudart.so.13')", "ImportError: no libcudart.so.13"),
        ("import os; os.abort()", "the process ended with code -6"),
        ("import time; time.sleep(60)", "no answer within 0.5 s"),
    ],
)
def test_a_library_that_dies_takes_nothing_with_it(quick_probes, monkeypatch, code, text):
    monkeypatch.setitem(doctor.PROBES, "llama_cpp", code)
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.5 if "sleep" in code else 60)
    with pytest.raises(RuntimeError, match=text):
        doctor.Machine().library("llama_cpp")


def test_noise_before_the_answer_is_passed_over(quick_probes, monkeypatch):
    monkeypatch.setitem(doctor.PROBES, "llama_cpp", "print('ggml_cuda_init: found 1 device'); facts = {'gpu': True}")
    assert doctor.Machine().library("llama_cpp") == {"gpu": True}


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "echo '0, NVIDIA GeForce RTX 4090, 24564, 512, 8.9, 580.65.06'; echo '1, NVIDIA L4, 23034, 0, 8.9, 580.65.06'",
            [
                Card(0, "NVIDIA GeForce RTX 4090", 24564 / 1024, 0.5, 8.9, "580.65.06"),
                Card(1, "NVIDIA L4", 23034 / 1024, 0.0, 8.9, "580.65.06"),
            ],
        ),
        (None, []),
    ],
)
def test_cards_are_read_from_nvidia_smi(quick_probes, tmp_path, monkeypatch, script, expected):
    machine = doctor.Machine()
    nvidia_smi(tmp_path, monkeypatch, script)
    assert machine.cards == expected
    assert machine.has_gpu == bool(expected)


# What nvidia-smi does, and what is said of it in each of three places.
BROKEN_NVIDIA_SMI = [
    ("echo Failed to initialize NVML; exit 18", "Failed to initialize NVML"),
    ("exit 9", "exit code 9"),
    ("exec /bin/sleep 60", "no answer within 1 s"),
    ("echo No devices were found", "it says 'No devices were found'"),
    ("echo '[N/A], [N/A], [N/A], 0, 0, 0'", "it says '[N/A], [N/A], [N/A], 0, 0, 0'"),
    ("printf '\\377\\n'", "it says '\ufffd'"),
]


@pytest.mark.parametrize(("script", "said"), BROKEN_NVIDIA_SMI)
def test_an_nvidia_smi_that_fails_hangs_or_says_something_else(script, said, tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "SMI_SECONDS", 1)
    monkeypatch.setattr(doctor, "PROBES", {})
    nvidia_smi(tmp_path, monkeypatch, script)
    with pytest.raises(InputError, match=rf"does not say what GPU 0 is \({re.escape(said)}\)\. Say which, as"):
        choose_card(None)
    with pytest.raises(InputError, match=rf"^--gpu 0: nvidia-smi fails \({re.escape(said)}\)\. Mend the driver"):
        check_gpu(0)
    machine = doctor.Machine()
    (check,) = doctor.gpu(machine)
    assert (check.status, check.found) == ("fail", f"nvidia-smi fails: {said}")
    assert not machine.has_gpu


def test_an_nvidia_smi_that_hangs_is_waited_for_in_few_checks(tmp_path, monkeypatch):
    """By the one for cards, and by the first that asks whether there is a GPU at all."""
    monkeypatch.setattr(cards, "SMI_SECONDS", 0.2)
    monkeypatch.setattr(doctor, "PROBES", {})
    nvidia_smi(tmp_path, monkeypatch, f"echo asked >> {tmp_path}/log; exec /bin/sleep 60")
    examine(doctor.Machine())
    assert (tmp_path / "log").read_text().count("asked") == 2


def test_no_nvidia_smi(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("no program")
    nvidia_smi(tmp_path, monkeypatch, None)
    monkeypatch.setattr(doctor, "PROBES", {})
    for ask in (lambda: choose_card(None), lambda: check_gpu(0)):
        with pytest.raises(InputError, match="no nvidia-smi"):
            ask()
    (check,) = doctor.gpu(doctor.Machine())
    assert check.status == "warn" and check.found.startswith("no NVIDIA GPU")


def nvidia_smi(folder, monkeypatch, script):
    if script is not None:
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_token_goes_nowhere(quick_probes, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = CliRunner().invoke(command, ["--json"])
    checks = {check["name"]: check for check in json.loads(done.output)["checks"]}
    assert checks["hub login"]["found"] == "yes"
    assert "secret" not in done.output
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert not doctor.Machine().logged_in


@pytest.mark.parametrize(("facts", "code"), [({}, 0), ({"ram_gb": 7.0}, 0), ({"ram_gb": 1.0}, 1)])
def test_exit_code_says_whether_anything_fails(monkeypatch, facts, code):
    monkeypatch.setattr(doctor, "Machine", lambda: GivenMachine(**facts))
    done = CliRunner().invoke(command)
    assert done.exit_code == code
    as_json = CliRunner().invoke(command, ["--json"])
    assert (as_json.exit_code, json.loads(as_json.output)["ok"]) == (code, code == 0)


def test_lines_in_the_terminal(monkeypatch):
    monkeypatch.setattr(doctor, "Machine", lambda: GivenMachine(logged_in=False))
    printed = CliRunner().invoke(command).output.splitlines()
    assert printed[0] == "ok    Python           3.11.9"
    assert printed[-2] == "warn  hub login        no; Llama's weights are gated"
    assert printed[-1].strip() == "Accept their licence on the hub, then: hf auth login"


def test_this_machine_has_what_was_tested():
    checks = {check.name: check for check in examine(doctor.Machine())}
    assert checks["packages"].status == "ok"
    assert checks["bitsandbytes"].found.startswith("NF4 on ")
    assert checks["llama.cpp"].found.endswith(" GPU")
    assert checks["CUDA"].found.startswith("torch ")


def test_the_tested_set_satisfies_the_requirements(quick_probes):
    machine = doctor.Machine()
    allowed = machine.requirements("gpu")
    assert len(machine.tested) == 11 and machine.tested.keys() <= allowed.keys()
    assert all(SpecifierSet(allowed[package]).contains(version) for package, version in machine.tested.items())
    assert "unsloth" not in machine.requirements()


def test_the_wheel_carries_the_tested_set():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"]["constraints.txt"] == "tpo_lite/constraints.txt"


def test_the_command_imports_no_heavy_library():
    code = "import sys, tpo_lite.cli.doctor, tpo_lite.machine.doctor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "bitsandbytes", "llama_cpp", "transformers"} & set(done.stdout.split())
