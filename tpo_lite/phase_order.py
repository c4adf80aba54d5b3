"""The phases of a run: their order, which of them a recipe has, and what each leaves for later ones."""

from __future__ import annotations

from tpo_lite.recipe import Recipe

PHASES = ("generate", "judge", "pair", "dpo", "validate", "select", "fold", "test", "match")
"""The order within an iteration; "prepare" comes once, before the first."""

SAMPLED = ("generate", "validate", "test")
"""Phases of an iteration that load the policy to sample."""
JUDGED = ("judge", "select", "match")
"""Phases that load the judge."""

WARM_PHASES = ("warm_sample", "warm_start")
"""What each arm does before its first iteration, in a folder of its own, if the recipe may warm-start."""

OUTPUTS = {
    "prepare": ["*.jsonl"],
    "warm_sample": ["*.jsonl"],
    "warm_start": ["adapter/*", "log.json"],
    "generate": ["../base-validation.jsonl", "../base-test.jsonl", "samples.jsonl"],
    "judge": ["judgements.jsonl"],
    "pair": ["scores.jsonl", "pairs.jsonl"],
    "dpo": ["train/checkpoint-*/adapter_model.safetensors", "train/log.json"],
    "validate": ["validation/checkpoint-*.jsonl"],
    "select": ["validation/*-vs-*.jsonl", "validation.json"],
    "fold": ["adapter/*", "model/*"],
    "test": ["test/answers.jsonl"],
    "match": ["../base-*-vs-*.jsonl", "test/*-vs-*.jsonl"],
}
"""What each phase leaves for later ones. A phase is not finished while anything that it left is missing."""


def warm_phases(recipe: Recipe) -> tuple[str, ...]:
    """Return the phases of a warm start that a recipe has; none for direct answers alone, unless it asks for one."""
    kind = recipe.warm_start.kind
    return () if kind == "none" or (kind == "auto" and "thinking" not in recipe.arms) else WARM_PHASES


def phases_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the phases of an iteration of `recipe`, in order; without a test slice nothing follows "fold"."""
    return PHASES if recipe.instructions.test else PHASES[: PHASES.index("test")]
