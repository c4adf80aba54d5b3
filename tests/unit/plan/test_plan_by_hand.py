"""The plan's memory and disk against figures worked out by hand for Llama-3.1-8B."""

import math
from dataclasses import replace

import gguf
import pytest

from tests.helpers.plans import CARD, DEFAULT, LARGE, planned
from tests.helpers.tiny_gguf import write_tiny_gguf
from tpo_lite.llamacpp import decoder as llamacpp
from tpo_lite.machine.cards import GIB, cpu
from tpo_lite.plan import memory
from tpo_lite.plan import needs as phase_needs
from tpo_lite.plan.memory import judging, training
from tpo_lite.plan.needs import kept, needs, passing
from tpo_lite.plan.rates import roofline
from tpo_lite.plan.report import make_plan, short_of
from tpo_lite.plan.weights import NF4_BITS, STATE_BITS, base
from tpo_lite.recipe import load_recipe, with_keys
from tpo_lite.training import divergence

# Memory, by hand


def test_the_kv_cache_of_llama_3_1_8b():
    assert LARGE.kv_elements(1) * 2 == 128 * 1024  # bfloat16
    assert LARGE.kv_elements(1) * memory.KV_BYTES["q8_0"] == 64 * 1024 * 34 / 32


def test_the_4_bit_base_of_llama_3_1_8b():
    terms = base(LARGE, CARD, "nf4")
    bits = NF4_BITS + STATE_BITS
    assert bits == pytest.approx(4.127, abs=5e-4)
    assert terms == {
        "NF4 weights": 3_489_660_928,
        "quantization state": 110_755_840,
        "embedding, head, norms": 2 * (2 * 128256 * 4096 + 65 * 4096),
    }
    assert sum(terms.values()) == pytest.approx(5.70e9, rel=0.001)


def test_training_llama_3_1_8b_by_hand():
    recipe, model, _ = planned(DEFAULT, "iterations=1", "pairs.max_tokens=1000")
    terms = training(recipe, model, CARD, 16)
    weights = 41_943_040
    assert terms["LoRA"] == weights * (4 + 2)
    assert terms["LoRA gradients"] == weights * 4
    assert terms["optimizer"] == weights * 2 * (1 + 4 / 256)
    layer = 2000 * (196_960 + 8 + 2 * 1000)
    assert terms["logits"] == 0  # made before a layer is recomputed, and less than that takes
    # Checkpoints, one layer recomputed with its gradients, and one weight unpacked.
    assert terms["activations"] == pytest.approx(2000 * 32 * 2 * 4096 + 1.4 * layer + 2 * 4096 * 14336)
    whole = with_keys(recipe, {"train.gradient_checkpointing": False, "train.optimizer": "adamw_torch"})
    kept = training(whole, model, CARD, 16)
    assert kept["optimizer"] == weights * 8
    assert kept["activations"] == 32 * layer + 2 * 4096 * 14336
    assert kept["logits"] == 256 * 128256 * 10 + 3 * 2000 * 2 * 4096


def test_judging_llama_3_1_8b_by_hand():
    recipe, _, judge = planned()
    terms = judging(recipe, judge, CARD)
    assert terms["KV cache"] == 65536 * 64 * 1024 * 34 / 32
    assert terms["judge weights"] == judge.gpu_bytes
    half = judging(with_keys(recipe, {"judge.gpu_layers": 16}), judge, CARD)
    assert half["judge weights"] == judge.gpu_bytes / 2
    recipe = with_keys(recipe, {"judge.gpu_layers": 16})
    cache = 65536 * 64 * 1024 * 34 / 32
    tokenizer = 450 * 128256
    left = judge.file_bytes - judge.gpu_bytes / 2 + cache / 2
    assert needs(recipe, LARGE, judge, CARD)["select"].ram == 1e9 + tokenizer + left
    whole, shared = (
        roofline(with_keys(recipe, {"judge.gpu_layers": n}), LARGE, judge, CARD)["judge"] for n in (-1, 16)
    )
    assert shared.seconds > 10 * whole.seconds  # a host is slow


@pytest.mark.parametrize(
    ("merge", "warm_start", "sampled", "trained"),
    [
        ("fold", "none", [0, 16, 32], [16, 32, 48]),
        ("continue", "none", [0, 16, 16], [16, 16, 16]),
        ("requantize", "none", [0, 0, 0], [16, 16, 16]),
        ("fold", "auto", [16, 32, 48], [32, 48, 64]),
        ("continue", "self", [16, 16, 16], [16, 16, 16]),
        ("requantize", "self", [16, 0, 0], [16, 16, 16]),
    ],
)
def test_adapters_grow_by_merge(merge, warm_start, sampled, trained):
    recipe = load_recipe(DEFAULT, [f"merge={merge}", f"warm_start.kind={warm_start}"])
    assert [memory.sampled_rank(recipe, t) for t in range(3)] == sampled
    assert [memory.trained_rank(recipe, t) for t in range(3)] == trained


def test_what_is_said_of_other_modules_is_true():
    assert (phase_needs.KL_PROMPTS, memory.KL_POSITIONS) == (divergence.KL_PROMPTS, divergence.KL_POSITIONS)
    assert llamacpp.LlamaCpp.__init__.__defaults__[1] == memory.GGUF_DECODE


@pytest.mark.parametrize(
    ("mode", "tokenizer"), [("verdict", 450), ("score", 450), ("reward-model", 2200), ("openai", 0)]
)
def test_every_judge_has_a_plan(mode, tokenizer):
    model = "meta-llama/Llama-3.2-1B" if mode == "reward-model" else "hub:x/Llama-3.2-1B-GGUF/y.Q8_0.gguf"
    recipe, policy, judge = planned(DEFAULT, f"judge.mode={mode}", f"judge.model={model}", "judge.context=8192")
    need, time = needs(recipe, policy, judge, CARD)["judge"], roofline(recipe, policy, judge, CARD)["judge"]
    assert (need.peak == 0) == (mode == "openai")
    assert need.peak < 6 * GIB and time.seconds > 10
    held = needs(recipe, policy, judge, cpu())
    assert held["select"].terms["tokenizer"] == tokenizer * 128256
    assert held["validate"].terms["tokenizer"] == 2200 * 128256


@pytest.mark.parametrize("engine", ["transformers", "unsloth", "gguf"])
def test_every_engine_has_a_plan(engine):
    recipe, model, judge = planned(DEFAULT, f"engine={engine}")
    terms = needs(recipe, model, judge, CARD)["generate"].terms
    # 48 rows of up to 1,024 new tokens: 6 GiB of cache, and their prompts of some 700 tokens. llama.cpp has seven more.
    assert 6 * GIB < terms["KV cache"] < (11 if engine == "gguf" else 10) * GIB + GIB
    assert roofline(recipe, model, judge, CARD)["generate"].seconds > 600


def test_a_cpu_holds_more_of_a_4_bit_base_than_its_weights():
    recipe, model, judge = planned(DEFAULT, "model=meta-llama/Llama-3.2-1B", "engine=transformers")
    found = needs(recipe, model, judge, cpu())
    weights = sum(base(model, replace(CARD, cuda=False), "nf4").values()) / 1.3
    assert weights == pytest.approx(model.linear_parameters * 4.127 / 8 + 4 * model.other_parameters, rel=1e-4)
    for phase in ("generate", "dpo", "validate", "fold"):
        assert found[phase].terms["allocator slack"] == pytest.approx(0.3 * weights)
    assert "allocator slack" not in found["judge"].terms  # a GGUF is not converted
    in_llama_cpp = needs(with_keys(recipe, {"engine": "gguf"}), model, judge, cpu())["generate"].terms
    assert "allocator slack" not in in_llama_cpp


def test_disk_by_hand():
    recipe, model, _ = planned(DEFAULT, "iterations=2", "train.epochs=3", "warm_start.kind=none")
    adapter = 4 * 41_943_040  # of rank 16; 32 in the second iteration
    assert [kept(recipe, model, t)["dpo"] for t in (0, 1)] == [3 * adapter, 3 * 2 * adapter]
    assert [kept(recipe, model, t)["fold"] for t in (0, 1)] == [adapter, 2 * adapter]
    assert passing(recipe, model) == 3 * 2 * 41_943_040 * 2 * (1 + 4 / 256)  # 8-bit moments
    assert passing(with_keys(recipe, {"engine": "gguf"}), model) == 2 * model.parameters
    plan = make_plan(recipe, CARD)
    samples = sum(
        sum(kept(recipe, model, t)[phase] for phase in ("generate", "judge", "validate", "select", "test", "match"))
        for t in (0, 1)
    )
    assert plan.disk == pytest.approx(len(recipe.arms) * (samples + 4 * 3 * adapter))
    least = plan.disk + passing(recipe, model)
    assert list(short_of(plan, math.ceil(least), 64 * GIB)) == []
    disk, ram = short_of(plan, int(least) - 1, GIB)
    assert disk.startswith(f"the run may take {least / 1e9:.1f} GB of disk") and ram.endswith("this machine has 1.0.")


def test_disk_and_downloads_of_a_gguf_as_m_0_by_hand():
    name = "hub:owner/Llama-3.1-8B-Instruct-GGUF/Llama-3.1-8B-Instruct-Q6_K.gguf"
    bits16, q4, q6 = 16_060_522_496, 8_030_261_248 * 4.894 / 8, int(8_030_261_248 * 6.563 / 8)

    def disk(*overrides):
        recipe, model, _ = planned(DEFAULT, "iterations=2", "warm_start.kind=none", *overrides)
        assert 2 * model.parameters == bits16
        plan = make_plan(recipe, CARD)
        left = sum(sum(kept(recipe, model, t).values()) for t in (0, 1))
        return (
            plan.disk - len(recipe.arms) * left,
            passing(recipe, model),
            plan.downloads - plan.judge.file_bytes,
        )

    states = 3 * 2 * 41_943_040 * 2 * (1 + 4 / 256)
    requantize = ("engine=gguf", "merge=requantize")
    assert disk("train.epochs=3", "engine=gguf") == (pytest.approx(q4), bits16, bits16)
    # RUN/base takes 16 bits per weight; the GGUF is sampled from as it is.
    assert disk("train.epochs=3", f"model={name}", "engine=gguf") == (pytest.approx(bits16), states, q6)
    assert disk("train.epochs=3", f"model={name}", "engine=transformers") == (pytest.approx(bits16), states, q6)
    # The merged model of each iteration is converted.
    assert disk(*requantize) == (pytest.approx(q4 + 2 * q4), bits16, bits16)
    assert disk(f"model={name}", *requantize) == (pytest.approx(bits16 + 2 * q4), bits16, q6)


def test_a_gguf_that_is_there_counts_with_its_own_bytes(tmp_path):
    path = write_tiny_gguf(tmp_path / "Llama-3.1-8B-Q6_K.gguf")
    recipe, _, _ = planned(DEFAULT, f"model={path}", "engine=gguf")
    plan = make_plan(recipe, CARD)
    assert plan.downloads - plan.judge.file_bytes == sum(int(x.n_bytes) for x in gguf.GGUFReader(path).tensors)
