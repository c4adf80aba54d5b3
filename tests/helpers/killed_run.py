"""Runs of `tpo-lite train` that are killed on their way, and what they must come to."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.helpers.tiny_run import command
from tests.helpers.warm_train import WarmTrain
from tpo_lite.files import read_json
from tpo_lite.run import RunFolder

BEGUN = {
    "generate": "samples.jsonl",
    "judge": "judgements.jsonl",
    "dpo": "train/checkpoint-*/complete",
    "validate": "validation/checkpoint-*.jsonl",
    "select": "validation/checkpoint-*-vs-*.jsonl",
    "crosscheck": "crosscheck/checkpoint-*-vs-*.jsonl",
    "fold": "adapter/adapter_model.safetensors",
    "test": "test/answers.jsonl",
    "match": "test/M_*-vs-M_0.jsonl",
}
"""What a phase has written when it is in the middle of its work. ("pair" takes no time and writes whole files.)"""

WARM_BEGUN = {"warm_sample": "samples.jsonl", "warm_start": "train/checkpoint-*/complete"}
"""The same for a warm start."""

Train = subprocess.Popen[str] | WarmTrain


def start_cold(arguments: list[str], root: Path) -> subprocess.Popen[str]:
    """`tpo-lite train` as a user starts it, in a process group of its own."""
    return subprocess.Popen(
        command("train", *arguments, "--out", root),
        start_new_session=True,
        # What is started in the background by a shell ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_warm(arguments: list[str], root: Path) -> WarmTrain:
    """The same in processes that need not import torch."""
    return WarmTrain(["train", *arguments, "--out", root])


def wait_until(process: Train, begun: Callable[[], bool]) -> Train:
    """The process, as soon as `begun` holds."""
    while not begun():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)
    return process


def start_until(arguments: list[str], root: Path, begun: Callable[[], bool]) -> subprocess.Popen[str]:
    """A cold process, as soon as `begun` holds."""
    process = start_cold(arguments, root)
    wait_until(process, begun)
    return process


def is_alive(pid: int) -> bool:
    """Whether a process still runs; one that is dead and not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def phase_pid(root: Path) -> int:
    """The process of the phase that holds the run folder."""
    return int((root / ".phase.lock").read_text())


def kill_in_every_phase(
    arguments: list[str],
    root: Path,
    kills: Iterable[tuple[str, int, str]],
    start: Callable[[list[str], Path], Train] = start_warm,
) -> None:
    """Runs `tpo-lite train`, kills it (SIGKILL) in the middle of each (arm, iteration, phase) of `kills`, in their
    order, and lets it end after the last. Every other time only the orchestrator is killed: its phase must die with it.
    """
    run = RunFolder(root)
    for number, (arm, iteration, phase) in enumerate(kills):
        folder = run.done_path(phase, arm, iteration).parent.parent

        def begun(folder: Path = folder, phase: str = phase) -> bool:
            # What a tiny run does at one go is killed before its first line: its file is there, and empty.
            early = phase in ("select", "crosscheck", "test", "match")
            return any(
                early or path.stat().st_size or path.name == "complete"
                for path in folder.glob((BEGUN | WARM_BEGUN)[phase])
            )

        process = wait_until(start(arguments, root), begun)
        pid = phase_pid(root)
        if number % 2:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        deadline = time.monotonic() + 5
        while is_alive(pid):
            assert time.monotonic() < deadline, f"the {phase} phase outlived the run"
            time.sleep(0.01)
        assert not run.is_done(phase, arm, iteration), f"{phase} ended before it could be killed"
    finished = start(arguments, root)
    said = finished.communicate()[0]
    assert finished.returncode == 0, said


def check_same_run(killed: Path, whole: Path) -> None:
    """Both runs hold the same samples, judgements, pairs and matches, byte for byte, and the same figures."""
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.jsonl"))
    assert {"samples.jsonl", "judgements.jsonl", "pairs.jsonl"} <= {path.name for path in files}
    for path in files:
        assert (killed / path).read_bytes() == (whole / path).read_bytes(), path
    assert figures(killed) == figures(whole)


def figures(root: Path) -> dict[str, Any]:
    """results.json without what depends on the clock and the machine."""
    results = read_json(root / "results.json")
    for arm in results["arms"].values():
        for data in [*arm["iterations"], *([arm["warm_start"]] if arm["warm_start"] else [])]:
            del data["seconds"], data["peak_bytes"]
    return results
