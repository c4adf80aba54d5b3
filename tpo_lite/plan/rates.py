"""Seconds of each phase: from what it has to read and compute, or from rates that were measured.

The arithmetic is a roofline: a phase takes as long as the slower of its memory traffic and its operations, at a share
of the card's published figures, and at least as long as it takes to start the kernels. Where a rate was measured, it
sets the level, and the arithmetic only scales from the card and recipe that were measured to those of the plan. The
seconds of the run itself replace both. Measured rates also decide which engine samples.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from tpo_lite.judges.room import longest_comparison, prompt_tokens
from tpo_lite.kinds import Engine
from tpo_lite.machine.cards import CARDS, Card, cpu
from tpo_lite.machine.device import Device
from tpo_lite.phase_order import as_asked, phases_of, warm_phases
from tpo_lite.plan.memory import (
    KV_BYTES,
    rows_sampled,
    sampled_rank,
    share_on_card,
    trained_rank,
)
from tpo_lite.plan.needs import planned_warm
from tpo_lite.plan.shapes import JudgeShape, ModelShape, choosing_shape, converts_to_gguf, judge_shape, model_shape
from tpo_lite.plan.weights import compute_bytes, gguf_bits, held_in, linear_bytes
from tpo_lite.recipe import Recipe, load_recipe, with_keys
from tpo_lite.run import RunFolder
from tpo_lite.sampling import engines
from tpo_lite.sampling.room import longest_prompt
from tpo_lite.settled import SettledRecipe, as_settled

BANDWIDTH_SHARE = 0.6
FLOPS_SHARE = {"torch": 0.4, "llama.cpp": 0.6}
"""The shares of the published figures that are reached. Assumed; llama.cpp's fits a public measurement (an 8B model in
Q4_K_M on an RTX 4090: 7,000 prompt tokens/s)."""

LAUNCH = {"transformers": 2.5e-3, "unsloth": 2.5e-3, "llama.cpp": 5e-5}
"""Seconds to start the kernels of one layer for one pass. Assumed, and alike for the two that start them from Python:
no figure of unsloth's `generate` is known."""

FUSED_ROWS = 64
"""The most rows that bitsandbytes multiplies with packed 4-bit weights. For more it unpacks them first. (Its choice
depends on the card and the shape.)"""

SERVER = 50.0
"""Tokens per second of one request to a server. Assumed."""

ASKED = {"round-robin": 1.0, "single": 0.5, "adaptive": 0.45}
"""The share of a round robin's comparisons that are made. For adaptive it was measured about 8 responses, with the
noise of two real judges (benchmarks/results/tournaments.md: 38 to 52 % at the default confidence)."""

START, LOAD = 10.0, 1e9
"""When a phase starts: the seconds of its imports, and the bytes per second from disk to card. Assumed."""

PROMPT_TOKENS, OUTPUT_TOKENS, RESPONSE_SHARE, EXPLAIN_SHARE = 150, 600, 0.7, 0.6
"""Mean tokens of an instruction and of an output, the response's share of an output, and the share of its limit that
an explanation takes. Assumed, and capped by the recipe's limits."""

UNITS = {
    "warm_sample": "outputs",
    "warm_start": "examples",
    "generate": "outputs",
    "judge": "prompts",
    "dpo": "pairs",
    "validate": "outputs",
    "select": "matches",
    "crosscheck": "matches",
    "fold": "merges",
    "test": "outputs",
    "match": "matches",
}
"""What a phase repeats, and what its rate counts. A pair counts once per epoch."""

LIKE = {"test": "validate", "match": "select", "crosscheck": "select"}
"""Phases that do the same work as another: until they are measured, the level of the other is theirs."""

MEASURED = Path(__file__).with_name("measured.yaml")


@dataclass(frozen=True)
class Time:
    """How long a phase takes in one iteration of one arm."""

    work: float
    """The number of `UNITS`."""
    seconds: float
    basis: str
    """"estimate", "estimate from <card>, <date>", "measured <date>" or "this run"."""


Table = list[dict[str, Any]]
"""Entries of a section of measured.yaml."""


def measured(section: str) -> Table:
    """Return the entries of "phases" or "engines" in measured.yaml."""
    table: Table = yaml.safe_load(MEASURED.read_text(encoding="utf-8"))[section]
    return table


def _nearest(table: Table, card: Card) -> dict[str, Any] | None:
    """Return the entry whose card is of the same kind (GPU or CPU) and nearest in bandwidth; None without one."""
    entries = [entry for entry in table if _known(entry["card"]).cuda == card.cuda]
    return min(entries, key=lambda entry: abs(_known(entry["card"]).bandwidth - card.bandwidth), default=None)


def choose_engine(
    recipe: Recipe, card: Card, fits: Callable[[Engine], bool], table: Table | None = None
) -> tuple[Engine, str]:
    """Return the engine that samples `recipe` on `card`, and why.

    `auto` is the engine measured fastest on a device of this kind, of those that are installed here, can take the
    model and `fits` the memory. Where there is none, it is `engines.DEFAULT`. `table`: entries as in
    measured.yaml's section "engines", which is the default.
    """
    if recipe.engine != "auto":
        return recipe.engine, "as the recipe says"
    device: Device = "cuda" if card.cuda else "cpu"
    entry = _nearest(measured("engines") if table is None else table, card)
    if entry is None:
        return engines.DEFAULT, "no engine measured on this card yet"
    source = f"measured on {entry['card']}, {entry['date']}"
    faster: list[tuple[Engine, str]] = []
    for engine in sorted(entry["rates"], key=entry["rates"].get, reverse=True):
        hindrance = engines.hindrance(engine, device)
        if hindrance is None and engine == "gguf" and not converts_to_gguf(recipe.model):
            hindrance = "cannot take this model"
        if hindrance is None and not fits(engine):
            hindrance = "does not fit this card"
        if hindrance is None:
            others = [f"{other}, which is faster, {why}" for other, why in faster]
            return engine, "; ".join([source if others else f"the fastest {source}", *others])
        faster.append((engine, hindrance))
    why = ", ".join(f"{other} {why}" for other, why in faster)
    return engines.DEFAULT, f"of those {source} none can run here: {why}"


def times(
    recipe: SettledRecipe, model: ModelShape, judge: JudgeShape | None, card: Card, table: Table | None = None
) -> dict[str, Time]:
    """Return the time of each phase, at the level of the measured rate nearest to the card if there is one.

    `table`: entries as in measured.yaml's section "phases", which is the default.
    """
    found = roofline(recipe, model, judge, card)
    table = measured("phases") if table is None else table
    for phase, time in found.items():
        for known in (phase, LIKE.get(phase, phase)):
            entry = _nearest([entry for entry in table if known in entry["rates"]], card)
            if entry is not None:
                found[phase] = _at_level(time, phase, known, entry, card, recipe)
                break
    return found


def _at_level(time: Time, phase: str, known: str, entry: dict[str, Any], card: Card, recipe: SettledRecipe) -> Time:
    """Return the `time` of `phase` scaled by how the measured phase, `known`, compares with its own roofline."""
    measured_card, measured_recipe = _known(entry["card"]), _measured_recipe(entry)
    model, judge = model_shape(measured_recipe.model), judge_shape(measured_recipe.judge)
    there = roofline(measured_recipe, model, judge, measured_card)[known]
    level = there.work / entry["rates"][known] / there.seconds
    same_recipe = recipe.model_copy(update={"seed": measured_recipe.seed}) == measured_recipe
    same = measured_card.name == card.name and same_recipe and phase == known
    if not card.cuda:  # processors differ; those with as many cores are taken to be alike
        same = same and entry["cores"] == os.cpu_count()
    basis = f"measured {entry['date']}" if same else f"estimate from {entry['card']}, {entry['date']}"
    return replace(time, seconds=time.seconds * level, basis=basis)


def _measured_recipe(entry: dict[str, Any]) -> SettledRecipe:
    """Return the recipe that an entry was measured with; what it leaves open is the default engine, and NF4."""
    recipe = load_recipe(entry["recipe"], entry.get("set", []))
    if recipe.engine == "auto":
        recipe = with_keys(recipe, {"engine": engines.DEFAULT})
    if recipe.quantize == "auto":
        recipe = with_keys(recipe, {"quantize": "nf4"})
    return as_settled(recipe)


def _known(name: str) -> Card:
    return cpu() if name == "CPU" else next(card for card in CARDS if card.name == name)


def seconds_of(run: RunFolder) -> dict[str, float]:
    """Return a run's own mean seconds of each phase, over the iterations in which it is finished."""
    taken: dict[str, list[float]] = {}
    recipe = run.load_started()
    for arm in recipe.arms:
        for phase in warm_phases(recipe):
            if run.is_done(phase, arm, 0):
                taken.setdefault(phase, []).append(run.seconds(arm, 0, phase)[phase])
        for iteration in range(recipe.iterations):
            for phase, seconds in run.seconds(arm, iteration).items():
                if run.is_done(phase, arm, iteration):
                    taken.setdefault(phase, []).append(seconds)
    return {phase: fmean(seconds) for phase, seconds in taken.items()}


def roofline(recipe: SettledRecipe, model: ModelShape, judge: JudgeShape | None, card: Card) -> dict[str, Time]:
    """Return the time of each phase by arithmetic alone, in the last iteration, whose adapter is the largest."""
    last = recipe.iterations - 1
    sizes, epochs = recipe.instructions, recipe.train.epochs
    k = recipe.sampling.k
    load = 2 * model.parameters / LOAD
    # M_0 answers the held-out slices once.
    outputs = sizes.per_iteration * k + (sizes.validation + sizes.test) / recipe.iterations
    tested = sizes.test * (2 - 1 / len(recipe.arms))  # against M_0; and one arm against the other
    matches = sizes.validation * (epochs + 1)
    choosing, second = as_asked(recipe, "select"), choosing_shape(recipe, judge)
    merge = 0.0
    if recipe.merge == "requantize":  # reads, writes and loads 16-bit weights; the merged model is validated
        merge = 4 * load + sample_seconds(recipe, model, card, sizes.validation, 1, 0)
    found: dict[str, tuple[float, float]] = {
        "warm_sample": (warm_outputs(recipe), load + warm_sample_seconds(recipe, model, card)),
        "warm_start": (
            recipe.warm_start.epochs * recipe.warm_start.examples,
            load + warm_train_seconds(recipe, model, card),
        ),
        "generate": (outputs, load + sample_seconds(recipe, model, card, outputs, k, sampled_rank(recipe, last))),
        "judge": (sizes.per_iteration, judge_seconds(recipe, judge, card, sizes.per_iteration, k)),
        "dpo": (epochs * sizes.per_iteration, load + train_seconds(recipe, model, card, trained_rank(recipe, last))),
        "validate": (
            epochs * sizes.validation,
            load + sample_seconds(recipe, model, card, epochs * sizes.validation, 1, trained_rank(recipe, last)),
        ),
        "select": (matches, judge_seconds(choosing, second, card, matches, 2)),
        "crosscheck": (matches, judge_seconds(recipe, judge, card, matches, 2)),
        "fold": (1, load + merge),
        "test": (
            sizes.test,
            load + sample_seconds(recipe, model, card, sizes.test, 1, sampled_rank(recipe, last + 1)),
        ),
        "match": (tested, judge_seconds(choosing, second, card, tested, 2)),
    }
    return {
        phase: Time(work, START + seconds, "estimate")
        for phase, (work, seconds) in found.items()
        if phase in (*planned_warm(recipe), *phases_of(recipe))
    }


def lengths(recipe: SettledRecipe) -> tuple[int, int]:
    """Return the expected tokens of a prompt, with the thought prompt, and of an output."""
    around = longest_prompt(recipe) - recipe.instructions.max_tokens
    instruction = min(PROMPT_TOKENS, recipe.instructions.max_tokens)
    return around + instruction, min(OUTPUT_TOKENS, recipe.sampling.max_new_tokens)


def _bound(card: Card, library: str, moved: float, operations: float, launch: float) -> float:
    """Return the seconds of the slowest of three things that overlap: moving bytes, operations, kernel starts."""
    return max(moved / (card.bandwidth * BANDWIDTH_SHARE), operations / (card.flops * FLOPS_SHARE[library]), launch)


def sample_seconds(recipe: SettledRecipe, model: ModelShape, card: Card, outputs: float, k: int, rank: int) -> float:
    """Return the seconds of sampling `outputs` outputs, `k` per prompt: the prompts, then one token per row at a time.

    unsloth's batches run until their longest row ends. The other engines refill rows that ended.
    """
    engine = recipe.engine
    rows = rows_sampled(recipe, k)
    prompt, output = lengths(recipe)
    steps: float
    prompts: float
    if engine == "unsloth":
        steps, prompts = math.ceil(outputs / rows) * recipe.sampling.max_new_tokens, outputs
    else:
        steps, prompts = (outputs * output + rows * recipe.sampling.max_new_tokens / 2) / rows, outputs / k
    precision = held_in(recipe, card)
    c = compute_bytes(card, precision)
    adapter = model.lora_parameters(rank)
    operations = 2 * (model.linear_parameters + adapter + model.embedding_parameters)
    library = "llama.cpp" if engine == "gguf" else "torch"
    if engine == "gguf":
        launch = model.layers * LAUNCH["llama.cpp"]
        weights = gguf_bits(recipe) / 8 * model.parameters + 4 * adapter
    else:
        launch = model.layers * LAUNCH[engine]
        weights = sum(linear_bytes(model, precision).values())
        if precision == "nf4" and rows > FUSED_ROWS:  # unpacked weights are written and read
            weights += 2 * c * model.linear_parameters
        weights += c * model.embedding_parameters + 4 * adapter
    cache = c * model.kv_elements(int(rows * (prompt + output / 2))) * cache_traffic(engine, model)
    prefill = prompts * prompt * operations / (card.flops * FLOPS_SHARE[library])
    return prefill + steps * _bound(card, library, weights + cache, rows * operations, launch)


def cache_traffic(engine: str, model: ModelShape) -> float:
    """Return how often a step moves the whole KV cache.

    llama.cpp reads it once. A mask has transformers, and in torch's attention unsloth too, repeat keys and values for
    all heads: one read, then a write and a read of the repeated ones. transformers first copies the cache, to grow it.
    """
    if engine == "gguf":
        return 1.0
    repeated = model.heads / model.kv_heads
    return 1 + (2 * repeated if repeated > 1 else 0) + (2 if engine == "transformers" else 0)


def judge_seconds(recipe: SettledRecipe, judge: JudgeShape | None, card: Card, prompts: float, responses: int) -> float:
    """Return the seconds of comparing the distinct `responses` to each of `prompts`, or of scoring each of them.

    Comparisons that begin with the same prompt and first response share them. A server is assumed to answer
    `judge.sequences` requests at a time, at SERVER tokens per second each.
    """
    settings = recipe.judge
    instruction = prompt_tokens(settings) + min(PROMPT_TOKENS, recipe.instructions.max_tokens)
    response = int(RESPONSE_SHARE * lengths(recipe)[1])
    pointwise = settings.mode in ("score", "reward-model")
    share = ASKED[recipe.tournament.kind] if responses > 2 else 1.0  # a match is played in both orders
    calls = prompts * responses * (1 if pointwise else share * (responses - 1))
    written = EXPLAIN_SHARE * settings.explain_tokens if settings.mode in ("explain", "openai") else 0
    if judge is None:
        return calls / settings.sequences * written / SERVER
    model = judge.model
    if pointwise:
        tokens = calls * (instruction + response)
    else:
        tokens = prompts * (instruction + responses * response) + calls * response
    launch = model.layers * LAUNCH["llama.cpp"]
    operations = 2 * model.linear_parameters
    at_once = max(1, min(settings.sequences, settings.context // longest_comparison(recipe)))
    cache = KV_BYTES[settings.kv_type] * model.kv_elements(at_once * (instruction + 2 * response))

    def seconds(card: Card) -> float:
        whole = tokens / settings.batch
        whole *= _bound(card, "llama.cpp", judge.gpu_bytes, settings.batch * operations, launch)
        step = _bound(card, "llama.cpp", judge.gpu_bytes + cache, at_once * operations, launch)
        return whole + calls * written / at_once * step

    on_card = share_on_card(recipe, judge, card)  # the other layers are the host's
    return judge.file_bytes / LOAD + on_card * seconds(card) + (1 - on_card) * seconds(cpu())


def train_seconds(recipe: SettledRecipe, model: ModelShape, card: Card, rank: int) -> float:
    """Return the seconds of DPO on one pair per prompt.

    There is one pass for the reference, and in each epoch a forward and a backward pass, with gradients only for the
    adapter's weights. With gradient checkpointing, the forward pass is computed twice.
    """
    settings = recipe.train
    passes = 1 + settings.epochs * (3 if settings.gradient_checkpointing else 2)
    micro_batch = min(settings.micro_batch, settings.batch)
    step = _pass_seconds(recipe, model, card, rank, 2 * micro_batch * sum(lengths(recipe)))
    return recipe.instructions.per_iteration / micro_batch * passes * step


def _pass_seconds(recipe: SettledRecipe, model: ModelShape, card: Card, rank: int, tokens: int) -> float:
    """Return the seconds of one forward or backward pass over `tokens` tokens."""
    operations = 2 * (model.linear_parameters + 2 * model.lora_parameters(rank) + model.embedding_parameters)
    launch = model.layers * LAUNCH["transformers"]
    return _bound(card, "torch", 2 * model.parameters, tokens * operations, launch)


def warm_outputs(recipe: SettledRecipe) -> int:
    """Return how many outputs a warm start samples: those of a held-out slice, and with markers."""
    sizes = recipe.instructions
    return (sizes.test or sizes.validation) + recipe.warm_start.prompts * recipe.warm_start.samples


def warm_sample_seconds(recipe: SettledRecipe, model: ModelShape, card: Card) -> float:
    """Return the seconds of sampling them; those with markers put in are shorter."""
    warm = recipe.warm_start
    marked = warm.prompts * warm.samples
    shorter = min(1.0, (warm.thought_tokens + warm.response_tokens) / lengths(recipe)[1])
    outputs = warm_outputs(recipe) - (1 - shorter) * marked
    return sample_seconds(recipe, model, card, outputs, warm.samples, 0)


def warm_train_seconds(recipe: SettledRecipe, model: ModelShape, card: Card) -> float:
    """Return the seconds of a warm start's training, with forward and backward passes as in DPO."""
    warm = recipe.warm_start
    rows = min(2 * recipe.train.micro_batch, warm.batch)
    tokens = rows * (lengths(recipe)[0] + warm.thought_tokens + warm.response_tokens)
    passes = warm.epochs * (3 if recipe.train.gradient_checkpointing else 2)
    return warm.examples / rows * passes * _pass_seconds(recipe, model, card, recipe.lora.rank, tokens)
