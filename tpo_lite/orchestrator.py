"""Runs the phases in order, one process each, and goes on where an earlier run stopped.

Imports neither torch nor llama_cpp. A phase gives its memory back by ending.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console

from tpo_lite.errors import TpoError
from tpo_lite.phases import PHASES
from tpo_lite.recipe import Recipe
from tpo_lite.results import write_results
from tpo_lite.run import RunFolder

PR_SET_PDEATHSIG = 1


class PhaseFailed(TpoError):
    """A phase ended with an error and has said why."""

    def __init__(self, code: int):
        super().__init__(f"phase ended with exit code {code}")
        self.exit_code = code


def train(run: RunFolder, debug: bool, after_iteration: Callable[[int], None]) -> None:
    """All iterations of all arms; `after_iteration` is called with t when every arm has M_{t+1}.

    Raises `PhaseFailed` with the phase's exit code, and `TpoError` if another process works in the folder.
    """
    recipe = run.recipe
    with run.lock("run"):
        for phase, arm, iteration in steps(recipe):
            fresh = not run.is_done(phase, arm, iteration)
            if fresh:
                _phase(run, phase, arm, iteration, debug)
            if phase == PHASES[-1]:
                write_results(run)
                if fresh and arm == recipe.arms[-1]:
                    after_iteration(iteration)


def steps(recipe: Recipe) -> Iterator[tuple[str, str | None, int]]:
    """Every phase of a run in order, as (phase, arm, iteration)."""
    yield "prepare", None, 0
    for iteration in range(recipe.iterations):
        for arm in recipe.arms:
            for phase in PHASES:
                yield phase, arm, iteration


def _phase(run: RunFolder, phase: str, arm: str | None, iteration: int, debug: bool) -> None:
    command = [sys.executable, "-m", f"tpo_lite.phases.{phase}", str(run.root), "--iteration", str(iteration)]
    command += ["--arm", arm] if arm else []
    environment = dict(os.environ, TPO_LITE_DEBUG="1" if debug else "0")
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment, preexec_fn=_set_signals)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()  # whatever the phase has finished is on disk
        process.wait()
        Console().show_cursor()  # its progress bar hid it
        raise
    finally:
        with contextlib.suppress(OSError):  # a full disk, which the phase has reported, is not to be hidden here
            run.record_seconds(phase, arm, iteration, time.monotonic() - start)
    if code < 0:
        raise TpoError(
            f"the {phase} phase was ended by {signal.Signals(-code).name}; if the machine is out of memory, set "
            "sampling.batch, train.micro_batch or judge.context lower. Run the same command to go on."
        )
    if code:
        raise PhaseFailed(code)


def _set_signals() -> None:
    """In a phase's process, before it is Python."""
    # A killed run leaves no phase behind that still writes into the folder (Linux).
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # Ctrl-C reaches all processes of a terminal: only the orchestrator is to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
