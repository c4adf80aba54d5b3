"""Comparisons by a judge that sees one response at a time.

Its answer about a pair is the same in both orders, so it is asked once about each response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tpo_lite.judges.protocol import Item, JudgeRequest, Verdict, winner_label

Score = TypeVar("Score")


def compare_scores(
    requests: Sequence[JudgeRequest],
    score: Callable[[list[Item]], list[Score | None]],
    p_better: Callable[[Score, Score], float],
    shown: Callable[[Score], str],
) -> list[Verdict]:
    """Return one verdict per request, in the same order, from one call of `score` with every distinct response.

    `score` returns None for a response that is too long. `p_better` returns the probability that the first of two
    scores belongs to the better response. `shown` formats a score for `Verdict.explanation` ("7.1 against 6.4").
    """
    pairs = [((r.instruction, r.response_a), (r.instruction, r.response_b)) for r in requests]
    items = list(dict.fromkeys(item for pair in pairs for item in pair))
    scores = dict(zip(items, score(items), strict=True))
    verdicts = []
    for pair in pairs:
        a, b = (scores[item] for item in pair)
        if a is None or b is None:
            verdicts.append(Verdict(0.5, "overlong"))
            continue
        p_a = p_better(a, b)
        verdicts.append(Verdict(p_a, winner_label(p_a), f"{shown(a)} against {shown(b)}"))
    return verdicts
