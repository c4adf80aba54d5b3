"""Asking our own judge about pairs of responses, each in both orders."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo_lite.calibration.gold_pairs import ResponsePair
from tpo_lite.calibration.judged_pair import ORDERS, JudgedPair
from tpo_lite.groups import in_groups
from tpo_lite.judges.both_orders import as_comparison, ask_both_orders
from tpo_lite.judges.protocol import Judge, JudgeRequest
from tpo_lite.progress import Advance

PAIRS_AT_ONCE = 32
"""Pairs judged as one unit of work; a kill costs at most these."""


@dataclass(frozen=True)
class Answers:
    """What a judge said about some pairs, and what that took."""

    judged: list[JudgedPair]
    """The pairs, in their order."""
    calls: int
    """Questions put to the judge."""
    tokens: int
    """Tokens evaluated, shared prefixes counted once; 0 from a server that does not say."""
    seconds: float
    """Time taken."""

    def speed(self) -> dict[str, Any]:
        """Return calls, tokens and seconds, and the rates they make."""
        return {
            "calls": self.calls,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "calls_per_second": self.calls / self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
        }


def ask(judge: Judge, pairs: Sequence[ResponsePair], name: str, advance: Advance) -> Answers:
    """Ask the judge, called `name` in the records, about all pairs; `advance` is told how many are finished."""
    judged: list[JudgedPair] = []
    calls = 0
    began = time.perf_counter()
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        group = pairs[start : start + PAIRS_AT_ONCE]
        answers = judge_both_orders(judge, group, name)
        judged += answers
        calls += count_calls(group, answers, judge.pointwise)
        advance(len(group))
    return Answers(judged, calls, judge.tokens_decoded, time.perf_counter() - began)


def ask_into(
    output: Path,
    judge: Judge,
    pairs: Sequence[ResponsePair],
    finished: dict[str, JudgedPair],
    name: str,
    advance: Advance,
) -> None:
    """Ask the judge about the pairs that are not finished, and add its answers to `output`.

    `finished` are the answers that `output` holds, by the pair's id.
    """
    by_id = {pair.id: pair for pair in pairs}

    def answer(group: list[ResponsePair]) -> list[JudgedPair]:
        return judge_both_orders(judge, group, name)

    for _ in in_groups(output, by_id, finished, PAIRS_AT_ONCE, answer, lambda pair: advance(1)):
        pass


def judge_both_orders(judge: Judge, pairs: Sequence[ResponsePair], name: str) -> list[JudgedPair]:
    """Ask the judge about each pair in both orders, all in one call; `name` says in the records who judged."""
    requests = [JudgeRequest(pair.instruction, pair.response_1, pair.response_2) for pair in pairs]
    judged = []
    for pair, verdicts in zip(pairs, ask_both_orders(judge, requests), strict=True):
        comparisons = [
            as_comparison(first, second, verdict) for (first, second), verdict in zip(ORDERS, verdicts, strict=True)
        ]
        judged.append(JudgedPair(pair.id, pair.group, pair.label, pair.lengths, comparisons, soft=True, judge=name))
    return judged


def count_calls(pairs: Sequence[ResponsePair], judged: Sequence[JudgedPair], pointwise: bool) -> int:
    """Return how much the judge was asked: the comparisons that fit its context.

    A pointwise judge is asked once about each distinct response of the pairs that fit.
    """
    if not pointwise:
        return sum(comparison.verdict != "overlong" for pair in judged for comparison in pair.comparisons)
    fit = [given for given, pair in zip(pairs, judged, strict=True) if pair.comparisons[0].verdict != "overlong"]
    return len({(pair.instruction, text) for pair in fit for text in (pair.response_1, pair.response_2)})
