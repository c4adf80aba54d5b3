"""Runs the phases in order, one process each, and goes on where an earlier run stopped.

Imports neither torch nor llama_cpp. A phase gives its memory back by ending. One that runs out of memory is started
again with smaller batches. What a phase writes to stderr passes through here, so that it is known after a signal has
ended the phase: llama.cpp aborts its process if CUDA's memory runs out in the middle of a computation, and
bitsandbytes ends it with exit code 1.
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
from tpo_lite.kinds import Arm
from tpo_lite.loop.back_off import smaller
from tpo_lite.loop.results import write_results
from tpo_lite.machine import memory
from tpo_lite.phase_order import phases_of, warm_phases
from tpo_lite.recipe import Recipe
from tpo_lite.run import RunFolder

PR_SET_PDEATHSIG = 1

LAST_WORDS = 1 << 16
"""Bytes of a phase's stderr that are kept for its log."""
LAST_LINES = 5
"""Lines at the end of these in which a library says why it ended the process with exit code 1."""
PIPE_SECONDS = 5.0
"""How long to wait for the end of a dead phase's stderr, which a process that it left behind may hold open."""


class PhaseFailed(TpoError):
    """A phase ended with an error and has said why."""

    def __init__(self, code: int):
        super().__init__(f"phase ended with exit code {code}")
        self.exit_code = code


def train(folder: RunFolder, after_iteration: Callable[[int], None], *, debug: bool) -> None:
    """Run all iterations of all arms; call `after_iteration` with t when every arm has M_{t+1}.

    Raises `PhaseFailed` with the phase's exit code, and `TpoError` if another process works in the folder.
    """
    recipe = folder.load_started()
    last = phases_of(recipe)[-1]
    with folder.lock("run"):
        for phase, arm, iteration in steps(recipe):
            fresh = not folder.is_done(phase, arm, iteration)
            if fresh:
                _phase(folder, phase, arm, iteration, debug)
            if phase == last:
                write_results(folder)
                if fresh and arm == recipe.arms[-1]:
                    after_iteration(iteration)


def steps(recipe: Recipe) -> Iterator[tuple[str, Arm | None, int]]:
    """Yield every phase of a run in order, as (phase, arm, iteration)."""
    yield "prepare", None, 0
    for arm in recipe.arms:
        for phase in warm_phases(recipe):
            yield phase, arm, 0
    for iteration in range(recipe.iterations):
        for arm in recipe.arms:
            for phase in phases_of(recipe):
                yield phase, arm, iteration


def _phase(folder: RunFolder, phase: str, arm: Arm | None, iteration: int, debug: bool) -> None:
    """Run a phase until it is finished, with smaller batches each time that memory runs out."""
    worked = folder.limits
    # Models take long to load, and a phase says nothing before.
    print(f"{arm} {iteration + 1} {phase}: starting" if arm else f"{phase}: starting", flush=True)
    while True:
        start = time.monotonic()
        try:
            code = process(folder, phase, arm, iteration, debug)
        finally:
            with contextlib.suppress(OSError):  # a full disk, say, which the phase has reported already
                folder.record_seconds(phase, arm, iteration, time.monotonic() - start)
        if code != OutOfMemory.exit_code:
            break
        limits = smaller(phase, folder.load_settled())
        if not limits:
            write_json(folder.root / "limits.json", worked)  # no smaller batch worked
            raise TpoError(
                f"the {phase} phase ran out of memory with the smallest batches. End other programs that use it, or "
                "take a smaller model, shorter texts (pairs.max_tokens, sampling.max_new_tokens) or fewer samples "
                "(sampling.k); train.gradient_checkpointing=true helps training. Other settings need --new."
            )
        folder.limit(limits)
        reduced = ", ".join(f"{key} {value}" for key, value in limits.items())
        print(f"{phase}: out of memory; trying again with {reduced}", flush=True)
    if code:
        raise PhaseFailed(code)


def process(folder: RunFolder, phase: str, arm: Arm | None, iteration: int, debug: bool) -> int:
    """Run a phase in a process of its own and return its exit code; that of `OutOfMemory` if it was aborted for that.

    Waits until the GPU has its memory back. Raises `TpoError` if a signal ended the phase for any other reason.
    """
    gpu = memory.gpu(folder.load_place().gpu)
    before = gpu.used() if gpu else 0
    code = _child(folder, phase, arm, iteration, debug)
    if gpu and (missing := memory.wait_until_free(gpu, before)):
        print(f"after the {phase} phase {missing / 1e9:.1f} GB of the GPU are still in use; going on", flush=True)
    return code


def _child(folder: RunFolder, phase: str, arm: Arm | None, iteration: int, debug: bool) -> int:
    """Return the exit code of a phase's process, as `process` does."""
    command = [sys.executable, "-m", f"tpo_lite.phases.{phase}", str(folder.root), "--iteration", str(iteration)]
    command += ["--arm", arm] if arm else []
    command += ["--debug"] if debug else []
    child = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=_set_signals)
    last_words = bytearray()
    reader = threading.Thread(target=_pass_on, args=(child.stderr, last_words), daemon=True)
    reader.start()
    try:
        code = child.wait()
    except KeyboardInterrupt:
        child.terminate()  # whatever the phase has finished is on disk
        child.wait()
        Console().show_cursor()  # its progress bar hid it
        raise
    reader.join(PIPE_SECONDS)
    said = last_words.decode(errors="replace")
    if code < 0:
        return _killed(folder, phase, signal.Signals(-code).name, said)
    if code == 1 and says_out_of_memory("\n".join(said.splitlines()[-LAST_LINES:])):
        return _aborted_for_memory(phase, _keep_last_words(folder, phase, said))
    return code


def _pass_on(stderr: BinaryIO, last_words: bytearray) -> None:
    """Copy a phase's stderr to this process's, and keep the end of it in `last_words`."""
    with stderr:
        while data := os.read(stderr.fileno(), LAST_WORDS):
            os.write(2, data)
            last_words += data
            del last_words[:-LAST_WORDS]


def _killed(folder: RunFolder, phase: str, by: str, last_words: str) -> int:
    """Decide what follows after a signal ended a phase; what it wrote to stderr becomes its log.

    Returns the exit code of `OutOfMemory` if it aborted for that. Raises `TpoError` with the remedy otherwise.
    """
    where = _keep_last_words(folder, phase, last_words)
    if by == "SIGABRT" and says_out_of_memory(last_words):
        return _aborted_for_memory(phase, where)
    remedy = "if that happens again, report it with its log"
    if by == "SIGKILL":
        lower = f'lower in {folder.root / "limits.json"}, such as {{"sampling.batch": 8}}'
        remedy = f"if the machine is out of memory, set sampling.batch, train.micro_batch or judge.context {lower}"
    raise TpoError(f"the {phase} phase was ended by {by}; {remedy}. Run the same command to go on.{where}")


def _keep_last_words(folder: RunFolder, phase: str, last_words: str) -> str:
    """Write what a phase wrote to stderr into its log, and return a sentence that says so; empty without a log."""
    log = folder.root / "log" / f"{phase}.log"
    with contextlib.suppress(OSError):  # such as a full disk, which may be why it ended
        if last_words:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(last_words, encoding="utf-8")
            return f" Its last words are in {log}."
    return ""


def _aborted_for_memory(phase: str, where: str) -> int:
    """Say that memory ran out in a phase that could not say so itself, and return the exit code for it."""
    print(f"the {phase} phase ran out of memory and was aborted.{where}", file=sys.stderr, flush=True)
    return OutOfMemory.exit_code


def _set_signals() -> None:
    """Set what a phase's process does with signals; called in it before its Python starts."""
    # A killed run leaves no phase behind that still writes into the folder (Linux).
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # Ctrl-C reaches every process of a terminal, but only the orchestrator should handle it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
