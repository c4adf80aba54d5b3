"""What a decoder is asked for and what it returns: token sequences (leaves), their continuations, what became of them.

Works on token ids and imports no model library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tpo_lite.insertion import Insertion

if TYPE_CHECKING:
    import numpy as np

CELLS = 256
"""llama.cpp makes the size of a KV cache, or of each stream in it, a multiple of this."""

Ended = Literal["prompt", "stop", "length", "decision"]
"""Why a leaf ended: it had no continuation ("prompt"), or a stop token, the limit or a decision ended it."""


def whole_cells(tokens: int) -> int:
    """Return the KV cells that llama.cpp makes for `tokens`.

    >>> whole_cells(256), whole_cells(257)
    (256, 512)
    """
    return CELLS * math.ceil(tokens / CELLS)


@dataclass(frozen=True)
class Decision:
    """A point where a continuation is about to choose between a few tokens. The continuation ends there."""

    after: bytes
    """The continuation's text must end with these bytes."""
    among: tuple[int, ...]
    """It ends when one of these tokens would come next; the result holds their logits."""
    force: tuple[int, ...]
    """Tokens appended to a continuation that ended without a decision, to read the logits after them."""


@dataclass(frozen=True)
class Continuation:
    """How a leaf is continued. Raises `ValueError` for numbers outside the ranges given here."""

    max_tokens: int
    """The most tokens sampled or put in, the stop token included; at least 1."""
    temperature: float = 0.0
    """At least 0, which is greedy."""
    top_p: float = 1.0
    """Nucleus, above 0 and at most 1, applied after the temperature as in transformers."""
    seed: int = 0
    """Keys the leaf's random numbers (`tpo_lite.seeds.generator`); from 0, at most 128 bits."""
    stop_tokens: frozenset[int] = frozenset()
    """The continuation ends with the first of these, which is part of it."""
    decision: Decision | None = None
    """Another way to end. None: only stop tokens and the limit end it."""
    insertion: Insertion | None = None
    """Tokens that are put in, as if they were sampled; the row is the leaf's number."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or not self.temperature >= 0 or not 0 < self.top_p <= 1 or not 0 <= self.seed < 1 << 128:
            raise ValueError(f"{self} cannot be sampled: a number is out of its range")


@dataclass(frozen=True)
class Leaf:
    """One token sequence to decode."""

    tokens: Sequence[int]
    """The whole sequence from position 0, shared prefix and BOS included; not empty."""
    continuation: Continuation | None = None
    """None: only the last token's logits are wanted."""
    logits_of: tuple[int, ...] | None = None
    """Without a continuation: the tokens whose logits are wanted. None: the whole vocabulary."""

    @property
    def room(self) -> int:
        """The most KV cells that it can need, if it shares none of them."""
        plan = self.continuation
        if plan is None:
            return len(self.tokens)
        return len(self.tokens) + plan.max_tokens + (len(plan.decision.force) if plan.decision else 0)


@dataclass(frozen=True)
class Decoded:
    """What became of one leaf."""

    tokens: list[int]
    """The continuation, a stop token included; empty without one."""
    ended: Ended
    logits: np.ndarray | None
    """float32: of `logits_of` after the last token, or of `Decision.among` at the decision or after the forced
    tokens. None for a continuation without a decision."""
