"""`tpo-lite watch`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpo_lite.cli.errors import reporting

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from tpo_lite.people.watching import Snapshot
    from tpo_lite.run import RunFolder

SECONDS = 2.0
"""Between two looks."""
TEXT = 400
"""Characters of an instruction, a thought or a response that are shown."""


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@reporting
def watch(run_dir: Path, debug: bool) -> None:
    """Watch a run while it goes: phase, rate, time left, memory, and one thought going by.

    It only reads, so it can start and end at any time (Ctrl-C), in another terminal or over ssh. Without a terminal it
    prints what it sees once.
    """
    from rich.console import Console
    from rich.live import Live

    from tpo_lite.people.watching import look
    from tpo_lite.run import RunFolder

    folder, console = RunFolder(run_dir), Console()
    first = look(folder)
    if not console.is_terminal:
        console.print(_view(folder, first, ""))
        return
    started, since, seen = time.monotonic(), first.label, first
    with Live(_view(folder, first, ""), console=console, auto_refresh=False, screen=False) as live:
        while seen.phase is not None and seen.process is not None:
            time.sleep(SECONDS)
            seen = look(folder, turn=int((time.monotonic() - started) / (5 * SECONDS)))
            if seen.label != since:
                first, started, since = seen, time.monotonic(), seen.label
            live.update(_view(folder, seen, _pace(first, seen, time.monotonic() - started)), refresh=True)
    _last_table(folder, console)
    if seen.phase is not None and seen.process is None:
        click.echo(f"No process works in {folder.root}. `tpo-lite train --out {folder.root}` goes on.")


def _pace(first: Snapshot, seen: Snapshot, seconds: float) -> str:
    """Say how fast a phase goes and how long it will take, from what happened while it was watched."""
    from tpo_lite.plan.report import duration

    if first.progress is None or seen.progress is None or seen.progress.done <= first.progress.done:
        return ""
    rate = (seen.progress.done - first.progress.done) / seconds
    left = (seen.progress.total - seen.progress.done) / rate
    return f"{rate:.2g} {seen.progress.unit}/s, {duration(left)} left"


def _view(folder: RunFolder, seen: Snapshot, pace: str) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    from tpo_lite.people.words import gib, visible

    works = "" if seen.phase is None else f"process {seen.process}" if seen.process else "no process works here"
    parts = [seen.label, works]
    if seen.progress is not None:
        parts.append(f"{seen.progress.done}/{seen.progress.total} {seen.progress.unit}")
    parts.append(pace)
    if seen.memory is not None:
        plan = f" (plan: {gib(seen.planned)})" if seen.planned else ""
        parts.append(f"{gib(seen.memory)} of RAM{plan}")
    lines = [Text("  ".join(part for part in parts if part), style="bold")]
    if seen.thought is None:
        return Group(*lines)
    said = Text()
    for name, text in vars(seen.thought).items():
        if text:
            said.append(f"{name}: ", style="dim")
            said.append(visible(text[:TEXT]) + ("\N{HORIZONTAL ELLIPSIS}" if len(text) > TEXT else "") + "\n")
    return Group(*lines, Panel(said, title=f"{folder.root.name}: a sample", border_style="dim"))


def _last_table(folder: RunFolder, console: Console) -> None:
    from tpo_lite.loop import results, tables

    collected = results.collect(folder)
    if any(arm.iterations for arm in collected.arms.values()):
        tables.print_final(collected, console)
