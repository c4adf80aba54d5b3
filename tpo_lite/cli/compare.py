"""`tpo-lite compare`: runs, seeds and iterations in one table."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tpo_lite.cli.errors import reporting


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSONL file to add this comparison to, with the time. Earlier ones in it are kept.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reporting
def compare(runs: tuple[Path, ...], out: Path | None, as_json: bool, debug: bool) -> None:
    """Compare the models of runs: win rates, right answers, lengths, parse outcomes, tokens an answer, hours.

    Each M_t of each arm is a row, on the run's test slice. Runs that differ in nothing but the seed also have their
    means over runs. Every figure has its 95 % interval and its n; hours of one run are a sum and have none.
    """
    from tpo_lite.evaluation.history import append
    from tpo_lite.people.compare import as_text
    from tpo_lite.people.compare import compare as compare_all

    found = compare_all(runs)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else as_text(found))
    if out is not None:
        count = append(out, found.to_dict())
        click.echo(f"{out}: comparison {count}; the earlier ones are kept", err=True)
