"""How long phases take: measured rates, arithmetic, and a run's own seconds."""

import re
from pathlib import Path

import pytest

from tests.helpers.plans import CARD, CRITIC, DEFAULT, planned, run_plan
from tests.helpers.tiny_run import start
from tpo_lite.machine.cards import CARDS, cpu
from tpo_lite.plan import rates
from tpo_lite.plan.choices import LIMIT
from tpo_lite.plan.rates import measured, roofline, seconds_of, times
from tpo_lite.plan.report import make_plan
from tpo_lite.recipe import load_recipe
from tpo_lite.run import RunFolder
from tpo_lite.settled import as_settled

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
    entry = {"card": "RTX 4090", "date": "2027-01-01", "recipe": DEFAULT, "set": [*CRITIC]}
    table = [entry | {"rates": {"dpo": 2.0, "generate": 1.0}}]
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
    like = {phase: plan.times.pop(phase) for phase in ("test", "match")}  # which came after the measurement
    assert {time.basis for time in like.values()} == {"estimate from CPU, 2026-11-20"}
    assert all(time.basis == "measured 2026-11-20" for time in plan.times.values())
    assert plan.seconds / 60 == pytest.approx(7.6, rel=0.1)  # mean of 7.1, 6.9 and 8.8
    assert like["test"].work / like["test"].seconds == pytest.approx(128 / plan.times["validate"].seconds * 3, rel=0.7)


def test_what_was_measured_is_an_estimate_for_any_other_recipe():
    plan = make_plan(load_recipe("embedded", ["train.epochs=6", "seed=3"]), cpu())
    assert {time.basis for time in plan.times.values()} == {"estimate from CPU, 2026-11-20"}


def test_a_measured_recipe_with_what_it_left_open():
    entry = {"card": "RTX 4090", "date": "2027-01-01", "recipe": DEFAULT, "rates": {"generate": 1.0}}
    here = next(card for card in CARDS if card.name == "RTX 4090")
    found = {}
    for name, keys in {"bare": [*CRITIC], "set": [*CRITIC, "engine=gguf"]}.items():
        found[name] = times(*planned(DEFAULT, "engine=gguf"), here, [entry | {"set": keys}])["generate"]
    assert found["set"].basis == "measured 2027-01-01"
    assert found["set"].seconds == pytest.approx(500 * 8 + (100 + 100) / 3)
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
    start(run, as_settled(load_recipe("embedded")))
    for iteration, seconds in enumerate((10.0, 20.0)):
        run.record_seconds("fold", "thinking", iteration, seconds)
        run.mark_done("fold", "thinking", iteration, {}, {})
    run.record_seconds("dpo", "thinking", 0, 100.0)  # was stopped before its end
    assert seconds_of(run) == {"fold": 15.0}
    plan = make_plan(run.load_started(), cpu(), run.load_started(), seconds_of(run))
    assert (plan.times["fold"].seconds, plan.times["fold"].basis) == (15.0, "this run")
    assert plan.times["dpo"].basis == "measured 2026-11-20"
    run.mark_done("prepare", None, 0, {}, {})
    shown = run_plan("--cpu", "--out", run.root)
    assert re.search(r"fold .* 15 s +this run", shown.output), shown.output


def test_gpu_audit_8_the_whole_traffic_of_the_cache_counts():
    """48 rows of 1,000 tokens of Llama-3.1-8B in transformers: 69 GB a step, by hand."""
    _, model, _ = planned()
    cache = 2 * model.kv_elements(48 * 1000)
    assert cache / 1e9 == pytest.approx(6.3, rel=0.01)
    assert rates.cache_traffic("transformers", model) * cache / 1e9 == pytest.approx(69, rel=0.01)
    assert (rates.cache_traffic("unsloth", model), rates.cache_traffic("gguf", model)) == (9, 1)


def test_gpu_audit_8_unsloth_is_not_planned_with_the_rate_of_another_engine():
    assert rates.LAUNCH["unsloth"] >= rates.LAUNCH["transformers"]


def test_gpu_audit_8_the_limit_leaves_what_the_driver_keeps():
    """Of an RTX 4090, torch is shown 23.62 GiB, and predictions may be 3 % too low."""
    assert LIMIT * 23.99 <= 0.97 * 23.62
