"""What every test has: one thread a process, no GPU, and a tiny model, judge and finished run to work on."""

import os

# Before anything imports torch. Subprocesses inherit it, so that all of them give the same bits.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TPO_LITE_DEVICE"] = "cpu"

import pytest

from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_model import write_tiny_model
from tests.tiny_run import finished_run, write_prompts


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A random policy of 0.1 M parameters whose outputs soon end."""
    return write_tiny_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory):
    """A random judge."""
    return write_tiny_gguf(tmp_path_factory.mktemp("judge") / "judge.gguf")


@pytest.fixture(scope="session")
def tiny_prompts(tmp_path_factory):
    """A JSONL file of 24 short instructions."""
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", 24)


@pytest.fixture(scope="session")
def tiny_arguments(tiny_model, tiny_judge, tiny_prompts):
    """Options of `tpo-lite train` for a run of two iterations that takes seconds: the direct arm, no thoughts."""
    settings = {
        "model": tiny_model,
        "judge.model": tiny_judge,
        "judge.mode": "verdict",
        # Short, as the tiny judge's vocabulary has a token for every letter.
        "judge.template": "'{instruction}|{response_a}|{response_b}'",
        "judge.prompts_at_once": 2,
        "thought.style": "direct",
        "instructions.per_iteration": 8,
        "instructions.validation": 6,
        "sampling.max_new_tokens": 24,
        "sampling.k": 4,
        "sampling.batch": 8,
        "train.batch": 4,
        "train.micro_batch": 4,
    }
    return [
        *("--recipe", "embedded", "--cpu", "--prompts", str(tiny_prompts), "--iterations", "2"),
        *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
    ]


@pytest.fixture(scope="session")
def tiny_run(tiny_arguments, tmp_path_factory):
    """A finished run folder made with `tiny_arguments`; copy it before changing anything."""
    return finished_run(tmp_path_factory.mktemp("run") / "run", tiny_arguments)
