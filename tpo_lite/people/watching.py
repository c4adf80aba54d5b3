"""What a run is doing right now, read from its folder: for `tpo-lite watch`.

Nothing here takes a lock or writes, so that watching cannot disturb a run.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tpo_lite.kinds import Arm
from tpo_lite.loop.orchestrator import steps
from tpo_lite.people.costs import read_plan
from tpo_lite.run import RunFolder

TAIL = 1 << 20
"""Bytes at the end of a JSONL file in which the last record is looked for."""


@dataclass(frozen=True)
class Progress:
    """How far a phase is."""

    done: int
    total: int
    unit: str


@dataclass(frozen=True)
class Thought:
    """One sample of the policy that was drawn last."""

    instruction: str
    thought: str
    response: str


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment."""

    phase: str | None
    """The phase that comes next or is going on; None in a finished run."""
    arm: Arm | None
    iteration: int
    process: int | None
    """The process of the phase that is going on; None if none is."""
    progress: Progress | None
    """None in a phase that is over in no time, or cannot be counted."""
    memory: int | None
    """Bytes of RAM that the phase's process has."""
    planned: int | None
    """Bytes that the plan expects at the phase's peak, on a GPU where there is one."""
    thought: Thought | None

    @property
    def label(self) -> str:
        """Return the phase, such as "thinking, iteration 2, judge"."""
        if self.phase is None:
            return "finished"
        return f"{self.arm}, iteration {self.iteration + 1}, {self.phase}" if self.arm else self.phase


def look(folder: RunFolder, turn: int = 0) -> Snapshot:
    """Return what a run is doing; `turn` chooses the sample that is shown. Raises `InputError` if it is not a run."""
    unfinished = (step for step in steps(folder.load_started()) if not folder.is_done(*step))
    phase, arm, iteration = next(unfinished, (None, None, 0))
    process = _process(folder)
    plan = read_plan(folder)
    planned = plan["phases"].get(phase) if plan else None
    return Snapshot(
        phase=phase,
        arm=arm,
        iteration=iteration,
        process=process,
        progress=_progress(folder, phase, arm, iteration) if phase and arm else None,
        memory=_memory(process) if process else None,
        planned=planned["peak_bytes"] if planned else None,
        thought=_thought(folder, turn),
    )


def _process(folder: RunFolder) -> int | None:
    """Return the process that holds the folder's phase lock, if it is one of ours and still there."""
    try:
        number = int((folder.root / ".phase.lock").read_text())
        command = Path(f"/proc/{number}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return number if b"tpo_lite" in command or b"tpo-lite" in command else None


def _memory(process: int) -> int | None:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _progress(folder: RunFolder, phase: str, arm: Arm, iteration: int) -> Progress | None:
    here, recipe = folder.iteration(arm, iteration), folder.load_started()
    prompts = _lines(folder.instructions(f"iteration-{iteration}"))
    held_out = _lines(folder.instructions("validation"))
    checkpoints = len(list(here.glob("train/checkpoint-*/complete")))
    answers = [path for path in here.glob("validation/checkpoint-*.jsonl") if "-vs-" not in path.name]
    matches = list(here.glob("validation/*-vs-*.jsonl"))
    if phase == "generate":
        return Progress(_lines(here / "samples.jsonl"), prompts, "prompts")
    if phase == "judge":
        return Progress(_lines(here / "judgements.jsonl"), prompts, "prompts")
    if phase == "dpo":
        return Progress(checkpoints, recipe.train.epochs, "epochs")
    if phase == "test":
        return Progress(_lines(here / "test" / "answers.jsonl"), _lines(folder.instructions("test")), "answers")
    if phase == "validate":
        return Progress(sum(map(_lines, answers)), checkpoints * held_out, "answers")
    if phase == "select":
        return Progress(sum(map(_lines, matches)), (checkpoints + (iteration > 0)) * held_out, "matches")
    return None


def _lines(path: Path) -> int:
    """Return the number of whole lines of a file; 0 if it is not there."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(TAIL), b""))


def _thought(folder: RunFolder, turn: int) -> Thought | None:
    """Return a sample of the last prompt of the file that was written last."""
    files = sorted(folder.root.glob("*/iteration-*/samples.jsonl"), key=lambda path: path.stat().st_mtime)
    if not files:
        return None
    with files[-1].open("rb") as file:
        file.seek(max(0, files[-1].stat().st_size - TAIL))
        whole = file.read().rpartition(b"\n")[0]
    try:
        data = json.loads(whole.rpartition(b"\n")[2])
        samples = [sample for sample in data["samples"] if sample["response"]]
        sample = samples[turn % len(samples)]
    except (ValueError, KeyError, ZeroDivisionError):
        return None  # one prompt's samples are larger than the tail, or none has a response
    return Thought(data["instruction"]["text"], sample["thought"], sample["response"])
