"""The loop on SmolLM2-135M-Instruct, killed in every phase: it ends with the bytes of a run that was not."""

from __future__ import annotations

import pytest

from tests.helpers.killed_run import BEGUN, WARM_BEGUN, check_same_run, kill_in_every_phase
from tests.helpers.tiny_run import finished_run
from tests.helpers.weights import SMOLLM2
from tpo_lite.files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.weights]

SETTINGS = {
    "model": SMOLLM2,
    "iterations": 1,
    "baseline": "false",
    "instructions.per_iteration": 8,
    "instructions.validation": 4,
    "instructions.test": 4,
    "warm_start.kind": "self",
    "warm_start.prompts": 16,
    "warm_start.examples": 16,
    "warm_start.batch": 4,
    "sampling.max_new_tokens": 96,
    "sampling.batch": 16,
    "train.batch": 4,
}
"""The recipe of `make real` on eight prompts: half a minute."""


def test_a_real_model_killed_in_every_phase_ends_as_if_it_had_not_been(tiny_judge, tmp_path):
    """The judge is a random one: what it says does not matter here."""
    judge = {"judge.model": tiny_judge, "judge.mode": "score", "judge.prompts_at_once": 2, "judge.context": 4096}
    options = [f"--set={key}={value}" for key, value in (SETTINGS | judge).items()]
    arguments = ["--recipe", "smollm2-135m-cpu", "--cpu", *options]
    whole = finished_run(tmp_path / "whole", arguments)
    kills = [("thinking", 0, phase) for phase in (*WARM_BEGUN, *BEGUN) if phase != "crosscheck"]
    kill_in_every_phase(arguments, tmp_path / "killed", kills)
    check_same_run(tmp_path / "killed", whole)
    arm = read_json(whole / "results.json")["arms"]["thinking"]
    assert arm["iterations"][0]["pairs"]["pairs"] > 0
    for adapter in ("warm_start", "iteration-0"):
        file = f"thinking/{adapter}/adapter/adapter_model.safetensors"
        assert (tmp_path / "killed" / file).read_bytes() == (whole / file).read_bytes()
