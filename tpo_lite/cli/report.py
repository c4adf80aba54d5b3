"""`tpo-lite report`, and the report that `train` ends with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpo_lite.cli.errors import reporting

if TYPE_CHECKING:
    from tpo_lite.run import RunFolder


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@reporting
def report(run_dir: Path, debug: bool) -> None:
    """Write RUN_DIR/report.html: the result, checks, curves, and every thought to read.

    The file opens in any browser and asks nothing of the network. A run that is not finished has a report too. `train`
    writes one at its end. Samples of a large run are in RUN_DIR/report-data; pass that folder on with the file.
    """
    from tpo_lite.people.report import write_report
    from tpo_lite.run import RunFolder

    click.echo(f"report: {write_report(RunFolder(run_dir))}")


def report_at_end(folder: RunFolder) -> None:
    """Write the report of a run that has ended and say where it is, or say why there is none."""
    from tpo_lite.people.report import write_report

    try:
        click.echo(f"report: {write_report(folder)}")
    except Exception as error:  # whatever it is, the run has ended well
        click.echo(f"no report: {error}. `tpo-lite report {folder.root}` tries again.", err=True)
