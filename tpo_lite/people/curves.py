"""Which curves a report shows, as plain data. `tpo_lite.people.charts` draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean, quantiles
from typing import Literal

from tpo_lite.loop.results_schema import IterationResults
from tpo_lite.people.course import Course
from tpo_lite.people.words import OUTCOME_WORDS, model_name
from tpo_lite.settled import SettledRecipe

Look = Literal["thinking", "direct", "paper"]
"""How a line looks: that of an arm, or of what the paper reports."""

Unit = Literal["percent", "number"]
"""How an axis is labelled: shares as percentages, or plain numbers."""

THOUGHTS_AFTER_4 = {"generic": 0.39, "think": 0.39, "specific": 0.70}
"""The paper's thoughts after four iterations as a share of those before: 61 % and 30 % shorter. `think` has the generic
wording. The paper gives both ends; the line between them is straight."""


@dataclass(frozen=True)
class Line:
    """A line through one point per model, iteration or step."""

    look: Look
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    """Lower ends of intervals or of a band."""
    high: list[float] | None = None
    """Upper ends."""


@dataclass(frozen=True)
class Stack:
    """A stacked bar."""

    look: Look
    x: float
    parts: dict[str, float]
    """Heights by name; equal names have the same shade."""


@dataclass(frozen=True)
class Curve:
    """One chart."""

    name: str
    """A name for ids, such as "win-rate"."""
    title: str
    note: str
    """What it shows, in a sentence or two."""
    unit: Unit
    lines: list[Line] = field(default_factory=list)
    stacks: list[Stack] = field(default_factory=list)
    baseline: float | None = None
    """A thin line to compare with, such as 50 %."""
    ticks: list[tuple[float, str]] | None = None
    """Labels of the x axis; None: numbers."""
    dividers: list[float] = field(default_factory=list)
    """Where thin vertical lines part the iterations."""
    markers: bool = True
    """Whether each point has a dot."""
    least: tuple[float, float] | None = None
    """What the y axis shows at least, so that small differences look small."""


@dataclass(frozen=True)
class Group:
    """Curves that belong together."""

    title: str
    curves: list[Curve]


def groups(courses: Sequence[Course], recipe: SettledRecipe) -> list[Group]:
    """Return the curves for which there are figures, group by group; none before an iteration is finished."""
    if not any(course.iterations for course in courses):
        return []
    found = [
        Group("Result", [*_results(courses), *_lengths(courses, recipe)]),
        Group("Samples, judge and pairs", list(_data(courses))),
        Group("Training", list(_training(courses, recipe))),
    ]
    drawn = [Group(group.title, [curve for curve in group.curves if curve.lines or curve.stacks]) for group in found]
    return [group for group in drawn if group.curves]


def _models(courses: Sequence[Course]) -> list[tuple[float, str]]:
    count = max(len(course.iterations) for course in courses)
    return [(float(model), model_name(model)) for model in range(count + 1)]


def _iterations(courses: Sequence[Course]) -> list[tuple[float, str]]:
    return [(float(t + 1), str(t + 1)) for t in range(max(len(course.iterations) for course in courses))]


def _line(course: Course, points: Sequence[tuple[float, float | None]]) -> list[Line]:
    """Return the line through those points that have a value; no line without any."""
    known = [(x, y) for x, y in points if y is not None]
    return [Line(course.arm, [x for x, _ in known], [y for _, y in known])] if known else []


def _results(courses: Sequence[Course]) -> Iterator[Curve]:
    lines = []
    for course in courses:
        rates = [(float(found.model), found.win_rate, found.win_rate.value) for found in course.models()[1:]]
        known = [(x, rate, value) for x, rate, value in rates if value is not None]
        if known:
            x, y = [0.0, *(x for x, _, _ in known)], [0.5, *(value for _, _, value in known)]
            low, high = [0.5, *(rate.low for _, rate, _ in known)], [0.5, *(rate.high for _, rate, _ in known)]
            lines.append(Line(course.arm, x, y, low, high))
    note = (
        "How often the judge prefers the model's answer to M\N{SUBSCRIPT ZERO}'s on held-out prompts, a tie counting "
    )
    note += "half. Bars are 95 % intervals."
    yield Curve("win-rate", "Win rate", note, "percent", lines, baseline=0.5, ticks=_models(courses), least=(0.4, 0.6))
    lines = []
    for course in courses:
        lines += _line(course, [(float(found.model), found.accuracy) for found in course.models()])
    note = "Share of held-out prompts with a known answer that are answered right."
    yield Curve("accuracy", "Accuracy", note, "percent", lines, ticks=_models(courses), least=(0.0, 0.1))


def _lengths(courses: Sequence[Course], recipe: SettledRecipe) -> Iterator[Curve]:
    thoughts = [line for course in courses if course.arm == "thinking" for line in _held_out(course, "thought_tokens")]
    note = "Mean tokens of a well-formed thought on held-out prompts."
    after = THOUGHTS_AFTER_4.get(recipe.thought.style)
    if thoughts and after is not None:
        x = thoughts[0].x
        shape = [thoughts[0].y[0] * (1 + (after - 1) * min(at, 4) / 4) for at in x]
        thoughts.append(Line("paper", x, shape))
        note += f" Dashed: the paper's shape, {100 * (1 - after):.0f} % shorter after four iterations."
    yield Curve("thoughts", "Thought length", note, "number", thoughts, ticks=_models(courses), least=(0.0, 1.0))
    responses = [line for course in courses for line in _held_out(course, "response_tokens")]
    note = "Mean tokens of a well-formed response on held-out prompts."
    if responses:
        longest = max(responses, key=lambda line: len(line.x))
        responses.append(Line("paper", longest.x, [longest.y[0]] * len(longest.x)))
        note += " Dashed: the paper's shape with length control, no growth."
    yield Curve("responses", "Response length", note, "number", responses, ticks=_models(courses), least=(0.0, 1.0))


def _held_out(course: Course, name: Literal["thought_tokens", "response_tokens"]) -> list[Line]:
    return _line(course, [(float(found.model), getattr(found, name)) for found in course.models()])


def _data(courses: Sequence[Course]) -> Iterator[Curve]:
    ticks = _iterations(courses)
    stacks = []
    for course in courses:
        for t, data in enumerate(course.iterations):
            total = max(1, sum(data.parse.values()))
            unusual = {OUTCOME_WORDS[kind]: n / total for kind, n in data.parse.items() if kind != "ok" and n}
            stacks.append(Stack(course.arm, t + 1.0, unusual))
    note = (
        "Share of samples that are not plain thought and response, by what is unusual. Without a response marker or a "
    )
    note += "response, or cut off, they are malformed; the others are used."
    yield Curve("parse", "Unusual outputs", note, "percent", stacks=stacks, ticks=ticks, least=(0.0, 0.05))
    spreads = []
    for course in courses:
        known = [(t + 1.0, tally.spreads) for t, tally in enumerate(course.tallies) if tally.spreads]
        if known:
            ends = [quantiles(values, n=4) if len(values) > 1 else values * 3 for _, values in known]
            x, y = [x for x, _ in known], [fmean(values) for _, values in known]
            spreads.append(Line(course.arm, x, y, [low for low, _, _ in ends], [high for _, _, high in ends]))
    note = (
        "Between the best and the worst response of a prompt, in Elo points or on a pointwise judge's own scale: the "
    )
    note += "mean, and the middle half of prompts."
    yield Curve("spread", "Rating spread", note, "number", spreads, ticks=ticks, least=(0.0, 1.0))
    note = "Tokens by which chosen responses are longer than rejected ones. Below the line they are shorter."
    lines = _per_iteration(courses, _longer)
    yield Curve("lengths", "Chosen minus rejected", note, "number", lines, baseline=0.0, ticks=ticks, least=(-1.0, 1.0))
    note = "Share of pairs, asked in both orders, whose winner changes with the order. A coin flips half."
    lines = _per_iteration(courses, lambda data: data.judge.flip_rate)
    yield Curve("flips", "Judge's flip rate", note, "percent", lines, ticks=ticks, least=(0.0, 0.5))


def _longer(data: IterationResults) -> float | None:
    chosen, rejected = data.pairs.chosen_tokens, data.pairs.rejected_tokens
    return None if chosen is None or rejected is None else chosen - rejected


def _per_iteration(courses: Sequence[Course], figure: Callable[[IterationResults], float | None]) -> list[Line]:
    lines = []
    for course in courses:
        lines += _line(course, [(t + 1.0, figure(data)) for t, data in enumerate(course.iterations)])
    return lines


def _training(courses: Sequence[Course], recipe: SettledRecipe) -> Iterator[Curve]:
    longest = max(courses, key=lambda course: sum(len(log.losses) for log in course.logs))
    dividers, steps = [], 0
    for log in longest.logs[:-1]:
        steps += len(log.losses)
        dividers.append(steps + 0.5)
    loss, margin = ([line for course in courses for line in _steps(course, name)] for name in ("losses", "margins"))
    ln2 = math.log(2) if recipe.train.loss == "dpo" else None
    note = "Training loss by optimizer step. Vertical lines part the iterations."
    note += " The thin line is ln 2, where DPO starts." if ln2 else ""
    yield Curve("loss", "Loss", note, "number", loss, baseline=ln2, dividers=dividers, markers=False)
    note = "Mean margin of the implicit rewards, chosen minus rejected, by optimizer step. It starts at 0."
    yield Curve("margin", "Margin", note, "number", margin, baseline=0.0, dividers=dividers, markers=False)
    ticks = _iterations(courses)
    note = "Size of an iteration's update beside the weights (Frobenius norms)."
    lines = _per_iteration(courses, lambda data: data.merge.update_norm)
    yield Curve("norm", "Update norm", note, "percent", lines, ticks=ticks, least=(0.0, 0.0))
    note = "What merging costs: KL divergence of the model that goes on from the chosen checkpoint, in nats per token."
    lines = _per_iteration(courses, lambda data: data.merge.kl)
    yield Curve("kl", "KL of the merge", note, "number", lines, ticks=ticks, least=(0.0, 1e-6))


def _steps(course: Course, name: Literal["losses", "margins"]) -> list[Line]:
    values = [value for log in course.logs for value in getattr(log, name)]
    return [Line(course.arm, [float(step) for step in range(1, len(values) + 1)], values)] if values else []
