"""What a plan picks where a recipe says `auto`, and the smallest changes that make it fit a card."""

from __future__ import annotations

import pytest

from tests.helpers.plans import CARD, DEFAULT, asked, planned
from tpo_lite.judges.room import longest_comparison
from tpo_lite.machine.cards import choose_card
from tpo_lite.plan.choices import (
    AIM,
    HARMLESS,
    LIMIT,
    MEMORY_KEYS,
    settle,
    smallest_change,
    smallest_changes,
    too_large,
)
from tpo_lite.plan.needs import needs
from tpo_lite.plan.report import make_plan
from tpo_lite.recipe import load_recipe, value_of, with_keys
from tpo_lite.settled import as_settled, filled_from

OPEN = [f"{key}=auto" for key in MEMORY_KEYS]


@pytest.mark.parametrize("gib", [10, 12, 16, 24, 80])
def test_auto_fits_and_larger_cards_get_more(gib):
    recipe, model, judge = asked(DEFAULT, *OPEN)
    card, half = choose_card(gib), choose_card(gib / 2 + 5)
    settled, smaller = settle(recipe, model, judge, card), settle(recipe, model, judge, half)
    assert "auto" not in [value_of(settled, key) for key in MEMORY_KEYS]
    found = needs(settled, model, judge, card)
    assert gib < 16 or all(need.peak <= AIM * card.memory for need in found.values())
    for key in ("sampling.batch", "judge.context"):
        assert value_of(settled, key) >= value_of(smaller, key)
    assert settled.sampling.batch % recipe.sampling.k == 0
    assert recipe.train.batch % settled.train.micro_batch == 0


def test_auto_takes_the_most_that_fits():
    recipe, model, judge = asked(DEFAULT, *OPEN)
    settled = settle(recipe, model, judge, CARD)
    more = with_keys(settled, {"sampling.batch": settled.sampling.batch + 8})
    assert max(needs(more, model, judge, CARD)[phase].peak for phase in ("generate", "validate")) > AIM * CARD.memory
    assert settle(recipe, model, judge, choose_card(141)).train.gradient_checkpointing is False
    assert settled.train.gradient_checkpointing is True


def test_what_is_not_auto_stays():
    recipe, model, judge = asked(DEFAULT, "judge.context=auto", "engine=transformers", "quantize=nf4")
    settled = settle(recipe, model, judge, CARD)
    assert settled == as_settled(with_keys(recipe, {"judge.context": settled.judge.context}))


def test_a_second_judge_is_planned_for_itself():
    """A larger one than the training judge, on a card that it does not fill."""
    second = "hub:QuantFactory/Skywork-Critic-Llama-3.1-8B-GGUF/*Q8_0.gguf"
    more = [f"select.judge.model={second}", "select.judge.mode=verdict", "select.judge.context=auto"]
    recipe, model, judge = planned(DEFAULT)
    settled = settle(asked(DEFAULT, *more)[0], model, judge, CARD)
    alone, both = needs(recipe, model, judge, CARD), needs(settled, model, judge, CARD)
    assert both["judge"].peak == alone["judge"].peak == both["crosscheck"].peak
    assert both["select"].peak == both["match"].peak > alone["select"].peak
    assert "crosscheck" not in alone and both["select"].peak <= AIM * CARD.memory
    first, plan = make_plan(recipe, CARD), make_plan(settled, CARD)
    assert plan.downloads > first.downloads + 8e9
    assert plan.times["crosscheck"].seconds == pytest.approx(first.times["select"].seconds)
    assert plan.times["select"].seconds > first.times["select"].seconds
    change = smallest_change(settled, model, judge, choose_card(10), "select")
    assert change is None or set(change) <= {f"select.judge.{key}" for key in ("kv_type", "context", "batch")}


def test_a_started_run_keeps_its_picks():
    recipe, model, judge = asked(DEFAULT, *OPEN)
    there = settle(recipe, model, judge, choose_card(80))
    assert filled_from(there, recipe) == there != settle(recipe, model, judge, CARD)


@pytest.mark.parametrize(
    ("phase", "overrides", "gib", "changed"),
    [
        ("generate", [], 16, ["sampling.batch"]),
        ("dpo", ["train.gradient_checkpointing=false"], 24, ["train.gradient_checkpointing"]),
        ("dpo", ["train.micro_batch=16"], 24, ["train.micro_batch"]),
        ("dpo", [], 9, ["pairs.max_tokens"]),
        ("judge", ["judge.kv_type=f16"], 13, ["judge.kv_type"]),
        ("judge", [], 9, ["judge.context"]),
        (
            "dpo",
            ["train.gradient_checkpointing=false", "train.micro_batch=16"],
            24,
            ["train.micro_batch", "train.gradient_checkpointing"],
        ),
    ],
)
def test_the_smallest_change_that_fits(phase, overrides, gib, changed):
    recipe, model, judge = planned(DEFAULT, *overrides)
    card = choose_card(gib)
    assert needs(recipe, model, judge, card)[phase].peak > LIMIT * card.memory
    change = smallest_change(recipe, model, judge, card, phase)
    assert list(change) == changed
    assert needs(with_keys(recipe, change), model, judge, card)[phase].peak <= LIMIT * card.memory
    if changed == ["sampling.batch"]:
        one_more = with_keys(recipe, {"sampling.batch": change["sampling.batch"] + recipe.sampling.k})
        assert needs(one_more, model, judge, card)[phase].peak > LIMIT * card.memory


def test_a_reward_model_that_is_too_large_is_held_in_4_bit():
    plan = make_plan(load_recipe(DEFAULT), choose_card(12))
    changes = smallest_changes(plan.recipe, plan.model, plan.judge, choose_card(12))
    assert changes["judge.quantize"] == "nf4" and "judge.context" not in changes


@pytest.mark.parametrize("gib", [8, 10, 12, 16, 20])
@pytest.mark.parametrize("overrides", [[], ["merge=requantize"], ["engine=gguf"], ["engine=unsloth"]])
def test_no_key_of_the_smallest_changes_goes_further_than_it_must(overrides, gib):
    recipe, model, judge = planned(DEFAULT, *overrides)
    card = choose_card(gib)
    changes = smallest_changes(recipe, model, judge, card)
    if isinstance(changes, str):
        assert (gib, recipe.engine) == (8, "unsloth")
        return
    assert (changes == {}) == (too_large(needs(recipe, model, judge, card), card) == [])
    changed = with_keys(recipe, changes)
    assert not too_large(needs(changed, model, judge, card), card)
    assert changed.judge.context >= longest_comparison(changed)
    for key in changes:
        assert too_large(needs(with_keys(changed, {key: value_of(recipe, key)}), model, judge, card), card), key
    if "sampling.batch" in changes and changes["sampling.batch"] >= recipe.sampling.k:
        one_more = with_keys(changed, {"sampling.batch": changes["sampling.batch"] + recipe.sampling.k})
        assert too_large(needs(one_more, model, judge, card), card)


@pytest.mark.parametrize("gib", [16, 20])
def test_what_changes_no_result_goes_first(gib):
    keys = ["train.micro_batch=4", "train.batch=8", "train.optimizer=adamw_torch", "lora.rank=64", "iterations=4"]
    recipe, model, judge = planned(DEFAULT, *keys, "train.gradient_checkpointing=true", "warm_start.kind=none")
    card = choose_card(gib)
    changes = smallest_changes(recipe, model, judge, card)
    assert {"train.micro_batch", "train.optimizer"} & changes.keys()
    # Smaller batches of both kinds and 8-bit moments are enough in 20 GB, and in 16 nearly.
    changed = {key: value for key, value in changes.items() if key not in HARMLESS}
    assert changed == ({} if gib == 20 else {"pairs.max_tokens": 1280})


def test_a_model_that_no_change_fits():
    plan = make_plan(load_recipe(DEFAULT, ["model=meta-llama/Llama-3.1-70B"]), CARD)
    assert "no smaller batch makes generate fit. Take a smaller model or a larger card." in plan.refusal()
