"""What each merge costs, iteration by iteration: collected and shown. A process of its own measures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tpo_lite.errors import InputError
from tpo_lite.intervals import percent
from tpo_lite.kinds import Arm
from tpo_lite.loop import orchestrator
from tpo_lite.phases.summaries import MergeReportSummary, read_summary
from tpo_lite.run import RunFolder


@dataclass(frozen=True)
class MergeReport:
    """What each merge would cost in one iteration of an arm."""

    arm: Arm
    """The arm."""
    iteration: int
    """t: the merge makes M_{t+1}."""
    summary: MergeReportSummary
    """The figures."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as one flat JSON object."""
        return {"arm": self.arm, "iteration": self.iteration} | self.summary.to_dict()


def measure(folder: RunFolder, debug: bool) -> list[MergeReport]:
    """Measure the merges that are finished and have not been measured yet; return the reports of all.

    Raises `InputError` for a run without a finished merge, and `PhaseFailed` if a measurement fails.
    """
    folder.settle_old()
    recipe = folder.load_started()
    reports = []
    for arm in recipe.arms:
        for iteration in range(recipe.iterations):
            if not folder.is_done("fold", arm, iteration):
                break
            if not folder.is_done("merge_report", arm, iteration):
                code = orchestrator.process(folder, "merge_report", arm, iteration, debug)
                if code:
                    raise orchestrator.PhaseFailed(code)
            reports.append(MergeReport(arm, iteration, read_summary(MergeReportSummary, folder, arm, iteration)))
    if not reports:
        raise InputError(f"{folder.root} has no finished merge. Run `tpo-lite train --out {folder.root}` first.")
    return reports


def print_report(reports: list[MergeReport], console: Console) -> None:
    """Print one row per merge, grouped by iteration."""
    title = "KL(base + adapter || merged), nats per token"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("made", "update", "merge"):
        table.add_column(heading)
    for heading in ("KL", "seconds", "disk, MB"):
        table.add_column(heading, justify="right")
    for report in reports:
        head = [f"{report.arm} M_{report.iteration + 1}", percent(report.summary.update_norm)]
        if not report.summary.strategies:
            table.add_row(*head, "M_t kept", "-", "-", "-")
        for name, cost in report.summary.strategies.items():
            shown = "none (update lost)" if name == "none" else name
            table.add_row(*head, shown, f"{cost.kl:.1e}", f"{cost.seconds:.1f}", f"{cost.bytes / 1e6:.1f}")
            head = ["", ""]
        table.add_section()
    console.print(table)
