"""What a decoder is asked for: token sequences (leaves), how to continue them, and their prefix tree.

Works on token ids and imports no model library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Decision:
    """A point where a continuation is about to choose between a few tokens, and ends."""

    after: bytes
    """The continuation's text must end with these bytes."""
    among: tuple[int, ...]
    """It ends when one of these would come next; the result holds their logits."""
    force: tuple[int, ...]
    """Tokens appended to a continuation that ended without deciding, to read the logits after them."""


@dataclass(frozen=True)
class Continuation:
    """How a leaf is continued. Raises `ValueError` for numbers outside the ranges named here."""

    max_tokens: int
    """The most tokens sampled, the stop token included; at least 1."""
    temperature: float = 0.0
    """At least 0, which is greedy."""
    top_p: float = 1.0
    """Nucleus, above 0 and at most 1, taken after the temperature as transformers does."""
    seed: int = 0
    """Keys the leaf's random numbers (`tpo_lite.seeds.generator`); from 0, at most 128 bits."""
    stop_tokens: frozenset[int] = frozenset()
    """The continuation ends with the first of these, which is part of it."""
    decision: Decision | None = None
    """A second way to end; none: only stop tokens and the limit end it."""

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
    """Without a continuation: the tokens whose logits are wanted; none: the whole vocabulary."""

    @property
    def room(self) -> int:
        """KV cells that it may need when it shares nothing."""
        plan = self.continuation
        if plan is None:
            return len(self.tokens)
        return len(self.tokens) + plan.max_tokens + (len(plan.decision.force) if plan.decision else 0)


@dataclass(frozen=True)
class Decoded:
    """What became of one leaf."""

    tokens: list[int]
    """The continuation, a stop token included; empty without one."""
    ended: Literal["prompt", "stop", "length", "decision"]
    """Why the continuation ended; "prompt" where there was none."""
    logits: np.ndarray | None
    """float32: of `logits_of` after the last token, or of `Decision.among` at the decision or after
    the forced tokens; None for a continuation without a decision."""


@dataclass(eq=False)
class Segment:
    """Tokens at consecutive positions: a prefix shared by the segments below, or one leaf's own suffix."""

    tokens: np.ndarray
    start: int
    parent: Segment | None
    cells: int = 0
    """KV cells reserved for it, a continuation's included."""
    children: int = 0
    """Segments below that are not finished."""
    leaf: int | None = None
    seq: int | None = None
    """Its llama.cpp sequence while it is in the KV cache."""
    done: int = 0
    """Tokens decoded so far."""
    random: np.random.Generator | None = None
    """Its continuation's random numbers, once it samples."""
    sampled: list[int] = field(default_factory=list)
    text: bytes = b""
    """What was sampled, as text; kept where a decision is looked for."""
    ended: Literal["prompt", "stop", "length", "decision"] | None = None

    @property
    def complete(self) -> bool:
        return self.done == len(self.tokens)

    @property
    def ready(self) -> bool:
        return not self.complete and (self.parent is None or self.parent.complete)

    def follow_with(self, tokens: Sequence[int]) -> None:
        """Goes on with these tokens after the ones decoded."""
        self.start += len(self.tokens)
        self.tokens = np.array(tokens, np.int32)
        self.done = 0


def prefix_tree(leaves: Sequence[Leaf], max_depth: int, min_shared: int) -> list[Segment]:
    """The leaves' own segments in depth-first order, linked to the prefixes they share.

    Every leaf keeps at least its last token to itself, whose logits it needs; so equal leaves need no
    special case. Paths from root to leaf have at most `max_depth` segments, and no prefix is shared that is
    shorter than `min_shared` tokens.

    With `min_shared` 1, leaves [1, 2, 3], [1, 2, 4] and [1, 2, 3] become the prefix [1, 2] with the
    suffixes [3], [3] and [4].
    """
    tokens = [np.asarray(leaf.tokens, np.int32) for leaf in leaves]
    order = sorted(range(len(leaves)), key=lambda i: tuple(leaves[i].tokens))
    shared = [_shared(tokens[a], tokens[b]) for a, b in zip(order, order[1:])]
    suffixes: list[Segment] = []

    def place(low: int, high: int, parent: Segment | None, start: int, depth: int) -> None:
        """Places the leaves order[low:high], which agree up to `start`, where `parent` ends."""
        first = low
        for i in range(low, high):
            if i + 1 < high and depth < max_depth and shared[i] >= start + min_shared:
                continue
            # order[first : i + 1] is a run whose neighbours share more than the parent.
            if i > first:
                end = min(shared[first:i])
                prefix = Segment(tokens[order[i]][start:end], start, parent, cells=end - start)
                place(first, i + 1, prefix, end, depth + 1)
            else:
                leaf = order[i]
                cells = leaves[leaf].room - start
                suffixes.append(Segment(tokens[leaf][start:], start, parent, cells=cells, leaf=leaf))
            if parent is not None:
                parent.children += 1
            first = i + 1

    place(0, len(order), None, 0, 1)
    return suffixes


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix, short of either's last token."""
    n = min(len(a), len(b)) - 1
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
