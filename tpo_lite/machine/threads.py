"""How many threads a process may start, and what to do where other programs hold the cores. Imports no torch.

Threads of OpenMP, torch's on a CPU, wait for each other after every operation, and wait busily. If another program has
one of the cores, every operation takes as long as that program likes to run. Threads that give the core up while they
wait are ten times as fast there, and compute the same bits. (Measured: 16 rows through the linear layers of a 135M
model, two threads on two cores beside a dozen other processes: 0.1 passes a second and 1.2. One thread made 1.7, but
the number of threads may decide the order of sums, and a run that goes on must not depend on what ran beside it.)
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CGROUP = Path("/proc/self/cgroup")
STAT = Path("/proc/stat")
LOOK = 0.1
"""Seconds over which the use of the cores is watched, while this process sleeps."""
NICE, IDLE = 1, (3, 4)
"""Fields of a core's line in /proc/stat: the time of programs of low priority, and idle time."""


def cores() -> int:
    """Return how many cores this process may use.

    The least of the cores it may run on, of the CPU quota of its control groups, and of OMP_NUM_THREADS, with which a
    person says how many threads to start.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    wanted = [int(asked)] if asked.isdecimal() and int(asked) > 0 else []
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.floor, _quotas()), *wanted]))


def _quotas() -> Iterator[float]:
    """Yield the cores that each control group above this process allows (version 2, `cpu.max`)."""
    lines = CGROUP.read_text(encoding="ascii").splitlines() if CGROUP.exists() else []
    for line in lines:
        if not line.startswith("0::/"):
            continue
        group = CGROUPS / line.removeprefix("0::/")
        for folder in (group, *group.parents):
            path = folder / "cpu.max"
            if folder.is_relative_to(CGROUPS) and path.exists():
                quota, period = path.read_text(encoding="ascii").split()
                if quota != "max":
                    yield int(quota) / int(period)


def busy_cores() -> float:
    """Return how many of the cores that this process may run on other programs keep busy, on average over `LOOK`.

    Programs of lower priority than this one do not count: they make way for it.
    """
    before = _times()
    time.sleep(LOOK)
    return sum(1 - idle / max(1, total) for idle, total in _differences(before, _times()))


def _times() -> dict[int, list[int]]:
    """Return the times in /proc/stat of each core that this process may run on; none where there is no such file."""
    lines = STAT.read_text(encoding="ascii").splitlines() if STAT.exists() else []
    allowed = {f"cpu{core}": core for core in os.sched_getaffinity(0)}
    fields = [line.split() for line in lines]
    return {allowed[name]: [int(each) for each in times] for name, *times in fields if name in allowed}


def _differences(before: dict[int, list[int]], after: dict[int, list[int]]) -> Iterator[tuple[int, int]]:
    """Yield for each core the ticks that it had to spare, and all ticks, between two looks."""
    spare = IDLE if os.getpriority(os.PRIO_PROCESS, 0) > 0 else (NICE, *IDLE)
    for core in before.keys() & after.keys():
        # After the first eight come the times of guests, which the first two hold already.
        ticks = [late - early for early, late in zip(before[core][:8], after[core][:8], strict=True)]
        yield sum(ticks[field] for field in spare), sum(ticks)


def limit(environment: MutableMapping[str, str]) -> str | None:
    """Let a process with this environment start no more threads than `cores`; return what to tell the user.

    Only before torch or llama.cpp is loaded. Where other programs hold cores, threads give theirs up while they wait.
    """
    environment["OMP_NUM_THREADS"] = str(cores())
    there = len(os.sched_getaffinity(0))
    busy = round(busy_cores())
    if busy < 1:
        return None
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    return f"{busy} of {there} cores are busy with other programs: this phase will be slower"


def limit_torch() -> None:
    """Set torch's threads within and between operations, in a process that has imported it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    torch.set_num_threads(cores())
    if torch.get_num_interop_threads() > cores():  # may be set once only
        torch.set_num_interop_threads(cores())
