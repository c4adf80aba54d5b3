"""Hours of one iteration of the shipped recipes: from what `benchmarks.gpu` measured, and estimated for other cards.

These count the recipe's own numbers of prompts, samples and pairs, and texts of the lengths that `tpo_lite.plan.rates`
assumes. Loading models, which takes some seconds per phase, is left out.
"""

from __future__ import annotations

from typing import Any

from tpo_lite.judges.room import prompt_tokens
from tpo_lite.machine.cards import Card
from tpo_lite.plan.rates import ASKED, EXPLAIN_SHARE, PROMPT_TOKENS, RESPONSE_SHARE, lengths, roofline
from tpo_lite.plan.shapes import JudgeShape, ModelShape
from tpo_lite.recipe import load_recipe, with_keys
from tpo_lite.settled import SettledRecipe, as_settled

RECIPES = {"default": "llama-3.1-8b-24gb", "paper-size": "llama-3.1-8b-24gb-paper"}
ESTIMATED = ("RTX 4090", "RTX 3090")
PHASES = ("generate", "judge", "dpo", "validate", "select", "fold", "test", "match")

REFERENCE = 1 / 3
"""The reference's share of an epoch's time.

The reference is one forward pass. An epoch is a forward pass, another for gradient checkpointing, and a backward pass
that takes about as long as one, since the frozen weights have no gradients."""

Seconds = dict[str, float | None]
"""Seconds by phase; None if its speed is not measured."""


def recipe_as_measured(name: str, engine: str, batch: int, judge: dict[str, Any]) -> SettledRecipe:
    """Return a shipped recipe with the settings that were measured instead of its own, and a GGUF as its judge."""
    recipe = load_recipe(name)
    if recipe.judge.mode == "reward-model":
        critic = load_recipe(RECIPES["paper-size"]).judge.model
        judge = {"model": critic, "mode": "verdict", "prompt": "skywork-critic"} | judge
    keys = {"sampling.batch": batch, "train.micro_batch": 1, "train.gradient_checkpointing": True}
    keys |= {f"judge.{key}": value for key, value in judge.items()}
    return as_settled(with_keys(recipe, keys | {"engine": engine, "quantize": "nf4"}))


def judge_tokens(recipe: SettledRecipe, prompts: float, responses: int, calls: float) -> tuple[float, float]:
    """Return the tokens that a judge reads and writes for `calls` comparisons of `responses` to each of `prompts`.

    As in `tpo_lite.plan.rates`, what several comparisons begin with is read once.
    """
    instruction = prompt_tokens(recipe.judge) + min(PROMPT_TOKENS, recipe.instructions.max_tokens)
    response = RESPONSE_SHARE * lengths(recipe)[1]
    written = EXPLAIN_SHARE * recipe.judge.explain_tokens if recipe.judge.mode == "explain" else 0.0
    return prompts * (instruction + responses * response) + calls * response, calls * written


def seconds_measured(
    recipe: SettledRecipe,
    sampled: float | None,
    read: float | None,
    written: float | None,
    trained: float | None,
    folded: float | None,
) -> Seconds:
    """Return the seconds of one iteration of one arm.

    `sampled`, `read` and `written` (by the judge) and `trained` (both sides of a pair) are tokens per second. `folded`
    is the seconds of one fold.
    """
    sizes, epochs, k = recipe.instructions, recipe.train.epochs, recipe.sampling.k
    prompt, output = lengths(recipe)

    def judged(prompts: float, responses: int, calls: float) -> float | None:
        reads, writes = judge_tokens(recipe, prompts, responses, calls)
        if read is None or (writes and written is None):
            return None
        return reads / read + (writes / written if writes else 0)

    # M_0 answers the held-out slices too, once in all iterations.
    outputs = sizes.per_iteration * k + (sizes.validation + sizes.test) / recipe.iterations
    matches = sizes.validation * (epochs + 1)
    tested = sizes.test * (2 - 1 / len(recipe.arms))
    return {
        "generate": sampled and outputs * output / sampled,
        "judge": judged(sizes.per_iteration, k, sizes.per_iteration * k * (k - 1) * ASKED[recipe.tournament.kind]),
        "dpo": trained and (epochs + REFERENCE) * sizes.per_iteration * 2 * (prompt + output) / trained,
        "validate": sampled and epochs * sizes.validation * output / sampled,
        "select": judged(matches, 2, 2 * matches),
        "fold": folded,
        "test": sampled and sizes.test * output / sampled,
        "match": judged(tested, 2, 2 * tested),
    }


def seconds_elsewhere(
    seconds: Seconds, recipe: SettledRecipe, model: ModelShape, judge: JudgeShape, here: Card, there: Card
) -> Seconds:
    """Scale `seconds` of the measured card to another card, by what the plan's arithmetic gives for both."""
    on, of = (roofline(recipe, model, judge, card) for card in (there, here))
    return {phase: value and value * on[phase].seconds / of[phase].seconds for phase, value in seconds.items()}
