"""Prompts with the responses that a test wants, and a judge that prefers what comes earlier in the alphabet."""

from __future__ import annotations

from collections.abc import Sequence

from tpo_lite.judges.protocol import Item, JudgeRequest, Verdict
from tpo_lite.preferences.tournament import Adaptive
from tpo_lite.records import Instruction, PromptSamples, Sample

ADAPTIVE = Adaptive(seed=0, confidence=0.9, soft=True, prior=0.1, rho=0.0)


def prompt(*responses: str | None, id: str = "x") -> PromptSamples:
    """Samples with these responses; None is a malformed one."""
    samples = [
        Sample(k, [k], "", "truncated" if text is None else "ok", "", text or "", 0, 1)
        for k, text in enumerate(responses)
    ]
    return PromptSamples(Instruction(id, "?", "test"), [0], samples)


class Alphabet:
    """Prefers the response that comes earlier in the alphabet, and says in what order it was asked."""

    tokens_decoded = 0
    max_tokens = 99

    def __init__(self, pointwise: bool = False, longest: int = 99):
        self.pointwise, self.longest = pointwise, longest
        self.batches: list[list[JudgeRequest]] = []
        self.scored: list[list[Item]] = []

    def compare(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """Sure of itself; responses of more than `longest` letters do not fit."""
        self.batches.append(list(requests))
        return [self.verdict(request.response_a, request.response_b) for request in requests]

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """Ten times the place in the alphabet, counted from the end."""
        self.scored.append(list(items))
        return [None if len(text) > self.longest else 10.0 * (ord("z") - ord(text[0])) for _, text in items]

    def verdict(self, a: str, b: str) -> Verdict:
        """Of one pair."""
        if max(len(a), len(b)) > self.longest:
            return Verdict(0.5, "overlong")
        return Verdict(0.95, "A", "because") if a < b else Verdict(0.05, "B", "because")
