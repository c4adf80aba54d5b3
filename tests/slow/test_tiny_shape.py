"""The loop, its engines, back-off and merging on a vocabulary of Llama-3.1's size: the `tiny` shape of
benchmarks/make_model.py (two layers of 256), with the same shape as GGUF for a judge.

What other tests show on a vocabulary of some hundred tokens is shown here where logits, embedding, tokenizer, rotary
scaling and tied weights are those of the real models.
"""

import copy
import functools
import math
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import yaml
from bitsandbytes.nn import Linear4bit
from peft import get_peft_model, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.make_model import make_gguf, make_model, write_weights
from benchmarks.shapes import SHAPES
from tests.helpers.random_adapter import largest_difference, random_adapter
from tests.helpers.second_iteration import DEAD, second_iteration_to_sample, with_dead_adapter
from tests.helpers.tiny_run import before_phase, choosing, finished_run, invoke, process_here, write_prompts
from tpo_lite import base_weights
from tpo_lite.adapters import lora_config, read_adapter, state_dict
from tpo_lite.errors import TpoError
from tpo_lite.files import read_json
from tpo_lite.llamacpp.adapter import write_adapter_gguf
from tpo_lite.loop import orchestrator
from tpo_lite.machine.cards import cpu
from tpo_lite.phases.process import run_phase
from tpo_lite.plan.shapes import model_shape
from tpo_lite.plan.weights import NF4_BITS, STATE_BITS, base
from tpo_lite.records import PromptSamples, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import LoadedPolicy
from tpo_lite.training.requantize import merge_to_disk

pytestmark = pytest.mark.slow

VOCABULARY = 128_256
ENDS = 16_000
"""Tokens that end a turn: a random model draws one of all tokens about as often as any other, so outputs have a mean
of eight."""


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    """The tiny shape with its Q4_K_M form."""
    folder = tmp_path_factory.mktemp("tiny-shape") / "model"
    config = copy.deepcopy(SHAPES["tiny"])
    config.eos_token_id = sorted([*config.eos_token_id, *random.Random(0).sample(range(128_000), ENDS)])
    make_model(config, folder)
    make_gguf(folder, ["Q4_K_M"])
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer():
    """Phases that run in this process share a tokenizer: to read one of this vocabulary takes seconds."""
    with patch.object(AutoTokenizer, "from_pretrained", functools.cache(AutoTokenizer.from_pretrained)):
        yield


@pytest.fixture(scope="module")
def arguments(shape, tmp_path_factory):
    """Options of `tpo-lite train` for two iterations on a few prompts: the direct arm, no thoughts."""
    folder = tmp_path_factory.mktemp("tiny-shape-recipe")
    prompts = write_prompts(folder / "prompts.jsonl", 16)
    recipe = {
        "iterations": 2,
        "model": str(shape),
        "engine": "transformers",
        "quantize": "nf4",
        "instructions": {"source": str(prompts), "per_iteration": 4, "validation": 4, "test": 4},
        "thought": {"style": "direct"},
        "sampling": {"k": 3, "max_new_tokens": 12, "batch": 6},
        "judge": {"model": str(shape / "model-Q4_K_M.gguf"), "mode": "verdict", "context": 4096},
        "train": {"learning_rate": 5e-4, "schedule": "constant", "epochs": 1, "batch": 4, "micro_batch": 4},
        "evaluation": {"retries": 0},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return ["--recipe", str(folder / "recipe.yaml"), "--cpu"]


@pytest.fixture(scope="module")
def run(arguments, tmp_path_factory):
    """A finished run with engine transformers; copy it before changing anything."""
    return finished_run(tmp_path_factory.mktemp("tiny-shape-run") / "run", arguments)


def second_iteration(run):
    """What results.json says of it."""
    return read_json(run / "results.json")["arms"]["direct"]["iterations"][1]


def check_second_iteration(run, engine):
    """Sampled by `engine` with the adapter live, trained from M_1 and against it, and folded without a change."""
    data = second_iteration(run)
    assert data["engine"] == engine
    assert data["probe"] > 1e-4
    assert sum(data["parse"].values()) == 4 * 3 and data["parse"]["ok"] > 3
    assert data["dpo"]["reference"] == "M_1" and data["dpo"]["rank"] == 32
    assert data["dpo"]["first_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert data["merge"]["rank"] == 32 and abs(data["merge"]["kl"]) < 1e-5
    samples = list(read_jsonl(run / "direct" / "iteration-1" / "samples.jsonl", PromptSamples))
    ids = {token for prompt in samples for sample in prompt.samples for token in sample.token_ids}
    assert max(ids) > VOCABULARY // 2 and len(ids) > 30  # from the whole vocabulary
    user = AutoTokenizer.from_pretrained(RunFolder(run).load_recipe().model).convert_tokens_to_ids("user")
    assert all(prompt.prompt_ids[:3] == [128_000, 128_006, user] for prompt in samples)


def test_transformers(run):
    check_second_iteration(run, "transformers")


def to_sample_again(run, root, engine, shape):
    """A copy of `run` that is to go on from its first iteration with another engine."""
    second_iteration_to_sample(run, root, engine)
    if engine == "gguf":
        (root / "base-Q4_K_M.gguf").symlink_to(shape / "model-Q4_K_M.gguf")  # what the engine would convert
    return root


def go_on(root, arguments, engine, phase):
    """`tpo-lite train` in that folder; `phase` runs a phase."""
    with patch.object(orchestrator, "_phase", phase), choosing():
        done = invoke("train", *arguments, "--set", f"engine={engine}", "--out", root)
    assert done.exit_code == 0, done.output


def phase_here(run, phase, arm, iteration, debug):
    run_phase(phase, run.root, arm, iteration)


def test_gguf(run, arguments, shape, tmp_path):
    root = to_sample_again(run, tmp_path / "run", "gguf", shape)
    go_on(root, arguments, "gguf", phase_here)
    check_second_iteration(root, "gguf")
    assert 0 < second_iteration(root)["shift"] < 0.05


def test_unsloth(run, arguments, shape, tmp_path, monkeypatch):
    unsloth = Path(sys.prefix) / "unsloth"
    assert unsloth.is_dir(), f"unsloth is not in {unsloth}: install it with `make test`"
    monkeypatch.setenv("PYTHONPATH", str(unsloth))
    monkeypatch.chdir(tmp_path)  # unsloth writes a cache of compiled code where it runs

    def phase(run, name, arm, iteration, debug):
        """In a process of its own where unsloth samples: it patches the libraries of all that runs beside it."""
        if name in ("generate", "validate", "test"):
            assert orchestrator.process(run, name, arm, iteration, debug) == 0
        else:
            phase_here(run, name, arm, iteration, debug)

    root = to_sample_again(run, tmp_path / "run", "unsloth", shape)
    go_on(root, arguments, "unsloth", phase)
    check_second_iteration(root, "unsloth")


@pytest.mark.parametrize("engine", ["transformers", "gguf"])
def test_an_adapter_that_changes_nothing_is_refused(engine, run, shape, tmp_path):
    dead = with_dead_adapter(to_sample_again(run, tmp_path / "dead", engine, shape))
    with pytest.raises(TpoError, match=f"{DEAD} {engine} engine"):
        run_phase("generate", dead, "direct", 1)


# Out of memory


def samples_of(root):
    """(prompt ids, output ids) of the second iteration's samples."""
    prompts = read_jsonl(root / "direct" / "iteration-1" / "samples.jsonl", PromptSamples)
    return [(prompt.prompt_ids, sample.token_ids) for prompt in prompts for sample in prompt.samples]


def test_sampling_with_half_the_batch_gives_the_same_samples_to_rounding(run, shape, tmp_path):
    """Where a random model's 128,256 tokens are so nearly equal, rounding now and then puts one before the next: an
    output may go on with another token, if that is as probable."""
    part = before_phase(run, tmp_path / "run", "generate", 1, ["samples.jsonl"])
    draw = LoadedPolicy.draw

    def draw_small_batches(self, *arguments):
        if self.recipe.sampling.batch > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return draw(self, *arguments)

    with patch.object(LoadedPolicy, "draw", draw_small_batches), patch.object(orchestrator, "process", process_here):
        orchestrator._phase(part, "generate", "direct", 1, debug=False)
    assert part.limits == {"sampling.batch": 3}
    pairs = list(zip(samples_of(part.root), samples_of(run), strict=True))
    apart = [(prompt, ours, theirs) for (prompt, ours), (_, theirs) in pairs if ours != theirs]
    assert len(apart) < len(pairs) / 2
    model = base_weights.load(str(shape), run / "direct" / "iteration-0" / "adapter", "cpu", "nf4")
    for prompt, ours, theirs in apart:
        same = next(place for place, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + ours[:same]])).logits[0, -1]
        assert (logits[ours[same]] - logits[theirs[same]]).abs() < 1e-3 * logits.std()


def test_training_one_pair_at_a_time_gives_the_same_adapters(run, tmp_path):
    from trl import DPOTrainer

    part = before_phase(run, tmp_path / "run", "dpo", 1, ["train"])
    step = DPOTrainer.training_step

    def training_step(self, model, inputs, *arguments):
        if len(inputs["input_ids"]) > 2:  # rows: both sides of a pair
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, model, inputs, *arguments)

    with patch.object(DPOTrainer, "training_step", training_step), patch.object(orchestrator, "process", process_here):
        orchestrator._phase(part, "dpo", "direct", 1, debug=False)
    assert part.limits == {"train.micro_batch": 1}
    ours, theirs = (read_adapter(root / "direct/iteration-1/train/checkpoint-1")[0] for root in (part.root, run))
    for name, block in theirs.items():
        update = block.b @ block.a
        assert (ours[name].b @ ours[name].a - update).norm() < 1e-3 * update.norm()
    ours, theirs = (folder.done("dpo", "direct", 1)["summary"] for folder in (part, RunFolder(run)))
    for key in ("first_loss", "last_loss"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-5)


# Merging


KILLED_IN_THE_LAST_SHARD = """
import os, signal, sys
from pathlib import Path

from tpo_lite.training import requantize
from tpo_lite.adapters import read_adapter

model, adapter, out, last = map(Path, sys.argv[1:])


def merged(*arguments):
    if (out / f"{last}.tmp").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)


whole, requantize._merged = requantize._merged, merged
requantize.merge_to_disk(str(model), *read_adapter(adapter), out)
"""


def test_requantize_killed_halfway_and_started_again_gives_the_same_bytes(shape, run, tmp_path):
    model, adapter = tmp_path / "model", run / "direct" / "iteration-1" / "adapter"
    shutil.copytree(shape, model, ignore=shutil.ignore_patterns("*.safetensors", "*.gguf"))
    write_weights(SHAPES["tiny"], model, shard_bytes=66_000_000)  # the embedding is 65.7 MB
    first, last = sorted(path.name for path in model.glob("*.safetensors"))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    child = [sys.executable, "-c", KILLED_IN_THE_LAST_SHARD, model, adapter, killed, last]
    assert subprocess.run(child, check=False).returncode == -signal.SIGKILL
    assert (killed / first).exists() and not (killed / last).exists()
    written = (killed / first).stat().st_mtime_ns
    for out in (killed, whole):
        merge_to_disk(str(model), *read_adapter(adapter), out)
    assert (killed / first).stat().st_mtime_ns == written
    made = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in (killed, whole)]
    assert made[0] == made[1]
    assert made[0][last] != (model / last).read_bytes()


def test_an_adapter_does_in_llama_cpp_what_it_does_in_peft(shape, tmp_path):
    """With rotary frequencies scaled and the embedding for a head."""
    model = AutoModelForCausalLM.from_pretrained(shape, dtype=torch.float16).float()
    model = get_peft_model(model, lora_config(16, 1.0)).eval()
    blocks = random_adapter(model, rank=16, seed=0)
    set_peft_model_state_dict(model, state_dict(blocks))
    write_adapter_gguf(blocks, 1.0, 4, 2, tmp_path / "lora.gguf")
    adapted = SimpleNamespace(folder=shape, model=model)
    assert largest_difference(adapted, tmp_path / "lora.gguf") < 1e-3
    assert largest_difference(adapted, tmp_path / "lora.gguf", attached=False) > 0.1


# The plan


def test_nf4_takes_what_the_plan_says(shape):
    """4 bits a weight, 8 for 64 of these, 32 for 256 of those; and two tables and an offset for each linear."""
    modules = base_weights.load_base(str(shape), "cpu", "nf4").modules()
    linears = [module.weight for module in modules if isinstance(module, Linear4bit)]
    terms = base(model_shape(str(shape)), cpu(), "nf4")
    assert sum(weight.nbytes for weight in linears) == terms["NF4 weights"]
    states = [weight.quant_state for weight in linears]
    assert sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states) == terms["quantization state"]
    assert NF4_BITS + STATE_BITS == 4.126953125
