"""The tree of prefixes that token sequences share, so that each shared prefix is decoded once.

Works on token ids and imports no model library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from tpo_lite.insertion import Insertions
from tpo_lite.llamacpp.leaves import Ended, Leaf


@dataclass(eq=False)
class Segment:
    """Tokens at consecutive positions: a prefix shared by the segments below, or one leaf's own suffix."""

    tokens: np.ndarray
    """int32, (tokens,)."""
    start: int
    """Position of the first token."""
    parent: Segment | None
    """The shared prefix before it."""
    cells: int = 0
    """KV cells reserved for it, including those of a continuation."""
    children: int = 0
    """Segments below that are not finished."""
    leaf: int | None = None
    """The number of the leaf; None for a shared prefix."""
    seq: int = -1
    """Its llama.cpp sequence; -1 until it enters the KV cache."""
    done: int = 0
    """Tokens decoded so far."""
    random: np.random.Generator | None = None
    """Its continuation's random numbers, once it samples."""
    insertions: Insertions | None = None
    """What is put into its continuation, once it samples."""
    sampled: list[int] = field(default_factory=list)
    """The continuation so far."""
    text: bytes = b""
    """The continuation as text; kept only if it may end with a decision."""
    ended: Ended | None = None
    """Why the continuation ended, while the tokens after it are decoded."""

    @property
    def complete(self) -> bool:
        """Whether all its tokens are decoded."""
        return self.done == len(self.tokens)

    @property
    def ready(self) -> bool:
        """Whether its next tokens can be decoded: it is not complete, and the prefix before it is."""
        return not self.complete and (self.parent is None or self.parent.complete)

    def follow_with(self, tokens: Sequence[int]) -> None:
        """Continue with these tokens after the decoded ones."""
        self.start += len(self.tokens)
        self.tokens = np.array(tokens, np.int32)
        self.done = 0


def prefix_tree(leaves: Sequence[Leaf], max_depth: int, min_shared: int) -> list[Segment]:
    """Return the leaves' own segments in depth-first order, linked to the prefixes they share.

    Every leaf keeps at least its last token to itself, because it needs the logits after that token. So equal leaves
    need no special case. A path from root to leaf has at most `max_depth` segments, and a shared prefix has at least
    `min_shared` tokens.

    With `min_shared` 1, leaves [1, 2, 3], [1, 2, 4] and [1, 2, 3] become the prefix [1, 2] with the
    suffixes [3], [3] and [4].
    """
    tokens = [np.asarray(leaf.tokens, np.int32) for leaf in leaves]
    order = sorted(range(len(leaves)), key=lambda i: tuple(leaves[i].tokens))
    shared = [_shared(tokens[a], tokens[b]) for a, b in pairwise(order)]
    suffixes: list[Segment] = []

    def place(low: int, high: int, parent: Segment | None, start: int, depth: int) -> None:
        """Place the leaves order[low:high], which agree up to `start`, where `parent` ends."""
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
    """Return the length of the common prefix, which includes neither sequence's last token."""
    n = min(len(a), len(b)) - 1
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
