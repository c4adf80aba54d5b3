"""`benchmarks.gpu` with steps that need not import torch: each is forked from a process that has imported it all.

As in `warm_train`, steps stay processes with their own memory and signals.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from tests.helpers.warm_train import WarmTrain, run_module


class ForkedStep:
    """What `benchmarks.gpu` uses of `subprocess.Popen`, for a step that is forked from it."""

    def __init__(
        self,
        arguments: list[str],
        *,
        cwd: Path,
        env: dict[str, str],
        stdout: IO[str],
        stderr: IO[str],
        start_new_session: bool,
        preexec_fn: Callable[[], None],
    ):
        assert start_new_session
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            preexec_fn()
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            os.chdir(cwd)
            os.environ.update(env)
            run_module(arguments[2], arguments[3:])

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        if self.returncode is None:
            self._ended(os.WNOHANG)
        return self.returncode

    def wait(self) -> int | None:
        """Wait for its end; return its exit code."""
        self._ended(0)
        return self.returncode

    def _ended(self, options: int) -> None:
        pid, status = os.waitpid(self.pid, options)
        if pid:
            self.returncode = os.waitstatus_to_exitcode(status)


def _measure(arguments: list[str], said: str) -> None:
    """Run `benchmarks.gpu` in this process, with stdout and stderr in the file `said`."""
    from benchmarks import gpu

    with open(said, "wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    gpu.subprocess = SimpleNamespace(Popen=ForkedStep)  # type: ignore[assignment]
    sys.argv = ["benchmarks.gpu", *arguments]
    gpu.main()
    sys.stdout.flush()


def measure_warm(arguments: list[Any]) -> WarmTrain:
    """Start `benchmarks.gpu` with these arguments in the background."""
    return WarmTrain(arguments, _measure)
