"""The phases of an iteration, one process each: `python -m tpo_lite.phases.process.<name> RUN_DIR ...`.

A phase reads the run folder, writes one kind of file into it, and gives all its memory back by ending.
Whatever it finished before a kill it finds again: running it a second time goes on, and running a
finished phase does nothing. The orchestrator knows their order and nothing of their insides.

A phase's file calls `phase_main` before its own imports: these take seconds, and an interrupt or a broken
library there is reported like any other error.
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
from tpo_lite.machine.memory import PeakMemory
from tpo_lite.run import PHASES, RunFolder

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
# Libraries read these when they are imported, so they are set before any phase imports one. They keep
# other progress bars and advice out of ours.
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)
# On a CPU bitsandbytes looks for a faster kernel on the hub and warns at every import that it has none.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def run_phase(name: str, root: Path, arm: str | None, iteration: int) -> None:
    """Runs one phase in this process unless it is finished. Raises `TpoError` for what a user can mend."""
    from tpo_lite.machine.device import chosen_device, wants_cuda

    run = RunFolder(root)
    recipe = run.recipe
    if arm is not None and arm not in recipe.arms:
        raise InputError(f"this run has no arm {arm!r}; it has {', '.join(recipe.arms)}.")
    if iteration >= recipe.iterations:
        raise InputError(f"this run has no iteration {iteration}; it has 0 to {recipe.iterations - 1}.")
    with run.lock("phase"):
        if run.is_done(name, arm, iteration):
            return
        if arm is not None:
            check_order(run, name, arm, iteration)
        with PeakMemory() as peak:
            module = importlib.import_module(f"tpo_lite.phases.{name}")
            if name in ("generate", "dpo", "validate", "fold", "merge_report"):
                device = chosen_device()
            else:  # these load no torch
                device = "cuda" if wants_cuda() else "cpu"
            summary = module.run(run, recipe, arm, iteration, device) if arm else module.run(run, recipe, device)
            run.mark_done(name, arm, iteration, summary.to_dict(), peak.bytes())


def check_order(run: RunFolder, name: str, arm: str, iteration: int) -> None:
    """Raises `InputError` naming the first phase that must be finished before this one, and is not."""
    before: list[tuple[str, str | None, int]] = [("prepare", None, 0)]
    before += [(phase, arm, t) for t in range(iteration) for phase in PHASES]
    now = PHASES[: PHASES.index(name)] if name in PHASES else PHASES
    before += [(phase, arm, iteration) for phase in now]
    for step in before:
        if not run.is_done(*step):
            raise InputError(
                f"{name} of {arm}, iteration {iteration}, comes after {step[0]}{f' of iteration {step[2]}' if step[1] else ''}, "
                f"which is not finished. `tpo-lite train --out {run.root}` with the same settings runs all in order."
            )


def exit_code(error: BaseException, log: Path | None, debug: bool) -> int:
    """Says what went wrong in one message and returns the exit code: 1, 2, 3 for too little memory (see
    `tpo_lite.errors`), or 130 when interrupted.
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
    tried = f"out of memory ({first_line(error)}). `tpo-lite train` tries smaller batches."
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
    """What and remedy for errors that libraries raise."""
    if getattr(error, "errno", None) in DISK_FULL or any(os.strerror(number) in str(error) for number in DISK_FULL):
        return "the disk is full. Free some space and run the same command again; nothing is lost."
    return f"{type(error).__name__}: {error}"


def phase_main(name: str, per_arm: bool = True) -> None:
    """The command line of one phase."""

    @click.command(help=f"Runs the {name} phase of a run folder.")
    @click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
    @click.option("--arm", default=None, help="thinking or direct; default: the run's first.")
    @click.option("--iteration", type=click.IntRange(min=0), default=0, show_default=True)
    @click.option("--debug", is_flag=True, help="Show tracebacks.")
    def main(run_dir: Path, arm: str | None, iteration: int, debug: bool) -> None:
        debug = debug or os.environ.get("TPO_LITE_DEBUG") == "1"
        try:
            chosen = (arm or RunFolder(run_dir).recipe.arms[0]) if per_arm else None
            run_phase(name, run_dir, chosen, iteration)
        except (Exception, KeyboardInterrupt) as error:
            sys.exit(exit_code(error, run_dir / "log" / f"{name}.log", debug))

    main(prog_name=f"python -m tpo_lite.phases.{name}")
