"""What a run found, in one sentence and a few key figures, and what a reader has to know before believing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tpo_lite.intervals import percent
from tpo_lite.people.course import Course
from tpo_lite.people.words import short_name
from tpo_lite.run import KEPT
from tpo_lite.settled import SettledRecipe

SMALL_SLICE = 200
"""Held-out prompts below which a 95 % interval of a win rate is wider than about 14 points."""


@dataclass(frozen=True)
class KeyFigure:
    """A figure at the top of a report."""

    label: str
    value: str
    detail: str
    """Its interval, or what it is compared with."""


@dataclass(frozen=True)
class Headline:
    """The top of a report."""

    sentence: str
    """The result in one sentence."""
    figures: list[KeyFigure]
    caveats: list[str]
    """One sentence or two each."""


def headline(courses: Sequence[Course], recipe: SettledRecipe, finished: bool) -> Headline:
    """Return what the report says first."""
    main = courses[0]
    if not main.iterations:
        sentence = "No iteration is finished yet, so there is no result."
        return Headline(sentence, [], [] if finished else [_unfinished(courses, recipe)])
    figures = [figure for course in courses for figure in _figures(course, len(courses) > 1)]
    return Headline(_sentence(courses, recipe), figures, list(_caveats(courses, recipe, finished)))


def _sentence(courses: Sequence[Course], recipe: SettledRecipe) -> str:
    main = courses[0]
    last = main.iterations[-1]
    rate, count = last.validation.win_rate["M_0"], len(main.iterations)
    name = "thinking" if main.arm == "thinking" else "trained"
    after = f"After {count} iteration{'s' if count > 1 else ''}"
    if rate.value is None:
        return f"{after} there is no held-out comparison to judge the {name} model by."
    against = f"against the one it started from, the {name} model wins {percent(rate.value)} of comparisons"
    against += f" on {last.validation.prompts} held-out prompts."
    if rate.low > 0.5:
        said = f"{after} the model is better by its judge: {against}"
    elif rate.high < 0.5:
        said = f"{after} the model is worse by its judge: {against}"
    else:
        said = f"{after} there is no clear gain: {against}"
    base = main.base.accuracy if main.base else None
    if base is not None and last.accuracy is not None:
        said += f" It answers {percent(last.accuracy)} right, and answered {percent(base)} right before."
    return said


def _figures(course: Course, several: bool) -> Iterator[KeyFigure]:
    if not course.iterations:
        return
    last, of = course.iterations[-1], f", {course.arm}" if several else ""
    rate = last.validation.win_rate["M_0"]
    interval = f"95 % interval {100 * rate.low:.1f} to {100 * rate.high:.1f} %"
    yield KeyFigure(f"Win rate against M\N{SUBSCRIPT ZERO}{of}", percent(rate.value), interval)
    base = course.base
    if base is not None and base.accuracy is not None and last.accuracy is not None:
        yield KeyFigure(f"Accuracy{of}", percent(last.accuracy), f"before: {percent(base.accuracy)}")
    if course.arm == "thinking" and base is not None and base.thought_tokens is not None:
        tokens = last.validation.thought_tokens
        value = "-" if tokens is None else f"{tokens:.0f} tokens"
        yield KeyFigure("Thought length", value, f"before: {base.thought_tokens:.0f}")


def _caveats(courses: Sequence[Course], recipe: SettledRecipe, finished: bool) -> Iterator[str]:
    if not finished:
        yield _unfinished(courses, recipe)
    judge = short_name(recipe.judge.model)
    yield (
        f"The win rates are those of the judge that trained the model ({judge}, {recipe.judge.mode}), on the prompts "
        "that also chose its checkpoints. Both make them look better than they are. Another judge and other prompts "
        "may say something else."
    )
    prompts = courses[0].iterations[-1].validation.prompts
    if prompts < SMALL_SLICE:
        yield f"{prompts} held-out prompts leave wide intervals. More of them (instructions.validation) narrow them."
    if recipe.model == "embedded":
        yield "This is the demo: a small model in a small world of puzzles. It shows the loop at work, and no more."
    for course in courses:
        kept = [str(t + 1) for t, data in enumerate(course.iterations) if data.validation.chosen == KEPT]
        if kept:
            numbers, name = ", ".join(kept), course.arm.capitalize()
            yield f"{name}: in iteration {numbers} the judge preferred no checkpoint to the model before."
    if len(courses) == 1 and courses[0].arm == "thinking":
        yield "There is no direct baseline (baseline: true), so how much of the gain thinking makes is not known."


def _unfinished(courses: Sequence[Course], recipe: SettledRecipe) -> str:
    done = min(len(course.iterations) for course in courses)
    return f"The run is not finished: {done} of {recipe.iterations} iterations are complete in every arm."
