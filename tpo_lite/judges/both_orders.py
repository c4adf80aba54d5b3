"""Asking a judge about a pair of responses in both orders, so that its preference for a slot cancels out."""

from __future__ import annotations

from collections.abc import Sequence

from tpo_lite.judges.protocol import Judge, JudgeRequest, Verdict
from tpo_lite.records import Comparison


def ask_both_orders(judge: Judge, requests: Sequence[JudgeRequest]) -> list[tuple[Verdict, Verdict]]:
    """Return two verdicts per request: as given, and with A and B swapped. All are asked in one call.

    The second costs a pointwise judge nothing, since it scores each distinct response once.
    """
    orders = [
        order
        for request in requests
        for order in (request, JudgeRequest(request.instruction, request.response_b, request.response_a))
    ]
    verdicts = judge.compare(orders)
    return list(zip(verdicts[::2], verdicts[1::2], strict=True))


def as_comparison(first: int, second: int, verdict: Verdict) -> Comparison:
    """Return the record of a verdict on response `first`, shown as A, and `second`, shown as B."""
    return Comparison(first, second, verdict.p_a, verdict.label, verdict.explanation)
