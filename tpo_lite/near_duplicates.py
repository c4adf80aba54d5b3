"""Near duplicates among instructions: the same text but for a few words.

Two texts are near duplicates if all of these hold:

1. the Jaccard similarity of their word 3-shingles is at least 0.9. Shingles are counted with their
   multiplicity and padded at both ends, so that a word changed at an end weighs as much as one in the
   middle: nothing shorter than about 45 words is a near duplicate of a text with other words;
2. the numbers, single letters and symbols are the same in the same order: "add 3 then 4" and "add 3
   then 5" are two tasks however long the text around them;
3. the words that differ are not among those that both have ("the left cup" for "the right cup", where
   both cups are spoken of), and the difference is not one of order alone.

Case, white space and sentence punctuation do not count. The search is exact: of 10 shingles at most one
may differ, so two near duplicates share one of the rarest shingles of each (prefix filtering; Chaudhuri,
Ganti and Kaushik 2006). Linear in the text for natural data: 100,000 instructions in seconds.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter

import numpy as np

SIMILARITY = 0.9

# Numbers with their separators, words, and any symbol that is not sentence punctuation (+, *, <, emoji).
_TOKEN = re.compile(r"""\d+(?:[.,]\d+)*|\w+|[^\w\s.,;:!?"'()‘’“”…]""")


def near_duplicates(texts: list[str]) -> set[int]:
    """Indices of the texts that are near duplicates of an earlier text which is not one itself.

    >>> near_duplicates(["What is AI?", "what is AI", "Add 3 and 4.", "Add 3 and 5."])
    {1}
    """
    words = [_TOKEN.findall(unicodedata.normalize("NFKC", text).casefold()) for text in texts]
    data = [tuple(word for word in line if len(word) == 1 or word[0].isdigit()) for line in words]
    shingles = _shingles_by_rarity(words)

    kept: dict[tuple[tuple[str, ...], int], list[int]] = {}
    drop: set[int] = set()
    for index, line in enumerate(words):
        if not line:
            continue
        mine = shingles[index]
        prefix = mine[: math.floor((1 - SIMILARITY) * len(mine) + 1e-9) + 1].tolist()
        candidates = {other for shingle in prefix for other in kept.get((data[index], shingle), ())}
        if any(_similar(mine, shingles[other], line, words[other]) for other in sorted(candidates)):
            drop.add(index)
            continue
        for shingle in prefix:
            kept.setdefault((data[index], shingle), []).append(index)
    return drop


def _similar(mine: np.ndarray, others: np.ndarray, words: list[str], other_words: list[str]) -> bool:
    if words == other_words:
        return True
    if min(len(mine), len(others)) < SIMILARITY * max(len(mine), len(others)):
        return False
    common = len(np.intersect1d(mine, others, assume_unique=True))
    similar = common >= SIMILARITY * (len(mine) + len(others) - common)
    return similar and _other_words(Counter(words), Counter(other_words))


def _other_words(mine: Counter[str], others: Counter[str]) -> bool:
    return mine != others and all(mine[word] == others[word] for word in mine.keys() & others.keys())


def _shingles_by_rarity(words: list[list[str]]) -> list[np.ndarray]:
    """For each text its distinct (3-shingle, occurrence) elements as numbers, the rarest of all first.

    n words make n + 2 elements; the number of an element is its rank in one order over all texts.
    """
    vocabulary: dict[str, int] = {}
    ids: list[int] = []
    for line in words:
        ids += (0, 0)
        ids += [vocabulary.setdefault(word, len(vocabulary) + 1) for word in line]
        ids += (0, 0)
    padded = np.array(ids, dtype=np.int64)
    lengths = np.array([len(line) + 4 for line in words], dtype=np.int64)
    text = np.repeat(np.arange(len(words)), lengths)

    # A shingle must not reach into the next text.
    inside = text[:-2] == text[2:]
    text = text[:-2][inside]
    pairs = np.unique(padded[:-1] * (len(vocabulary) + 1) + padded[1:], return_inverse=True)[1]
    triples = pairs[:-1] * (len(vocabulary) + 1) + padded[2:]
    shingle = np.unique(triples[inside], return_inverse=True)[1]

    # The second "very very very" of a text is another element than its first.
    order = np.lexsort((shingle, text))
    text, shingle = text[order], shingle[order]
    starts = np.flatnonzero(np.r_[True, (text[1:] != text[:-1]) | (shingle[1:] != shingle[:-1])])
    occurrence = np.arange(len(text)) - np.repeat(starts, np.diff(np.r_[starts, len(text)]))
    element = np.unique(shingle * (occurrence.max(initial=0) + 1) + occurrence, return_inverse=True)[1]

    counts = np.bincount(element)
    rank = np.empty_like(counts)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    ranked = rank[element]
    ranked = ranked[np.lexsort((ranked, text))]
    return np.split(ranked, np.cumsum(lengths - 2)[:-1])
