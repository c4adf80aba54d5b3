"""The phases of a run: their order, which of them a recipe has, and what each leaves for later ones."""

from __future__ import annotations

from tpo_lite.recipe import AnyRecipe, Recipe, value_of

PHASES = ("generate", "judge", "pair", "dpo", "validate", "select", "crosscheck", "fold", "test", "match")
"""The order within an iteration; "prepare" comes once, before the first."""

SAMPLED = ("generate", "validate", "test")
"""Phases of an iteration that load the policy to sample."""
JUDGED = ("judge", "select", "crosscheck", "match")
"""Phases that load a judge."""
CHOOSING = ("select", "match")
"""Those of them that load `select.judge`, if there is one: they choose checkpoints and report."""

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
    "crosscheck": ["crosscheck/*-vs-*.jsonl"],
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
    """Return the phases of an iteration of `recipe`, in order."""
    return tuple(phase for phase in PHASES if missing(recipe, phase) is None)


def phases_before(recipe: Recipe, phase: str) -> tuple[str, ...]:
    """Return the phases of an iteration that are finished before `phase` of it begins.

    A merge report, which is not part of a run, needs the merge, and not what is said of M_{t+1} after it.
    """
    phases = phases_of(recipe)
    if phase == "merge_report":
        return phases[: phases.index("fold") + 1]
    return phases[: phases.index(phase)]


def missing(recipe: Recipe, phase: str) -> str | None:
    """Return what `recipe` would need to have this phase; None if it has it."""
    if phase in WARM_PHASES and not warm_phases(recipe):
        return "no warm start (warm_start.kind)"
    if phase == "crosscheck" and recipe.select.judge is None:
        return "no second judge (select.judge)"
    if phase in ("test", "match") and not recipe.instructions.test:
        return "no test slice (instructions.test is 0)"
    return None


def judge_key(recipe: Recipe, phase: str) -> str:
    """Return the key of the judge that a phase asks: "judge" or "select.judge"."""
    return "select.judge" if phase in CHOOSING and recipe.select.judge is not None else "judge"


def as_asked(recipe: AnyRecipe, phase: str) -> AnyRecipe:
    """Return `recipe` with the judge that `phase` asks as its `judge`."""
    return recipe.model_copy(update={"judge": value_of(recipe, judge_key(recipe, phase))})
