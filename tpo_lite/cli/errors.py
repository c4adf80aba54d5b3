"""What every command of `tpo-lite` does with an error: one message and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from tpo_lite.errors import OutOfMemory


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Turns errors into one message and an exit code; adds --debug."""

    @wraps(command)
    @click.option("--debug", is_flag=True, help="Show tracebacks.")
    def wrapped(debug: bool, **options: Any) -> None:
        from tpo_lite.phases.process import exit_code

        try:
            command(debug=debug, **options)
        except (Exception, KeyboardInterrupt) as error:
            # Of a reader that has gone, as `| head` does, click makes a quiet end.
            if isinstance(error, click.ClickException | click.exceptions.Exit | BrokenPipeError):
                raise
            root = Path(options.get("run_dir") or options.get("out") or ".")
            # Only a run folder is written into: a log in another would make it one that no run may start in.
            log = root / "log" / "tpo-lite.log" if (root / "recipe.yaml").exists() else None
            code = exit_code(error, log, debug)
            # That memory ran out is for the orchestrator to know; to a shell it is a failure.
            sys.exit(1 if code == OutOfMemory.exit_code else code)

    return wrapped
