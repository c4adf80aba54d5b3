"""The data of the report's thought browser: one entry for every prompt of a run, and a line about it for the list."""

from __future__ import annotations

from typing import Any

from tpo_lite.kinds import Arm
from tpo_lite.people.embedding import clipped
from tpo_lite.people.held_out import HeldOutPrompt
from tpo_lite.people.training_prompts import TrainingPrompt, why
from tpo_lite.records import Comparison, Instruction, Sample
from tpo_lite.settled import SettledRecipe

TITLE = 140
"""Characters of an instruction in the list of prompts."""

Entry = dict[str, Any]
"""What the browser shows of one prompt; report.js reads these keys."""


def instruction_entry(instruction: Instruction, part: str) -> Entry:
    """Return an entry without arms. `part` is "test", "validation" or "iteration-<t>"."""
    return {
        "id": instruction.id,
        "part": part,
        "text": clipped(instruction.text),
        "category": instruction.category,
        "source": instruction.source,
        "answer": instruction.answer,
        "context": [[turn.get("role", ""), clipped(turn.get("content", ""))] for turn in instruction.context or []],
        "arms": {},
    }


def training_entry(found: TrainingPrompt, recipe: SettledRecipe) -> Entry:
    """Return what one arm did with a training prompt."""
    scores, pair = found.scores, found.pair
    rated: dict[int, tuple[float, float]] = {}
    if scores is not None:
        ratings = scores.elo or scores.ratings
        rated = {k: (ratings[at], scores.controlled[at]) for at, k in enumerate(scores.ks)}
    return {
        "samples": [
            _output(sample, found.right(sample))
            | {"k": sample.k, "rating": _rounded(rated, sample.k, 0), "score": _rounded(rated, sample.k, 1)}
            for sample in found.prompt.samples
        ],
        "comparisons": [_comparison(comparison) for comparison in found.comparisons],
        "pair": [pair.kind, pair.chosen_k, pair.rejected_k] if pair else None,
        "elo": scores is not None and scores.elo is not None,
        "why": why(found, recipe),
        "marks": _training_marks(found),
    }


def held_out_entry(found: HeldOutPrompt) -> Entry:
    """Return what the models of one arm answered to a held-out prompt."""
    return {
        "answers": [
            _output(answer.sample, answer.right)
            | {
                "model": answer.model,
                "kept": answer.kept,
                "attempts": answer.attempts,
                "wins": {
                    number: None if match.overlong else round(match.win, 4) for number, match in answer.wins.items()
                },
            }
            for answer in found.answers
        ],
        "marks": _held_out_marks(found),
    }


def index_line(entry: Entry, page: int) -> Entry:
    """Return what the list of prompts and its filters need of an entry."""
    text = " ".join(entry["text"].split())
    title = text if len(text) <= TITLE else f"{text[: TITLE - 1]}\N{HORIZONTAL ELLIPSIS}"
    marks = {arm: data["marks"] for arm, data in entry["arms"].items()}
    return {key: entry[key] for key in ("id", "part", "category")} | {"title": title, "page": page, "marks": marks}


def add_arm(entries: dict[str, Entry], instruction: Instruction, part: str, arm: Arm, data: Entry) -> None:
    """Add to `entries`, by instruction id, what an arm did with an instruction."""
    entry = entries.setdefault(instruction.id, instruction_entry(instruction, part))
    entry["arms"][arm] = data


def _output(sample: Sample, right: bool | None) -> Entry:
    """Return an output: its parts, or the whole text of a malformed one."""
    parts = {"thought": clipped(sample.thought), "response": clipped(sample.response)}
    return (
        {"outcome": sample.outcome, "right": right}
        | (parts if sample.well_formed else {"text": clipped(sample.text)})
        | {"tokens": [sample.thought_tokens, sample.response_tokens, len(sample.token_ids)]}
    )


def _comparison(comparison: Comparison) -> list[Any]:
    said = [comparison.first, comparison.second, round(comparison.p_first, 4), comparison.verdict]
    return [*said, clipped(comparison.explanation)] if comparison.explanation else said


def _rounded(rated: dict[int, tuple[float, float]], k: int, which: int) -> float | None:
    return round(rated[k][which], 3) if k in rated else None


def _training_marks(found: TrainingPrompt) -> list[str]:
    """Return what the browser can filter training prompts by."""
    marks = []
    if found.pair is not None:
        marks.append("pair")
    elif found.paired:
        marks.append("no-pair")
    if not all(sample.well_formed for sample in found.prompt.samples):
        marks.append("malformed")
    if found.flipped:
        marks.append("flipped")
    return marks


def _held_out_marks(found: HeldOutPrompt) -> list[str]:
    """Return what the browser can filter held-out prompts by: the last model against M_0."""
    marks, first, last = [], found.answers[0], found.answers[-1]
    if found.win is not None and round(found.win, 2) != 0.5:
        marks.append("won" if found.win > 0.5 else "lost")
    if first.right is not None and first.right != last.right:
        marks.append("became-right" if last.right else "became-wrong")
    if not last.sample.well_formed:
        marks.append("malformed")
    return marks
