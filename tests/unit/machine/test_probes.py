"""Facts about this machine: libraries asked in processes of their own, nvidia-smi, the hub's token, tested versions."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.specifiers import SpecifierSet

from tests.helpers.fake_nvidia import fake_nvidia_smi
from tpo_lite.cli.doctor import doctor as command
from tpo_lite.errors import InputError
from tpo_lite.machine import cards, doctor, probes
from tpo_lite.machine.cards import choose_card
from tpo_lite.machine.device import check_gpu
from tpo_lite.machine.probes import InstalledGpu, Machine

ANSWERS = {
    "torch": {"version": "2.13.0+cpu", "cuda": None, "error": "Torch not compiled with CUDA enabled"},
    "bitsandbytes": {"device": "cpu", "right": True},
    "llama_cpp": {"gpu": False},
}


@pytest.fixture
def quick_probes(monkeypatch):
    """Probes that answer at once."""
    monkeypatch.setattr(probes, "PROBES", {name: f"facts = {facts!r}" for name, facts in ANSWERS.items()})


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("raise ImportError('no libcudart.so.13')", "ImportError: no libcudart.so.13"),
        ("import os; os.abort()", "the process ended with code -6"),
        ("import time; time.sleep(60)", "no answer within 0.5 s"),
    ],
)
def test_a_library_that_dies_takes_nothing_with_it(quick_probes, monkeypatch, code, text):
    monkeypatch.setitem(probes.PROBES, "llama_cpp", code)
    monkeypatch.setattr(probes, "PROBE_SECONDS", 0.5 if "sleep" in code else 60)
    with pytest.raises(RuntimeError, match=text):
        Machine().library("llama_cpp")


def test_noise_before_the_answer_is_ignored(quick_probes, monkeypatch):
    monkeypatch.setitem(probes.PROBES, "llama_cpp", "print('ggml_cuda_init: found 1 device'); facts = {'gpu': True}")
    assert Machine().library("llama_cpp") == {"gpu": True}


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "echo '0, NVIDIA GeForce RTX 4090, 24564, 512, 8.9, 580.65.06'\n"
            "echo '1, NVIDIA L4, 23034, 0, 8.9, 580.65.06'",
            [
                InstalledGpu(0, "NVIDIA GeForce RTX 4090", 24564 / 1024, 0.5, 8.9, "580.65.06"),
                InstalledGpu(1, "NVIDIA L4", 23034 / 1024, 0.0, 8.9, "580.65.06"),
            ],
        ),
        (None, []),
    ],
)
def test_cards_are_read_from_nvidia_smi(quick_probes, tmp_path, monkeypatch, script, expected):
    machine = Machine()
    fake_nvidia_smi(tmp_path, monkeypatch, script)
    assert machine.gpus == expected
    assert machine.has_gpu == bool(expected)


# What nvidia-smi does, and how each of three places reports it.
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
    monkeypatch.setattr(probes, "PROBES", {})
    fake_nvidia_smi(tmp_path, monkeypatch, script)
    with pytest.raises(InputError, match=rf"does not say what GPU 0 is \({re.escape(said)}\)\. Name the card"):
        choose_card(None)
    with pytest.raises(InputError, match=rf"^--gpu 0: nvidia-smi fails \({re.escape(said)}\)\. Fix the driver"):
        check_gpu(0)
    machine = Machine()
    (check,) = doctor.check_gpu(machine)
    assert (check.status, check.found) == ("fail", f"nvidia-smi fails: {said}")
    assert not machine.has_gpu


def test_only_two_checks_wait_for_an_nvidia_smi_that_hangs(tmp_path, monkeypatch):
    """The check of the GPUs, and the first other one that asks whether there is a GPU."""
    monkeypatch.setattr(cards, "SMI_SECONDS", 0.2)
    monkeypatch.setattr(probes, "PROBES", {})
    fake_nvidia_smi(tmp_path, monkeypatch, f"echo asked >> {tmp_path}/log; exec /bin/sleep 60")
    doctor.examine(Machine())
    assert (tmp_path / "log").read_text().count("asked") == 2


def test_no_nvidia_smi(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("no program")
    fake_nvidia_smi(tmp_path, monkeypatch, None)
    monkeypatch.setattr(probes, "PROBES", {})
    for ask in (lambda: choose_card(None), lambda: check_gpu(0)):
        with pytest.raises(InputError, match="no nvidia-smi"):
            ask()
    (check,) = doctor.check_gpu(Machine())
    assert check.status == "warn" and check.found.startswith("no NVIDIA GPU")


def test_the_token_goes_nowhere(quick_probes, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = CliRunner().invoke(command, ["--json"])
    checks = {check["name"]: check for check in json.loads(done.output)["checks"]}
    assert checks["hub login"]["found"] == "yes"
    assert "secret" not in done.output
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert not Machine().logged_in


def test_the_tested_set_satisfies_the_requirements(quick_probes):
    machine = Machine()
    allowed = machine.requirements("gpu")
    tools = machine.requirements("test") | machine.requirements("lint") | machine.requirements("serve")
    assert len(machine.tested.keys() & allowed.keys()) == 12
    assert machine.tested.keys() <= (allowed | tools).keys()
    assert all(
        SpecifierSet((tools | allowed)[package]).contains(version) for package, version in machine.tested.items()
    )
    assert "unsloth" not in machine.requirements()


def test_the_wheel_carries_the_tested_set():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"]["constraints.txt"] == "tpo_lite/constraints.txt"
