"""What a recipe leaves open: what `auto` becomes, and the smallest change that makes a phase fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tpo_lite.llamacpp.leaves import whole_cells
from tpo_lite.machine.cards import Card
from tpo_lite.plan.memory import Need, longest_comparison, needs
from tpo_lite.plan.shapes import JudgeShape, ModelShape
from tpo_lite.recipe import Keys, Recipe, divisors, value_of, with_keys

AIM = 11 / 12
"""Share of the card that picks stay within: 22 GiB of 24."""
LIMIT = 0.97
"""Share of the card beyond which a phase does not fit; predictions may be under by 3 %."""

LARGEST_BATCH, LARGEST_MICRO_BATCH = 256, 8
"""Larger ones gain nothing: by then the card, not Python, is the limit."""


GROUPS = [
    (("judge", "select"), ("judge.kv_type", "judge.context")),
    (("generate", "validate"), ("sampling.batch",)),
    (("dpo",), ("train.gradient_checkpointing", "train.micro_batch")),
]
"""Keys that may be `auto`, with the phases whose memory they decide."""

AUTO_KEYS = [key for _, keys in GROUPS for key in keys]

HARMLESS = (*AUTO_KEYS, "judge.batch", "train.optimizer")
"""Keys that leave a run's results as they are, but for rounding."""


def open_keys(recipe: Recipe) -> list[str]:
    """The keys that a recipe leaves `auto`."""
    return [key for key in AUTO_KEYS if value_of(recipe, key) == "auto"]


def settle(
    recipe: Recipe, model: ModelShape, judge: JudgeShape | None, card: Card, recorded: Recipe | None = None
) -> Recipe:
    """`recipe` without `auto` in what memory depends on: the fastest values that fit, or the smallest of all.

    A run that was started keeps the values `recorded` in its folder, whatever card it goes on with.
    """
    if recorded is not None:
        return with_keys(recipe, {key: value_of(recorded, key) for key in open_keys(recipe)})
    candidates = {phases: list(_candidates(recipe, phases[0])) for phases, _ in GROUPS}
    # The smallest of each group first, so that no key is open while another is chosen.
    settled = with_keys(recipe, {key: options[-1][key] for options in candidates.values() for key in options[-1]})
    for phases, options in candidates.items():
        for keys in options:
            tried = with_keys(settled, keys)
            found = needs(tried, model, judge, card)
            if all(found[phase].peak <= AIM * card.memory for phase in phases):
                settled = tried
                break
    return settled


def _candidates(recipe: Recipe, phase: str) -> Iterator[Keys]:
    """Values for a group's open keys, the best first."""

    def options(key: str, values: list[Any]) -> list[Any]:
        return values if value_of(recipe, key) == "auto" else [value_of(recipe, key)]

    if phase == "judge":
        least = whole_cells(longest_comparison(recipe))
        contexts = [least * sequences for sequences in range(recipe.judge.sequences, 0, -1)]
        contexts = options("judge.context", contexts)
        types = options("judge.kv_type", ["f16", "q8_0"])
        yield from ({"judge.kv_type": kv, "judge.context": contexts[0]} for kv in types)
        yield from ({"judge.kv_type": types[-1], "judge.context": context} for context in contexts[1:])
    elif phase == "generate":
        k = recipe.sampling.k
        for rows in options("sampling.batch", list(range(max(k, LARGEST_BATCH // k * k), 0, -k))):
            yield {"sampling.batch": rows}
    else:
        sizes = [size for size in divisors(recipe.train.batch) if size <= LARGEST_MICRO_BATCH]
        for checkpointing in options("train.gradient_checkpointing", [False, True]):
            for size in options("train.micro_batch", sizes):
                yield {"train.gradient_checkpointing": checkpointing, "train.micro_batch": size}


def too_large(found: dict[str, Need], card: Card) -> list[str]:
    """The phases that do not fit the card."""
    return [phase for phase, need in found.items() if need.peak > LIMIT * card.memory]


def smallest_changes(recipe: Recipe, model: ModelShape, judge: JudgeShape | None, card: Card) -> Keys | str:
    """The keys to change for all phases to fit, none of them further than it must be; or a phase that none mends.

    What mends a phase may mend another, and more than it first had to. So each key is put back as far as it goes in
    the end, those that change a run's results before the others.
    """
    changes: Keys = {}
    tried: dict[str, list[Any]] = {}
    while True:
        so_far = with_keys(recipe, changes)
        phases = too_large(needs(so_far, model, judge, card), card)
        if not phases:
            break
        change = smallest_change(so_far, model, judge, card, phases[0])
        if change is None:
            return phases[0]
        steps = _smaller(so_far, phases[0])
        tried |= {key: tried.get(key, [value_of(recipe, key)]) + steps[key] for key in change}
        changes |= change

    def fits(keys: Keys) -> bool:
        changed = with_keys(recipe, keys)
        shorter = changed.judge.context < min(recipe.judge.context, longest_comparison(changed))
        return not shorter and not too_large(needs(changed, model, judge, card), card)

    for key in sorted(changes, key=lambda key: key in HARMLESS):
        for value in tried[key]:
            if fits(changes | {key: value}):
                changes[key] = value
                break
    return {key: value for key, value in changes.items() if value != value_of(recipe, key)}


def smallest_change(recipe: Recipe, model: ModelShape, judge: JudgeShape | None, card: Card, phase: str) -> Keys | None:
    """The keys to change for `phase` to fit; None if nothing that a recipe says would do.

    Keys that leave a run's results as they are come first, each alone and as little as does it; then they are
    taken together, each at its smallest but the last; then the others in the same way, with those at their smallest.
    """

    def fits(keys: Keys) -> bool:
        return phase not in too_large(needs(with_keys(recipe, keys), model, judge, card), card)

    steps = _smaller(recipe, phase)
    together: Keys = {}
    for harmless in (True, False):
        group = {key: values for key, values in steps.items() if (key in HARMLESS) is harmless}
        for key, values in group.items():
            for value in values:
                if fits(together | {key: value}):
                    return together | {key: value}
        for key, values in group.items():
            for value in values:
                if fits(together | {key: value}):
                    return together | {key: value}
            if values:
                together[key] = values[-1]
    return None


def _smaller(recipe: Recipe, phase: str) -> dict[str, list[Any]]:
    """Values that take less memory than the recipe's, the nearest first."""

    def halves(key: str, least: int) -> list[int]:
        value, smaller = value_of(recipe, key), []
        while (value := value // 2) >= least:
            smaller.append(value)
        return smaller

    if phase in ("generate", "validate"):
        k = recipe.sampling.k
        batches = list(range((recipe.sampling.batch - 1) // k * k, 0, -k))
        if recipe.engine != "unsloth":  # which samples whole prompts
            batches += [
                rows for rows in (k >> halved for halved in range(1, k.bit_length())) if rows < recipe.sampling.batch
            ]
        return {"sampling.batch": batches, "sampling.max_new_tokens": halves("sampling.max_new_tokens", 256)}
    if phase in ("judge", "select"):
        kv = ["q8_0"] if recipe.judge.kv_type == "f16" else []
        contexts = [size for size in halves("judge.context", 1) if size >= longest_comparison(recipe)]
        return {"judge.kv_type": kv, "judge.context": contexts, "judge.batch": halves("judge.batch", 128)}
    ranks = {"lora.rank": halves("lora.rank", 4)}
    if phase == "fold":
        return ranks
    return {
        "train.micro_batch": [size for size in divisors(recipe.train.batch) if size < recipe.train.micro_batch],
        "train.gradient_checkpointing": [] if recipe.train.gradient_checkpointing else [True],
        "train.optimizer": ["adamw_8bit"] if recipe.train.optimizer == "adamw_torch" else [],
        "pairs.max_tokens": list(range(recipe.pairs.max_tokens - 256, 255, -256)),
    } | ranks
