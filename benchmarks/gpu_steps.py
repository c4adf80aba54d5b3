"""The steps of `benchmarks.gpu`: what each of them measures, with which sizes, and how long it may take.

Every step is one process that prints one line of JSON. This module imports neither torch nor llama_cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.sampling import K, recipe_of
from tpo_lite.recipe_keys import Instructions, Lora, PairSettings
from tpo_lite.settled import SettledJudge, SettledRecipe, SettledSampling, SettledTrain
from tpo_lite.training.room import KL_POSITIONS, KL_PROMPTS

RANK = 16
OPTIMIZER = "adamw_8bit"
GGUF = "Q4_K_M"
SHAPES = ("llama-3.1-8b", "llama-3.2-3b", "llama-3.2-1b", "tiny")
"""The names in benchmarks/shapes.py. That module imports torch, and a process that starts others has to be small, since
their peak of RAM begins with its own."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured, and how long that may take."""

    batch: int
    """Rows that every engine samples at a time."""
    other_batches: dict[str, int]
    """Another batch size for some engines."""
    batches: int
    """The number of full batches; a prompt is sampled K times."""
    prompt_tokens: int
    """Tokens of the longest instruction."""
    new_tokens: int
    mean_length: int
    """Mean tokens per sample. Random weights never end one, so samples are ended at random."""
    judge: dict[str, Any]
    """Keys of the recipe's section `judge`."""
    judged: dict[str, int]
    """Instructions, by the judge's mode."""
    responses: int
    """Answers to each of these, at most eight."""
    characters: int
    """Characters to which longer answers are cut."""
    prefill: int
    """Tokens of the single prompt that judging is compared with."""
    pairs: int
    pair_tokens: int
    """Tokens of each side of a pair."""
    ranks: tuple[int, ...]
    """Ranks that are measured beside `RANK`."""
    optimizers: tuple[str, ...]
    """Optimizers that are measured beside `OPTIMIZER`."""
    kl: tuple[int, int]
    """Prompts, and positions of each, at which the fold phase compares two models."""
    paths: tuple[str, ...]
    engines: tuple[str, ...]
    seconds: dict[str, int]
    """The time that a step of each kind is expected to take before it has been tried. For a card they are assumed."""


ON_CARD = Sizes(
    batch=48,
    other_batches={"gguf": 96, "transformers": 16, "unsloth": 16, "generate": 16},
    batches=2,
    prompt_tokens=512,
    new_tokens=1024,
    mean_length=400,
    judge={"context": 65_536, "batch": 2048, "sequences": 32, "kv_type": "q8_0", "explain_tokens": 512},
    judged={"verdict": 8, "explain": 1},
    responses=8,
    characters=4000,
    prefill=2048,
    pairs=8,
    pair_tokens=2048,
    ranks=(32, 64),
    optimizers=("adamw_torch", "paged_adamw_8bit"),
    kl=(32, 64),
    paths=("ours", "trl", "unsloth"),
    engines=("generate", "transformers", "gguf", "unsloth"),
    seconds={"floor": 30, "weights": 90, "gguf": 240, "adapter": 40, "sampling": 200, "judging": 100, "training": 120,
             "fold": 120, "requantize": 240},
)  # fmt: skip

ON_CPU = Sizes(
    batch=8,
    other_batches={"gguf": 16},
    batches=1,
    prompt_tokens=32,
    new_tokens=16,
    mean_length=8,
    judge={"context": 4096, "batch": 512, "sequences": 12, "kv_type": "q8_0", "explain_tokens": 16},
    judged={"verdict": 1, "explain": 1},
    responses=4,
    characters=300,
    prefill=512,
    pairs=2,
    pair_tokens=64,
    ranks=(32,),
    optimizers=("adamw_torch",),
    kl=(2, 16),
    paths=("ours", "trl"),
    engines=("generate", "transformers", "gguf"),
    seconds={"floor": 30, "weights": 120, "gguf": 200, "adapter": 40, "sampling": 150, "judging": 150, "training": 150,
             "fold": 90, "requantize": 120},
)  # fmt: skip

TINY = replace(
    ON_CPU,
    other_batches={},
    new_tokens=8,
    mean_length=4,
    judge=ON_CPU.judge | {"explain_tokens": 8},
    prefill=256,
    pair_tokens=32,
    ranks=(),
    optimizers=(),
    kl=(2, 8),
    seconds={"floor": 20, "weights": 20, "gguf": 20, "adapter": 20, "sampling": 40, "judging": 20, "training": 40,
             "fold": 40, "requantize": 30},
)  # fmt: skip


def sizes_of(shape: str, device: str) -> Sizes:
    """Return the sizes for a shape on "cuda" or "cpu"."""
    if device == "cuda":
        return ON_CARD
    return TINY if shape == "tiny" else ON_CPU


@dataclass(frozen=True)
class Step:
    """One process and what it measures."""

    name: str
    kind: str
    seconds: float
    """What it takes at most, as far as is known before it has been tried."""
    setting: dict[str, Any] = field(default_factory=dict)
    """Everything that its figures depend on besides shape and machine, by option of its command line."""
    recipe: SettledRecipe | None = None
    """What `tpo_lite.plan` predicts its memory from; None if no phase does the same."""
    phase: str | None = None
    """The phase that does the same."""


MODULES = {"sampling": ["benchmarks.sampling"], "training": ["benchmarks.training"]}
"""What `python -m` runs, by kind; the others are `benchmarks.gpu_measure KIND`."""

MAKES = ("weights", "gguf", "adapter")
"""The kinds that leave files which all later steps need."""


def command(step: Step, model: Path, device: str, work: Path, cap: float) -> list[str]:
    """Return what `python -m` runs for a step."""
    where = ["--model", str(model), "--device", device, "--cap-gb", f"{cap:g}"]
    if step.kind != "training":
        where += ["--work", str(work)]
    flags = [part for key, value in step.setting.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    return [*MODULES.get(step.kind, ["benchmarks.gpu_measure", step.kind]), *where, *flags]


def steps(shape: str, device: str) -> list[Step]:
    """Return all steps, with what matters most first: every phase once, then other settings."""
    sizes = sizes_of(shape, device)
    seconds = sizes.seconds
    first, second = list(_sampling(sizes)), list(_training(sizes))
    engines, paths = len(sizes.engines), len(sizes.paths)
    return [
        Step("floor", "floor", seconds["floor"]),
        Step("weights", "weights", seconds["weights"], {"shape": shape}),
        Step("gguf", "gguf", seconds["gguf"]),
        Step("adapter", "adapter", seconds["adapter"], {"shape": shape}),
        *first[:engines],
        *_judging(sizes),
        *second[:paths],
        *_merging(sizes),
        *first[engines:],
        *second[paths:],
    ]


def _sampling(sizes: Sizes) -> Iterator[Step]:
    """Yield every engine with the same batch; then the most memory that our own loop takes, and other batches."""

    def step(name: str, engine: str, batch: int, batches: int, mean_length: int) -> Step:
        lengths = {"new_tokens": sizes.new_tokens, "prompt_tokens": sizes.prompt_tokens}
        sampled = {"engine": engine, "batch": batch, **lengths, "rank": RANK}
        setting = {**sampled, "prompts": batches * batch // K, "mean_length": mean_length}
        # These engines hold all their rows at full length, at once or in the end. `generate` is not one of our engines.
        planned = engine in ("gguf", "unsloth") or not mean_length
        recipe = recipe_of(**sampled) if planned else None
        return Step(name, "sampling", sizes.seconds["sampling"], setting, recipe, "generate" if planned else None)

    for engine in sizes.engines:
        yield step(f"sampling-{engine}-{sizes.batch}", engine, sizes.batch, sizes.batches, sizes.mean_length)
    # Rows that end early make room. Here none does, and one of the prompts is the longest.
    yield step(f"longest-transformers-{sizes.batch}", "transformers", sizes.batch, 1, 0)
    for engine, batch in sizes.other_batches.items():
        yield step(f"sampling-{engine}-{batch}", engine, batch, sizes.batches, sizes.mean_length)


def _judging(sizes: Sizes) -> Iterator[Step]:
    """Yield one step for each of the judge's modes."""
    for mode, prompts in sizes.judged.items():
        recipe = SettledRecipe(
            instructions=Instructions(max_tokens=sizes.prompt_tokens),
            sampling=SettledSampling(max_new_tokens=sizes.new_tokens),
            judge=SettledJudge(mode=mode, **sizes.judge),
        )
        setting = {"mode": mode, "prompts": prompts, "responses": sizes.responses, "characters": sizes.characters}
        setting |= {**sizes.judge, "prefill": sizes.prefill}
        yield Step(f"judging-{mode}", "judging", sizes.seconds["judging"], setting, recipe, "judge")


def _training(sizes: Sizes) -> Iterator[Step]:
    """Yield every loss path with the same settings; then ours with other ranks and optimizers."""

    def step(path: str, rank: int, optimizer: str) -> Step:
        setting = {"path": path, "rank": rank, "optimizer": optimizer}
        setting |= {"pairs": sizes.pairs, "tokens": sizes.pair_tokens}
        recipe = training_recipe(rank, optimizer, sizes.pair_tokens) if path == "ours" else None
        name = f"dpo-{path}-{rank}-{optimizer}"
        return Step(name, "training", sizes.seconds["training"], setting, recipe, "dpo" if recipe else None)

    for path in sizes.paths:
        yield step(path, RANK, OPTIMIZER)
    for rank in sizes.ranks:
        yield step("ours", rank, OPTIMIZER)
    for optimizer in sizes.optimizers:
        yield step("ours", RANK, optimizer)


def training_recipe(rank: int, optimizer: str, tokens: int) -> SettledRecipe:
    """Return a recipe that trains on one pair of `tokens` per side at a time."""
    return SettledRecipe(
        iterations=1,
        lora=Lora(rank=rank, alpha=rank),
        sampling=SettledSampling(max_new_tokens=tokens),  # so that pairs.max_tokens is what limits a pair
        pairs=PairSettings(max_tokens=tokens),
        train=SettledTrain(micro_batch=1, optimizer=optimizer, gradient_checkpointing=True),
    )


def _merging(sizes: Sizes) -> Iterator[Step]:
    """Yield the phase `fold`, then the merge into 16-bit weights."""
    prompts, positions = sizes.kl
    recipe: SettledRecipe | None = None
    if sizes.kl == (KL_PROMPTS, KL_POSITIONS):  # as in the phase; with fewer, less memory is taken than planned
        instructions = Instructions(max_tokens=sizes.prompt_tokens)
        recipe = SettledRecipe(iterations=1, lora=Lora(rank=RANK), instructions=instructions)
    setting = {"rank": RANK, "prompts": prompts, "positions": positions, "prompt_tokens": sizes.prompt_tokens}
    yield Step("fold", "fold", sizes.seconds["fold"], setting, recipe, "fold" if recipe else None)
    yield Step("requantize-w16", "requantize", sizes.seconds["requantize"], {"rank": RANK})
