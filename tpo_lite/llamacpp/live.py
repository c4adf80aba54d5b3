"""Continuous batching of rows that join and leave while others are decoded, for requests that come at any time."""

from __future__ import annotations

from typing import NamedTuple

import llama_cpp
import numpy as np

from tpo_lite.errors import InputError
from tpo_lite.llamacpp.context import LlamaContext
from tpo_lite.llamacpp.leaves import Ended, Leaf
from tpo_lite.llamacpp.prefix_tree import Segment
from tpo_lite.llamacpp.schedule import Schedule


class Advance(NamedTuple):
    """What one decode did for one row."""

    row: int
    tokens: list[int]
    """What has come since the last one: nothing or one token; a stop token too."""
    ended: Ended | None
    """Why the row has ended; None: it goes on."""


class LiveSchedule(Schedule):
    """A schedule on a unified cache that is empty at first; its leaves have continuations, and are called rows.

    A row waits, first come first served, until a sequence and all cells that it can need are free. Rows share no
    prefixes. Only one schedule may use a context at a time.
    """

    def __init__(self, context: LlamaContext):
        super().__init__(context, [], context.n_seq_max, context.n_ctx)
        self.leaves: dict[int, Leaf] = {}
        self._segments: dict[int, Segment] = {}
        self._told: dict[int, int] = {}
        llama_cpp.llama_memory_clear(self.memory, False)

    def add(self, row: int, leaf: Leaf) -> None:
        """Let a row join; `row` is a number that no other has. Raises `InputError` if it would not fit even alone."""
        check_fits(self.context, leaf)
        segment = Segment(np.asarray(leaf.tokens, np.int32), 0, None, cells=leaf.room, leaf=row)
        self.leaves[row], self._segments[row], self._told[row] = leaf, segment, 0
        self.waiting.append(segment)

    def remove(self, row: int) -> None:
        """Let a row leave before it has ended."""
        segment = self._forget(row)
        if segment.seq < 0:
            self.waiting.remove(segment)
        else:
            self._leave(segment)

    def advance(self) -> list[Advance]:
        """Decode once, and return what that did for the rows to which it did something; there must be a row."""
        self.step()
        ended = {row: decoded.ended for row, decoded in self.ended}
        self.ended.clear()
        found = []
        for row, segment in list(self._segments.items()):
            tokens = segment.sampled[self._told[row] :]
            if tokens or row in ended:
                self._told[row] += len(tokens)
                found.append(Advance(row, tokens, ended.get(row)))
            if row in ended:
                self._forget(row)
        return found

    def _forget(self, row: int) -> Segment:
        del self.leaves[row], self._told[row]
        return self._segments.pop(row)


def check_fits(context: LlamaContext, leaf: Leaf) -> None:
    """Raise `InputError` if a leaf is empty, or does not fit even alone."""
    if not leaf.tokens or leaf.room > context.max_leaf:
        raise InputError(
            f"{len(leaf.tokens)} tokens of prompt and {leaf.room - len(leaf.tokens)} of reply do not fit the context "
            f"of {context.max_leaf} tokens. Shorten the prompt, or ask for fewer tokens."
        )
