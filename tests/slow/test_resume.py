"""Kill and resume: a run that was killed in every phase in turn ends with the bytes of one that was not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

import pytest

from tests.helpers.killed_run import (
    BEGUN,
    WARM_BEGUN,
    check_same_run,
    is_alive,
    kill_in_every_phase,
    phase_pid,
    start_cold,
    start_until,
)
from tests.helpers.tiny_run import choosing, finished_run
from tpo_lite.files import read_json
from tpo_lite.phase_order import PHASES
from tpo_lite.phases.process import run_phase
from tpo_lite.phases.select import best
from tpo_lite.run import RunFolder

pytestmark = pytest.mark.slow


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
