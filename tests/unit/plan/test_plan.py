"""The plan: arithmetic against figures worked out by hand, and the command."""

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import gguf
import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.unit.cli.test_cli import fake_nvidia_smi
from tpo_lite.cli.plan import plan as plan_command
from tpo_lite.cli.plan import plan_first
from tpo_lite.errors import InputError
from tpo_lite.hub import ASSETS
from tpo_lite.llamacpp import decoder as llamacpp
from tpo_lite.machine.cards import CARDS, GIB, choose_card, cpu, named_card
from tpo_lite.plan import memory, rates
from tpo_lite.plan.choices import LIMIT
from tpo_lite.plan.memory import base, judging, needs, training
from tpo_lite.plan.rates import choose_engine, measured, roofline, seconds_of, times
from tpo_lite.plan.report import make_plan, print_plan, short_of
from tpo_lite.plan.shapes import PUBLISHED, converts_to_gguf, judge_shape, model_shape, read_gguf, shape_of
from tpo_lite.recipe import load_recipe, with_keys
from tpo_lite.run import RunFolder
from tpo_lite.sampling import engines
from tpo_lite.training import divergence

LLAMA_3_1_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_3_2_3B = LLAMA_3_1_8B | {
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
    "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_3_2_1B = LLAMA_3_2_3B | {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64}

DEFAULT = "llama-3.1-8b-24gb"
LARGE = shape_of(LLAMA_3_1_8B, "8B")
CARD = choose_card(24)


def planned(name=DEFAULT, *overrides):
    """A recipe with its model's and judge's shapes."""
    recipe = load_recipe(name, list(overrides))
    return recipe, model_shape(recipe.model), judge_shape(recipe.judge)


def run_plan(*arguments):
    """`tpo-lite plan` in this process."""
    return CliRunner().invoke(plan_command, [str(argument) for argument in arguments])


# Shapes


@pytest.mark.parametrize(
    ("config", "parameters", "linear", "adapter"),
    [
        (LLAMA_3_1_8B, 8_030_261_248, 6_979_321_856, 41_943_040),
        (LLAMA_3_2_3B, 3_212_749_824, 2_818_572_288, 24_313_856),
        (LLAMA_3_2_1B, 1_235_814_400, 973_078_528, 11_272_192),
    ],
)
def test_parameters_of_a_folder_with_nothing_but_a_config(config, parameters, linear, adapter, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = model_shape(str(tmp_path))
    assert (shape.parameters, shape.linear_parameters, shape.lora_parameters(16)) == (parameters, linear, adapter)
    assert shape in [shape_of(published, "published") for published in PUBLISHED.values()]


def test_heads_may_be_wider_than_the_hidden_size():
    qwen3_4b = {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    }  # fmt: skip
    shape = shape_of(qwen3_4b, "Qwen3-4B")
    assert shape.linear_parameters == 36 * (2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728)
    assert shape_of({"text_config": qwen3_4b}, "one that sees as well") == shape


def test_a_judge_known_by_its_name():
    judge = judge_shape(load_recipe(DEFAULT).judge)
    assert judge.model == LARGE
    assert judge.file_bytes == pytest.approx(4.92e9, rel=0.01)  # the file on the hub


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=no/where/at/all", "model: no folder 'no/where/at/all'"),
        ("judge.model=none.gguf", "judge.model: no file 'none.gguf'"),
        ("judge.model=hub:some/thing/model.gguf", "its name does not tell its size"),
    ],
)
def test_a_shape_that_cannot_be_had(override, message):
    with pytest.raises(InputError, match=message):
        planned(DEFAULT, override)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_local_experts": 8}, "is a mixture of experts, which is neither planned nor trained here"),
        ({"num_attention_heads": 0}, "is no positive number"),
        ({"hidden_size": "2048"}, "is no positive number"),
        ({"num_hidden_layers": -3}, "is no positive number"),
    ],
)
def test_configs_of_no_shape(changes, message):
    with pytest.raises(InputError, match=message):
        shape_of(PUBLISHED["llama-3.2-1b"] | changes, "a model")
    for config in ([], {"text_config": None}):
        with pytest.raises(InputError, match="has no 'num_attention_heads'"):
            shape_of(config, "nothing")


def test_configs_and_files_that_are_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no 'num_attention_heads'"):
        model_shape(str(tmp_path))
    (tmp_path / "judge.gguf").write_bytes(b"no GGUF")
    with pytest.raises(InputError, match="is no GGUF that can be read"):
        read_gguf(tmp_path / "judge.gguf")


@pytest.mark.parametrize("kept", [0, 20, 1000, 5000])
def test_a_gguf_cut_short_in_its_header(kept, tmp_path):
    whole = write_tiny_gguf(tmp_path / "judge.gguf").read_bytes()
    (tmp_path / "judge.gguf").write_bytes(whole[:kept])
    with pytest.raises(InputError, match="is no GGUF that can be read"):
        read_gguf(tmp_path / "judge.gguf")


def test_a_header_holds_what_ggufs_own_reader_finds():
    found, reader = read_gguf(ASSETS / "judge.gguf"), gguf.GGUFReader(ASSETS / "judge.gguf")
    assert found.file_bytes == sum(int(tensor.n_bytes) for tensor in reader.tensors)
    assert found.model.vocabulary == len(reader.get_field("tokenizer.ggml.tokens").data)
    for key in ("block_count", "embedding_length", "feed_forward_length", "attention.head_count"):
        value = reader.get_field(f"llama.{key}").contents()
        assert value in (found.model.layers, found.model.hidden, found.model.intermediate, found.model.heads)


# Memory, by hand


def test_the_kv_cache_of_llama_3_1_8b():
    assert LARGE.kv_elements(1) * 2 == 128 * 1024  # bfloat16
    assert LARGE.kv_elements(1) * memory.KV_BYTES["q8_0"] == 64 * 1024 * 34 / 32


def test_the_4_bit_base_of_llama_3_1_8b():
    terms = base(LARGE, CARD)
    assert memory.NF4_BITS + memory.STATE_BITS == pytest.approx(4.127, abs=5e-4)
    assert terms == {
        "NF4 weights": 3_489_660_928,
        "quantisation state": 110_755_840,
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
    ("merge", "sampled", "trained"),
    [
        ("fold", [0, 16, 32], [16, 32, 48]),
        ("continue", [0, 16, 16], [16, 16, 16]),
        ("requantize", [0, 0, 0], [16, 16, 16]),
    ],
)
def test_adapters_grow_by_merge(merge, sampled, trained):
    recipe = load_recipe(DEFAULT, [f"merge={merge}"])
    assert [memory.sampled_rank(recipe, t) for t in range(3)] == sampled
    assert [memory.trained_rank(recipe, t) for t in range(3)] == trained


def test_what_is_said_of_other_modules_is_true():
    assert (memory.KL_PROMPTS, memory.KL_POSITIONS) == (divergence.KL_PROMPTS, divergence.KL_POSITIONS)
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
    # 48 rows of up to 1,024 new tokens: 6 GiB of cache; their prompts of some 700 tokens, once each with llama.cpp.
    assert 6 * GIB < terms["KV cache"] < (6 if engine == "gguf" else 10) * GIB + GIB
    assert roofline(recipe, model, judge, CARD)["generate"].seconds > 600


def test_a_cpu_holds_more_of_a_4_bit_base_than_its_weights():
    recipe, model, judge = planned(DEFAULT, "model=meta-llama/Llama-3.2-1B", "engine=transformers")
    found = needs(recipe, model, judge, cpu())
    weights = sum(base(model, replace(CARD, cuda=False)).values()) / 1.3
    assert weights == pytest.approx(model.linear_parameters * 4.127 / 8 + 4 * model.other_parameters, rel=1e-4)
    for phase in ("generate", "dpo", "validate", "fold"):
        assert found[phase].terms["allocator slack"] == pytest.approx(0.3 * weights)
    assert "allocator slack" not in found["judge"].terms  # a GGUF is not converted
    in_llama_cpp = needs(with_keys(recipe, {"engine": "gguf"}), model, judge, cpu())["generate"].terms
    assert "allocator slack" not in in_llama_cpp


def test_disk_by_hand():
    recipe, model, _ = planned(DEFAULT, "iterations=2", "train.epochs=3")
    adapter = 4 * 41_943_040  # of rank 16; 32 in the second iteration
    assert [memory.kept(recipe, model, t)["dpo"] for t in (0, 1)] == [3 * adapter, 3 * 2 * adapter]
    assert [memory.kept(recipe, model, t)["fold"] for t in (0, 1)] == [adapter, 2 * adapter]
    assert memory.passing(recipe, model) == 3 * 2 * 41_943_040 * 2 * (1 + 4 / 256)  # 8-bit moments
    assert memory.passing(with_keys(recipe, {"engine": "gguf"}), model) == 2 * model.parameters
    plan = make_plan(recipe, CARD)
    samples = sum(
        sum(memory.kept(recipe, model, t)[phase] for phase in ("generate", "judge", "validate", "select"))
        for t in (0, 1)
    )
    assert plan.disk == pytest.approx(len(recipe.arms) * (samples + 4 * 3 * adapter))
    least = plan.disk + memory.passing(recipe, model)
    assert list(short_of(plan, math.ceil(least), 64 * GIB)) == []
    disk, ram = short_of(plan, int(least) - 1, GIB)
    assert disk.startswith(f"the run may take {least / 1e9:.1f} GB of disk") and ram.endswith("this machine has 1.0.")


# Rates


def test_no_rate_of_a_gpu_is_shipped_that_was_not_measured():
    assert [entry["card"] for section in ("phases", "engines") for entry in measured(section)] == ["CPU", "CPU"]
    assert {time.basis for time in times(*planned(), CARD).values()} == {"estimate"}


def test_the_engines_rates_are_those_of_the_results_file():
    (entry,) = measured("engines")
    results = (Path(__file__).parents[3] / "benchmarks/results/sampling.md").read_text()
    assert f"Date: {entry['date']}" in results
    medians = re.findall(r"^\| (transformers|unsloth|gguf) \|[^|]*\|[^|]*\| (\d+) \|", results, re.MULTILINE)
    assert entry["rates"] == {engine: int(median) for engine, median in medians}


def test_a_measured_rate_sets_the_level_and_arithmetic_scales_it():
    recipe, model, judge = planned()
    here, other = (card for card in CARDS if card.name in ("RTX 4090", "RTX 3090"))
    table = [{"card": "RTX 4090", "date": "2027-01-01", "recipe": DEFAULT, "rates": {"dpo": 2.0, "generate": 1.0}}]
    plain, found = roofline(recipe, model, judge, here), times(recipe, model, judge, here, table)
    assert (found["dpo"].seconds, found["dpo"].basis) == (pytest.approx(500 * 2 / 2.0), "measured 2027-01-01")
    assert found["judge"] == plain["judge"]
    there = times(recipe, model, judge, other, table)["dpo"]
    slower = roofline(recipe, model, judge, other)["dpo"].seconds / plain["dpo"].seconds
    assert slower == pytest.approx(165.2 / 71.0, rel=0.05)  # DPO is bound by operations
    assert (there.seconds, there.basis) == (pytest.approx(500 * slower), "estimate from RTX 4090, 2027-01-01")


def test_the_embedded_recipe_takes_as_long_as_it_was_measured_to(monkeypatch):
    monkeypatch.setattr(rates.os, "cpu_count", lambda: 64)
    assert {time.basis for time in make_plan(load_recipe("embedded"), cpu()).times.values()} == {
        "estimate from CPU, 2026-11-20"
    }
    monkeypatch.setattr(rates.os, "cpu_count", lambda: 2)
    plan = make_plan(load_recipe("embedded"), cpu())
    assert all(time.basis == "measured 2026-11-20" for time in plan.times.values())
    assert plan.seconds / 60 == pytest.approx(7.6, rel=0.1)  # mean of 7.1, 6.9 and 8.8


def test_what_was_measured_is_an_estimate_for_any_other_recipe():
    plan = make_plan(load_recipe("embedded", ["train.epochs=6", "seed=3"]), cpu())
    assert {time.basis for time in plan.times.values()} == {"estimate from CPU, 2026-11-20"}


def test_a_measured_recipe_with_what_it_left_open():
    entry = {"card": "RTX 4090", "date": "2027-01-01", "recipe": DEFAULT, "rates": {"generate": 1.0}}
    here = next(card for card in CARDS if card.name == "RTX 4090")
    found = {}
    for name, keys in {"bare": [], "set": ["engine=gguf"]}.items():
        found[name] = times(*planned(DEFAULT, "engine=gguf"), here, [entry | {"set": keys}])["generate"]
    assert found["set"].basis == "measured 2027-01-01"
    assert found["set"].seconds == pytest.approx(500 * 8 + 100 / 3)
    assert found["bare"].basis == "estimate from RTX 4090, 2027-01-01"  # another engine sampled there
    assert found["bare"].seconds < found["set"].seconds


def test_longer_outputs_and_more_epochs_take_longer():
    def seconds(phase, *overrides):
        return roofline(*planned(DEFAULT, *overrides), CARD)[phase].seconds

    assert seconds("generate", "instructions.per_iteration=1000") == pytest.approx(2 * seconds("generate"), rel=0.1)
    assert seconds("dpo", "train.epochs=4") > 1.5 * seconds("dpo")
    assert seconds("judge", "judge.mode=explain") > 2 * seconds("judge")


def test_a_runs_own_seconds_replace_all_others(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start(load_recipe("embedded"), new=False)
    for iteration, seconds in enumerate((10.0, 20.0)):
        run.record_seconds("fold", "thinking", iteration, seconds)
        run.mark_done("fold", "thinking", iteration, {}, {})
    run.record_seconds("dpo", "thinking", 0, 100.0)  # was stopped before its end
    assert seconds_of(run) == {"fold": 15.0}
    plan = make_plan(run.started_with, cpu(), run.started_with, seconds_of(run))
    assert (plan.times["fold"].seconds, plan.times["fold"].basis) == (15.0, "this run")
    assert plan.times["dpo"].basis == "measured 2026-11-20"
    run.mark_done("prepare", None, 0, {}, {})
    shown = run_plan("--cpu", "--out", run.root)
    assert re.search(r"fold .* 15 s +this run", shown.output), shown.output


# Engines


MADE_UP = [
    {"card": "RTX 3090", "date": "2027-01-01", "rates": {"transformers": 500, "unsloth": 900, "gguf": 800}},
    {"card": "H200", "date": "2027-02-02", "rates": {"transformers": 5000, "gguf": 9000}},
]


def chosen(*overrides, card=CARD, hindered=(), too_large=(), table=MADE_UP):
    """What `choose_engine` says where some engines are not installed or too large."""
    with patch.object(engines, "hindrance", lambda engine, on: "is not installed here" if engine in hindered else None):
        return choose_engine(load_recipe(DEFAULT, list(overrides)), card, lambda engine: engine not in too_large, table)


def test_auto_is_the_engine_measured_fastest_that_can_run():
    assert chosen() == ("unsloth", "the fastest measured on RTX 3090, 2027-01-01")
    assert chosen(card=choose_card(141)) == ("gguf", "the fastest measured on H200, 2027-02-02")
    assert chosen(hindered=["unsloth"]) == (
        "gguf", "measured on RTX 3090, 2027-01-01; unsloth, which is faster, is not installed here"
    )  # fmt: skip
    engine, why = chosen(hindered=["unsloth"], too_large=["gguf"])
    assert engine == "transformers" and why.endswith("gguf, which is faster, does not fit this card")
    assert chosen("engine=gguf", hindered=["gguf"]) == ("gguf", "as the recipe says")
    engine, why = chosen(hindered=["unsloth"], too_large=["gguf", "transformers"])
    assert engine == "transformers" and "none can run here: unsloth is not installed here, gguf does not fit" in why


def test_auto_falls_back_where_nothing_was_measured():
    assert chosen(table=[]) == ("unsloth", "no engine measured on this card yet")
    assert chosen(table=[], hindered=["unsloth"]) == ("transformers", "no engine measured on this card yet")
    assert chosen(card=cpu()) == ("transformers", "no engine measured on this card yet")  # figures of GPUs alone
    assert chosen(table=None)[1] == "no engine measured on this card yet"  # as shipped


@pytest.mark.parametrize(
    ("change", "converts"),
    [
        ({}, True),
        ({"model_type": "qwen2"}, False),
        ({"attention_bias": True}, False),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, False),
        ({"rope_parameters": {"rope_type": "llama3"}}, True),
    ],
)
def test_gguf_takes_what_can_be_converted(change, converts, tmp_path):
    recipe = load_recipe("embedded", ["engine=auto", f"model={tmp_path}"])
    shutil.copytree(ASSETS / "policy", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    engine, why = choose_engine(recipe, cpu(), lambda engine: True)
    assert (engine == "gguf") == converts
    assert converts or why.endswith("; gguf, which is faster, cannot take this model")
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    assert not converts_to_gguf(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    assert not converts_to_gguf(str(tmp_path))


def test_gguf_needs_a_llama_cpp_with_cuda_there(tmp_path, monkeypatch):
    (tmp_path / "llama_cpp" / "lib").mkdir(parents=True)
    (tmp_path / "llama_cpp" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with patch.dict(sys.modules):
        sys.modules.pop("llama_cpp", None)
        assert "llama.cpp with CUDA" in engines.hindrance("gguf", "cuda")
        assert engines.hindrance("gguf", "cpu") is None
        (tmp_path / "llama_cpp" / "lib" / "libggml-cuda.so").write_bytes(b"")
        assert engines.hindrance("gguf", "cuda") is None


def test_an_engine_too_large_is_left_for_one_that_fits(monkeypatch):
    monkeypatch.setattr(rates, "measured", lambda section: MADE_UP if section == "engines" else [])
    monkeypatch.setattr(engines, "hindrance", lambda engine, on: None)
    for gib, expected in {24: "unsloth", 15.5: "gguf"}.items():
        plan = make_plan(load_recipe(DEFAULT, ["sampling.max_new_tokens=1024"]), choose_card(gib))
        assert plan.recipe.engine == expected, plan.why_engine
        assert max(plan.needs[phase].peak for phase in ("generate", "validate")) <= LIMIT * gib * GIB


def test_a_run_keeps_the_engine_it_was_started_with(tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    open_recipe = load_recipe("embedded", ["engine=auto"])
    first = plan_first(open_recipe, None, run)
    assert first.engine == "gguf"
    (entry,) = measured("engines")
    assert f"engine: gguf (the fastest measured on CPU, {entry['date']})\n" in capsys.readouterr().out
    run.start(with_engine(first, "transformers"), new=False)  # as a machine with other figures would have
    run.mark_done("prepare", None, 0, {}, {})
    assert plan_first(open_recipe, None, run).engine == "transformers"
    assert "engine: transformers (as this run was started with)\n" in capsys.readouterr().out
    assert plan_first(first, None, run).engine == "gguf"  # what is named is not overruled: the run will refuse it
    assert plan_first(load_recipe("embedded", ["engine=auto", "model=none"]), None, None).engine == "transformers"
    no_plan = with_keys(open_recipe, {"judge.model": "none.gguf"})
    assert plan_first(no_plan, None, run).engine == "transformers"
    assert plan_first(no_plan, None, None).engine == "gguf"


def with_engine(recipe, engine):
    return recipe.model_copy(update={"engine": engine})


# Cards


def test_cards_by_name_and_size(tmp_path, monkeypatch):
    assert named_card("NVIDIA GeForce RTX 3090", 24 * GIB) == replace(CARDS[3], memory=24 * GIB)
    assert named_card("Some Other Card", 23 * GIB).bandwidth == 1008e9
    fake_nvidia_smi(tmp_path, monkeypatch, 'echo "0, NVIDIA L4, 23034"; echo "1, NVIDIA GeForce RTX 4090, 24564"')
    card = choose_card(None, 1)
    assert (card.name, card.memory, card.flops) == ("RTX 4090", 24564 << 20, 165.2e12)
    with pytest.raises(InputError, match="there is no GPU 2; nvidia-smi lists 0, 1. .*--card-gb 24"):
        choose_card(None, 2)


# The command


def test_the_plan_of_the_default_recipe_in_24_gb():
    done = run_plan("--card-gb", 24)
    assert done.exit_code == 0, done.output
    for text in ("generate", "KV cache", "allocator slack", "estimate", "Estimates were not measured on this card"):
        assert text in done.output
    assert "measured 20" not in done.output


def test_the_plan_as_json():
    data = json.loads(run_plan("--card-gb", 24, "--json", "--set", "sampling.batch=auto").output)
    assert set(data["phases"]) == {"generate", "judge", "dpo", "validate", "select", "fold"}
    for phase in data["phases"].values():
        assert phase["peak_bytes"] == pytest.approx(sum(phase["terms"].values()), abs=20)
    assert data["picks"] == {"sampling.batch": 56}
    assert data["engine"] == {"name": "transformers", "why": "no engine measured on this card yet"}
    assert data["refusal"] is None


def test_a_plan_that_does_not_fit_names_the_change_that_does():
    done = run_plan("--card-gb", 10)
    assert done.exit_code == 2
    message = done.output[done.output.index("error: ") :]
    assert message.count("error: ") == 1 and "The smallest change that fits: --set sampling.batch=" in message
    assert message.count("--set") > 1
    assert run_plan("--card-gb", 10, *message.split("fits: ")[1].rstrip(".\n").split()).exit_code == 0


def test_what_a_reader_is_told_besides(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    notes = json.loads(run_plan("--card-gb", 24, "--json").output)["notes"]
    assert notes == [
        "the shape is llama-3.1-8b's, by the name meta-llama/Llama-3.1-8B-Instruct: its config.json is not in the hub's "
        "cache."
    ]
    arguments = ["--cpu", "--set", "judge.context=600"]
    assert (
        "note: judge.context=600 does not hold the longest comparisons, of 668 tokens; those are left out."
        in run_plan(*arguments).output
    )
    # A score is of one response.
    assert "note:" not in run_plan(*arguments, "--set", "judge.mode=score").output


def test_a_disk_too_small_is_told(monkeypatch):
    assert "warning:" not in run_plan("--cpu").output
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**6))
    assert "warning: the run may take 0.1 GB of disk, and 0.0 GB are free there.\n" in run_plan("--cpu").output


def test_a_plan_without_a_gpu(tmp_path, monkeypatch):
    fake_nvidia_smi(tmp_path, monkeypatch, None)
    done = run_plan()
    assert (done.exit_code, done.output.strip()) == (
        2,
        "error: plan: no GPU is found here (no nvidia-smi). Say which card to plan for, as --card-gb 24, or use --cpu.",
    )
    assert "Plan for CPU" in run_plan("--cpu").output


def test_a_plan_loads_no_library_of_the_phases():
    code = (
        "import sys; from tpo_lite.cli.plan import plan\n"
        "try: plan(['--card-gb', '24'])\n"
        "except SystemExit: print(*sys.modules)"
    )
    for changed in ("'--cpu', '--set', 'engine=auto'", "'--card-gb', '24'"):
        with_it = code.replace("'--card-gb', '24'", changed)
        done = subprocess.run([sys.executable, "-c", with_it], capture_output=True, text=True, check=True)
        modules = set(done.stdout.splitlines()[-1].split())
        assert "tpo_lite.plan.rates" in modules
        assert not {"torch", "transformers", "peft", "trl", "llama_cpp", "bitsandbytes"} & modules


def test_train_plans_first(tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    settled = plan_first(load_recipe("embedded", ["sampling.batch=auto"]), None, run)
    assert settled.sampling.batch == 256
    assert "auto: sampling.batch=256" in capsys.readouterr().out
    unknown = load_recipe("embedded", ["judge.model=none.gguf"])
    assert plan_first(unknown, None, run) == unknown  # the judge phase will say what is wrong
    assert "no plan: judge.model: no file 'none.gguf'" in capsys.readouterr().out
    with pytest.raises(InputError, match="no file 'none.gguf'"):
        plan_first(with_keys(unknown, {"sampling.batch": "auto"}), None, run)


def test_a_table_on_a_terminal(capsys):
    plan = make_plan(load_recipe("embedded"), cpu())
    print_plan(plan, Console(force_terminal=True, width=120))
    assert "Peak by term, GiB" in capsys.readouterr().out
