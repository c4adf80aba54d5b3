"""Work done in groups of units and kept record by record, so that a stopped run goes on and ends with the same bytes.

A judge answers a group of units in one go. What shares a batch decides the last bits of its logits, so a group that a
kill cut short is answered whole again, and only the records that are missing are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from tpo_lite.records import JsonlAppender, UnitRecord

U = TypeVar("U")
R = TypeVar("R", bound=UnitRecord)


def in_groups(
    path: Path,
    units: Mapping[str, U],
    finished: dict[str, R],
    size: int,
    answer: Callable[[list[U]], Iterable[R]],
    on_record: Callable[[R], None] = lambda record: None,
) -> Iterator[list[R]]:
    """Yield the records of each group of `size` units in turn, answering the groups that are not finished.

    `units` and `finished`, the records that `path` holds, are by id. `answer` gives one record per unit of its group. A
    record that was missing is appended to `path`, added to `finished` and passed to `on_record`, one by one.
    """
    ids = list(units)
    with JsonlAppender(path) as out:
        for start in range(0, len(ids), size):
            group = ids[start : start + size]
            missing = set(group) - finished.keys()
            if missing:
                for record in answer([units[id] for id in group]):
                    if record.id in missing:
                        out.append(record)
                        finished[record.id] = record
                        on_record(record)
            yield [finished[id] for id in group]
