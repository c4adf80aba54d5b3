"""What the base is held in on a CPU: measured, within memory, and by arithmetic that weighs sampling and training."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest

from tests.helpers.plans import CARD, asked, planned
from tpo_lite.errors import TpoError
from tpo_lite.machine.cards import cpu
from tpo_lite.plan import choices, layer_probe
from tpo_lite.plan.choices import fastest_engine, fastest_precision, settle
from tpo_lite.plan.needs import needs
from tpo_lite.plan.precision import Layers, Passes, layers_of, measure, seconds
from tpo_lite.plan.report import as_data, make_plan
from tpo_lite.settled import filled_from

ROOMY = replace(cpu(), memory=1 << 40)
"""A CPU in whose memory everything fits."""


@pytest.fixture
def measured(monkeypatch):
    """The measurement gives these seconds of any pass; returns the precisions that it was asked for."""
    asked_for = []

    def takes(**each):
        def measure_nothing(layers, precisions):
            asked_for.append(tuple(precisions))
            return {precision: Passes(each[precision], each[precision]) for precision in precisions}

        monkeypatch.setattr(choices, "measure", measure_nothing)
        return asked_for

    return takes


@pytest.mark.parametrize(
    ("quantize", "taken", "chosen", "why"),
    [
        ("auto", {"nf4": 19, "float32": 10, "bfloat16": 40}, "float32", "1.9 times as fast as in NF4"),
        ("auto", {"nf4": 30, "float32": 20, "bfloat16": 10}, "bfloat16", "3.0 times as fast as in NF4"),
        ("auto", {"nf4": 10, "float32": 15, "bfloat16": 40}, "nf4", "1.5 times as fast as in float32"),
        ("none", {"float32": 15, "bfloat16": 10}, "bfloat16", "1.5 times as fast as in float32"),
    ],
)
def test_the_fastest_is_chosen_and_recorded(measured, quantize, taken, chosen, why):
    asked_for = measured(**taken)
    recipe, model, judge = asked("embedded", f"quantize={quantize}")
    plan = make_plan(recipe, ROOMY)
    assert plan.recipe.precision("cpu") == chosen == as_data(plan)["quantize"]["held_in"]
    assert plan.recipe.quantize == ("nf4" if chosen == "nf4" else "none")
    assert why in plan.why_precision
    assert asked_for == [tuple(taken)]  # once, though several engines and batches were tried
    assert filled_from(plan.recipe, recipe) == plan.recipe  # a run that goes on measures nothing
    assert make_plan(recipe, ROOMY, plan.recipe).recipe == plan.recipe
    assert asked_for == [tuple(taken)]


def test_what_does_not_fit_is_not_measured(measured):
    asked_for = measured(nf4=1, float32=1, bfloat16=1)
    recipe, model, judge = asked("embedded", "quantize=auto", "model=meta-llama/Llama-3.2-1B", "engine=transformers")
    peaks = {}
    for precision in ("nf4", "float32", "bfloat16"):
        settled = settle(recipe, model, judge, ROOMY, precision)
        peaks[max(need.peak for need in needs(settled, model, judge, ROOMY).values())] = precision
    small, middle, large = sorted(peaks)
    # Sampling 256 rows, the cache weighs more than the weights, and NF4 computes in float32.
    assert [peaks[peak] for peak in (small, middle, large)] == ["bfloat16", "nf4", "float32"]
    fastest_precision(recipe, model, judge, replace(ROOMY, memory=math.ceil(middle / choices.AIM)))
    assert asked_for == [("nf4", "bfloat16")]
    chosen = fastest_precision(recipe, model, judge, replace(ROOMY, memory=int(small / choices.AIM)))
    assert chosen == ("bfloat16", "nothing else fits the memory")
    assert len(asked_for) == 1


def test_a_gpu_and_a_recipe_that_says_nf4_measure_nothing(measured):
    asked_for = measured()
    for overrides, card, expected in (
        (["quantize=auto"], CARD, "nf4"),
        (["quantize=none"], CARD, "bfloat16"),
        (["quantize=nf4"], ROOMY, "nf4"),
        (["quantize=auto", "merge_base=nf4"], ROOMY, "nf4"),
    ):
        recipe, model, judge = asked("embedded", *overrides)
        assert fastest_precision(recipe, model, judge, card)[0] == expected
    fastest_engine(asked("embedded", "quantize=auto", "engine=auto")[0], model, judge, ROOMY)
    assert asked_for == []


def test_a_measurement_that_fails_leaves_nf4(monkeypatch):
    def fail(*arguments):
        raise TpoError("no answer")

    monkeypatch.setattr(choices, "measure", fail)
    recipe, model, judge = asked("embedded", "quantize=auto")
    assert fastest_precision(recipe, model, judge, ROOMY) == ("nf4", "not measured: no answer")


def test_seconds_by_hand():
    overrides = ["thought.style=direct", "sampling.batch=16", "sampling.max_new_tokens=100", "train.epochs=2"]
    recipe, model, _ = planned("embedded", *overrides, "instructions.per_iteration=10", "instructions.validation=4")
    layers = layers_of(recipe, model)
    assert (layers.rows_sampled, layers.layers, len(layers.linears)) == (16, model.layers, 7)
    prompt = 96 + 40  # the longest instruction, and the chat template around it
    steps = (10 * 8 + 2 * 4) * 100 / 16
    trained = 2 * 10 * (prompt + 100) * (0.5 + 2) + (10 + 8) * prompt / 2
    taken = seconds(recipe, layers, Passes(forward=3.0, both=5.0))
    assert taken == pytest.approx(3.0 * steps + 5.0 * trained / layers.rows_trained)


def test_the_probe_times_every_precision_in_a_process_of_its_own():
    layers = Layers([(64, 64), (64, 128), (128, 64)], (64, 300), 2, 4, 8)
    found = measure(layers, ["nf4", "float32", "bfloat16"])
    assert list(found) == ["nf4", "float32", "bfloat16"]
    assert all(passes.forward > 0 and passes.both > 0 for passes in found.values())


def test_a_probe_that_fails_says_so(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(TpoError, match="exit code 1"):
        measure(Layers([(64, 64)], (64, 300), 2, 4, 8), ["nf4"])


@pytest.mark.parametrize("precision", ["nf4", "float32", "bfloat16"])
def test_the_probe_s_layers_are_those_of_a_base(precision, tiny_model):
    import torch

    from tpo_lite.base_weights import load_base

    real = load_base(str(tiny_model), "cpu", precision).model.layers[0].mlp.up_proj
    ours = layer_probe.linear(real.in_features, real.out_features, precision)
    assert type(ours) is type(real)
    assert (ours.weight.dtype, ours.weight.shape) == (real.weight.dtype, real.weight.shape)
    if precision == "nf4":
        assert ours.weight.quant_state.nested and real.weight.quant_state.nested
        assert ours.compute_dtype == real.compute_dtype == torch.float32
