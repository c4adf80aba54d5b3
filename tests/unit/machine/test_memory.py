"""Peak memory of a phase, and waiting until the GPU has it back, on a made-up GPU."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.helpers.tiny_run import start
from tpo_lite.loop import orchestrator
from tpo_lite.machine import memory
from tpo_lite.machine.device import Place
from tpo_lite.machine.memory import PeakMemory, held_by_host, wait_until_free
from tpo_lite.run import RunFolder
from tpo_lite.settled import SettledRecipe

GB = 10**9


class NVMLError(Exception):
    """What pynvml raises."""


class FakeNvml:
    """pynvml with one card, number 1; `used` and `processes` {pid: bytes} are set by the test."""

    NVMLError = NVMLError

    def __init__(self):
        self.used, self.processes, self.asked = 3 * GB, {}, []

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByIndex(self, index):
        self.asked.append(index)
        if index != 1:
            raise NVMLError
        return "card"

    def nvmlDeviceGetHandleByUUID(self, name):
        self.asked.append(name)
        return "card"

    def nvmlDeviceGetMemoryInfo(self, handle):
        assert handle == "card"
        return SimpleNamespace(used=self.used)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        if self.processes is None:
            raise NVMLError
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes.items()]


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_the_card_is_the_one_that_the_run_sees(nvml):
    assert memory.gpu(1).used() == 3 * GB
    assert memory.gpu("GPU-5a3f") is not None
    assert nvml.asked == [1, "GPU-5a3f"]


@pytest.mark.parametrize("name", [None, 7])
def test_no_card(name, nvml):
    assert memory.gpu(name) is None


def test_no_nvml(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it fails
    assert memory.gpu(1) is None
    assert set(PeakMemory(memory.gpu(1)).bytes()) == {"host"}


def wait_for_a_look():
    time.sleep(3 * memory.INTERVAL)


def test_the_hosts_peak_is_what_was_held_and_given_back():
    before = held_by_host()
    peak = PeakMemory()
    block = np.ones(GB // 40)
    wait_for_a_look()
    del block
    assert before - GB / 20 < held_by_host() < before + GB / 20
    assert before + 0.19 * GB < peak.bytes()["host"] < before + 0.25 * GB


def test_a_mapped_file_is_not_held():
    # Not one in tmp_path, which may lie in memory.
    large = max(Path(torch.__file__).parent.glob("lib/*"), key=lambda path: path.stat().st_size)
    assert large.stat().st_size > GB / 10
    before = held_by_host()
    mapped = np.memmap(large, dtype=np.uint8, mode="r")
    assert mapped[::4096].sum() > 0  # all of it is in memory now
    assert held_by_host() < before + GB / 50


def test_where_the_kernel_does_not_tell_mapped_files_they_count(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("VmRSS:\t 100 kB\n")
    for status in ("status", "none"):
        monkeypatch.setattr(memory, "STATUS", tmp_path / status)
        assert held_by_host() == 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_nothing_is_watched_after_an_error():
    before = set(threading.enumerate())
    with pytest.raises(ValueError), PeakMemory():
        (watcher,) = set(threading.enumerate()) - before
        raise ValueError
    watcher.join(timeout=5)
    assert not watcher.is_alive()


def test_the_peak_of_the_whole_process(nvml):
    nvml.processes = {os.getpid(): 5 * GB, 1: 9 * GB}
    peak = PeakMemory(memory.gpu(1))
    wait_for_a_look()
    nvml.processes[os.getpid()] = 8 * GB
    wait_for_a_look()
    nvml.processes[os.getpid()] = 6 * GB
    nvml.used = 90 * GB  # another program's
    assert peak.bytes()["gpu"] == 8 * GB


@pytest.mark.parametrize("processes", [{}, {1: 9 * GB}, {os.getpid(): None}, None])
def test_where_nvml_knows_no_processes_the_cards_rise_counts(processes, nvml):
    nvml.processes = processes
    peak = PeakMemory(memory.gpu(1))
    nvml.used = 10 * GB
    wait_for_a_look()
    nvml.used = 4 * GB
    assert peak.bytes()["gpu"] == 7 * GB


def test_what_torch_allocated_stands_beside_it(nvml, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 4 * GB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 5 * GB)
    nvml.processes = {os.getpid(): 6 * GB}
    figures = {"gpu": 6 * GB, "gpu_reserved": 5 * GB, "gpu_allocated": 4 * GB}
    assert PeakMemory(memory.gpu(1)).bytes().items() >= figures.items()
    assert PeakMemory().bytes().items() >= (figures | {"gpu": 5 * GB}).items()


# Between phases


class Card:
    """A card that frees 1 GB each time that it is asked."""

    def __init__(self, used):
        self.held = used

    def used(self):
        self.held -= GB
        return self.held


def test_waiting_until_the_memory_is_back():
    card = Card(8 * GB)
    assert wait_until_free(card, 4 * GB) == 0
    assert card.held == 4 * GB


def test_memory_that_never_comes_back_is_waited_for_a_while_only():
    start = time.monotonic()
    assert wait_until_free(SimpleNamespace(used=lambda: 9 * GB), 4 * GB, seconds=0.2) == 5 * GB
    assert 0.2 <= time.monotonic() - start < 2


def test_what_other_programs_come_and_go_by_is_not_waited_for():
    start = time.monotonic()
    assert wait_until_free(SimpleNamespace(used=lambda: 4 * GB + memory.SLACK), 4 * GB) == 0
    assert time.monotonic() - start < 0.1


def test_the_orchestrator_waits_after_each_phase(nvml, tmp_path, monkeypatch, capsys):
    """The phase leaves 2 GB behind for a while; then, to be waited for in vain, 1 GB for good."""

    def child(*arguments):
        nvml.used += 2 * GB
        return 0

    waited = []

    def sleep(seconds):
        waited.append(seconds)
        nvml.used -= GB // 2 if len(waited) < 3 else 0

    monkeypatch.setattr(orchestrator, "_child", child)
    monkeypatch.setattr(memory, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: 20.0 * len(waited)))
    run = RunFolder(tmp_path / "run")
    start(run, SettledRecipe(), place=Place(1))
    assert orchestrator.process(run, "dpo", "direct", 0, debug=False) == 0
    assert len(waited) == 2
    assert capsys.readouterr().out == "after the dpo phase 1.0 GB of the GPU are still in use; going on\n"
