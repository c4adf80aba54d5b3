"""What every test has: one thread per process, no GPU, and a tiny model, judge and finished run to work on."""

# ruff: noqa: E402  the environment is set before anything imports torch

import os

# Subprocesses inherit it, so that all of them give the same bits.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from tpo_lite.phases.process import keep_libraries_quiet

keep_libraries_quiet()

import pytest
import yaml

from tests.helpers.browser import need_browser
from tests.helpers.shared import need_shared_data
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.tiny_model import write_tiny_model
from tests.helpers.tiny_run import finished_run, write_prompts


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip a marked test where what its marker needs is missing, or fail it where that is required."""
    if item.get_closest_marker("shared"):
        need_shared_data()
    if item.get_closest_marker("browser"):
        need_browser()


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
def tiny_arguments(tiny_model, tiny_judge, tiny_prompts, tmp_path_factory):
    """Options of `tpo-lite train` for a run of two iterations that takes seconds: the direct arm, no thoughts."""
    recipe = {
        "seed": 4,  # with this one seven of the eight prompts of the first iteration have a pair
        "iterations": 2,
        "model": str(tiny_model),
        "engine": "transformers",
        "quantize": "nf4",
        "instructions": {"source": str(tiny_prompts), "per_iteration": 8, "validation": 6, "test": 2},
        "thought": {"style": "direct"},
        "sampling": {"k": 4, "max_new_tokens": 24, "batch": 8},
        "judge": {
            "model": str(tiny_judge),
            "mode": "verdict",
            # Short, as the tiny judge's vocabulary has a token for every letter.
            "template": "{instruction}|{response_a}|{response_b}",
            "prompts_at_once": 2,
        },
        "train": {"learning_rate": 5e-4, "schedule": "constant", "epochs": 2, "batch": 4, "micro_batch": 4},
    }
    # The second judge is the first once more: so the same checkpoints are chosen, and every phase runs.
    recipe["select"] = {"judge": dict(recipe["judge"])}
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return ["--recipe", str(path), "--cpu"]


@pytest.fixture(scope="session")
def tiny_run(tiny_arguments, tmp_path_factory):
    """A finished run folder made with `tiny_arguments`; copy it before changing anything."""
    return finished_run(tmp_path_factory.mktemp("run") / "run", tiny_arguments)
