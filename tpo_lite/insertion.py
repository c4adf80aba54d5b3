"""Tokens that are put into an output while it is sampled: where, which, and how each row comes to them.

The response marker is put in when a thought has used up its budget (`thought.budget`), and a warm start puts in both
markers. The tokens are the model's own from then on: it reads them and goes on after them. Works on token ids; every
engine follows it token by token, so no part of an output is computed twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Insertion:
    """Tokens that are put into each row's output, once at most.

    To begin outputs with given tokens, append these to the prompts.
    """

    after: int
    """They come when the output has this many tokens, if it has not ended before; 0: at its start."""
    tokens: Callable[[int, list[int]], list[int]]
    """What is put in, by the row's number in the call and its output so far, both as the engine has them. Nothing: the
    output goes on as if there were no insertion. It is asked once for each row at most."""
    before_stop: bool = False
    """They also come in place of a stop token that is sampled earlier."""


class Insertions:
    """What one row still has to be given, from its first token to its last."""

    def __init__(self, insertion: Insertion | None, row: int, stops: Collection[int]):
        self._insertion, self._row, self._stops = insertion, row, stops
        self._coming: deque[int] = deque()

    def next_token(self, output: list[int], sampled: int) -> int:
        """Return the token that comes after `output`: `sampled`, or the next one that is put in.

        To be called for every token of the row, in order. A sampled token that is not taken is lost, and its random
        number too: token i of an output is always drawn with number i of its row.
        """
        if self._coming:
            return self._coming.popleft()
        ends, insertion = sampled in self._stops, self._insertion
        if insertion is not None and (len(output) == insertion.after or (ends and insertion.before_stop)):
            self._insertion = None
            self._coming.extend(insertion.tokens(self._row, output))
            if self._coming:
                return self._coming.popleft()
        if ends:
            self._insertion = None
        return sampled
