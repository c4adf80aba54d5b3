"""Near duplicates among instructions: texts that are the same except for a few words.

Two texts are near duplicates if all of the following hold.

1. The Jaccard similarity of their word 3-shingles is at least 0.9. Texts are padded at both ends, so that a word
   changed at an end weighs as much as one in the middle. So no text shorter than about 45 words is a near duplicate of
   a text with other words.
2. The words that carry the data are the same, in the same order: numbers, single letters, symbols, and words that
   occur more than once in the text. "add 3 then 4" and "add 3 then 5" are two tasks however long the text around
   them, and so are two lists of swaps of the same cups.
3. They are not the same words in another order.

Case, white space and sentence punctuation do not count. The search is exact: at most one shingle in ten may differ, so
two near duplicates share one of the rarest shingles of each (prefix filtering; Chaudhuri, Ganti and Kaushik 2006). It
is linear in the text: seconds for 100,000 instructions.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter

SIMILARITY = 0.9
"""The least Jaccard similarity of two near duplicates."""

# Numbers with their separators, words, and any symbol that is not sentence punctuation (+, *, <, emoji).
_TOKEN = re.compile(r"""\d+(?:[.,]\d+)*|\w+|[^\w\s.,;:!?"'()‘’“”…]""")


def near_duplicates(texts: list[str]) -> set[int]:
    """Return the indices of the texts that are near duplicates of an earlier text that is kept itself.

    >>> near_duplicates(["What is AI?", "what is AI", "Add 3 and 4.", "Add 3 and 5."])
    {1}
    """
    groups: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        groups.setdefault(_data(_words(text)), []).append(index)
    # In natural data, most texts share their data with no other text and need no shingles.
    group_of = {index: number for number, group in enumerate(groups.values()) if len(group) > 1 for index in group}
    words = {index: line for index in sorted(group_of) if (line := _words(texts[index]))}
    shingles = {index: _shingles(line) for index, line in words.items()}
    texts_with = Counter(shingle for mine in shingles.values() for shingle in mine)

    kept: dict[tuple[int, tuple[str, str, str]], list[int]] = {}
    drop: set[int] = set()
    for index, line in words.items():
        by_rarity = sorted(shingles[index], key=lambda shingle: (texts_with[shingle], shingle))
        prefix = by_rarity[: math.floor((1 - SIMILARITY) * len(by_rarity) + 1e-9) + 1]
        keys = [(group_of[index], shingle) for shingle in prefix]
        candidates = {other for key in keys for other in kept.get(key, ())}
        if any(
            line == words[other]
            or (_jaccard(shingles[index], shingles[other]) >= SIMILARITY and sorted(line) != sorted(words[other]))
            for other in candidates
        ):
            drop.add(index)
            continue
        for key in keys:
            kept.setdefault(key, []).append(index)
    return drop


def _words(text: str) -> list[str]:
    """Return words, numbers and symbols, without case or sentence punctuation."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def _data(words: list[str]) -> str:
    """Return the words that carry the data (rule 2), in their order."""
    counts = Counter(words)
    return " ".join(word for word in words if len(word) == 1 or word[0].isdigit() or counts[word] > 1)


def _shingles(words: list[str]) -> set[tuple[str, str, str]]:
    """Return all runs of three words, padded at both ends."""
    padded = ["", "", *words, "", ""]
    return set(zip(padded, padded[1:], padded[2:], strict=False))


def _jaccard(mine: set[tuple[str, str, str]], others: set[tuple[str, str, str]]) -> float:
    return len(mine & others) / len(mine | others)
