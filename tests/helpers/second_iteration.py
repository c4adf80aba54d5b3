"""A finished run whose second iteration is to be sampled again, with an adapter that is live or dead."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_run import as_left
from tpo_lite.files import read_json
from tpo_lite.records import PromptSamples, read_jsonl
from tpo_lite.run import RunFolder


def second_iteration_to_sample(tiny_run: Path, root: Path, engine: str) -> Path:
    """A copy of the finished run that is to sample its second iteration again, with `engine`."""
    shutil.copytree(tiny_run, root)
    shutil.rmtree(root / "direct" / "iteration-1")
    for name in ("recipe.yaml", "settled.yaml"):
        recipe = (root / name).read_text()
        assert "engine: transformers\n" in recipe
        (root / name).write_text(recipe.replace("engine: transformers\n", f"engine: {engine}\n"))
    return root


def with_dead_adapter(root: Path) -> Path:
    """`root` with an adapter that changes nothing."""
    weights = root / "direct" / "iteration-0" / "adapter" / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(weights).items()}, weights)
    as_left(RunFolder(root), "fold", 0)
    return root


def check_sampled(root: Path, tiny_run: Path, engine: str) -> None:
    """The engine has sampled well-formed records with its adapter live, for the prompts that transformers had."""
    there = Path("direct", "iteration-1")
    summary = read_json(root / there / "done" / "generate.json")["summary"]
    assert summary["engine"] == engine
    assert summary["probe"] > 1e-4
    ours, theirs = (list(read_jsonl(run / there / "samples.jsonl", PromptSamples)) for run in (root, tiny_run))
    assert [prompt.prompt_ids for prompt in ours] == [prompt.prompt_ids for prompt in theirs]
    assert all([sample.k for sample in prompt.samples] == [0, 1, 2, 3] for prompt in ours)
    assert all(0 < len(sample.token_ids) <= 24 for prompt in ours for sample in prompt.samples)
    assert summary["parse"]["ok"] > 0


DEAD = "the adapter of the last iteration does not change the"
