"""Writes report.html: one file that explains a run, opens from disk, and asks nothing of the network.

Samples that do not fit into it lie beside it, in report-data/. What models wrote is untrusted text. jinja2 escapes it,
JSON carries it into the page (`tpo_lite.people.embedding`), the page's script shows it as text nodes, and the content
security policy runs no script but that one.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from tpo_lite.errors import InputError
from tpo_lite.files import write_atomically
from tpo_lite.kinds import Arm, HeldOut
from tpo_lite.loop.results import collect
from tpo_lite.loop.results_schema import ArmResults
from tpo_lite.people import browser, charts, curves, tables
from tpo_lite.people.categories import by_category
from tpo_lite.people.checks import checks
from tpo_lite.people.costs import Costs, costs
from tpo_lite.people.course import Course, Tally, read_log
from tpo_lite.people.embedding import Pages, in_page, paginate, to_json
from tpo_lite.people.headline import headline
from tpo_lite.people.held_out import HeldOutPrompt, held_out
from tpo_lite.people.training_prompts import training_prompts
from tpo_lite.people.words import OUTCOME_WORDS, gib, short_name, visible
from tpo_lite.phases.summaries import ShareFigures
from tpo_lite.plan.report import duration
from tpo_lite.run import RunFolder
from tpo_lite.settled import SettledRecipe
from tpo_lite.version import __version__

ASSETS = Path(__file__).parent / "assets"
FILE, FOLDER = "report.html", "report-data"
INLINE_BYTES = 3_000_000
"""Samples inside report.html; with the rest it stays below 5 MB."""
PAGE_BYTES = 1_000_000
"""Samples in one file of report-data/."""

MINUTE, HOUR = 60.0, 3600.0
TIME_STEPS = [
    1,
    5,
    10,
    20,
    *(n * MINUTE for n in (1, 2, 5, 10, 20, 30)),
    *(n * HOUR for n in (1, 2, 5, 10, 24, 48, 120)),
]
"""Seconds between the labels of a time axis."""

Entries = dict[str, browser.Entry]
"""The browser's entries of one part of the run, by instruction id."""


@dataclass
class Evidence:
    """Everything that a report shows of a run."""

    recipe: SettledRecipe
    costs: Costs
    courses: list[Course] = field(default_factory=list)
    arms: list[ShareFigures] = field(default_factory=list)
    """Win rates of the thinking arm against the direct one: of M_0, M_1, ..."""
    held_out: dict[Arm, list[HeldOutPrompt]] = field(default_factory=dict)
    """The prompts of the slice that models are reported on."""
    parts: dict[str, Entries] = field(default_factory=dict)
    """By the part's name: "test", "validation", then "iteration-<t>"."""
    problem: str | None = None
    """Why there are no figures, where they cannot be read."""

    @property
    def finished(self) -> bool:
        """Return whether every arm has all iterations."""
        return all(len(course.iterations) == self.recipe.iterations for course in self.courses)


def write_report(folder: RunFolder) -> Path:
    """Write RUN/report.html and, for what does not fit into it, RUN/report-data/; return the path of the first.

    A run that is going on, or that stopped, has a report of what is finished. Raises `InputError` if `folder` is not a
    run or one of its JSONL files is damaged.
    """
    evidence = gather(folder)
    entries = [(part, entry) for part, found in evidence.parts.items() for entry in found.values()]
    pages = paginate([to_json(entry) for _, entry in entries], INLINE_BYTES, PAGE_BYTES)
    index = [browser.index_line(entry, page) for (_, entry), page in zip(entries, pages.page_of, strict=True)]
    html = render(folder, evidence, index, pages)
    data = folder.root / FOLDER
    shutil.rmtree(data, ignore_errors=True)
    for name, script in pages.scripts():
        write_atomically(data / name, script)
    write_atomically(folder.root / FILE, html)
    return folder.root / FILE


def gather(folder: RunFolder) -> Evidence:
    """Read what a report shows. Figures that an earlier version wrote and this one cannot read are left out."""
    recipe = folder.load_started()
    evidence = Evidence(recipe, costs(folder, recipe))
    arms: dict[Arm, ArmResults] = {arm: ArmResults(base=None, iterations=[]) for arm in recipe.arms}
    try:
        results = collect(folder)
        arms, evidence.arms = results.arms, results.thinking_vs_direct
    except InputError as error:
        evidence.problem = f"There are no figures, because a file of the run cannot be read: {error}"
    for arm, found in arms.items():
        tallies = _read_prompts(folder, evidence, arm)
        count = len(found.iterations)
        logs = [read_log(folder, arm, iteration) for iteration in range(count)]
        course = Course(arm, found.base, found.base_test, found.warm_start, found.iterations, tallies[:count], logs)
        evidence.courses.append(course)
    evidence.parts = {part: entries for part, entries in evidence.parts.items() if entries}
    return evidence


def _read_prompts(folder: RunFolder, evidence: Evidence, arm: Arm) -> list[Tally]:
    """Add an arm's prompts to the evidence, and return what is counted over those of each iteration."""
    recipe, tallies = evidence.recipe, []
    slices: tuple[HeldOut, ...] = ("test", "validation") if recipe.instructions.test else ("validation",)
    for part in slices:
        entries, prompts = evidence.parts.setdefault(part, {}), list(held_out(folder, arm, part))
        evidence.held_out.setdefault(arm, prompts)  # the first slice is the one that models are reported on
        for found in prompts:
            browser.add_arm(entries, found.instruction, part, arm, browser.held_out_entry(found))
    for iteration in range(recipe.iterations):
        entries = evidence.parts.setdefault(f"iteration-{iteration}", {})
        tallies.append(Tally())
        for prompt in training_prompts(folder, arm, iteration):
            tallies[-1].add(prompt)
            data = browser.training_entry(prompt, recipe)
            browser.add_arm(entries, prompt.prompt.instruction, f"iteration-{iteration}", arm, data)
    return tallies


def render(folder: RunFolder, evidence: Evidence, index: list[browser.Entry], pages: Pages) -> str:
    """Return the HTML."""
    css, js = ((ASSETS / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,  # all but markup of our own
    )
    recipe, courses, spent = evidence.recipe, evidence.courses, evidence.costs
    by_arm = {course.arm: by_category(evidence.held_out[course.arm]) for course in courses if course.iterations}
    return templates.get_template("report.html.j2").render(
        policy=_policy(css, js, bool(pages.files)),
        title=f"{folder.root.resolve().name}: {short_name(recipe.model)} with Thought Preference Optimization",
        css=Markup(css),
        js=Markup(js),
        facts=_facts(folder, evidence),
        headline=headline(courses, recipe, evidence.arms, evidence.finished),
        problem=evidence.problem,
        checks={course.arm: found for course in courses if (found := checks(course, recipe))},
        looks=_looks(courses),
        groups=[_drawn(group) for group in curves.groups(courses, recipe)],
        models=tables.models(courses),
        categories={arm: tables.categories(found) for arm, found in by_arm.items() if found},
        costs=spent,
        cost_table=tables.costs(spent),
        cost_charts=_cost_charts(spent),
        costs_lead=_costs_lead(spent),
        has_prompts=bool(index),
        data=_data(evidence, index, pages),
        recipe=yaml.safe_dump(_without_folders(recipe.model_dump()), sort_keys=False, allow_unicode=True),
        version=__version__,
    )


def _policy(css: str, js: str, files: bool) -> str:
    """Return the content security policy: this style sheet, this script, and the files beside the report.

    "'self' file:" are the folder that the report is in, served or on a disk; Firefox needs the second for a disk.
    """
    beside = " 'self' file:" if files else ""
    style, script = (
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in (css, js)
    )
    return (
        f"default-src 'none'; style-src {style}; script-src {script}{beside}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _facts(folder: RunFolder, evidence: Evidence) -> str:
    recipe, day = evidence.recipe, folder.load_day()
    prompts = f"{recipe.iterations} \N{MULTIPLICATION SIGN} {recipe.instructions.per_iteration} prompts"
    facts = [
        day.isoformat() if day else None,
        f"{prompts} from {short_name(recipe.instructions.source)}, {recipe.sampling.k} samples each",
        f"thought style {recipe.thought.style}",
        f"judge {short_name(recipe.judge.model)} ({recipe.judge.mode})",
        f"seed {recipe.seed}",
        f"{evidence.costs.where}, {duration(evidence.costs.seconds)}" if evidence.costs.phases else None,
    ]
    return " \N{MIDDLE DOT} ".join(fact for fact in facts if fact)


def _costs_lead(spent: Costs) -> str:
    peak = max((phase.peak for phase in spent.phases), default=0)
    said = f"{duration(spent.seconds)} in all, over all iterations and arms. The highest peak is {gib(peak)}"
    return f"{said} on {spent.line}."


def _cost_charts(spent: Costs) -> list[tuple[str, str, Markup]]:
    """Return title, note and drawing of the charts of time and memory; none before a phase has run."""
    if not spent.phases:
        return []
    labels = [phase.phase for phase in spent.phases]
    peak = max(phase.peak for phase in spent.phases)
    near = spent.memory is not None and spent.memory < 4 * peak
    planned = any(phase.planned_peak is not None for phase in spent.phases)
    mark = " The upright mark is the plan's figure." if planned else ""
    card = f" The dashed line is what the card has: {spent.line}." if near else ""
    times = charts.Bars(
        "times",
        labels,
        [phase.seconds for phase in spent.phases],
        [phase.planned_seconds for phase in spent.phases],
        None,
        lambda seconds: duration(seconds) if seconds else "0",
        TIME_STEPS,
        "Time of each phase, as in the table below",
    )
    peaks = charts.Bars(
        "peaks",
        labels,
        [phase.peak / 2**30 for phase in spent.phases],
        [phase.planned_peak / 2**30 if phase.planned_peak is not None else None for phase in spent.phases],
        spent.memory / 2**30 if near and spent.memory else None,
        lambda size: f"{size:.3g} GiB" if size else "0",
        [step * 10**power for power in range(-2, 3) for step in (1, 2, 5)],
        "Peak memory of each phase, as in the table below",
    )
    return [
        ("Time", f"Wall time of each phase, over all iterations and arms.{mark}", charts.draw_bars(times)),
        ("Memory", f"Highest peak of each phase.{mark}{card}", charts.draw_bars(peaks)),
    ]


def _looks(courses: Sequence[Course]) -> list[tuple[curves.Look, str]]:
    names: dict[curves.Look, str] = {"thinking": "thinking", "direct": "direct baseline, without thoughts"}
    looks: list[tuple[curves.Look, str]] = [(course.arm, names[course.arm]) for course in courses if course.iterations]
    return [*looks, ("paper", "shape in the paper")]


def _drawn(group: curves.Group) -> dict[str, Any]:
    """Return a group for the template, with its charts as SVG."""
    return {
        "title": group.title,
        "charts": [
            {
                "title": curve.title,
                "note": curve.note,
                "svg": charts.draw(curve),
                "latest": charts.latest(curve),
                "shades": charts.shades(curve),
            }
            for curve in group.curves
        ],
    }


def _data(evidence: Evidence, index: list[browser.Entry], pages: Pages) -> Markup:
    """Return what the page's script reads: labels, the list of prompts, and the pages that are inline."""
    names = {part: _part_name(part) for part in evidence.parts}
    head = {
        "arms": evidence.recipe.arms,
        "parts": list(names.items()),
        "outcomes": OUTCOME_WORDS,
        "index": index,
        "folder": FOLDER,
        "files": len(pages.files),
    }
    return Markup(f'{in_page(head)[:-1]},"pages":[{",".join(pages.inline)}]}}')


def _part_name(part: str) -> str:
    name, _, number = part.partition("-")
    if name == "iteration":
        return f"training, iteration {int(number) + 1}"
    return {"test": "held-out: test", "validation": "held-out: validation"}[part]


def _without_folders(value: Any) -> Any:
    """Return a recipe's values without the folders of local paths, which are nobody else's business."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    return short_name(value) if isinstance(value, str) and value.startswith(("/", "~", "./", "../")) else value
