"""The run folder: where everything of a run lies, what is finished, and who may write.

    RUN/recipe.yaml                         what decides the result
    RUN/limits.json                         batches that memory had room for, where the recipe's were too large
    RUN/base-Q4_K_M.gguf                    the base as engine gguf samples it (requantize: in iteration-<t>/)
    RUN/instructions/                       validation.jsonl, iteration-0.jsonl, ..., counts.json
    RUN/<arm>/iteration-<t>/                made from M_t, ends in M_{t+1}
        samples.jsonl judgements.jsonl scores.jsonl pairs.jsonl
        train/checkpoint-<step>/ train/log.json
        validation/<checkpoint>.jsonl validation.json
        adapter/  (or model/ with `merge: requantize`)
        done/<phase>.json                   a finished phase: its summary, outputs and peak memory
        done/seconds.json                   wall time of every phase
    RUN/results.json                        the figures, per arm and iteration
    RUN/log/                                tracebacks by phase

The log is the state: a phase is finished when its `done/` file and the outputs named there exist, and a unit
inside a phase is finished when its line is in the JSONL file. So a damaged file is mended by deleting it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tpo_lite.errors import DISK_FULL, InputError, TpoError
from tpo_lite.files import read_json, write_atomically, write_json
from tpo_lite.recipe import Recipe, differences, parse_recipe
from tpo_lite.settled import Limits, limited

OUTPUTS = {
    "prepare": ["*.jsonl"],
    "generate": ["../base-validation.jsonl", "samples.jsonl"],
    "judge": ["judgements.jsonl"],
    "pair": ["scores.jsonl", "pairs.jsonl"],
    "dpo": ["train/checkpoint-*/adapter_model.safetensors", "train/log.json"],
    "validate": ["validation/checkpoint-*.jsonl"],
    "select": ["validation/*-vs-*.jsonl", "validation.json"],
    "fold": ["adapter/*", "model/*"],
}
"""What a phase leaves for later ones; without all that it left a phase is not finished."""

KEPT = "M_t"
"""What an iteration chooses when the judge prefers none of its checkpoints: M_{t+1} is M_t."""


class RunFolder:
    """Paths and state of one run."""

    def __init__(self, root: Path):
        self.root = root

    @property
    def recipe(self) -> Recipe:
        """The recipe as this machine can run it: what `started_with` says, with batches within `limits`."""
        return limited(self.started_with, self.limits)

    @property
    def limits(self) -> Limits:
        """The values, by the recipe's key, to which batches that did not fit the memory were cut down."""
        path = self.root / "limits.json"
        return read_json(path) if path.exists() else {}

    def limit(self, limits: Limits) -> None:
        """Adds to `limits`, for all phases and iterations to come."""
        write_json(self.root / "limits.json", self.limits | limits)

    @property
    def started_with(self) -> Recipe:
        """The recipe that this folder was started with. Raises `InputError` where there is none."""
        path = self.root / "recipe.yaml"
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(
                f"{self.root} is not a run folder: it has no recipe.yaml. Start one with `tpo-lite train --out {self.root}`."
            ) from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(
                f"{path} is damaged ({' '.join(str(error).split())}). Mend it, or use --new to move the folder aside."
            ) from error
        return parse_recipe(data, str(path))

    def start(self, recipe: Recipe, new: bool) -> None:
        """Makes the folder for `recipe`, or checks that it was made for the same one.

        While nothing has been computed, another recipe takes the place of the first. With `new`, a folder
        that is there is moved aside, never overwritten. Raises `InputError` with what changed.
        """
        try:
            self._start(recipe, new)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            raise InputError(f"--out {self.root} cannot be used ({error.strerror}). Give another folder.") from error

    def _start(self, recipe: Recipe, new: bool) -> None:
        if new and (self.root / "recipe.yaml").exists():
            root, number = self.root.resolve(), 1
            while (aside := root.with_name(f"{root.name}.old-{number}")).exists():
                number += 1
            with self.lock("run"), self.lock("phase"):
                root.rename(aside)
        if (self.root / "recipe.yaml").exists():
            changed = differences(self.started_with, recipe)
            if changed and not self._computed():
                with self.lock("run"):
                    (self.root / "limits.json").unlink(missing_ok=True)
                    self._write_recipe(recipe)
            elif changed:
                lines = "\n".join(f"  {line}" for line in changed)
                raise InputError(
                    f"{self.root} was started with other settings:\n{lines}\n"
                    "Use the old settings to go on, --out for another folder, or --new to move this one aside."
                )
            return
        if self.root.exists() and any(self.root.iterdir()):
            raise InputError(f"{self.root} is neither empty nor a run folder. Give another --out.")
        self.root.mkdir(parents=True, exist_ok=True)
        self._write_recipe(recipe)

    def _computed(self) -> bool:
        """Whether anything there depends on the recipe."""
        return self.is_done("prepare", None, 0) or any((self.root / arm).exists() for arm in self.started_with.arms)

    def _write_recipe(self, recipe: Recipe) -> None:
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
        if self.recipe.merge == "requantize":
            return self.iteration(arm, model - 1) / "validation" / "merged.jsonl"
        return self.checkpoint_validation(arm, model - 1)

    def checkpoint_validation(self, arm: str, iteration: int) -> Path:
        """Validation samples of the checkpoint that an iteration chose."""
        return self.iteration(arm, iteration) / "validation" / f"{self.chosen(arm, iteration)}.jsonl"

    def done_path(self, phase: str, arm: str | None, iteration: int) -> Path:
        """The file that says that a phase is finished."""
        folder = self.iteration(arm, iteration) if arm else self.root / "instructions"
        return folder / "done" / f"{phase}.json"

    def is_done(self, phase: str, arm: str | None, iteration: int) -> bool:
        """Whether a phase is finished and all its outputs are still there."""
        path = self.done_path(phase, arm, iteration)
        return path.exists() and all((path.parent.parent / name).exists() for name in read_json(path)["outputs"])

    def mark_done(
        self, phase: str, arm: str | None, iteration: int, summary: dict[str, Any], peak_bytes: dict[str, int]
    ) -> None:
        """Writes a finished phase's summary, its outputs and its process's peak memory."""
        path = self.done_path(phase, arm, iteration)
        folder = path.parent.parent
        outputs = [
            str(file.relative_to(folder)) for glob in OUTPUTS.get(phase, ()) for file in sorted(folder.glob(glob))
        ]
        write_json(path, {"phase": phase, "summary": summary, "outputs": outputs, "peak_bytes": peak_bytes})

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


PHASES = ("generate", "judge", "pair", "dpo", "validate", "select", "fold")
"""The order within an iteration; "prepare" comes once, before the first."""
