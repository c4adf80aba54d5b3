"""How long a model's linear layers take here in each precision: `python -m tpo_lite.plan.layer_probe`.

It reads one JSON object from stdin, the fields of `tpo_lite.plan.precision.Layers`, and writes one to stdout: for each
precision the seconds of a forward pass over the whole model's layers and of a forward and backward pass. The layers
hold random numbers, on which the time does not depend. What other parts of a model take is about the same in each
precision and is left out.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn

COPIED = 1 << 25
"""Weights that a timed forward pass reads at least, if the model has so many: more than a cache holds."""
ROUNDS, ENOUGH = 4, 5.0
"""How often each pass is timed, unless all of them have taken this many seconds. The fastest counts: other programs
only make it slower."""


def linear(inputs: int, outputs: int, precision: str) -> nn.Linear:
    """Return a frozen linear layer, as `tpo_lite.base_weights.load_base` loads it on a CPU."""
    weight = torch.empty(outputs, inputs).normal_(0, inputs**-0.5)
    if precision != "nf4":
        layer = nn.Linear(inputs, outputs, bias=False, device="meta")
        layer.weight = nn.Parameter(weight.to(getattr(torch, precision)), requires_grad=False)
        return layer
    packed = Linear4bit(
        inputs, outputs, bias=False, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4",
        device="meta",
    )  # fmt: skip
    packed.weight = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=packed)
    packed.support_avx512bf16_for_cpu = False
    return packed.to("cpu")


def fastest(passes: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the seconds of each pass. They take turns, so that what else the machine does hits all of them alike."""
    found = dict.fromkeys(passes, math.inf)
    began = time.perf_counter()
    for _ in range(ROUNDS):
        if time.perf_counter() - began > ENOUGH:
            break
        for name, each in passes.items():
            start = time.perf_counter()
            each()
            found[name] = min(found[name], time.perf_counter() - start)
    return found


def forward(layers: list[nn.Linear], rows: int, dtype: torch.dtype) -> Callable[[], None]:
    """Return a forward pass of `rows` tokens over these layers."""
    given = {layer.in_features: torch.randn(rows, layer.in_features).to(dtype) for layer in layers}

    def run() -> None:
        with torch.inference_mode():
            for layer in layers:
                layer(given[layer.in_features])

    return run


def both_ways(layers: list[nn.Linear], rows: int, dtype: torch.dtype) -> Callable[[], None]:
    """Return a forward and backward pass, with gradients of what the layers read, as adapters need."""
    given = {layer.in_features: torch.randn(rows, layer.in_features).to(dtype).requires_grad_() for layer in layers}

    def run() -> None:
        for layer in layers:
            states = given[layer.in_features]
            output = layer(states)
            torch.autograd.grad(output, states, output.detach())

    return run


def measure(
    linears: list[tuple[int, int]],
    head: tuple[int, int],
    layers: int,
    rows_sampled: int,
    rows_trained: int,
    precisions: list[str],
) -> dict[str, dict[str, float]]:
    """Return by precision the seconds of both passes. See `tpo_lite.plan.precision.Layers` for the arguments."""
    weights = sum(inputs * outputs for inputs, outputs in linears)
    copies = min(layers, math.ceil(COPIED / weights))
    sampled: dict[str, Callable[[], None]] = {}
    trained: dict[str, Callable[[], None]] = {}
    heads: dict[str, Callable[[], None]] = {}
    for precision in precisions:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        block = [linear(inputs, outputs, precision) for inputs, outputs in linears]
        whole = [copy.deepcopy(layer) for _ in range(copies) for layer in block]
        last = [linear(*head, "float32" if precision == "nf4" else precision)]  # never quantized
        sampled[precision] = forward(whole, rows_sampled, dtype)
        trained[precision] = both_ways(block, rows_trained, dtype)
        heads[precision] = forward(last, rows_sampled, dtype)
    found = [fastest(passes) for passes in (sampled, trained, heads)]
    return {
        precision: {
            "forward": found[0][precision] * layers / copies + found[2][precision],
            "both": found[1][precision] * layers,
        }
        for precision in precisions
    }


if __name__ == "__main__":
    print(json.dumps(measure(**json.load(sys.stdin))))
