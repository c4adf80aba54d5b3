"""Runs the phases in order, one process each, and goes on where an earlier run stopped.

Imports neither torch nor llama_cpp. A phase gives its memory back by ending, and one that runs out of memory is
started again with smaller batches. What a phase writes to stderr passes through here, for the sake of one that a
signal ends: llama.cpp aborts its process where CUDA's memory runs out in the middle of a computation.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from rich.console import Console

from tpo_lite.errors import OutOfMemory, TpoError, says_out_of_memory
from tpo_lite.files import write_json
from tpo_lite.loop.back_off import smaller
from tpo_lite.loop.results import write_results
from tpo_lite.machine import memory
from tpo_lite.recipe import Recipe
from tpo_lite.run import PHASES, RunFolder

PR_SET_PDEATHSIG = 1

LAST_WORDS = 1 << 16
"""Bytes of a phase's stderr that are kept for its log."""
PIPE_SECONDS = 5.0
"""Longest to wait for the end of a dead phase's stderr, which a process that it left behind may hold open."""


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
    """Runs a phase, each time that memory runs out with smaller batches, until it is finished."""
    worked = run.limits
    while True:
        start = time.monotonic()
        try:
            code = process(run, phase, arm, iteration, debug)
        finally:
            with contextlib.suppress(OSError):  # a full disk, which the phase has reported, is not to be hidden here
                run.record_seconds(phase, arm, iteration, time.monotonic() - start)
        if code != OutOfMemory.exit_code:
            break
        limits = smaller(phase, run.recipe)
        if not limits:
            write_json(run.root / "limits.json", worked)  # it says what works, and none of the smaller ones did
            raise TpoError(
                f"the {phase} phase ran out of memory with the smallest batches. End other programs that use it, or take "
                "a smaller model, shorter texts (pairs.max_tokens, sampling.max_new_tokens) or fewer samples "
                "(sampling.k); train.gradient_checkpointing=true helps training. Other settings need --new."
            )
        run.limit(limits)
        print(f"{phase} again with {', '.join(f'{key} {value}' for key, value in limits.items())}", flush=True)
    if code:
        raise PhaseFailed(code)


def process(run: RunFolder, phase: str, arm: str | None, iteration: int, debug: bool) -> int:
    """Runs a phase in a process of its own; its exit code, or that of `OutOfMemory` if it was aborted for that.

    Ends when the GPU has its memory back. Raises `TpoError` if a signal ended it for any other reason.
    """
    card = memory.gpu()
    before = card.used() if card else 0
    code = _child(run, phase, arm, iteration, debug)
    if card and (missing := memory.wait_until_free(card, before)):
        said = f"after the {phase} phase {missing / 1e9:.1f} GB of the GPU have not come back; going on with less"
        print(said, flush=True)
    return code


def _child(run: RunFolder, phase: str, arm: str | None, iteration: int, debug: bool) -> int:
    """The exit code of a phase's process, as `process` gives it."""
    command = [sys.executable, "-m", f"tpo_lite.phases.{phase}", str(run.root), "--iteration", str(iteration)]
    command += ["--arm", arm] if arm else []
    environment = dict(os.environ, TPO_LITE_DEBUG="1" if debug else "0")
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, preexec_fn=_set_signals)
    said = bytearray()
    reader = threading.Thread(target=_pass_on, args=(child.stderr, said), daemon=True)
    reader.start()
    try:
        code = child.wait()
    except KeyboardInterrupt:
        child.terminate()  # whatever the phase has finished is on disk
        child.wait()
        Console().show_cursor()  # its progress bar hid it
        raise
    reader.join(PIPE_SECONDS)
    return code if code >= 0 else _killed(run, phase, signal.Signals(-code).name, said.decode(errors="replace"))


def _pass_on(stderr: BinaryIO, said: bytearray) -> None:
    """Writes what comes from a phase's stderr to this process's, and keeps the end of it in `said`."""
    with stderr:
        while data := os.read(stderr.fileno(), LAST_WORDS):
            os.write(2, data)
            said += data
            del said[:-LAST_WORDS]


def _killed(run: RunFolder, phase: str, by: str, said: str) -> int:
    """What to do about a phase that a signal ended, after it had `said` this on stderr, which becomes its log.

    Returns the exit code of `OutOfMemory` if it aborted for that. Raises `TpoError` with the remedy else.
    """
    where = ""
    if said:
        log = run.root / "log" / f"{phase}.log"
        with contextlib.suppress(OSError):  # such as a full disk, which may be why it ended
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(said, encoding="utf-8")
            where = f" Its last words are in {log}."
    if by == "SIGABRT" and says_out_of_memory(said):
        print(f"the {phase} phase was aborted, as memory ran out.{where}", file=sys.stderr, flush=True)
        return OutOfMemory.exit_code
    remedy = "if that happens again, report it with its log"
    if by == "SIGKILL":
        lower = f'lower in {run.root / "limits.json"}, such as {{"sampling.batch": 8}}'
        remedy = f"if the machine is out of memory, set sampling.batch, train.micro_batch or judge.context {lower}"
    raise TpoError(f"the {phase} phase was ended by {by}; {remedy}. Run the same command to go on.{where}")


def _set_signals() -> None:
    """In a phase's process, before it is Python."""
    # A killed run leaves no phase behind that still writes into the folder (Linux).
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # Ctrl-C reaches all processes of a terminal: only the orchestrator is to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
