"""What results files share: who measured what and when, Markdown tables, and how they are written."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

from benchmarks.measuring import machine
from tpo_lite.version import __version__

RESULTS = Path(__file__).parent / "results"


def heading(title: str, device: str, command: str, more: str = "") -> list[str]:
    """Return a results file's first lines: title, date, machine, versions and `more`, command, and a blank line."""
    versions = f"Python {platform.python_version()}, tpo_lite {__version__}"
    return [
        f"# {title}",
        "",
        f"Date: {date.today()}. Machine: {machine(device)}; {versions}{more}.",
        f"Command: `{command}`",
        "",
    ]


def row(cells: Iterable[object]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def table(columns: str, rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a Markdown table; `columns` are its titles, split by "|".

    A title that ends in ":" is that of a column of text, which is aligned to the left. Figures go to the right.
    """
    titles = [title.strip() for title in columns.split("|")]
    lines = ["---" if title.endswith(":") else "--:" for title in titles]
    return [row(title.rstrip(":") for title in titles), f"|{'|'.join(lines)}|", *map(row, rows)]


def peaks(runs: Iterable[dict[str, dict[str, int]]]) -> list[str]:
    """Return the largest peak of RAM and of GPU memory among runs, in GB."""
    return [f"{max(run['peak'].get(kind, 0) for run in runs) / 1e9:.2f}" for kind in ("host", "gpu")]


def write(path: Path, text: str) -> None:
    """Write a results file, and show it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(text)
