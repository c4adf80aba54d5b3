"""What a language model would choose among a few texts, from the logits where their tokens part.

"[[A]]" and "[[B]]" usually part at one token. Ratings from 1 to 10 may part at one too (Llama-3 has a token
for 10) or at two: after the token 1 comes 0 or the end of the rating. Either way the probability of a text
among the others is the product of its tokens' along the tree. Works on token ids; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Branch:
    """A point where the texts part."""

    path: tuple[int, ...]
    """The tokens up to there."""
    among: tuple[int, ...]
    """The tokens that may come next; two at least."""
    leading_to: tuple[tuple[int, ...], ...]
    """For each of them the texts that go on with it, by their index."""


def branches(texts: Sequence[Sequence[int]]) -> list[Branch]:
    """Every point where texts, given as tokens, part; each text has a token that ends it.

    >>> branches([[7, 1, 9], [7, 2, 9], [7, 1, 0, 9]])  # doctest: +NORMALIZE_WHITESPACE
    [Branch(path=(7,), among=(1, 2), leading_to=((0, 2), (1,))),
     Branch(path=(7, 1), among=(9, 0), leading_to=((0,), (2,)))]

    Raises `ValueError` if two texts are the same.
    """
    found = []

    def part(members: list[int], depth: int) -> None:
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
                part(group, depth + 1)

    part(list(range(len(texts))), 0)
    return found


def probabilities(found: Sequence[Branch], logits: Sequence[np.ndarray]) -> np.ndarray:
    """Each text's probability among all, in their order; `logits` are those of `among` at each branch."""
    count = 1 + max(index for group in found[0].leading_to for index in group)
    chosen = np.ones(count)
    for branch, values in zip(found, logits, strict=True):
        weights = np.exp(np.float64(values) - np.max(values))
        for group, share in zip(branch.leading_to, weights / weights.sum(), strict=True):
            chosen[list(group)] *= share
    return chosen
