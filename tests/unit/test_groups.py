"""Work in groups: each is done whole, kept record by record, and goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tpo_lite.groups import in_groups
from tpo_lite.records import MatchResult, read_jsonl

UNITS = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0}


class Worker:
    """Gives each unit its share of its group's sum, so that what shares a group matters."""

    def __init__(self, fails_at: str = ""):
        self.groups: list[list[float]] = []
        self.fails_at = fails_at

    def answer(self, group: list[float]) -> Iterator[MatchResult]:
        self.groups.append(group)
        for id, value in UNITS.items():
            if id == self.fails_at and value in group:
                raise KeyboardInterrupt
            if value in group:
                yield MatchResult(id, value / sum(group))


def work(path: Path, worker: Worker) -> tuple[list[list[str]], list[str]]:
    """Ids by group, and those of records that were new."""
    finished = {record.id: record for record in read_jsonl(path, MatchResult)}
    fresh: list[str] = []
    groups = in_groups(path, UNITS, finished, 2, worker.answer, lambda record: fresh.append(record.id))
    return [[record.id for record in group] for group in groups], fresh


def test_groups_are_given_in_order_and_kept(tmp_path):
    path, worker = tmp_path / "out.jsonl", Worker()
    assert work(path, worker) == ([["a", "b"], ["c", "d"], ["e"]], list(UNITS))
    assert worker.groups == [[1.0, 2.0], [3.0, 4.0], [5.0]]
    assert [record.id for record in read_jsonl(path, MatchResult)] == list(UNITS)


def test_a_group_that_was_cut_short_is_done_whole_again(tmp_path):
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    work(whole, Worker())
    with pytest.raises(KeyboardInterrupt):
        work(stopped, Worker(fails_at="d"))
    assert [record.id for record in read_jsonl(stopped, MatchResult)] == ["a", "b", "c"]
    again = Worker()
    assert work(stopped, again)[1] == ["d", "e"]
    assert again.groups == [[3.0, 4.0], [5.0]]
    assert stopped.read_bytes() == whole.read_bytes()


def test_what_is_finished_is_not_done_again(tmp_path):
    path, idle = tmp_path / "out.jsonl", Worker()
    work(path, Worker())
    assert work(path, idle) == ([["a", "b"], ["c", "d"], ["e"]], [])
    assert idle.groups == []
