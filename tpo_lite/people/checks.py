"""Is my DPO working? A few checks of an arm's course, in plain words, each with its figures.

A check is green or amber, never red: none of them proves that training failed, and all of them can mislead. An amber
one says where to look first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tpo_lite.intervals import percent
from tpo_lite.loop.results_schema import IterationResults
from tpo_lite.people.course import Course
from tpo_lite.people.words import model_name, signed
from tpo_lite.phases.summaries import well_formed_share
from tpo_lite.run import KEPT
from tpo_lite.settled import SettledRecipe

GROWTH = 1.1
"""Responses may grow by this factor from M_0 on. Without length control they grow about 15 % an iteration."""
FLIPS = 0.4
"""A judge that ignores the responses and always names the same slot flips every pair; one that guesses flips half."""
FIRST_SLOT = 0.1
"""How far from one half the share of verdicts for the response shown first may be."""
WELL_FORMED = 0.9
"""Share of outputs that can be split into thought and response. The paper keeps malformed ones rare."""
EMPTY_THOUGHTS = 0.02
"""Share of samples with an empty thought."""
SHORT_THOUGHT = 5.0
"""Tokens; a thought that is shorter says nothing."""
PAIRS = 0.5
"""Share of prompts that give a pair."""
MERGE_KL = 0.01
"""Nats per token that a merge may cost."""


@dataclass(frozen=True)
class Check:
    """One question, the figures, and whether they are as they should be."""

    title: str
    """The question in a few words."""
    good: bool
    """Green or amber."""
    figure: str
    """The figures behind it, iteration by iteration."""
    meaning: str
    """What it says, and what to do if it is amber."""


def checks(course: Course, recipe: SettledRecipe) -> list[Check]:
    """Return the checks for which an arm has figures; none before its first iteration is finished."""
    if not course.iterations or not course.models():
        return []
    found = [
        _loss(course, recipe),
        _margin(course),
        _checkpoints(course),
        _result(course),
        *_lengths(course),
        _judge(course),
        _slots(course),
        _judges(course),
        *_thoughts(course),
        _format(course),
        _pairs(course),
        _merge(course),
    ]
    return [check for check in found if check is not None]


def _each(course: Course, show: Callable[[IterationResults], str]) -> str:
    return " \N{MIDDLE DOT} ".join(show(data) for data in course.iterations)


def _arrow(first: float | None, last: float | None, form: str) -> str:
    ends = ["-" if value is None else format(value, form) for value in (first, last)]
    return " \N{RIGHTWARDS ARROW} ".join(ends)


def _loss(course: Course, recipe: SettledRecipe) -> Check:
    plain = recipe.train.loss == "dpo"
    falls = all(data.dpo.last_loss < data.dpo.first_loss for data in course.iterations)
    starts = all(abs(data.dpo.first_loss - math.log(2)) < 0.01 for data in course.iterations)
    return Check(
        "The loss leaves 0.693 and falls" if plain else "The loss falls",
        falls and (starts or not plain),
        _each(course, lambda data: _arrow(data.dpo.first_loss, data.dpo.last_loss, ".3f")),
        "Before the first step a DPO loss is ln 2 = 0.693: the model is its own reference. If it stays there, raise "
        "train.learning_rate or train.epochs."
        if plain
        else "The loss of the first and the last step. If it stays, raise train.learning_rate or train.epochs.",
    )


def _margin(course: Course) -> Check:
    return Check(
        "The margin grows",
        all(data.dpo.last_margin > 0 and data.dpo.last_accuracy > 0.5 for data in course.iterations),
        _each(course, lambda data: signed(data.dpo.last_margin, "+.2f"))
        + ", right in "
        + _each(course, lambda data: percent(data.dpo.last_accuracy))
        + " of pairs",
        "How much more the trained model prefers chosen outputs to rejected ones than its reference does, and in how "
        "many pairs of the last step. It starts at 0.",
    )


def _checkpoints(course: Course) -> Check:
    kept = sum(data.validation.chosen == KEPT for data in course.iterations)
    count = len(course.iterations)
    return Check(
        "The judge prefers a checkpoint to the model before",
        kept == 0,
        f"in {count - kept} of {count} iterations",
        "Where it prefers none, the iteration changes nothing. Then more pairs or another learning rate may help.",
    )


def _result(course: Course) -> Check:
    rate = course.models()[-1].win_rate
    return Check(
        "The gain is more than chance",
        rate.low > 0.5,
        f"{percent(rate.value)} [{100 * rate.low:.1f}, {100 * rate.high:.1f}] against {model_name(0)}",
        "Half is no gain. If the interval holds 50 %, use more held-out instructions before you believe in the gain, "
        "or train longer.",
    )


def _lengths(course: Course) -> Iterator[Check]:
    known = [found.response_tokens for found in course.models() if found.response_tokens is not None]
    if len(known) > 1:
        yield Check(
            "Responses do not grow",
            known[-1] <= GROWTH * known[0],
            _arrow(known[0], known[-1], ".1f") + " tokens",
            "Judges like long responses. Where they grow, scores do not mean what they seem to; raise "
            "length_control.rho.",
        )
    sides = [(data.pairs.chosen_tokens, data.pairs.rejected_tokens) for data in course.iterations]
    both = [(chosen, rejected) for chosen, rejected in sides if chosen is not None and rejected is not None]
    if both:
        yield Check(
            "Chosen responses are not longer than rejected ones",
            all(chosen <= 1.02 * rejected for chosen, rejected in both),
            " \N{MIDDLE DOT} ".join(signed(chosen - rejected, "+.1f") for chosen, rejected in both) + " tokens",
            "Otherwise DPO teaches length.",
        )


def _judge(course: Course) -> Check | None:
    gold = course.gold
    if gold.value is not None:
        return Check(
            "The judge is better than a coin",
            gold.low > 0.5,
            f"right in {percent(gold.value)} of {gold.n:,} comparisons",
            "How often it preferred the right of two answers, where one is right and one is wrong. A coin has 50 %.",
        )
    rates = [data.judge.flip_rate for data in course.iterations if data.judge.flip_rate is not None]
    if not rates:
        return None
    return Check(
        "The judge agrees with itself",
        max(rates) < FLIPS,
        " \N{MIDDLE DOT} ".join(map(percent, rates)) + " of pairs flip",
        "How often its winner changes when the two responses change places. A coin flips 50 %. No instruction has a "
        "known answer, so nothing here says whether the judge is right: see tpo-lite judge calibrate.",
    )


def _slots(course: Course) -> Check | None:
    rates = [data.judge.first_slot_rate for data in course.iterations if data.judge.first_slot_rate is not None]
    if not rates:
        return None
    return Check(
        "The judge does not favor a place",
        all(abs(rate - 0.5) <= FIRST_SLOT for rate in rates),
        " \N{MIDDLE DOT} ".join(map(percent, rates)) + " for the first",
        "Share of verdicts for the response that is shown first. Pairs are asked in both orders, so a bias cancels out "
        "on average, but it costs certainty.",
    )


def _judges(course: Course) -> Check | None:
    found = [data.crosscheck for data in course.iterations if data.crosscheck is not None]
    if not found:
        return None
    partings = [f"{parting.model} against {parting.against}" for check in found for parting in check.partings]
    return Check(
        "The second judge agrees with the training judge",
        not partings,
        f"they part at {', '.join(partings)}" if partings else "they never part",
        "If the judge that trains prefers a model and the other does not, training is finding the first one's "
        "weaknesses: stop, or take another judge.",
    )


def _thoughts(course: Course) -> Iterator[Check]:
    if course.arm != "thinking":
        return
    empty = [data.parse.get("empty_thought", 0) / max(1, sum(data.parse.values())) for data in course.iterations]
    tokens = [data.thought_tokens or 0.0 for data in course.iterations]
    yield Check(
        "Thoughts are not empty",
        max(empty) <= EMPTY_THOUGHTS and min(tokens) >= SHORT_THOUGHT,
        " \N{MIDDLE DOT} ".join(f"{count:.0f}" for count in tokens) + f" tokens, {percent(max(empty))} empty",
        "The judge never sees a thought, so a model may learn to write none. Read some below.",
    )


def _format(course: Course) -> Check:
    shares = [well_formed_share(data.parse) for data in course.iterations]
    return Check(
        "Outputs can be split into thought and response" if course.arm == "thinking" else "Outputs are well-formed",
        min(shares) >= WELL_FORMED,
        " \N{MIDDLE DOT} ".join(map(percent, shares)),
        "Share of samples that are well-formed. If many are cut off, raise sampling.max_new_tokens; if markers are "
        "missing, let more pairs reject a malformed output (pairs.malformed_share).",
    )


def _pairs(course: Course) -> Check:
    return Check(
        "Most prompts give a pair",
        all(data.pairs.pairs >= PAIRS * data.prompts for data in course.iterations),
        _each(course, lambda data: f"{data.pairs.pairs} of {data.prompts}"),
        "Prompts whose responses are all alike, or that the judge cannot tell apart, give none. A higher "
        "sampling.temperature or more samples (sampling.k) help.",
    )


def _merge(course: Course) -> Check | None:
    norms = [data.merge.update_norm for data in course.iterations if data.validation.chosen != KEPT]
    kls = [data.merge.kl for data in course.iterations]
    if not norms:
        return None
    return Check(
        "The merge keeps the update",
        max(kls) <= MERGE_KL and min(norms) > 0,
        f"KL {max(kls):.1e}, update norm " + " \N{MIDDLE DOT} ".join(f"{100 * norm:.2f} %" for norm in norms),
        "How far the model that goes on is from the checkpoint that was chosen, in nats per token, and how large the "
        "updates are beside the weights.",
    )
