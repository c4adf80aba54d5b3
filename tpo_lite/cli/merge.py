"""`tpo-lite merge-report`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from tpo_lite.cli.errors import reporting
from tpo_lite.errors import OutOfMemory, TpoError


@click.command("merge-report")
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reporting
def merge_report(run_dir: Path, as_json: bool, debug: bool) -> None:
    """Measure what each way of merging would do to a run's updates.

    For every finished iteration: the update's relative norm, and for each merge (fold, continue, and requantize into
    the 16-bit and into the dequantized 4-bit weights) the KL divergence from base + adapter, seconds and disk.
    Figures are measured once and kept. Requantizing needs disk space for one 16-bit model, which is deleted afterwards.
    """
    from rich.console import Console

    from tpo_lite.loop import orchestrator
    from tpo_lite.loop.merge_report import measure, print_report
    from tpo_lite.run import RunFolder

    try:
        reports = measure(RunFolder(run_dir), debug)
    except orchestrator.PhaseFailed as failed:  # its process has already printed why
        if failed.exit_code == OutOfMemory.exit_code:
            raise TpoError("memory ran out. End other programs that use it and run the same command again.") from failed
        sys.exit(failed.exit_code)
    if as_json:
        click.echo(json.dumps([report.to_dict() for report in reports], indent=2))
    else:
        print_report(reports, Console())
