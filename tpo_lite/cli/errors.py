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
    """Decorate a command so that each error becomes one message and an exit code. Adds --debug."""

    @wraps(command)
    @click.option("--debug", is_flag=True, help="Show tracebacks.")
    def wrapped(debug: bool, **options: Any) -> None:
        from tpo_lite.phases.process import exit_code

        try:
            command(debug=debug, **options)
        except (Exception, KeyboardInterrupt) as error:
            # click already ends quietly when the reader closes the pipe, as `| head` does.
            if isinstance(error, click.ClickException | click.exceptions.Exit | BrokenPipeError):
                raise
            root = Path(options.get("run_dir") or options.get("out") or ".")
            # Only a run folder gets a log. In an empty folder, a log would keep a run from starting there.
            log = root / "log" / "tpo-lite.log" if (root / "recipe.yaml").exists() else None
            code = exit_code(error, log, debug)
            # Only the orchestrator needs the out-of-memory code. For a shell it is an ordinary failure.
            sys.exit(1 if code == OutOfMemory.exit_code else code)

    return wrapped
