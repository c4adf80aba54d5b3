"""A judge's answers about one pair of responses, in both orders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from tpo_lite.calibration.gold_pairs import ResponsePair
from tpo_lite.errors import InputError
from tpo_lite.records import Comparison, UnitRecord

ORDERS = ((1, 2), (2, 1))
"""The responses shown as A and B, by their numbers in the pair: first in order, then swapped."""


@dataclass(frozen=True)
class JudgedPair(UnitRecord):
    """A judge's answers about one pair; a line of `judge run`'s output."""

    group: str
    """What the pair counts towards beside the whole: a set of LLMBar, a source of JudgeBench, or a file's stem."""
    label: int | None
    """Which response is better, 1 or 2, by the gold label."""
    lengths: list[int] | None
    """Lengths of responses 1 and 2 in characters, where known."""
    comparisons: list[Comparison]
    """Two, in `ORDERS`."""
    soft: bool
    """Whether p_first is the judge's probability; otherwise it is 1, 0 or, without a winner, 0.5."""
    judge: str = ""
    """Who judged, where it is our own judge."""

    @property
    def overlong(self) -> bool:
        """Whether the pair did not fit the judge's context in one order or the other."""
        return any(comparison.verdict == "overlong" for comparison in self.comparisons)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make a record from what `to_dict` gave."""
        comparisons = [Comparison(**comparison) for comparison in data["comparisons"]]
        return cls(**data | {"comparisons": comparisons})


def with_gold(pairs: Sequence[JudgedPair], gold: Sequence[ResponsePair]) -> list[JudgedPair]:
    """Return the judged pairs that are among the gold ones, with their labels and lengths.

    Raises `InputError` if there is none, and for a label that contradicts the one recorded with the judgement: then the
    files do not belong together.
    """
    by_id = {pair.id: pair for pair in gold}
    joined = []
    for pair in pairs:
        known = by_id.get(pair.id)
        if known is None:
            continue
        if None not in (pair.label, known.label) and pair.label != known.label:
            raise InputError(
                f"{pair.id}: the judgement was recorded with label {pair.label}, but --gold says {known.label}. "
                "Give the gold file that was judged."
            )
        label = pair.label if known.label is None else known.label
        joined.append(dataclasses.replace(pair, label=label, lengths=known.lengths))
    if not joined:
        raise InputError(
            f"none of the {len(pairs)} judged pairs is in --gold, whose ids look like {gold[0].id!r}; the judged ones "
            f"look like {pairs[0].id!r}. Give the gold file that was judged."
        )
    return joined
