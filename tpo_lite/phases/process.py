"""Runs one phase in a process: `python -m tpo_lite.phases.<name> RUN_DIR ...`.

A phase reads the run folder, writes one kind of file into it, and gives all its memory back by ending. Running it
again goes on with whatever it had finished, and running a finished phase does nothing. The orchestrator knows the
order of the phases and nothing of their insides.

A phase's file calls `phase_main` before its own imports. These take seconds, and an interrupt or a broken library
there is reported like any other error.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import traceback
from pathlib import Path

import click

from tpo_lite.errors import DISK_FULL, InputError, OutOfMemory, TpoError, first_line, is_out_of_memory
from tpo_lite.files import checksum
from tpo_lite.kinds import Arm
from tpo_lite.machine import threads
from tpo_lite.machine.memory import PeakMemory, gpu
from tpo_lite.phase_order import WARM_PHASES, missing, phases_before, phases_of, warm_phases
from tpo_lite.phases.options import phase_options
from tpo_lite.recipe import Recipe
from tpo_lite.run import RunFolder

QUIET = {
    "GGML_NO_BACKTRACE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Environment that keeps the progress bars and advice of libraries out of ours."""


def keep_libraries_quiet() -> None:
    """Set `QUIET` and the levels of loggers in this process. Libraries read `QUIET` when they are imported."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # On a CPU bitsandbytes looks for a faster kernel on the hub, and warns at every import that there is none.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def start_phase(name: str, root: Path, arm: str | None, iteration: int) -> None:
    """Run one phase as a process begins, which sees the run's one GPU, or none. Raises as `run_phase` does."""
    folder = RunFolder(root)
    folder.settle_old()
    folder.load_place().pin(os.environ)
    if slower := threads.limit(os.environ):
        print(f"{name}: {slower}", file=sys.stderr, flush=True)
    run_phase(name, root, arm, iteration)


def _known_arm(recipe: Recipe, name: str | None) -> Arm:
    """Return the arm of this name. Raises `InputError` if the run does not have it."""
    for arm in recipe.arms:
        if name in (None, arm):
            return arm
    raise InputError(f"this run has no arm {name!r}; it has {', '.join(recipe.arms)}.")


def run_phase(name: str, root: Path, arm_name: str | None, iteration: int) -> None:
    """Run one phase in this process unless it is finished. Raises `TpoError` for anything that a user can fix.

    Without `arm_name` the phase is that of the run's first arm; "prepare" belongs to none.
    """
    folder = RunFolder(root)
    recipe, place = folder.load_settled(), folder.load_place()
    arm = None if name == "prepare" else _known_arm(recipe, arm_name)
    if iteration >= recipe.iterations:
        raise InputError(f"this run has no iteration {iteration}; it has 0 to {recipe.iterations - 1}.")
    if lacks := missing(recipe, name):
        raise InputError(f"this run has {lacks}, so it has no {name} phase.")
    with folder.lock("phase"):
        if folder.is_done(name, arm, iteration):
            return
        if arm is not None:
            check_order(folder, recipe, name, arm, iteration)
        with PeakMemory(gpu(place.gpu)) as peak:
            module = importlib.import_module(f"tpo_lite.phases.{name}")
            threads.limit_torch()
            if arm is None:
                summary = module.run(folder, recipe, place.device)
            else:
                summary = module.run(folder, recipe, arm, iteration, place.device)
            folder.mark_done(name, arm, iteration, summary.to_dict(), peak.bytes())


def check_order(folder: RunFolder, recipe: Recipe, name: str, arm: Arm, iteration: int) -> None:
    """Raise `InputError` naming the first phase that has to be finished before this one and is not."""
    before: list[tuple[str, Arm | None, int]] = [("prepare", None, 0)]
    # The direct arm's warm start follows the thinking arm's.
    warm: list[tuple[str, Arm | None, int]] = [
        (phase, other, 0) for other in recipe.arms[: recipe.arms.index(arm) + 1] for phase in warm_phases(recipe)
    ]
    if name in WARM_PHASES:
        before += warm[: warm.index((name, arm, 0))]
    else:
        before += warm + [(phase, arm, t) for t in range(iteration) for phase in phases_of(recipe)]
        before += [(phase, arm, iteration) for phase in phases_before(recipe, name)]
    if name == "match" and arm == recipe.arms[-1]:
        before += [("test", other, iteration) for other in recipe.arms]
    for phase, its_arm, t in before:
        if folder.is_done(phase, its_arm, t):
            # Older iterations have nothing that is still read, but for what M_0 answered.
            if t >= iteration - 1 or phase == "generate":
                check_outputs(folder, phase, its_arm, t)
        else:
            alone = its_arm is None or phase in WARM_PHASES
            what = phase if alone else f"{phase} of iteration {t}"
            what += f" of {its_arm}" if its_arm not in (None, arm) else ""
            raise InputError(
                f"{name} of {arm}, iteration {iteration}, comes after {what}, which is not finished. "
                f"`tpo-lite train --out {folder.root}` with the same settings runs all in order."
            )


def check_outputs(folder: RunFolder, phase: str, arm: Arm | None, iteration: int) -> None:
    """Raise `InputError` naming a file that is no longer what the finished phase left."""
    done = folder.done_path(phase, arm, iteration)
    outputs = folder.done(phase, arm, iteration)["outputs"]
    # An earlier version kept the names alone.
    for name, written in outputs.items() if isinstance(outputs, dict) else ():
        path = (done.parent.parent / name).resolve()
        if checksum(path) != written:
            raise InputError(
                f"{path} is not what the {phase} phase wrote: it was damaged or changed since. Delete it and run the "
                "same command again, which writes it again."
            )


def exit_code(error: BaseException, log: Path | None, debug: bool) -> int:
    """Print one message on what went wrong, and return the exit code.

    That is 1, 2 or 3 as in `tpo_lite.errors`, or 130 after an interrupt. The traceback of an error that was not
    foreseen goes into `log`.
    """
    if isinstance(error, KeyboardInterrupt):
        click.echo("interrupted; everything finished is kept. Run the same command to go on.", err=True)
        return 130
    if debug:
        traceback.print_exception(error)
    if isinstance(error, TpoError):
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    out_of_memory = is_out_of_memory(error)
    tried = f"out of memory ({first_line(error)}). `tpo-lite train` tries again with smaller batches."
    click.echo(f"error: {tried if out_of_memory else _unforeseen(error)}", err=True)
    where = "--debug shows the traceback."
    if log is not None:
        with contextlib.suppress(OSError):  # such as the full disk that is being reported
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("".join(traceback.format_exception(error)))
            where = f"The traceback is in {log}; --debug shows it."
    click.echo(where, err=True)
    return OutOfMemory.exit_code if out_of_memory else 1


def _unforeseen(error: BaseException) -> str:
    """Return what went wrong, and a remedy where there is one, for an error that a library raised."""
    if getattr(error, "errno", None) in DISK_FULL or any(os.strerror(number) in str(error) for number in DISK_FULL):
        return "the disk is full. Free some space and run the same command again; nothing is lost."
    return f"{type(error).__name__}: {error}"


def phase_main(name: str) -> None:
    """Run the command line of one phase: an entry point, which sets this process's environment."""

    @click.command(help=f"Run the {name} phase of a run folder.")
    @phase_options
    @click.option("--debug", is_flag=True, help="Show tracebacks.")
    def main(run_dir: Path, arm: str | None, iteration: int, debug: bool) -> None:
        keep_libraries_quiet()
        try:
            start_phase(name, run_dir, arm, iteration)
        except (Exception, KeyboardInterrupt) as error:
            sys.exit(exit_code(error, run_dir / "log" / f"{name}.log", debug))

    main(prog_name=f"python -m tpo_lite.phases.{name}")
