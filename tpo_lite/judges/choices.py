"""Probabilities that a language model gives to each of a few texts, from the logits where their tokens differ.

"[[A]]" and "[[B]]" usually differ in one token. Ratings from 1 to 10 may branch once (Llama-3 has a token for 10) or
twice, if the token 1 is followed by 0 or by the end of the rating. Either way, the probability of a text among the
others is the product of the probabilities of its tokens along the tree. Works on token ids; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Branch:
    """A point where the texts go different ways."""

    path: tuple[int, ...]
    """The tokens before it."""
    among: tuple[int, ...]
    """The tokens that may come next; at least two."""
    leading_to: tuple[tuple[int, ...], ...]
    """For each of these tokens, the indices of the texts that continue with it."""


def branches(texts: Sequence[Sequence[int]]) -> list[Branch]:
    """Return every point where texts branch. They are given as tokens, and each has a last token of its own.

    >>> branches([[7, 1, 9], [7, 2, 9], [7, 1, 0, 9]])  # doctest: +NORMALIZE_WHITESPACE
    [Branch(path=(7,), among=(1, 2), leading_to=((0, 2), (1,))),
     Branch(path=(7, 1), among=(9, 0), leading_to=((0,), (2,)))]

    Raises `ValueError` if two texts are equal.
    """
    found: list[Branch] = []

    def split(members: list[int], depth: int) -> None:
        while True:
            following: dict[int, list[int]] = {}
            for member in members:
                if depth == len(texts[member]):
                    raise ValueError("two texts have the same tokens")
                following.setdefault(texts[member][depth], []).append(member)
            if len(following) > 1:
                break
            depth += 1
        path = tuple(texts[members[0]][:depth])
        found.append(Branch(path, tuple(following), tuple(map(tuple, following.values()))))
        for group in following.values():
            if len(group) > 1:
                split(group, depth + 1)

    split(list(range(len(texts))), 0)
    return found


def probabilities(found: Sequence[Branch], logits: Sequence[np.ndarray]) -> np.ndarray:
    """Return the probability of each text among all, in their order; `logits` are those of `among` at each branch."""
    count = 1 + max(index for group in found[0].leading_to for index in group)
    chosen = np.ones(count)
    for branch, values in zip(found, logits, strict=True):
        weights = np.exp(np.float64(values) - np.max(values))
        for group, share in zip(branch.leading_to, weights / weights.sum(), strict=True):
            chosen[list(group)] *= share
    return chosen
