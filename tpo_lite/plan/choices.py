"""The plan's choices: what each `auto` of a recipe becomes, and the smallest change that makes a phase fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tpo_lite.errors import TpoError
from tpo_lite.judges.room import longest_comparison
from tpo_lite.kinds import Engine, Precision
from tpo_lite.llamacpp.leaves import whole_cells
from tpo_lite.machine.cards import Card
from tpo_lite.phase_order import JUDGED, SAMPLED, as_asked, judge_key
from tpo_lite.plan.needs import Need, needs
from tpo_lite.plan.precision import describe, layers_of, measure, seconds
from tpo_lite.plan.rates import choose_engine
from tpo_lite.plan.shapes import JudgeShape, ModelShape
from tpo_lite.plan.weights import held_in
from tpo_lite.recipe import Keys, Recipe, divisors, value_of, with_keys
from tpo_lite.settled import AUTO_KEYS, SettledRecipe, as_settled

AIM = 11 / 12
"""Share of the card that chosen values stay within: 22 GiB of 24."""
LIMIT = 0.955
"""Share of the card beyond which a phase does not fit: predictions may be 3 % too low, and the driver keeps 1.5 % (of
the 23.99 GiB of an RTX 4090, torch is shown 23.62)."""

LARGEST_BATCH, LARGEST_MICRO_BATCH = 256, 8
"""Larger ones gain nothing: by then the card, not Python, is the limit."""

MEMORY_KEYS = [key for key in AUTO_KEYS if key not in ("engine", "quantize")]
"""Keys that may be `auto` and decide memory, but not what is computed."""

HARMLESS = (*MEMORY_KEYS, "judge.batch", "select.judge.batch", "train.optimizer")
"""Keys that leave a run's results as they are, but for rounding."""


def settle(
    recipe: Recipe, model: ModelShape, judge: JudgeShape | None, card: Card, precision: Precision | None = None
) -> SettledRecipe:
    """Return `recipe` with a value for each `auto`: the fastest engine and the largest batches that fit the card.

    The base is held in `precision`, or in the fastest one, which on a CPU may have to be measured
    (`fastest_precision`). Where nothing fits, the smallest values are taken. This is the one place where `auto` ends; a
    run that goes on keeps what its folder holds (`tpo_lite.settled.filled_from`).
    """
    if recipe.engine == "auto":
        engine, _ = fastest_engine(recipe, model, judge, card)
        recipe = with_keys(recipe, {"engine": engine})
    if precision is None:
        precision, _ = fastest_precision(recipe, model, judge, card)
    recipe = with_keys(recipe, {"quantize": "nf4" if precision == "nf4" else "none"})
    candidates = {phases: list(_candidates(recipe, phases[0])) for phases in _groups(recipe)}
    # Begin with the smallest of each group, so that no key is open while another is chosen.
    smallest = {key: value for options in candidates.values() for key, value in options[-1].items()}
    settled = as_settled(with_keys(recipe, smallest))
    if precision != "nf4":
        settled = with_keys(settled, {"dtype": precision})
    for phases, options in candidates.items():
        for keys in options:
            tried = with_keys(settled, keys)
            found = needs(tried, model, judge, card)
            if all(found[phase].peak <= AIM * card.memory for phase in found.keys() & phases):
                settled = tried
                break
    return settled


def fastest_engine(recipe: Recipe, model: ModelShape, judge: JudgeShape | None, card: Card) -> tuple[Engine, str]:
    """Return the engine that samples `recipe`, and why: the fastest whose sampling fits the card."""

    def fits(engine: Engine) -> bool:
        smallest: Precision = "bfloat16" if recipe.quantize == "none" else "nf4"
        settled = settle(with_keys(recipe, {"engine": engine}), model, judge, card, smallest)
        return not set(SAMPLED) & set(too_large(needs(settled, model, judge, card), card))

    return choose_engine(recipe, card, fits)


def fastest_precision(recipe: Recipe, model: ModelShape, judge: JudgeShape | None, card: Card) -> tuple[Precision, str]:
    """Return what the base of `recipe`, whose engine is chosen, is held in, and why.

    On a GPU `auto` is NF4. On a CPU it is the precision measured fastest, of those in which every phase fits the
    memory; so is the type of a base that is not quantized.
    """
    if recipe.quantize == "nf4":
        return "nf4", "as the recipe says"
    if isinstance(recipe, SettledRecipe):
        return held_in(recipe, card), "as it was settled"
    if card.cuda:
        return ("nf4", "as on any GPU") if recipe.quantize == "auto" else ("bfloat16", "as the recipe says")
    candidates: list[Precision] = ["float32", "bfloat16"]
    if recipe.quantize == "auto":
        if recipe.merge_base == "nf4":
            return "nf4", "as merge_base says"
        candidates = ["nf4", *candidates]
    settled = {precision: settle(recipe, model, judge, card, precision) for precision in candidates}
    peaks = {
        precision: max(need.peak for need in needs(tried, model, judge, card).values())
        for precision, tried in settled.items()
    }
    fitting = [precision for precision, peak in peaks.items() if peak <= AIM * card.memory]
    if len(fitting) < 2:
        return min(peaks, key=lambda precision: peaks[precision]), "nothing else fits the memory"
    layers = layers_of(settled[fitting[0]], model)
    try:
        passes = measure(layers, fitting)
    except TpoError as error:
        return fitting[0], f"not measured: {error}"
    taken = {precision: seconds(settled[precision], layers, passes[precision]) for precision in fitting}
    return min(taken, key=lambda precision: taken[precision]), describe(taken)


def _groups(recipe: Recipe) -> Iterator[tuple[str, ...]]:
    """Yield groups of phases whose memory the same keys decide, of those that may be `auto`."""
    for key in dict.fromkeys(judge_key(recipe, phase) for phase in JUDGED):
        yield tuple(phase for phase in JUDGED if judge_key(recipe, phase) == key)
    yield from (SAMPLED, ("dpo",))


def _candidates(recipe: Recipe, phase: str) -> Iterator[Keys]:
    """Yield values for a group's open keys, the best first."""

    def options(key: str, values: list[Any]) -> list[Any]:
        return values if value_of(recipe, key) == "auto" else [value_of(recipe, key)]

    if phase in JUDGED:
        key, asked = judge_key(recipe, phase), as_asked(recipe, phase)
        least = whole_cells(longest_comparison(asked))
        contexts = [least * sequences for sequences in range(asked.judge.sequences, 0, -1)]
        contexts = options(f"{key}.context", contexts)
        types = options(f"{key}.kv_type", ["f16", "q8_0"])
        yield from ({f"{key}.kv_type": kv, f"{key}.context": contexts[0]} for kv in types)
        yield from ({f"{key}.kv_type": types[-1], f"{key}.context": context} for context in contexts[1:])
    elif phase in SAMPLED:
        k = recipe.sampling.k
        for rows in options("sampling.batch", list(range(max(k, LARGEST_BATCH // k * k), 0, -k))):
            yield {"sampling.batch": rows}
    else:
        sizes = [size for size in divisors(recipe.train.batch) if size <= LARGEST_MICRO_BATCH]
        for checkpointing in options("train.gradient_checkpointing", [False, True]):
            for size in options("train.micro_batch", sizes):
                yield {"train.gradient_checkpointing": checkpointing, "train.micro_batch": size}


def too_large(found: dict[str, Need], card: Card) -> list[str]:
    """Return the phases that do not fit the card."""
    return [phase for phase, need in found.items() if need.peak > LIMIT * card.memory]


def smallest_changes(recipe: SettledRecipe, model: ModelShape, judge: JudgeShape | None, card: Card) -> Keys | str:
    """Return the keys to change so that all phases fit, none of them further than needed.

    If no change makes a phase fit, return that phase. A change for one phase may help another, and so be larger than it
    had to be. So in the end each key is put back as far as possible, beginning with those that change a run's results.
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
        shorter = any(_too_short(as_asked(recipe, phase), as_asked(changed, phase)) for phase in ("judge", "select"))
        return not shorter and not too_large(needs(changed, model, judge, card), card)

    for key in sorted(changes, key=lambda key: key in HARMLESS):
        for value in tried[key]:
            if fits(changes | {key: value}):
                changes[key] = value
                break
    return {key: value for key, value in changes.items() if value != value_of(recipe, key)}


def _too_short(recipe: SettledRecipe, changed: SettledRecipe) -> bool:
    """Return whether the changed judge's context holds less than the longest comparison, and the recipe's held more."""
    return changed.judge.context < min(recipe.judge.context, longest_comparison(changed))


def smallest_change(
    recipe: SettledRecipe, model: ModelShape, judge: JudgeShape | None, card: Card, phase: str
) -> Keys | None:
    """Return the keys to change so that `phase` fits, or None if no change of the recipe is enough.

    Keys that leave a run's results as they are come first. Each is tried alone, in small steps; then together, all but
    the last at its smallest. Then the other keys are tried in the same way, with the first ones at their smallest.
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


def _smaller(recipe: SettledRecipe, phase: str) -> dict[str, list[Any]]:
    """Return values, by key, that take less memory than the recipe's, the nearest first."""

    def halves(key: str, least: int) -> list[int]:
        value, smaller = value_of(recipe, key), []
        while (value := value // 2) >= least:
            smaller.append(value)
        return smaller

    quantize = ["nf4"] if recipe.quantize == "none" else []
    if phase in ("warm_sample", *SAMPLED):
        k = recipe.sampling.k
        batches = list(range((recipe.sampling.batch - 1) // k * k, 0, -k))
        if recipe.engine != "unsloth":  # unsloth samples all K outputs of a prompt together
            batches += [
                rows for rows in (k >> halved for halved in range(1, k.bit_length())) if rows < recipe.sampling.batch
            ]
        shorter = halves("sampling.max_new_tokens", 256)
        return {"sampling.batch": batches, "quantize": quantize, "sampling.max_new_tokens": shorter}
    if phase in JUDGED:
        key, asked = judge_key(recipe, phase), as_asked(recipe, phase)
        contexts = [size for size in halves(f"{key}.context", 1) if size >= longest_comparison(asked)]
        if asked.judge.mode == "reward-model":
            in_4_bit = ["nf4"] if asked.judge.quantize == "none" else []
            return {f"{key}.context": contexts, f"{key}.quantize": in_4_bit}
        kv = ["q8_0"] if asked.judge.kv_type == "f16" else []
        return {f"{key}.kv_type": kv, f"{key}.context": contexts, f"{key}.batch": halves(f"{key}.batch", 128)}
    ranks: dict[str, list[Any]] = {"quantize": quantize, "lora.rank": halves("lora.rank", 4)}
    if phase == "fold":
        return ranks
    smaller: dict[str, list[Any]] = {
        "train.micro_batch": [size for size in divisors(recipe.train.batch) if size < recipe.train.micro_batch],
        "train.gradient_checkpointing": [] if recipe.train.gradient_checkpointing else [True],
        "train.optimizer": ["adamw_8bit"] if recipe.train.optimizer == "adamw_torch" else [],
        "quantize": quantize,  # before the shorter texts and lower ranks
        "pairs.max_tokens": list(range(recipe.pairs.max_tokens - 256, 255, -256)),
    }
    return smaller | ranks
