"""What the base is held in on a CPU: the fastest precision for a model, measured there.

A GPU reads 4-bit weights faster than 16-bit ones, and an 8B model fits a card in no other way. A CPU has to unpack them
by arithmetic, which costs a small model more than it saves. By how much depends on the processor, on the model's widths
and on how many rows are computed together, so no table could tell. A process of its own times a few of the
model's layers (`tpo_lite.plan.layer_probe`), in seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tpo_lite.errors import TpoError
from tpo_lite.kinds import Precision
from tpo_lite.machine import threads
from tpo_lite.plan.memory import rows_sampled
from tpo_lite.plan.rates import lengths
from tpo_lite.plan.shapes import ModelShape
from tpo_lite.settled import SettledRecipe

PROBE_SECONDS = 300
"""The longest that the measurement may take. It takes some ten seconds."""

ROWS_TRAINED = 64
"""The most tokens in a timed pass of training. Beyond these a token takes as long as the one before."""


@dataclass(frozen=True)
class Layers:
    """What is timed."""

    linears: list[tuple[int, int]]
    """(in, out) of the linear layers of one block."""
    head: tuple[int, int]
    """(in, out) of the LM head."""
    layers: int
    """Blocks of the model."""
    rows_sampled: int
    """Tokens of a forward pass: a step of sampling."""
    rows_trained: int
    """Tokens of a forward and backward pass."""


@dataclass(frozen=True)
class Passes:
    """How long a model's layers take in one precision."""

    forward: float
    """Seconds of a forward pass of `Layers.rows_sampled` tokens."""
    both: float
    """Seconds of a forward and backward pass of `Layers.rows_trained` tokens."""


def layers_of(recipe: SettledRecipe, model: ModelShape) -> Layers:
    """Return what to time for `recipe`."""
    rows = 2 * min(recipe.train.micro_batch, recipe.train.batch) * sum(lengths(recipe))
    return Layers(
        linears=model.linears,
        head=(model.hidden, model.vocabulary),
        layers=model.layers,
        rows_sampled=rows_sampled(recipe, recipe.sampling.k),
        rows_trained=min(ROWS_TRAINED, rows),
    )


def measure(layers: Layers, precisions: Sequence[Precision]) -> dict[Precision, Passes]:
    """Time the layers in each precision, in a process of its own. Raises `TpoError` if that fails."""
    command = [sys.executable, "-m", "tpo_lite.plan.layer_probe"]
    environment = dict(os.environ)
    threads.limit(environment)  # as in a phase
    asked = json.dumps(asdict(layers) | {"precisions": list(precisions)})
    try:
        done = subprocess.run(
            command, input=asked, env=environment, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
        return {precision: Passes(**passes) for precision, passes in json.loads(done.stdout).items()}
    except subprocess.TimeoutExpired:
        raise TpoError(f"no answer within {PROBE_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        raise TpoError(said[-1] if said else f"exit code {error.returncode}") from None


def seconds(recipe: SettledRecipe, layers: Layers, passes: Passes) -> float:
    """Return the seconds that an iteration's sampling and training spend in the layers.

    A prompt is read in passes as large as training's, without the way back, which takes about as long as the way there.
    With engine gguf llama.cpp samples, and only training counts.
    """
    prompt, output = lengths(recipe)
    sizes, settings = recipe.instructions, recipe.train
    answers = settings.epochs * sizes.validation
    steps = (sizes.per_iteration * recipe.sampling.k + answers) * output / layers.rows_sampled
    read = (sizes.per_iteration + answers) * prompt / 2
    if recipe.engine == "gguf":
        steps = read = 0.0
    # The reference needs one pass over the pairs without gradients.
    again = 1.5 if settings.gradient_checkpointing else 1.0
    trained = 2 * sizes.per_iteration * (prompt + output) * (0.5 + again * settings.epochs)
    return steps * passes.forward + (trained + read) / layers.rows_trained * passes.both


NAMES: dict[Precision, str] = {"nf4": "NF4", "float32": "float32", "bfloat16": "bfloat16"}
"""The precisions as messages write them."""


def describe(taken: dict[Precision, float]) -> str:
    """Say how much faster the fastest precision is than NF4, or than the next one; `taken`: seconds of each.

    >>> describe({"nf4": 19.0, "float32": 10.0, "bfloat16": 11.0})
    'its layers measured 1.9 times as fast as in NF4 on this CPU'
    >>> describe({"nf4": 10.0, "float32": 13.0, "bfloat16": 40.0})
    'its layers measured 1.3 times as fast as in float32 on this CPU'
    """
    fastest, second = sorted(taken, key=lambda precision: taken[precision])[:2]
    other = "nf4" if "nf4" in taken and fastest != "nf4" else second
    return f"its layers measured {taken[other] / taken[fastest]:.1f} times as fast as in {NAMES[other]} on this CPU"
