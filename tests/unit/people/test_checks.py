"""The checks of a course: each is amber where its figures are bad, and green in a run as it should be."""

import dataclasses

import pytest

from tests.helpers.written_run import written_run
from tpo_lite.people.checks import checks
from tpo_lite.people.course import Course
from tpo_lite.people.report import gather
from tpo_lite.phases.judges_summaries import CrosscheckSummary, Parting
from tpo_lite.run import KEPT


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    return gather(written_run(tmp_path_factory.mktemp("written") / "run"))


def changed(course: Course, part: str, **values) -> Course:
    """The course with other values in one part of its last iteration; "" is the iteration itself."""
    last = course.iterations[-1]
    new = dataclasses.replace(getattr(last, part), **values) if part else values
    last = dataclasses.replace(last, **({part: new} if part else new))
    return dataclasses.replace(course, iterations=[*course.iterations[:-1], last])


def amber(course: Course, recipe) -> set[str]:
    return {check.title for check in checks(course, recipe) if not check.good}


CASES = [
    ("dpo", {"last_loss": 0.7}, "The loss leaves 0.693 and falls"),
    ("dpo", {"first_loss": 0.9}, "The loss leaves 0.693 and falls"),
    ("dpo", {"last_margin": -0.1}, "The margin grows"),
    ("dpo", {"last_accuracy": 0.4}, "The margin grows"),
    ("validation", {"chosen": KEPT}, "The judge prefers a checkpoint to the model before"),
    ("validation", {"response_tokens": 9.0}, "Responses do not grow"),
    ("pairs", {"chosen_tokens": 9.0, "rejected_tokens": 3.0}, "Chosen responses are not longer than rejected ones"),
    ("judge", {"first_slot_rate": 0.9}, "The judge does not favor a place"),
    ("", {"thought_tokens": 30.0, "parse": {"ok": 9, "empty_thought": 1}}, "Thoughts are not empty"),
    (
        "",
        {"parse": {"ok": 1, "truncated": 1, "no_thought_marker": 0}},
        "Outputs can be split into thought and response",
    ),
    ("pairs", {"pairs": 1}, "Most prompts give a pair"),
    ("merge", {"kl": 0.5}, "The merge keeps the update"),
]


@pytest.mark.parametrize(("part", "values", "title"), CASES)
def test_a_bad_figure_turns_its_check_amber(evidence, part, values, title):
    course = evidence.courses[0]
    good = changed(course, "", thought_tokens=30.0, parse={"ok": 12, "empty_thought": 0})
    good = changed(good, "pairs", chosen_tokens=3.0, rejected_tokens=3.0)
    good = changed(good, "judge", first_slot_rate=0.55)
    good = dataclasses.replace(good, iterations=[good.iterations[-1]] * 2)
    assert title not in amber(good, evidence.recipe)
    assert title in amber(changed(good, part, **values), evidence.recipe)


def test_without_known_answers_the_judge_is_asked_whether_it_agrees_with_itself(evidence):
    course = dataclasses.replace(evidence.courses[0], tallies=[])
    titles = {check.title: check for check in checks(course, evidence.recipe)}
    assert "The judge is better than a coin" not in titles
    assert "%" in titles["The judge agrees with itself"].figure


def test_a_second_judge_that_parts_from_the_first_turns_a_check_amber(evidence):
    title, course = "The second judge agrees with the training judge", evidence.courses[0]
    assert title not in {check.title for check in checks(course, evidence.recipe)}
    rate = course.iterations[-1].validation.win_rate
    parting = Parting(model="M_2", against="M_0", training=0.8, second=0.4)
    for partings, expected in (([], set()), ([parting], {title})):
        found = CrosscheckSummary(would_choose="M_t", checkpoints={}, win_rate=rate, partings=partings)
        assert amber(changed(course, "", crosscheck=found), evidence.recipe) & {title} == expected


def test_there_is_nothing_to_check_before_an_iteration_is_finished(evidence):
    assert checks(dataclasses.replace(evidence.courses[0], iterations=[]), evidence.recipe) == []
