"""A first recipe: the shipped one that fits a card, with as many instructions as fit the hours and the data."""

from __future__ import annotations

import math
import textwrap
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import yaml
from pydantic import BaseModel

from tpo_lite.errors import InputError
from tpo_lite.instructions.load import load
from tpo_lite.machine.cards import GIB, Card
from tpo_lite.plan.choices import MEMORY_KEYS, smallest_changes
from tpo_lite.plan.rates import times
from tpo_lite.plan.report import Plan, duration, make_plan
from tpo_lite.recipe import Keys, Recipe, load_recipe, recipe_path, value_of, with_keys

ON_GPU = ("llama-3.1-8b-24gb", "llama-3.2-3b-12gb")
"""Shipped recipes for a card, the largest model first."""
ON_CPU = ("smollm2-135m-cpu",)

LARGEST = "llama-3.1-8b-24gb-paper"
"""The shipped recipe with the most instructions per iteration; a fitted one never has more."""
STEP = 10
"""Instructions per iteration are a multiple of this."""
LEAST = 100
"""The fewest instructions of an iteration, as in the smallest shipped recipe of a real model."""

COLUMNS = 118
"""Length of a comment's lines."""


@dataclass(frozen=True)
class Fitted:
    """A recipe made for a card, hours and data."""

    name: str
    """The shipped recipe that it was made from."""
    recipe: Recipe
    plan: Plan


def fit(card: Card, hours: float | None, source: str | None) -> Fitted:
    """Return a shipped recipe, fitted to `card`, to `hours` and to the instructions of `source`.

    The first recipe with a model that fits the card is taken, with batches left to the plan (`auto`); the last one with
    the plan's smallest changes, if no model fits without. Then
    instructions per iteration, and after them iterations, are as many as fit. Without `hours` or `source` the recipe's
    own are kept. A file is read to count its instructions; a dataset on the hub is not. Raises `InputError` if nothing
    fits.
    """
    names = ON_GPU if card.cuda else ON_CPU
    for name in names:
        recipe = load_recipe(name)
        keys: Keys = {} if source is None else {"instructions.source": source}
        if card.cuda:
            keys |= {key: "auto" for key in MEMORY_KEYS if _is_used(recipe, key)}
        recipe = with_keys(recipe, keys)
        plan = make_plan(recipe, card)
        refusal = plan.refusal()
        if refusal and name == names[-1]:
            changes = smallest_changes(plan.recipe, plan.model, plan.judge, card)
            if isinstance(changes, str):
                raise InputError(f"init: no shipped recipe fits this card. {name}: {refusal}")
            recipe = with_keys(recipe, changes)
            plan, refusal = make_plan(recipe, card), None
        if not refusal:
            break
    return _as_long_as(Fitted(name, recipe, plan), hours, source)


def _is_used(recipe: Recipe, key: str) -> bool:
    """Return whether a recipe has the section of a key, and its judge, if it is the judge's, a KV cache."""
    return value_of(recipe, key) is not None and not (key == "judge.kv_type" and recipe.judge.mode == "reward-model")


def _as_long_as(fitted: Fitted, hours: float | None, source: str | None) -> Fitted:
    """Return `fitted` with the most instructions, then the most iterations, that fit the hours and the data."""
    there = None if source is None or source.startswith("hub:") else len(load(source).instructions)
    own = fitted.recipe
    for iterations in range(own.iterations, 0, -1):
        most = own.instructions.per_iteration
        if hours is not None:
            most = max(most, load_recipe(LARGEST).instructions.per_iteration)
        if there is not None:
            held_out = own.instructions.validation + own.instructions.test
            most = min(most, (there - held_out) // iterations)
        sizes = range(LEAST, most + 1, STEP)
        fitting = bisect_right(
            sizes,
            math.inf if hours is None else hours * 3600,
            key=partial(_seconds, fitted, iterations),
        )
        if fitting:
            return _sized(fitted, sizes[fitting - 1], iterations)
    raise InputError(_nothing_fits(fitted, there))


def _sized(fitted: Fitted, prompts: int, iterations: int) -> Fitted:
    """Return `fitted` with other numbers of instructions and iterations. What an `auto` becomes stays the same."""
    keys = {"instructions.per_iteration": prompts, "iterations": iterations}
    settled, plan = with_keys(fitted.plan.recipe, keys), fitted.plan
    plan = replace(plan, recipe=settled, times=times(settled, plan.model, plan.judge, plan.card))
    return Fitted(fitted.name, with_keys(fitted.recipe, keys), plan)


def _seconds(fitted: Fitted, iterations: int, prompts: int) -> float:
    return _sized(fitted, prompts, iterations).plan.seconds


def _nothing_fits(fitted: Fitted, there: int | None) -> str:
    own = fitted.recipe.instructions
    needed = LEAST + own.validation + own.test
    if there is not None and there < needed:
        return (
            f"init: {own.source} has {there} instructions, and a run needs {needed}: {LEAST} to train on, "
            f"{own.validation} for validation and {own.test} for test. Add instructions, or take `everyday`."
        )
    least = duration(_sized(fitted, LEAST, 1).plan.seconds)
    return (
        f"init: the shortest run of {fitted.name} on {fitted.plan.card.name} takes about {least}: one iteration with "
        f"{LEAST} instructions. Allow more hours."
    )


def as_text(fitted: Fitted, file: str) -> str:
    """Return the recipe as commented YAML; `file` is where it will be."""
    recipe, plan = fitted.recipe, fitted.plan
    card = plan.card
    where = "--gpu 0" if card.cuda else "--cpu"
    measured = all(not time.basis.startswith("estimate") for time in plan.times.values())
    planned = f"--card-gb {card.memory / GIB:g}" if card.cuda else "--cpu"
    head = [
        f"Made by `tpo-lite init` from the shipped recipe {fitted.name}.",
        "",
        f"  tpo-lite plan --recipe {file} {planned}",
        f"  tpo-lite train --recipe {file} {where}",
        "",
        f"For {card.name}, {card.memory / GIB:.1f} GiB: about {duration(plan.seconds)} in all, "
        f"{'measured' if measured else 'estimated and not measured'} on such a device.",
        "`tpo-lite plan` has memory, disk and hours of every phase.",
        f"The comments of `tpo-lite recipes show {fitted.name}` say where its settings come from.",
    ]
    lines = [f"# {line}".rstrip() for line in head]
    shipped = yaml.safe_load(recipe_path(fitted.name).read_text(encoding="utf-8"))
    lines += _section(recipe, shipped, "", ("iterations", "instructions", "sampling", "judge", "train"))
    return "\n".join(lines) + "\n"


def _section(section: BaseModel, shipped: dict[str, Any], indent: str, always: Sequence[str] = ()) -> Iterator[str]:
    """Yield the lines of a section: the keys that the shipped recipe has, and those that were changed."""
    default = type(section)()
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if key not in shipped and key not in always and value == getattr(default, key):
            continue
        if isinstance(value, BaseModel):
            yield from ("", *_comment((type(value).__doc__ or "").partition("\n")[0], indent), f"{indent}{key}:")
            yield from _section(value, shipped.get(key, {}), indent + "  ")
            continue
        yield from _comment(field.description or "", indent)
        yield indent + yaml.safe_dump({key: value}, width=10_000, allow_unicode=True).rstrip("\n")


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(" ".join(text.split()), COLUMNS - len(indent), break_on_hyphens=False):
        yield f"{indent}# {line}"
