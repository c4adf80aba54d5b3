"""Runs of the command line and of the loop, for tests."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from click.testing import CliRunner, Result

from tpo_lite.cli import main
from tpo_lite.loop import orchestrator
from tpo_lite.machine.device import CPU, Place
from tpo_lite.phases import crosscheck, select
from tpo_lite.phases.process import exit_code, run_phase
from tpo_lite.run import RunFolder
from tpo_lite.settled import SettledRecipe

WORDS = [
    "name",
    "three",
    "long",
    "rivers",
    "colour",
    "of",
    "old",
    "music",
    "write",
    "about",
    "small",
    "birds",
    "why",
    "does",
    "rain",
    "fall",
    "in",
    "spring",
]


def start(run: RunFolder, recipe: SettledRecipe, new: bool = False, place: Place = CPU) -> None:
    """Start a run as `tpo-lite train` does with a recipe that leaves nothing open."""
    run.start(recipe, recipe, place, new=new)


def write_prompts(path: Path, count: int) -> Path:
    """Distinct instructions of six words."""
    numbers = random.Random(0)
    lines = [json.dumps({"instruction": " ".join(numbers.sample(WORDS, 6))}) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def invoke(*arguments: object) -> Result:
    """`tpo-lite` in this process; phases of `train` are processes of their own, and write past `Result.output`."""
    with patch.dict(os.environ):  # the command line is an entry point, and changes it
        return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="tpo-lite")


def command(*arguments: object) -> list[str]:
    """The command line of `tpo-lite` as a process."""
    return [sys.executable, "-m", "tpo_lite.cli", *map(str, arguments)]


def tpo_lite(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`tpo-lite` as a process, its phases included; stdout and stderr together in `stdout`."""
    return subprocess.run(
        command(*arguments),
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def last_checkpoint(rates: Mapping[str, float]) -> str:
    """What `choosing` takes: a checkpoint, never M_t."""
    return list(rates)[-1]


@contextmanager
def choosing(best: Callable[[Mapping[str, float]], str] = last_checkpoint) -> Iterator[None]:
    """Choose checkpoints by `best`. What a random judge prefers depends on how the machine's CPU rounds."""
    with patch.object(select, "best", best), patch.object(crosscheck, "best", best):
        yield


def train_here(*arguments: object, best: Callable[[Mapping[str, float]], str] = last_checkpoint) -> Result:
    """`tpo-lite train` with its phases in this process: their imports cost seconds, and `Result.output` has all.

    Every iteration ends with its last checkpoint, unless `best` says otherwise.
    """
    here = patch.object(orchestrator, "_phase", lambda run, phase, arm, t, debug: run_phase(phase, run.root, arm, t))
    with here, choosing(best):
        return invoke("train", *arguments)


def finished_run(
    root: Path, arguments: list[str], best: Callable[[Mapping[str, float]], str] = last_checkpoint
) -> Path:
    """The folder of the run that `train_here` with these arguments ends with."""
    result = train_here(*arguments, "--out", root, "--debug", best=best)
    assert result.exit_code == 0, result.output
    return root


def process_here(run, phase, arm, iteration, debug):
    """`orchestrator.process` in this process."""
    try:
        run_phase(phase, run.root, arm, iteration)
    except Exception as error:
        return exit_code(error, run.root / "log" / f"{phase}.log", debug)
    return 0


def as_left(run: RunFolder, phase: str, iteration: int) -> None:
    """Let the files of a finished phase of the direct arm count as what it left, whatever a test has made of them."""
    done = run.done(phase, "direct", iteration)
    run.mark_done(phase, "direct", iteration, done["summary"], done["peak_bytes"])


def before_phase(run: Path, root: Path, phase: str, iteration: int, outputs: list[str]) -> RunFolder:
    """A copy of a finished run of the direct arm as it was before `phase` of that iteration, without its outputs."""
    shutil.copytree(run, root)
    folder = root / "direct" / f"iteration-{iteration}"
    (folder / "done" / f"{phase}.json").unlink()
    for name in outputs:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return RunFolder(root)
