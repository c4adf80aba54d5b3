"""Asking in both orders."""

from __future__ import annotations

from tests.helpers.alphabet import Alphabet
from tpo_lite.judges.both_orders import as_comparison, ask_both_orders
from tpo_lite.judges.protocol import JudgeRequest, Verdict
from tpo_lite.records import Comparison


def test_both_orders_of_all_requests_are_one_call():
    judge = Alphabet()
    asked = ask_both_orders(judge, [JudgeRequest("?", "a", "b"), JudgeRequest("!", "d", "c")])
    assert judge.batches == [
        [JudgeRequest("?", *"ab"), JudgeRequest("?", *"ba"), JudgeRequest("!", *"dc"), JudgeRequest("!", *"cd")]
    ]
    assert [(first.label, second.label) for first, second in asked] == [("A", "B"), ("B", "A")]


def test_a_verdict_is_recorded_with_what_was_shown():
    assert as_comparison(3, 1, Verdict(0.25, "B", "why")) == Comparison(3, 1, 0.25, "B", "why")
