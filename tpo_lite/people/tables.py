"""The tables of a report, as text: the models, their categories, and what the phases took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tpo_lite.intervals import percent
from tpo_lite.people.categories import Category
from tpo_lite.people.costs import Costs
from tpo_lite.people.course import Course
from tpo_lite.people.words import NONE, gib, interval, model_name
from tpo_lite.phases.summaries import well_formed_share
from tpo_lite.plan.report import duration
from tpo_lite.run import KEPT

Cell = tuple[str, str]
"""A figure and its interval, which may be empty."""
NO_CELL: Cell = (NONE, "")


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row."""

    columns: list[str]
    rows: list[tuple[str, *tuple[Cell, ...]]]


def models(courses: Sequence[Course]) -> Table | None:
    """Return one row per model and arm; None before M_0 has answered anything.

    "Beats the one before" is the figure that chose the checkpoint, on the validation slice.
    """
    several = len(courses) > 1
    rows: list[tuple[str, *tuple[Cell, ...]]] = []
    for course in courses:
        for found in course.models():
            rate, before = found.win_rate, NO_CELL
            if found.model:
                chosen = course.iterations[found.model - 1].validation
                last = chosen.win_rate["M_t"]
                before = ("kept", "") if chosen.chosen == KEPT else (percent(last.value), interval(last.low, last.high))
            cells = [
                NO_CELL if rate.value is None else (percent(rate.value), interval(rate.low, rate.high)),
                before,
                NO_CELL if found.accuracy is None else (percent(found.accuracy), ""),
                (percent(well_formed_share(found.parse)), ""),
                *((NONE if n is None else f"{n:.1f}", "") for n in (found.thought_tokens, found.response_tokens)),
            ]
            rows.append((f"{model_name(found.model)} {course.arm}" if several else model_name(found.model), *cells))
    columns = ["Model", f"Beats {model_name(0)}", "Beats the one before", "Accuracy", "Well-formed"]
    return Table([*columns, "Thought tokens", "Response tokens"], rows) if rows else None


def categories(found: Sequence[Category]) -> Table:
    """Return one row per category."""
    checked = any(category.checked for category in found)
    rows: list[tuple[str, *tuple[Cell, ...]]] = []
    for category in found:
        rate, n = category.win_rate, category.checked
        cells = [
            (str(category.prompts), ""),
            (percent(rate.value), interval(rate.low, rate.high)) if rate.n else NO_CELL,
        ]
        if checked:
            right = (category.right_before, category.right_after)
            cells += [(f"{count} of {n}", "") if n else NO_CELL for count in right]
        rows.append((category.name, *cells))
    columns = ["Category", "Prompts", f"Beats {model_name(0)}"]
    return Table([*columns, *([f"{model_name(0)} right", "Last model right"] if checked else [])], rows)


def costs(found: Costs) -> Table:
    """Return one row per phase, with the plan's figures where there is a plan, and one for the whole run."""
    planned = any(phase.planned_peak is not None for phase in found.phases)
    columns = ["Phase", "Time", *(["Planned"] if planned else [])]
    columns += [f"Peak of {'the GPU' if found.on_gpu else 'RAM'}", *(["Planned"] if planned else [])]
    columns += ["Peak of RAM"] if found.on_gpu else []
    rows: list[tuple[str, *tuple[Cell, ...]]] = []
    for phase in found.phases:
        seconds, peak = phase.planned_seconds, phase.planned_peak
        cells = [duration(phase.seconds), *([duration(seconds) if seconds is not None else NONE] if planned else [])]
        cells += [gib(phase.peak), *([gib(peak) if peak is not None else NONE] if planned else [])]
        cells += [gib(phase.host)] if found.on_gpu else []
        rows.append((phase.phase, *((cell, "") for cell in cells)))
    return Table(columns, rows)
