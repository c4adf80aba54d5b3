"""The phases of a run: their order, which of them a recipe has, and what each leaves for later ones."""

from __future__ import annotations

from tpo_lite.recipe import Recipe

PHASES = ("generate", "judge", "pair", "dpo", "validate", "select", "fold", "test", "match")
"""The order within an iteration; "prepare" comes once, before the first."""

SAMPLED = ("generate", "validate", "test")
"""Phases that load the policy to sample."""
JUDGED = ("judge", "select", "match")
"""Phases that load the judge."""

OUTPUTS = {
    "prepare": ["*.jsonl"],
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


def phases_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the phases of an iteration of `recipe`, in order; without a test slice nothing follows "fold"."""
    return PHASES if recipe.instructions.test else PHASES[: PHASES.index("test")]
