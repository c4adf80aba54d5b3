"""The options of every phase's command line: of `python -m tpo_lite.phases.<name>` and of `tpo-lite <name>`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def phase_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add RUN_DIR, --arm and --iteration to a command."""
    for option in (
        click.option(
            "--iteration", type=click.IntRange(min=0), default=0, show_default=True, help="t: from M_t to M_{t+1}."
        ),
        click.option("--arm", default=None, help="thinking or direct; default: the run's first."),
        click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False)),
    ):
        command = option(command)
    return command
