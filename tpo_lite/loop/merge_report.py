"""What each merge costs, iteration by iteration: collected and shown. The measuring is a process of its own."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tpo_lite.errors import InputError
from tpo_lite.loop import orchestrator
from tpo_lite.loop.results import percent
from tpo_lite.run import PHASES, RunFolder


def measure(run: RunFolder, debug: bool) -> list[dict[str, Any]]:
    """Measures the finished iterations that have not been measured yet; returns all.

    One entry an iteration of an arm: `arm`, `iteration` (t, which makes M_{t+1}), `update_norm` (relative), `rank`,
    and `strategies`: {merge: {kl (nats a token), seconds, bytes}}, empty where M_t was kept; "none" loses the
    update. Raises `InputError` for a run without a finished iteration and `PhaseFailed`.
    """
    recipe = run.recipe
    report = []
    for arm in recipe.arms:
        for iteration in range(recipe.iterations):
            if not run.is_done(PHASES[-1], arm, iteration):
                break
            if not run.is_done("merge_report", arm, iteration):
                code = orchestrator.process(run, "merge_report", arm, iteration, debug)
                if code:
                    raise orchestrator.PhaseFailed(code)
            summary = run.done("merge_report", arm, iteration)["summary"]
            report.append({"arm": arm, "iteration": iteration} | summary)
    if not report:
        raise InputError(f"{run.root} has no finished iteration. Run `tpo-lite train --out {run.root}` first.")
    return report


def print_report(report: list[dict[str, Any]], console: Console) -> None:
    """A row a merge, grouped by iteration."""
    title = "KL(base + adapter || merged), nats a token"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("made", "update", "merge"):
        table.add_column(heading)
    for heading in ("KL", "seconds", "disk, MB"):
        table.add_column(heading, justify="right")
    for entry in report:
        head = [f"{entry['arm']} M_{entry['iteration'] + 1}", percent(entry["update_norm"])]
        if not entry["strategies"]:
            table.add_row(*head, "M_t kept", "-", "-", "-")
        for name, figures in entry["strategies"].items():
            shown = "none (update lost)" if name == "none" else name
            kl, seconds, megabytes = figures["kl"], figures["seconds"], figures["bytes"] / 1e6
            table.add_row(*head, shown, f"{kl:.1e}", f"{seconds:.1f}", f"{megabytes:.1f}")
            head = ["", ""]
        table.add_section()
    console.print(table)
