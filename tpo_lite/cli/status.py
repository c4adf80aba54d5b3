"""`tpo-lite status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpo_lite.cli.errors import reporting

if TYPE_CHECKING:
    from tpo_lite.run import RunFolder


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the content of results.json and the next phase.")
@reporting
def status(run_dir: Path, as_json: bool, debug: bool) -> None:
    """Show the progress of a run and its figures."""
    from rich.console import Console

    from tpo_lite.loop import results, tables
    from tpo_lite.run import RunFolder

    folder = RunFolder(run_dir)
    collected = results.collect(folder)
    coming = next_phase(folder)
    if as_json:
        click.echo(json.dumps(collected.to_dict() | {"next": coming}, indent=2))
        return
    console = Console()
    for iteration in range(max(len(arm.iterations) for arm in collected.arms.values())):
        tables.print_iteration(collected, iteration, console)
    tables.print_final(collected, console)
    if coming is None:
        click.echo("finished")
    else:
        where = f"{coming['arm']}, iteration {coming['iteration'] + 1}, " if coming["arm"] else ""
        click.echo(f"next: {where}{coming['phase']}")


def next_phase(folder: RunFolder) -> dict[str, Any] | None:
    """Return the first phase that is not finished, or None."""
    from tpo_lite.loop.orchestrator import steps

    for phase, arm, iteration in steps(folder.load_started()):
        if not folder.is_done(phase, arm, iteration):
            return {"phase": phase, "arm": arm, "iteration": iteration}
    return None
