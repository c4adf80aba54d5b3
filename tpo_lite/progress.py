"""Progress of a phase: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LINE_SECONDS = 15.0
"""Without a terminal, there is at most one line in this time."""
SILENT_SECONDS = 30.0
"""Without a terminal, there is at least one line in about this time, however long one unit takes."""


class Advance(Protocol):
    """Reports progress."""

    def __call__(self, units: int, note: str = "") -> None:
        """Report that `units` more are finished; `note` is shown beside the count."""


@contextmanager
def progress(label: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show `done` of `total` units, and what is reported through the function that this yields."""
    if sys.stdout.isatty():
        yield from _bar(label, total, unit, done)
    else:
        yield from _lines(label, total, unit, done)


def _bar(label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    # On eighty columns the figures need the room that the bar would take.
    bar = (BarColumn(),) if Console().width >= 120 else ()
    columns = (
        TextColumn("{task.description}"),
        *bar,
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    start, finished = time.monotonic(), 0
    with Progress(*columns, expand=True) as bars:
        task = bars.add_task(label, total=total, completed=done, rate="", note="")

        def advance(units: int, note: str = "") -> None:
            nonlocal finished
            finished += units
            rate = finished / max(time.monotonic() - start, 1e-9)
            bars.update(task, advance=units, rate=f"{rate:.1f} {unit}/s", note=note)

        yield advance


def _lines(label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    start = said = time.monotonic()
    finished = 0
    over, turn = threading.Event(), threading.Lock()

    def advance(units: int, note: str = "") -> None:
        nonlocal finished, said
        with turn:
            finished += units
            now = time.monotonic()
            if now - said < LINE_SECONDS and done + finished < total:
                return
            said = now
            rate = finished / max(now - start, 1e-9)
            left = (total - done - finished) / max(rate, 1e-9)
            print(
                f"{label}: {done + finished}/{total} {unit}, {rate:.1f} {unit}/s, {left:.0f} s left {note}".rstrip(),
                flush=True,
            )

    def say_that_it_works() -> None:
        nonlocal said
        while not over.wait(SILENT_SECONDS / 10):
            with turn:
                now = time.monotonic()
                if now - said >= SILENT_SECONDS and done + finished < total:
                    said = now
                    print(f"{label}: {done + finished}/{total} {unit}, working for {now - start:.0f} s", flush=True)

    thread = threading.Thread(target=say_that_it_works, daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        over.set()
        thread.join()
