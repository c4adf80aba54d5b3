"""Controls beside a head to head: what else could explain that thinking wins, in one table with tokens and judge calls.

An entrant is one way to answer every instruction of a slice. The first entrant is the one that is to be explained;
every other is compared with it on the same instructions. A prompt is the unit: both orders of the judge are one figure,
and differences are taken prompt by prompt (arXiv 2411.00640, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tpo_lite.calibration.gold_pairs import ResponsePair
from tpo_lite.calibration.judged_pair import JudgedPair
from tpo_lite.checking import is_right
from tpo_lite.evaluation.layout import aligned, between
from tpo_lite.evaluation.outputs import Outputs
from tpo_lite.evaluation.versus import first_wins, pairs_to_judge
from tpo_lite.intervals import Estimate, Share, estimate, paired_difference, percent, share
from tpo_lite.records import PromptSamples


@dataclass(frozen=True)
class Entrant:
    """One way to answer every instruction."""

    key: str
    """A short name, part of the ids of judged pairs."""
    outputs: Outputs
    """Its name and its responses by the instruction's id; empty where an output is malformed."""
    tokens: Mapping[str, int]
    """Tokens that were sampled for each answer, all attempts together."""
    calls: Mapping[str, int] | None = None
    """Questions that a judge was asked to choose each answer; None: it chose none."""


@dataclass(frozen=True)
class Row:
    """An entrant's figures, and those of the first one against it."""

    name: str
    tokens: Estimate
    """Tokens an answer."""
    calls: Estimate
    """Judge calls that an answer took."""
    accuracy: Share
    """Right answers, of the instructions whose answer is known."""
    difference: Estimate | None
    """The first entrant's right answers less this one's, prompt by prompt; None where no answer is known."""
    win_rate: Estimate | None
    """How often the first entrant's response is better; None for itself, and where no judge was asked."""
    overlong: int
    """Pairs that did not fit the judge; they are left out of the win rate."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON has them."""
        return {
            "name": self.name,
            **figures("tokens", self.tokens),
            **figures("judge_calls", self.calls),
            "accuracy": self.accuracy.value,
            "accuracy_interval": [self.accuracy.low, self.accuracy.high],
            "accuracy_n": self.accuracy.n,
            **figures("accuracy_difference", self.difference),
            **figures("win_rate", self.win_rate),
            "overlong": self.overlong,
        }


@dataclass(frozen=True)
class Control:
    """A table of entrants."""

    title: str
    rows: list[Row]
    """The first entrant, and then those that are compared with it."""
    judge: str | None
    """Who compared the responses; None: nobody."""
    judged: int
    """Questions put to that judge."""
    notes: list[str]
    """What a reader has to know."""

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON has it."""
        rows = [row.to_dict() for row in self.rows]
        return {"title": self.title, "judge": self.judge, "judged": self.judged, "rows": rows, "notes": self.notes}


def figures(name: str, found: Estimate | None) -> dict[str, Any]:
    """Return an estimate as JSON has it: the value, its 95 % interval (null for one prompt alone) and its n."""
    if found is None:
        return {name: None, f"{name}_interval": None, f"{name}_n": 0}
    interval = [found.low, found.high] if math.isfinite(found.low) else None
    return {name: found.value, f"{name}_interval": interval, f"{name}_n": found.n}


def sampled_tokens(answers: Mapping[str, PromptSamples]) -> dict[str, int]:
    """Return the tokens that were sampled for each answer: those of all its attempts."""
    return {key: sum(len(sample.token_ids) for sample in answer.samples) for key, answer in answers.items()}


def equal_tokens(thinking: Mapping[str, int], direct: Mapping[str, int]) -> int:
    """Return how many direct answers take at least as many tokens as one with a thought, on average; at least 1.

    It is rounded up, so that the direct model never has less to spend.

    >>> equal_tokens({"p": 50, "q": 60}, {"p": 20, "q": 20})
    3
    """
    return max(1, math.ceil(sum(thinking.values()) / max(1, sum(direct.values()))))


def pairs_of(entrants: Sequence[Entrant]) -> list[ResponsePair]:
    """Return the pairs that a judge has to be asked about: the first entrant's responses against those of each other.

    Where two others give the same response, it is asked about it once.
    """
    first, *others = entrants
    pairs: dict[tuple[str, str], ResponsePair] = {}
    for other in others:
        for pair in pairs_to_judge(first.outputs, other.outputs, list(first.outputs.by_id)):
            pairs.setdefault((pair.id, pair.response_2), replace(pair, id=f"{other.key}:{pair.id}"))
    return list(pairs.values())


def tabulate(
    title: str,
    entrants: Sequence[Entrant],
    judged: Sequence[JudgedPair] | None,
    judge: str | None,
    calls: int,
    notes: Sequence[str] = (),
) -> Control:
    """Return the table. `judged` are the answers about `pairs_of`, in `calls` questions; None where none were asked."""
    first, *others = entrants
    by_id = {pair.id: pair for pair in judged or ()}
    answered = {
        (pair.id.split(":", 1)[1], pair.response_2): by_id[pair.id] for pair in pairs_of(entrants) if pair.id in by_id
    }
    rows = [_row(first, first, None)]
    for other in others:
        wins = None
        if judged is not None:
            known = [
                replace(answered[key, output.response], id=key)
                for key, output in other.outputs.by_id.items()
                if (key, output.response) in answered
            ]
            wins = first_wins(first.outputs, other.outputs, list(first.outputs.by_id), known)
        rows.append(_row(first, other, wins))
    return Control(title, rows, judge, calls, list(notes))


def _row(first: Entrant, other: Entrant, wins: Mapping[str, float | None] | None) -> Row:
    checked = [key for key, output in first.outputs.by_id.items() if output.answer]
    right = [_right(other, key) for key in checked]
    difference = None
    if checked and other is not first:
        difference = paired_difference([_right(first, key) for key in checked], right)
    fit = [win for win in wins.values() if win is not None] if wins else []
    return Row(
        other.outputs.model,
        estimate([other.tokens[key] for key in first.outputs.by_id]),
        estimate([other.calls[key] if other.calls else 0 for key in first.outputs.by_id]),
        share(sum(right), len(right)),
        difference,
        estimate(fit) if fit else None,
        len(wins) - len(fit) if wins else 0,
    )


def _right(entrant: Entrant, key: str) -> bool:
    output = entrant.outputs.by_id[key]
    return is_right(output.response, output.answer or "")


def as_text(found: Control) -> str:
    """Return the table as lines for a terminal."""
    first, *others = found.rows
    rows = [["", "tokens an answer", "judge calls an answer", "right %", "n"]]
    rows += [
        [row.name, _cell(row.tokens), _cell(row.calls), _share(row.accuracy), str(row.tokens.n)] for row in found.rows
    ]
    lines = [found.title, aligned(rows), "", f"{first.name} against each, in %:"]
    rows = [["against", "wins", "n", "right less right", "n"]]
    for row in others:
        wins = [_cell(row.win_rate, 100), str(row.win_rate.n)] if row.win_rate else ["-", "-"]
        right = [_cell(row.difference, 100, "+"), str(row.difference.n)] if row.difference else ["-", "-"]
        rows.append([row.name, *wins, *right])
    lines.append(aligned(rows))
    if found.judge:
        lines.append(f"judge of these: {found.judge}, {found.judged} calls; a prompt in both orders is one unit")
    overlong = sum(row.overlong for row in others)
    if overlong:
        lines.append(f"{overlong} pairs did not fit the judge and are left out")
    return "\n".join(lines + found.notes)


def _cell(found: Estimate, factor: float = 1, sign: str = "") -> str:
    value = f"{factor * found.value:{sign}.1f}"
    return f"{value} ({between(factor * found.low, factor * found.high, 1)})" if math.isfinite(found.low) else value


def _share(found: Share) -> str:
    if found.value is None:
        return "-"
    return f"{percent(found.value).removesuffix(' %')} ({between(100 * found.low, 100 * found.high, 1)})"
