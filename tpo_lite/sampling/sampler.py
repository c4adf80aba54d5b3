"""The sampler protocol: M_t in memory, drawing outputs for prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from tpo_lite.insertion import Insertion

ROUNDS = 4
"""Batches of rows in one call of a continuous sampler. The more there are, the less the emptying last one matters."""


class Sampler(Protocol):
    """M_t, ready to draw one continuation for each of many prompts.

    An engine subclasses it and defines `rows`, `stream`, `probe` and `use_adapter`.
    """

    rows: int
    """The most rows per call. A prompt counts as often as it is given."""

    def stream(
        self, prompts: Sequence[list[int]], keys: Sequence[str], insertion: Insertion | None = None
    ) -> Iterator[tuple[int, list[int]]]:
        """Continue each prompt, and yield each row's number and its new token ids as soon as the row has ended.

        `prompts`: token ids of each row. `keys`: what seeds each row's random numbers (`tpo_lite.seeds`). `insertion`:
        tokens that are put into each output; they are among the ids. A row ends with a stop token, which is included,
        or at the longest output allowed.
        """
        ...

    def sample(
        self, prompts: Sequence[list[int]], keys: Sequence[str], insertion: Insertion | None = None
    ) -> list[list[int]]:
        """Return what `stream` yields, in the order of the rows."""
        return [ids for _, ids in sorted(self.stream(prompts, keys, insertion))]

    def probe(self, prompts: Sequence[list[int]]) -> float:
        """Return the largest change in next-token log-probability that the live adapter makes on `prompts`.

        Zero means that the engine ignores the adapter and would sample M_0 for ever.
        """
        ...

    def use_adapter(self, folder: Path) -> None:
        """Replace the live adapter by another one of the same shape, read from `folder`."""
        ...


def batches(prompts: Sequence[list[int]], size: int) -> list[list[int]]:
    """Return the indices of `prompts` in batches of at most `size`, with prompts of similar length together.

    >>> batches([[1, 2, 3], [1], [1, 2]], 2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    return [order[start : start + size] for start in range(0, len(order), size)]
