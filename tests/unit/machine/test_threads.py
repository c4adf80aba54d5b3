"""Threads: no more than the cores that a process may use, and what other programs on them are seen to do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tpo_lite.machine import threads

SPIN = "import sys, time\nprint(flush=True)\nend = time.time() + 60\nwhile time.time() < end: pass"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine of four cores without a quota, in which nothing runs."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    for name in ("CGROUPS", "CGROUP", "STAT"):
        monkeypatch.setattr(threads, name, tmp_path / name)
    monkeypatch.setattr(threads, "LOOK", 0.0)
    return tmp_path


def write_quota(machine, group: str, quota: str) -> None:
    """Give a control group of version 2 a quota of CPU time."""
    folder = machine / "CGROUPS" / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(f"{quota}\n")


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({}, 4),
        ({"": "max 100000"}, 4),
        ({"": "250000 100000"}, 2),
        ({"": "50000 100000"}, 1),
        ({"": "800000 100000"}, 4),
        ({"a/b": "max 100000", "a": "300000 100000"}, 3),  # the narrowest of those above the process
        ({"a/b": "100000 50000", "a": "300000 100000"}, 2),
    ],
)
def test_the_quota_of_every_control_group_counts(machine, quotas, expected):
    for group, quota in quotas.items():
        write_quota(machine, group, quota)
    (machine / "CGROUP").write_text("0::/a/b\n" if "a" in quotas else "0::/\n")
    assert threads.cores() == expected


@pytest.mark.parametrize(("asked", "expected"), [("2", 2), ("9", 4), ("0", 4), ("many", 4)])
def test_a_person_may_ask_for_fewer_threads(monkeypatch, asked, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert threads.cores() == expected


def stat(*user: int, nice: int = 0) -> str:
    """/proc/stat at 1,000 ticks of each core, so many of them spent on programs."""
    cores = [f"cpu{core} {ticks} {nice} 0 {1000 - ticks - nice} 0 0 0 0 0 0" for core, ticks in enumerate(user)]
    return "\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *cores, "intr 5"])


@pytest.mark.parametrize(
    ("nice", "priority", "expected"), [(0, 0, 2.5), (100, 0, 2.5), (100, 5, 2.9)]
)  # programs of low priority make way, unless this one's is as low
def test_busy_cores_are_those_of_other_programs(machine, monkeypatch, nice, priority, expected):
    looks = [stat(0, 0, 0, 0).replace(" 1000 ", " 0 "), stat(900, 900, 700, 0, nice=nice)]
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: (machine / "STAT").write_text(looks[1]))
    monkeypatch.setattr(os, "getpriority", lambda which, who: priority)
    (machine / "STAT").write_text(looks[0])
    assert threads.busy_cores() == pytest.approx(expected)


@pytest.mark.parametrize(("busy", "said", "policy"), [(0.4, None, None), (1.8, "2 of 4 cores are busy", "passive")])
def test_where_others_hold_cores_threads_do_not_wait_busily(monkeypatch, busy, said, policy):
    monkeypatch.setattr(threads, "busy_cores", lambda: busy)
    environment: dict[str, str] = {}
    message = threads.limit(environment)
    assert (message and message.partition(" with other programs")[0]) == said
    assert environment.get("OMP_WAIT_POLICY") == policy
    assert environment["OMP_NUM_THREADS"] == "4"


def test_a_person_s_own_wait_policy_stays(monkeypatch):
    monkeypatch.setattr(threads, "busy_cores", lambda: 4.0)
    environment = {"OMP_WAIT_POLICY": "active"}
    threads.limit(environment)
    assert environment["OMP_WAIT_POLICY"] == "active"


def test_a_program_that_spins_is_seen(monkeypatch):
    """On this machine: a process that computes all the time keeps a core busy, or its share of one beside others."""
    monkeypatch.undo()
    monkeypatch.setattr(threads, "LOOK", 0.5)
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as spinning:
        assert spinning.stdout is not None
        spinning.stdout.readline()
        busy = threads.busy_cores()
        spinning.kill()
    assert 0.1 < busy <= len(os.sched_getaffinity(0)) + 0.01


def test_torch_has_no_more_threads_than_cores(monkeypatch):
    """Neither within operations nor between them, whatever the machine's own number."""
    code = (
        "import os, torch; from tpo_lite.machine import threads; os.environ['OMP_NUM_THREADS'] = '1';"
        "threads.limit_torch(); threads.limit_torch(); print(torch.get_num_threads(), torch.get_num_interop_threads())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
