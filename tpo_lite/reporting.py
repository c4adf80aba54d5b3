"""What every command of `tpo-lite` does with an error: one message and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Turns errors into one message and an exit code; adds --debug."""

    @wraps(command)
    @click.option("--debug", is_flag=True, help="Show tracebacks.")
    def wrapped(debug: bool, **options: Any) -> None:
        from tpo_lite.phases import exit_code

        try:
            command(debug=debug, **options)
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, click.ClickException | click.exceptions.Exit):
                raise
            root = options.get("run_dir") or options.get("out") or Path(".")
            sys.exit(exit_code(error, Path(root) / "log" / "tpo-lite.log", debug))

    return wrapped
