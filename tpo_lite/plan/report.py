"""The plan: everything that is predicted for a recipe on a card, as data, as a table and as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tpo_lite.hub import is_gguf
from tpo_lite.judges.room import longest_comparison
from tpo_lite.kinds import Precision
from tpo_lite.machine.cards import GIB, Card
from tpo_lite.phase_order import WARM_PHASES, as_asked, judge_key, warm_phases
from tpo_lite.plan.choices import (
    LIMIT,
    MEMORY_KEYS,
    fastest_engine,
    fastest_precision,
    settle,
    smallest_changes,
    too_large,
)
from tpo_lite.plan.needs import Need, kept, needs, passing
from tpo_lite.plan.rates import UNITS, Time, times
from tpo_lite.plan.shapes import (
    GGUF_BITS,
    JudgeShape,
    ModelShape,
    choosing_shape,
    gguf_shape,
    judge_shape,
    model_shape,
    taken_by_name,
)
from tpo_lite.plan.weights import held_in
from tpo_lite.recipe import Keys, Recipe, value_of, with_keys
from tpo_lite.sampling.room import PROBE_PROMPTS
from tpo_lite.settled import SettledRecipe, filled_from, open_keys

GB = 1e9


@dataclass(frozen=True)
class Plan:
    """What a run will need."""

    recipe: SettledRecipe
    card: Card
    model: ModelShape
    judge: JudgeShape | None
    why_engine: str
    """Why this engine samples and no other."""
    why_precision: str
    """Why the base is held in this precision."""
    picks: Keys
    """What each `auto` became, the engine's aside."""
    needs: dict[str, Need]
    times: dict[str, Time]

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        warm = sum(time.seconds for phase, time in self.times.items() if phase in WARM_PHASES)
        iteration = sum(time.seconds for time in self.times.values()) - warm
        return (warm + iteration * self.recipe.iterations) * len(self.recipe.arms)

    @property
    def held_in(self) -> Precision:
        """What the base's linear layers are held in."""
        return held_in(self.recipe, self.card)

    @property
    def disk(self) -> float:
        """Bytes that the whole run keeps, downloaded models aside."""
        iterations, arms = self.recipe.iterations, len(self.recipe.arms)
        # A GGUF as M_0 is dequantized to 16 bits once, and sampled from as it is.
        from_gguf = is_gguf(self.recipe.model)
        made = 2.0 * self.model.parameters if from_gguf else 0.0
        if self.recipe.engine == "gguf":  # the base once, and each merged model, which answers the validation slice
            bases = (0 if from_gguf else 1) + (iterations * arms if self.recipe.merge == "requantize" else 0)
            made += bases * self.model.parameters * GGUF_BITS[self.recipe.gguf_type] / 8
        phases = [(phase, t) for t in range(iterations) for phase in self.needs if t == 0 or phase not in WARM_PHASES]
        return arms * sum(kept(self.recipe, self.model, t)[phase] for phase, t in phases) + made

    @property
    def downloads(self) -> float:
        """Bytes of the models."""
        name = self.recipe.model
        model = gguf_shape(name, "model").file_bytes if is_gguf(name) else 2 * self.model.parameters
        second = choosing_shape(self.recipe, None)
        return model + sum(judge.file_bytes for judge in (self.judge, second) if judge)

    def refusal(self) -> str | None:
        """Say which phases do not fit, and the smallest change with which all do; None if all fit."""
        phases = too_large(self.needs, self.card)
        if not phases:
            return None
        needed = ", ".join(f"{phase} needs {self.needs[phase].peak / GIB:.1f}" for phase in phases)
        there = self.card.memory / GIB
        needed += f" GiB, and a run may use {LIMIT * there:.1f} of the card's {there:.1f} GiB"
        changes = smallest_changes(self.recipe, self.model, self.judge, self.card)
        if isinstance(changes, str):
            return f"{needed}; no smaller batch makes {changes} fit. Take a smaller model or a larger card."
        keys = " ".join(f"--set {key}={str(value).lower()}" for key, value in changes.items())
        return f"{needed}. The smallest change that fits: {keys}."


def make_plan(
    recipe: Recipe, card: Card, recorded: SettledRecipe | None = None, seconds: dict[str, float] | None = None
) -> Plan:
    """Return the plan of a recipe on a card.

    `recorded` is the settled recipe of a run that goes on, which keeps its values whatever the card; `seconds` are
    that run's own, by phase. Raises `InputError` for a model or judge whose shape cannot be read.
    """
    model, judge = model_shape(recipe.model), judge_shape(recipe.judge)
    if recorded is not None:
        settled, why = go_on(recipe, recorded)
        why_precision = "as this run was started with"
    else:
        engine, why = fastest_engine(recipe, model, judge, card)
        chosen = with_keys(recipe, {"engine": engine})
        precision, why_precision = fastest_precision(chosen, model, judge, card)
        settled = settle(chosen, model, judge, card, precision)
    picks = {key: value_of(settled, key) for key in open_keys(recipe) if key in MEMORY_KEYS}
    expected = times(settled, model, judge, card)
    for phase in expected.keys() & (seconds or {}).keys():
        expected[phase] = replace(expected[phase], seconds=(seconds or {})[phase], basis="this run")
    return Plan(settled, card, model, judge, why, why_precision, picks, needs(settled, model, judge, card), expected)


def go_on(recipe: Recipe, recorded: SettledRecipe) -> tuple[SettledRecipe, str]:
    """Return the settled recipe of a run that goes on, and why its engine samples."""
    why = "as this run was started with" if recipe.engine in ("auto", recorded.engine) else "as the recipe says"
    return filled_from(recorded, recipe), why


def as_data(plan: Plan) -> dict[str, Any]:
    """Return the plan for JSON: bytes, and seconds of one iteration of one arm and of the run."""
    return {
        "card": {"name": plan.card.name, "bytes": plan.card.memory, "cuda": plan.card.cuda},
        "engine": {"name": plan.recipe.engine, "why": plan.why_engine},
        "quantize": {"name": plan.recipe.quantize, "held_in": plan.held_in, "why": plan.why_precision},
        "picks": plan.picks,
        "phases": {
            phase: {
                "peak_bytes": round(need.peak),
                "terms": {term: round(size) for term, size in need.terms.items()},
                "ram_bytes": round(need.ram),
                "disk_bytes": round(need.disk),
                "seconds": round(plan.times[phase].seconds, 1),
                "work": round(plan.times[phase].work),
                "unit": UNITS[phase],
                "basis": plan.times[phase].basis,
            }
            for phase, need in plan.needs.items()
        },
        "seconds": round(plan.seconds),
        "disk_bytes": round(plan.disk),
        "passing_disk_bytes": round(passing(plan.recipe, plan.model)),
        "download_bytes": round(plan.downloads),
        "notes": list(notes(plan)),
        "refusal": plan.refusal(),
    }


def print_plan(plan: Plan, console: Console) -> None:
    """Print tables on a terminal, plain lines elsewhere."""
    arms = len(plan.recipe.arms)
    title = (
        f"Plan for {plan.card.name}, {plan.card.memory / GIB:.1f} GiB: the last of {plan.recipe.iterations} iterations"
    )
    title += f" of each of {arms} arms" if arms > 1 else ""
    summary = [["phase", "peak GiB", "RAM GiB", "disk GB", "time", "time is"]]
    for phase, need in plan.needs.items():
        time = plan.times[phase]
        sizes = [f"{need.peak / GIB:.1f}", f"{need.ram / GIB:.1f}", f"{need.disk / GB:.2f}"]
        summary.append([phase, *sizes, duration(time.seconds), time.basis])
    show(console, title, summary)
    show(console, "Peak by term, GiB", list(term_rows(plan)))
    console.print(f"engine: {plan.recipe.engine} ({plan.why_engine})", highlight=False, soft_wrap=True)
    held = "" if plan.recipe.quantize == "nf4" else f"{plan.held_in}: "
    console.print(f"quantize: {plan.recipe.quantize} ({held}{plan.why_precision})", highlight=False, soft_wrap=True)
    for key, value in plan.picks.items():
        console.print(f"auto: {key}={str(value).lower()}", highlight=False)
    console.print(
        f"In all about {duration(plan.seconds)} and {plan.disk / GB:.1f} GB of disk, "
        f"plus {passing(plan.recipe, plan.model) / GB:.1f} GB temporarily and {plan.downloads / GB:.1f} GB of models.",
        highlight=False,
        soft_wrap=True,
    )
    for note in notes(plan):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    if any(time.basis.startswith("estimate") for time in plan.times.values()):
        console.print(
            "Estimates were not measured on this card: they follow from its published bandwidth and operations per "
            "second, assumed shares of these, and texts of average length (tpo_lite/plan/rates.py).",
            highlight=False,
            soft_wrap=True,
        )


def notes(plan: Plan) -> Iterator[str]:
    """Yield what a reader of the plan should know besides."""
    known = taken_by_name(plan.recipe.model)
    if known is not None:
        yield f"the shape is {known}'s, by the name {plan.recipe.model}: its config.json is not in the hub's cache."
    shapes = {"judge": plan.judge, judge_key(plan.recipe, "select"): choosing_shape(plan.recipe, plan.judge)}
    for key, shape in shapes.items():
        asked = as_asked(plan.recipe, "judge" if key == "judge" else "select")
        context, longest = asked.judge.context, longest_comparison(asked)
        if shape is not None and asked.judge.mode != "reward-model" and context < longest:
            what = "cut" if asked.judge.overlong == "truncate" else "left out"
            held = f"{key}.context={context} does not hold the longest comparisons"
            yield f"{held}, of {longest} tokens; those are {what}."
    if plan.recipe.warm_start.kind == "auto" and warm_phases(plan.recipe):
        yield (
            f"warm_start.kind=auto: if fewer than half of {PROBE_PROMPTS} first outputs are well-formed, there is a "
            "warm start besides; see the plan with --set warm_start.kind=self."
        )


def short_of(plan: Plan, free: int, memory: int) -> Iterator[str]:
    """Yield what this machine has too little of, with `free` bytes of disk and `memory` bytes of RAM."""
    disk = plan.disk + passing(plan.recipe, plan.model)
    if disk > free:
        yield f"the run may take {disk / GB:.1f} GB of disk, and {free / GB:.1f} GB are free there."
    phase, need = max(plan.needs.items(), key=lambda item: item[1].ram)
    if plan.card.cuda and need.ram > memory:
        yield f"{phase} needs about {need.ram / GIB:.1f} GiB of RAM, and this machine has {memory / GIB:.1f}."


def duration(seconds: float) -> str:
    """Write seconds as seconds, minutes, hours or days, whichever reads well.

    >>> duration(34.2), duration(600), duration(9000), duration(800_000)
    ('34 s', '10 min', '2.5 h', '9.3 days')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 86_400:.1f} days"


def term_rows(plan: Plan) -> Iterator[list[str]]:
    """Yield one row per term, with one column per phase."""
    yield ["", *plan.needs]
    for term in dict.fromkeys(term for need in plan.needs.values() for term in need.terms):
        sizes = [need.terms.get(term, 0) / GIB for need in plan.needs.values()]
        yield [term, *(f"{size:.2f}" if size else "-" for size in sizes)]


def show(console: Console, title: str, rows: list[list[str]]) -> None:
    """Print a table on a terminal; elsewhere lines with aligned columns."""
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        console.print("\n".join([title, *lines, ""]), highlight=False, soft_wrap=True)
        return
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if index > 0 and name != "time is" else "left")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)
