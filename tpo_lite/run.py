"""The run folder: where everything of a run lies, what is finished, and who may write.

    RUN/recipe.yaml                         what decides the result
    RUN/instructions/                       validation.jsonl, iteration-0.jsonl, ..., counts.json
    RUN/<arm>/iteration-<t>/                made from M_t, ends in M_{t+1}
        samples.jsonl judgements.jsonl scores.jsonl pairs.jsonl
        train/checkpoint-<step>/ train/log.json
        validation/<checkpoint>.jsonl validation.json
        adapter/  (or model/ with `merge: requantize`)
        done/<phase>.json                   a finished phase: its summary and memory
        done/seconds.json                   wall time of every phase
    RUN/results.json                        the figures, per arm and iteration
    RUN/log/                                tracebacks by phase

The log is the state: a phase is finished when its `done/` file and its output exist, and a unit inside a
phase is finished when its line is in the JSONL file. So a damaged file is mended by deleting it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tpo_lite.errors import InputError, TpoError
from tpo_lite.recipe import Recipe, differences, parse_recipe

OUTPUTS = {
    "generate": ["samples.jsonl"],
    "judge": ["judgements.jsonl"],
    "pair": ["scores.jsonl", "pairs.jsonl"],
    "dpo": ["train/log.json"],
    "select": ["validation.json"],
}
"""Without these a phase is not finished, whatever its done file says."""

KEPT = "M_t"
"""What an iteration chooses when the judge prefers none of its checkpoints: M_{t+1} is M_t."""


class RunFolder:
    """Paths and state of one run."""

    def __init__(self, root: Path):
        self.root = root

    @property
    def recipe(self) -> Recipe:
        """The recipe that this folder was started with. Raises `InputError` where there is none."""
        path = self.root / "recipe.yaml"
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{self.root} is not a run folder: it has no recipe.yaml. Start one with `tpo-lite train --out {self.root}`.") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path} is damaged ({' '.join(str(error).split())}). Mend it, or use --new to move the folder aside.") from error
        return parse_recipe(data, str(path))

    def start(self, recipe: Recipe, new: bool) -> None:
        """Makes the folder for `recipe`, or checks that it was made for the same one.

        With `new`, a folder that is there is moved aside, never overwritten. Raises `InputError` with
        what changed.
        """
        if new and self.root.exists():
            number = 1
            while (aside := self.root.with_name(f"{self.root.name}.old-{number}")).exists():
                number += 1
            self.root.rename(aside)
        if (self.root / "recipe.yaml").exists():
            changed = differences(self.recipe, recipe)
            if changed:
                lines = "\n".join(f"  {line}" for line in changed)
                raise InputError(
                    f"{self.root} was started with other settings:\n{lines}\n"
                    "Use the old settings to go on, --out for another folder, or --new to move this one aside."
                )
            return
        if self.root.exists() and any(self.root.iterdir()):
            raise InputError(f"{self.root} is neither empty nor a run folder. Give another --out.")
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomically(self.root / "recipe.yaml", yaml.safe_dump(recipe.model_dump(), sort_keys=False))

    def iteration(self, arm: str, iteration: int) -> Path:
        """The folder of iteration t: from M_t to M_{t+1}."""
        return self.root / arm / f"iteration-{iteration}"

    def instructions(self, name: str) -> Path:
        """An instruction slice: "validation" or "iteration-<t>"."""
        return self.root / "instructions" / f"{name}.jsonl"

    def chosen(self, arm: str, iteration: int) -> str:
        """What iteration t chose for M_{t+1}: a checkpoint's name, or `KEPT`."""
        return read_json(self.iteration(arm, iteration) / "validation.json")["chosen"]

    def trained(self, arm: str, model: int) -> int:
        """The number of the model that M_model is: the same, less the iterations that kept what they had."""
        while model > 0 and self.chosen(arm, model - 1) == KEPT:
            model -= 1
        return model

    def validation_of(self, arm: str, model: int) -> Path:
        """Validation samples of M_model."""
        model = self.trained(arm, model)
        if model == 0:
            return self.root / arm / "base-validation.jsonl"
        return self.iteration(arm, model - 1) / "validation" / f"{self.chosen(arm, model - 1)}.jsonl"

    def done_path(self, phase: str, arm: str | None, iteration: int) -> Path:
        """The file that says that a phase is finished."""
        folder = self.iteration(arm, iteration) if arm else self.root / "instructions"
        return folder / "done" / f"{phase}.json"

    def is_done(self, phase: str, arm: str | None, iteration: int) -> bool:
        """Whether a phase is finished and its output is still there."""
        done = self.done_path(phase, arm, iteration)
        return done.exists() and all((done.parent.parent / name).exists() for name in OUTPUTS.get(phase, ()))

    def mark_done(self, phase: str, arm: str | None, iteration: int, summary: dict[str, Any]) -> None:
        """Writes a finished phase's summary and this process's peak memory in bytes."""
        done = {"phase": phase, "summary": summary, "peak_bytes": peak_bytes()}
        write_json(self.done_path(phase, arm, iteration), done)

    def done(self, phase: str, arm: str | None, iteration: int) -> dict[str, Any]:
        """What `mark_done` wrote."""
        return read_json(self.done_path(phase, arm, iteration))

    def record_seconds(self, phase: str, arm: str | None, iteration: int, seconds: float) -> None:
        """Adds the wall time of one process of a phase; a killed and resumed phase has several."""
        total = self.seconds(arm, iteration)
        total[phase] = total.get(phase, 0.0) + seconds
        write_json(self._seconds_path(arm, iteration), total)

    def seconds(self, arm: str | None, iteration: int) -> dict[str, float]:
        """Wall time in seconds of each phase."""
        path = self._seconds_path(arm, iteration)
        return read_json(path) if path.exists() else {}

    def _seconds_path(self, arm: str | None, iteration: int) -> Path:
        return self.done_path("seconds", arm, iteration)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Holds the folder's lock `name` ("run" or "phase"). Raises `TpoError` if another process does."""
        self.root.mkdir(parents=True, exist_ok=True)
        # Opened without truncation: the holder's process id stays readable for the message below.
        with open(self.root / f".{name}.lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise TpoError(
                    f"{self.root} is in use by process {file.read().strip() or 'unknown'}. "
                    "Wait until it ends, or give another --out."
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def peak_bytes() -> dict[str, int]:
    """Peak memory of this process: host bytes and, where it used CUDA, allocator bytes."""
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    torch = sys.modules.get("torch")  # never imported for this: a phase without torch has no GPU peak
    if torch is not None and torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_reserved()
    return peak


def write_atomically(path: Path, text: str) -> None:
    """Writes a whole file or leaves what was there: a kill never leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, data: Any) -> None:
    """Writes JSON atomically."""
    write_atomically(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON that this project wrote. Raises `InputError` if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}). Delete it and run `tpo-lite train` again with the same settings.") from error
