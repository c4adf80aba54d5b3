"""Kill and resume: a run that was killed in every phase in turn ends with the bytes of one that was not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_run import choosing, command, finished_run
from tests.helpers.warm_train import WarmTrain
from tpo_lite.files import read_json
from tpo_lite.phase_order import PHASES
from tpo_lite.phases.process import run_phase
from tpo_lite.phases.select import best
from tpo_lite.run import RunFolder

pytestmark = pytest.mark.slow

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


def test_a_run_killed_in_every_phase_ends_as_if_it_had_not_been(tiny_arguments, tiny_run, tmp_path):
    kills = [("direct", 0, phase) for phase in BEGUN] + [("direct", 1, "generate"), ("direct", 1, "dpo")]
    kill_in_every_phase(tiny_arguments, tmp_path / "run", kills)
    check_same_run(tmp_path / "run", tiny_run)
    data = read_json(tmp_path / "run" / "results.json")["arms"]["direct"]["iterations"][1]
    assert all(seconds > 0 for seconds in data["seconds"].values())
    assert set(data["seconds"]) == set(data["peak_bytes"])


def test_a_warm_start_killed_in_both_phases_ends_as_if_it_had_not_been(tiny_arguments, tmp_path):
    keys = {"kind": "self", "prompts": 8, "batch": 2, "response_tokens": 24}
    arguments = [*tiny_arguments, "--iterations=1", *(f"--set=warm_start.{key}={keys[key]}" for key in keys)]
    whole = finished_run(tmp_path / "whole", arguments)
    kill_in_every_phase(arguments, tmp_path / "killed", [("direct", 0, phase) for phase in WARM_BEGUN])
    check_same_run(tmp_path / "killed", whole)
    adapter = "direct/warm_start/adapter/adapter_model.safetensors"
    assert (tmp_path / "killed" / adapter).read_bytes() == (whole / adapter).read_bytes()


def test_a_run_of_cold_processes_killed_while_it_validates_goes_on(tiny_arguments, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "whole")
    last = RunFolder(tmp_path / "whole").iteration("direct", 1)
    for name in PHASES[PHASES.index("validate") :]:
        (last / "done" / f"{name}.json").unlink()
    for name in ("adapter", "validation", "crosscheck", "test"):
        shutil.rmtree(last / name)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    kill_in_every_phase(tiny_arguments, tmp_path / "run", [("direct", 1, "validate")], start_cold)
    check_same_run(tmp_path / "run", finished_run(tmp_path / "whole", tiny_arguments, best))


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_killed_just_before_its_end_comes_to_the_same(phase, tiny_run, tmp_path):
    """All its output is there, and only the word that it is finished is missing."""
    shutil.copytree(tiny_run, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    done = run.done_path(phase, "direct", 1)
    done.unlink()
    with choosing():
        run_phase(phase, run.root, "direct", 1)
    assert read_json(done)["summary"] == RunFolder(tiny_run).done(phase, "direct", 1)["summary"]
    check_same_run(run.root, tiny_run)


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C on a terminal: SIGINT to the whole group. Returns what the run had to say."""
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 130
    assert said.count("interrupted; everything finished is kept.") == 1
    assert "Traceback" not in said
    return said


def test_ctrl_c_keeps_the_state_and_says_so_once(tiny_arguments, tmp_path):
    samples = tmp_path / "direct" / "iteration-0" / "samples.jsonl"
    interrupt(start_until(tiny_arguments, tmp_path, lambda: samples.exists() and samples.stat().st_size > 0))
    assert samples.stat().st_size > 0
    assert not is_alive(phase_pid(tmp_path))


def test_ctrl_c_while_a_phase_still_imports(tiny_arguments, tmp_path):
    lock = tmp_path / ".phase.lock"
    interrupt(start_until(tiny_arguments, tmp_path, lambda: lock.exists() and lock.stat().st_size > 0))


def test_a_phase_that_the_system_ends_is_named(tiny_arguments, tmp_path):
    lock = tmp_path / ".phase.lock"
    process = start_until(tiny_arguments, tmp_path, lambda: lock.exists() and lock.stat().st_size > 0)
    os.kill(phase_pid(tmp_path), signal.SIGKILL)
    said = process.communicate()[0]
    assert process.returncode == 1
    assert "error: the prepare phase was ended by SIGKILL; if the machine is out of memory, set sampling.batch" in said
    assert "Traceback" not in said


def test_the_embedded_recipe_killed_in_every_phase_ends_as_if_it_had_not_been(tmp_path):
    """The recipe of the demo, both arms, on fewer instructions."""
    fewer = {
        "iterations": 2,
        "instructions.per_iteration": 8,
        "instructions.validation": 12,
        "instructions.test": 12,
        "sampling.batch": 16,
        "judge.prompts_at_once": 1,
        "train.epochs": 2,
        "train.batch": 2,
        "train.micro_batch": 2,
    }
    arguments = ["--recipe", "embedded", "--cpu"] + [f"--set={key}={value}" for key, value in fewer.items()]
    whole = finished_run(tmp_path / "whole", arguments)
    kills = [("thinking", 0, phase) for phase in BEGUN if phase != "crosscheck"] + [
        ("direct", 0, "judge"),
        ("direct", 0, "match"),
        ("thinking", 1, "generate"),
    ]
    kill_in_every_phase(arguments, tmp_path / "killed", kills)
    check_same_run(tmp_path / "killed", whole)
    assert set(read_json(whole / "results.json")["arms"]) == {"thinking", "direct"}
