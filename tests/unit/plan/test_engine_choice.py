"""Which engine `auto` picks, and why."""

import json
import shutil
import sys
from unittest.mock import patch

import pytest

from tests.helpers.plans import CARD, DEFAULT
from tpo_lite.cli.plan import plan_first
from tpo_lite.hub import ASSETS
from tpo_lite.machine.cards import GIB, choose_card, cpu
from tpo_lite.machine.device import CPU
from tpo_lite.plan import rates
from tpo_lite.plan.choices import LIMIT
from tpo_lite.plan.rates import choose_engine, measured
from tpo_lite.plan.report import make_plan
from tpo_lite.plan.shapes import converts_to_gguf
from tpo_lite.recipe import load_recipe, with_keys
from tpo_lite.run import RunFolder
from tpo_lite.sampling import engines

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
    assert chosen(table=[], hindered=["unsloth"]) == ("transformers", "no engine measured on this card yet")
    assert chosen(card=cpu()) == ("transformers", "no engine measured on this card yet")  # figures of GPUs alone
    assert chosen(table=None)[1] == "no engine measured on this card yet"  # as shipped


def test_gpu_audit_2_unsloth_is_not_chosen_because_it_is_installed():
    """Before it is measured, nobody knows that it is faster: its masked decode takes SDPA's slowest kernel."""
    assert chosen(table=[]) == ("transformers", "no engine measured on this card yet")
    assert chosen()[0] == "unsloth"  # once it is measured to be the fastest


@pytest.mark.parametrize(
    ("change", "converts"),
    [
        ({}, True),
        ({"model_type": "gemma2"}, False),
        ({"model_type": "qwen2"}, True),
        ({"model_type": "qwen2", "use_sliding_window": True}, False),
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
    for gib, expected in {24: "unsloth", 18.5: "gguf"}.items():
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
    run.start(
        open_recipe, with_engine(first, "transformers"), CPU, new=False
    )  # as a machine with other figures would have
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
