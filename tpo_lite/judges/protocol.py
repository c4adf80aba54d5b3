"""The judge protocol: a judge compares two responses to one instruction.

A judge is one class with `compare` in a module of this package; one that is pointwise has `scores` too. Importing the
package itself imports no model library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

from tpo_lite.records import VerdictLabel

Item = tuple[str, str]
"""An instruction and a response."""


@dataclass(frozen=True)
class JudgeRequest:
    """One question to a judge: which of two responses is better?"""

    instruction: str
    """x, without the thought prompt (the paper's judges)."""
    response_a: str
    """The response shown first, without its thought."""
    response_b: str
    """The response shown second, without its thought."""


@dataclass(frozen=True)
class Verdict:
    """A judge's answer to one request."""

    p_a: float
    """Probability that A is better than B; 0.5 if the request did not fit the judge."""
    label: VerdictLabel
    """"A" if p_a > 0.5, "B" if p_a < 0.5, "tie" at 0.5; "unparsed" if the judge gave no verdict of its own within its
    limit; "overlong" if the request did not fit the judge's context."""
    explanation: str = ""
    """What the judge wrote with its verdict (modes explain and openai), or its two scores ("7.1 against 6.4")."""
    forced: bool = False
    """Whether p_a was read after a verdict was opened for a judge that gave none of its own ("unparsed")."""


def winner_label(p_a: float) -> VerdictLabel:
    """Return the label of a probability that A is better.

    >>> winner_label(0.7), winner_label(0.2), winner_label(0.5)
    ('A', 'B', 'tie')
    """
    return "tie" if p_a == 0.5 else "A" if p_a > 0.5 else "B"


class Judge(Protocol):
    """Compares pairs of responses."""

    @property
    def pointwise(self) -> bool:
        """Whether it scores each response by itself.

        If so, a pair has the same answer in both orders, and one call of `compare` scores each distinct response once.
        """
        ...

    @property
    def tokens_decoded(self) -> int:
        """Tokens evaluated so far; 0 for a server that does not say."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of one prompt and its answer; None for a server, which does not say."""
        ...

    def compare(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """Return one verdict per request, in the same order. Many requests in one call are cheaper than many calls."""
        ...


class PointwiseJudge(Judge, Protocol):
    """Scores responses one at a time. Its comparisons follow from its scores."""

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """Return the score of each (instruction, response), the higher the better; None if it is too long."""
        ...


def is_pointwise(judge: Judge) -> TypeGuard[PointwiseJudge]:
    """Return whether the judge scores each response by itself."""
    return judge.pointwise
