"""What a run found, in one sentence and a few key figures, and what a reader has to know before believing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tpo_lite.intervals import percent
from tpo_lite.people.course import Course
from tpo_lite.people.words import NONE, model_name, short_name
from tpo_lite.phases.summaries import ShareFigures
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


def headline(
    courses: Sequence[Course], recipe: SettledRecipe, arms: Sequence[ShareFigures], finished: bool
) -> Headline:
    """Return what the report says first. `arms` are the win rates of the thinking arm against the direct one."""
    if not courses[0].iterations or not courses[0].models():
        sentence = "No iteration is finished yet, so there is no result."
        return Headline(sentence, [], [] if finished else [_unfinished(courses, recipe)])
    figures = [figure for course in courses for figure in _figures(course, len(courses) > 1)]
    if len(arms) > 1 and arms[-1].value is not None:
        detail = f"95 % interval {100 * arms[-1].low:.1f} to {100 * arms[-1].high:.1f} %"
        figures.append(KeyFigure("Thinking against direct", percent(arms[-1].value), detail))
    return Headline(_sentence(courses), figures, list(_caveats(courses, recipe, finished)))


def _sentence(courses: Sequence[Course]) -> str:
    main = courses[0]
    models, count = main.models(), len(main.iterations)
    last, rate = models[-1], models[-1].win_rate
    name = "thinking" if main.arm == "thinking" else "trained"
    after = f"After {count} iteration{'s' if count > 1 else ''}"
    if rate.value is None:
        return f"{after} there is no held-out comparison to judge the {name} model by."
    against = f"against the one it started from, the {name} model wins {percent(rate.value)} of comparisons"
    against += f" on {last.prompts} held-out prompts."
    if rate.low > 0.5:
        said = f"{after} the model is better by its judge: {against}"
    elif rate.high < 0.5:
        said = f"{after} the model is worse by its judge: {against}"
    else:
        said = f"{after} there is no clear gain: {against}"
    base = models[0].accuracy
    if base is not None and last.accuracy is not None:
        said += f" It answers {percent(last.accuracy)} right, and answered {percent(base)} right before."
    return said


def _figures(course: Course, several: bool) -> Iterator[KeyFigure]:
    if not course.iterations:
        return
    base, *_, last = course.models()
    rate, of = last.win_rate, f", {course.arm}" if several else ""
    interval = f"95 % interval {100 * rate.low:.1f} to {100 * rate.high:.1f} %"
    yield KeyFigure(f"Win rate against {model_name(0)}{of}", percent(rate.value), interval)
    test = course.iterations[-1].test
    before = test.win_rate_base if test is not None else None
    if before is not None and before.value is not None:
        interval = f"95 % interval {100 * before.low:.1f} to {100 * before.high:.1f} %"
        yield KeyFigure(f"Against the base before the warm start{of}", percent(before.value), interval)
    if base.accuracy is not None and last.accuracy is not None:
        yield KeyFigure(f"Accuracy{of}", percent(last.accuracy), f"before: {percent(base.accuracy)}")
    if course.arm == "thinking" and base.thought_tokens is not None:
        value = NONE if last.thought_tokens is None else f"{last.thought_tokens:.0f} tokens"
        yield KeyFigure("Thought length", value, f"before: {base.thought_tokens:.0f}")


def _caveats(courses: Sequence[Course], recipe: SettledRecipe, finished: bool) -> Iterator[str]:
    if not finished:
        yield _unfinished(courses, recipe)
    judge = short_name(recipe.judge.model)
    if recipe.select.judge is None:
        yield (
            f"The win rates are those of the judge that trained the model ({judge}, {recipe.judge.mode}), and training "
            "may have found its weaknesses. Another judge may say something else."
        )
    else:
        second = short_name(recipe.select.judge.model)
        yield f"{judge} judged for training. {second}, which the model was not trained to please, gives the win rates."
    if not courses[0].tested:
        yield "They are on the prompts that also chose the checkpoints, which makes them look better than they are."
    prompts, key = courses[0].models()[-1].prompts, "test" if courses[0].tested else "validation"
    if prompts < SMALL_SLICE:
        yield f"{prompts} held-out prompts leave wide intervals. More of them (instructions.{key}) narrow them."
    if any(course.warm_start is not None and course.warm_start.samples.needed for course in courses):
        yield f"{model_name(0)} is not the base itself: a warm start taught it to follow the thought prompt."
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
