"""`tpo-lite train` as true processes that need not import torch: each is forked from one that has imported it all.

A short phase spends most of its time on imports. Here a server does them once. The orchestrator is forked from the
server, and each phase from the orchestrator, in place of `python -m tpo_lite.phases.X`. They are processes with their
own memory and signals, and can be killed like any other.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

PRELOAD = "tests.helpers.warm_train_imports"


class ForkedPhase:
    """What the orchestrator uses of `subprocess.Popen`, for a phase that is forked from it."""

    def __init__(
        self, command: list[str], *, stderr: int, preexec_fn: Callable[[], None], env: dict[str, str] | None = None
    ):
        reading, writing = os.pipe()
        self.stderr: IO[bytes] = os.fdopen(reading, "rb", buffering=0)
        self.pid = os.fork()
        if self.pid == 0:
            preexec_fn()
            os.dup2(writing, 2)
            os.environ.update(env or {})
            run_module(command[2], command[3:])
        os.close(writing)

    def wait(self) -> int:
        """Wait for its end; return its exit code, or minus the number of the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def terminate(self) -> None:
        """Ask it to end."""
        os.kill(self.pid, signal.SIGTERM)


def run_module(name: str, arguments: list[str]) -> None:
    """Do what `python -m name arguments` does, and end this process."""
    warnings.simplefilter("ignore")  # of a module that is there before it is run
    sys.argv = [name, *arguments]
    code = 0
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _train(arguments: list[str], said: str) -> None:
    """Run `tpo-lite` in this process, in a session of its own, with stdout and stderr in the file `said`."""
    from tpo_lite.loop import orchestrator

    os.setsid()
    with open(said, "wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    orchestrator.subprocess = SimpleNamespace(Popen=ForkedPhase, PIPE=-1)  # type: ignore[assignment]
    run_module("tpo_lite.cli", arguments)


class WarmTrain:
    """A run of `tpo-lite train` that goes on in the background."""

    def __init__(self, arguments: list[Any], target: Callable[[list[str], str], None] = _train):
        """Start `target` with the arguments and the file that it writes its output to; by default `tpo-lite`."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([PRELOAD])
        self._said = Path(tempfile.mkstemp()[1])
        self._process = context.Process(target=target, args=([*map(str, arguments)], str(self._said)))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Kill it alone, and none of its phases."""
        self._process.kill()

    @property
    def returncode(self) -> int | None:
        """Its exit code."""
        return self._process.exitcode

    def communicate(self) -> tuple[str, None]:
        """Wait for its end; return what it has written, stdout and stderr together."""
        self._process.join()
        said = self._said.read_text()
        self._said.unlink()
        return said, None
