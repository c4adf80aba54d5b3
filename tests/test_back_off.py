"""Out of memory: what is halved, and that the run goes on with it to the same end."""

from __future__ import annotations

import errno
import os
import shutil
from unittest.mock import patch

import pytest
import torch

from tests.tiny_run import invoke
from tpo_lite import gguf_model, orchestrator
from tpo_lite.adapters import read_adapter
from tpo_lite.back_off import limited, smaller
from tpo_lite.errors import OutOfMemory, TpoError
from tpo_lite.phases import exit_code, is_out_of_memory, run_phase
from tpo_lite.recipe import Recipe, parse_recipe
from tpo_lite.records import PromptJudgements, read_jsonl
from tpo_lite.run import RunFolder, read_json


def recipe(**sections):
    return parse_recipe(sections, "test")


# What is halved


@pytest.mark.parametrize(
    ("phase", "sections", "limits"),
    [
        ("dpo", {"train": {"batch": 32, "micro_batch": 8}}, {"train.micro_batch": 4}),
        ("dpo", {"train": {"batch": 12, "micro_batch": 12}}, {"train.micro_batch": 6}),
        ("dpo", {"train": {"batch": 9, "micro_batch": 9}}, {"train.micro_batch": 3}),  # 4 would not divide the batch
        ("dpo", {"train": {"batch": 32, "micro_batch": 1}}, {}),
        ("generate", {"sampling": {"batch": 64, "k": 8}}, {"sampling.batch": 32}),
        ("validate", {"sampling": {"batch": 3, "k": 8}}, {"sampling.batch": 1}),
        ("validate", {"sampling": {"batch": 1, "k": 8}}, {}),
        ("fold", {}, {}),
        ("pair", {}, {}),
    ],
)
def test_what_is_halved(phase, sections, limits):
    assert smaller(phase, recipe(**sections)) == limits


@pytest.mark.parametrize("phase", ["prepare", "judge", "select"])
def test_the_judge_keeps_room_for_the_longest_comparison(phase):
    judged = recipe(
        instructions={"max_tokens": 100},
        sampling={"max_new_tokens": 200},
        judge={"mode": "explain", "explain_tokens": 300, "context": 8192, "batch": 128, "sequences": 32},
    )
    needed = 750 + 512 + 300  # 1.5 * (100 + 2 * 200), the judge prompt, the explanation
    tried = []
    while limits := smaller(phase, judged):
        tried.append((limits.get("judge.batch"), limits.get("judge.context")))
        judged = limited(judged, limits)
    assert tried == [(64, 4096), (32, 2048), (None, needed)]


def test_a_limit_never_raises_a_setting():
    limits = {"train.micro_batch": 4, "sampling.batch": 16}
    within = limited(recipe(train={"micro_batch": 2}, sampling={"batch": 64}), limits)
    assert (within.train.micro_batch, within.sampling.batch) == (2, 16)
    assert within.train.batch == Recipe().train.batch


# What is taken for it


def raised(allocate):
    try:
        allocate()
    except Exception as error:
        return error
    raise AssertionError("there was memory for it")


@pytest.mark.parametrize(
    "error",
    [
        raised(lambda: bytearray(1 << 62)),
        raised(lambda: torch.empty(1 << 58, dtype=torch.uint8)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_mean_it(error, tmp_path, capsys):
    assert exit_code(error, tmp_path / "dpo.log", debug=False) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (") and "tries smaller batches" in said
    assert (tmp_path / "dpo.log").exists()


def test_errors_that_do_not():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("the story of a man out of memory"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


# The run goes on


def copy_without(tiny_run, root, phase, outputs):
    """A copy of the finished run as it was before `phase` of its first iteration."""
    shutil.copytree(tiny_run, root)
    folder = root / "direct" / "iteration-0"
    (folder / "done" / f"{phase}.json").unlink()
    for name in outputs:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return RunFolder(root)


OUT_OF_MEMORY_HERE = """
import tpo_lite.phases


def run_phase(*arguments):
    from tpo_lite.policy import LoadedPolicy

    draw = LoadedPolicy.draw

    def draw_two_prompts(self, *arguments):
        for number, prompt in enumerate(draw(self, *arguments)):
            if number == 2:
                raise MemoryError
            yield prompt

    def draw_in_small_batches(self, *arguments):
        return (draw if self.recipe.sampling.batch <= 4 else draw_two_prompts)(self, *arguments)

    LoadedPolicy.draw = draw_in_small_batches
    whole(*arguments)


whole, tpo_lite.phases.run_phase = tpo_lite.phases.run_phase, run_phase
"""


def test_a_fresh_process_goes_on_with_half_the_batch(tiny_run, tmp_path, monkeypatch, capfd):
    """Batches of eight find no memory after the first two prompts, which are on disk by then."""
    run = copy_without(tiny_run, tmp_path / "run", "generate", ["samples.jsonl"])
    (tmp_path / "sitecustomize.py").write_text(OUT_OF_MEMORY_HERE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    orchestrator._phase(run, "generate", "direct", 0, debug=False)
    said = capfd.readouterr()
    assert said.err.count("error: out of memory (MemoryError).") == 1
    assert said.out.count("generate again with sampling.batch 4") == 1
    assert run.limits == read_json(run.root / "limits.json") == {"sampling.batch": 4}
    assert run.recipe.sampling.batch == 4 and run.started_with.sampling.batch == 8
    samples = "direct/iteration-0/samples.jsonl"
    assert (run.root / samples).read_bytes() == (tiny_run / samples).read_bytes()


def process_here(run, phase, arm, iteration, debug):
    """`orchestrator.process` in this process."""
    try:
        run_phase(phase, run.root, arm, iteration)
    except Exception as error:
        return exit_code(error, run.root / "log" / f"{phase}.log", debug)
    return 0


def test_training_that_runs_out_of_memory_in_its_second_epoch_ends_with_the_same_adapters(tiny_run, tmp_path):
    from trl import DPOTrainer

    run = copy_without(tiny_run, tmp_path / "run", "dpo", ["train"])
    step, sizes = DPOTrainer.training_step, []

    def training_step(self, model, inputs, *arguments):
        pairs = len(inputs["input_ids"]) // 2
        if pairs > 2 and (run.iteration("direct", 0) / "train" / "checkpoint-2").exists():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(pairs)
        return step(self, model, inputs, *arguments)

    with patch.object(DPOTrainer, "training_step", training_step), patch.object(orchestrator, "process", process_here):
        orchestrator._phase(run, "dpo", "direct", 0, debug=False)
    assert sizes == [4, 3, 2, 2, 2, 1]  # seven pairs: the last micro-batch's count as much as the others
    assert run.limits == {"train.micro_batch": 2}
    for checkpoint in ("checkpoint-2", "checkpoint-4"):
        ours, theirs = (
            read_adapter(root / "direct" / "iteration-0" / "train" / checkpoint)[0] for root in (run.root, tiny_run)
        )
        for name, block in theirs.items():
            update = ours[name].b @ ours[name].a
            assert (update - block.b @ block.a).norm() < 1e-4 * update.norm()
    ours, theirs = (folder.done("dpo", "direct", 0)["summary"] for folder in (run, RunFolder(tiny_run)))
    for key in ("first_loss", "last_loss"):
        assert ours[key] == pytest.approx(theirs[key])


def test_a_judge_whose_context_finds_no_memory_gets_a_smaller_one(tiny_run, tmp_path, monkeypatch, capsys):
    run = copy_without(tiny_run, tmp_path / "run", "judge", ["judgements.jsonl"])
    monkeypatch.setattr(gguf_model, "_available_memory", lambda: 1 << 20)
    with patch.object(orchestrator, "process", process_here):
        orchestrator._phase(run, "judge", "direct", 0, debug=False)
    assert "no context of 8192 tokens" in capsys.readouterr().err
    assert run.limits["judge.context"] < run.started_with.judge.context == 8192
    games, expected = (
        {
            (record.id, game.first, game.second): game.p_first
            for record in read_jsonl(root / "direct" / "iteration-0" / "judgements.jsonl", PromptJudgements)
            for game in record.comparisons
        }
        for root in (run.root, tiny_run)
    )
    assert games == pytest.approx(expected, abs=1e-3)


def test_a_phase_without_anything_left_to_halve_says_what_to_do(tiny_run, tmp_path):
    run = copy_without(tiny_run, tmp_path / "run", "dpo", ["train"])
    tried = []

    def process(run, *arguments):
        tried.append(run.recipe.train.micro_batch)
        return OutOfMemory.exit_code

    with (
        patch.object(orchestrator, "process", process),
        pytest.raises(TpoError, match=r"dpo phase ran out of memory with the smallest batches\. End other programs"),
    ):
        orchestrator._phase(run, "dpo", "direct", 0, debug=False)
    assert tried == [4, 2, 1]
    assert RunFolder(run.root).recipe.train.micro_batch == 1  # what later iterations start from


def test_status_names_the_limits(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    RunFolder(tmp_path / "run").limit({"train.micro_batch": 2})
    assert "train.micro_batch: 2, as memory ran out with more" in invoke("status", tmp_path / "run").output
