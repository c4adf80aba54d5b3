"""The sampler protocol: M_t in memory, drawing outputs for prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

ROUNDS = 4
"""Rows for a continuous sampler's call, in batches: the more, the less its emptying batch at the end weighs."""


class Sampler(Protocol):
    """M_t, ready to draw one continuation for each of many prompts."""

    rows: int
    """Prompts a call, each counted as often as it is given."""

    def stream(self, prompts: Sequence[list[int]], keys: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
        """`prompts`: token ids; `keys`: what seeds each row. Gives each row's number and its ids, up to and with
        the stop token, as soon as it has ended.
        """
        ...

    def sample(self, prompts: Sequence[list[int]], keys: Sequence[str]) -> list[list[int]]:
        """What `stream` gives, by row."""
        return [ids for _, ids in sorted(self.stream(prompts, keys))]

    def probe(self, prompts: Sequence[list[int]]) -> float:
        """The largest change in next-token log-probability that the live adapter makes on `prompts`.

        Zero means that the engine ignores the adapter and would sample M_0 for ever.
        """
        ...

    def use_adapter(self, folder: Path) -> None:
        """Puts another adapter of the same shape in the place of the live one."""
        ...


def batches(prompts: Sequence[list[int]], size: int) -> list[list[int]]:
    """Indices of `prompts` in batches of at most `size`, prompts of like length together.

    >>> batches([[1, 2, 3], [1], [1, 2]], 2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    return [order[start : start + size] for start in range(0, len(order), size)]
