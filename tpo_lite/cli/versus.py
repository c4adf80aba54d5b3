"""Who meets whom in `tpo-lite eval versus`: two files, two folders of runs, or both arms of one run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tpo_lite.errors import InputError

if TYPE_CHECKING:
    from tpo_lite.evaluation.arms import Arms
    from tpo_lite.evaluation.outputs import Outputs
    from tpo_lite.run import RunFolder


@dataclass(frozen=True)
class Contestants:
    """Two models' outputs and where what is found goes."""

    first: Outputs
    second: Outputs
    ids: list[str]
    """The instructions, as both outputs have them."""
    out: Path
    """A folder."""
    folder: RunFolder | None
    """The run, where one is given instead of two models."""
    arms: Arms | None
    """The run's arms, whose controls belong beside the figures; None for other models."""

    def device(self, gpu: int | None) -> int | None:
        """Return the index of the GPU to judge on: the one given or, with a run, the run's."""
        return self.folder.load_place().gpu if gpu is None and self.folder is not None else gpu

    def in_categories(self, path: Path) -> tuple[Outputs, Outputs]:
        """Return both outputs in the categories that a file gives to their instructions."""
        from tpo_lite.evaluation.classify import categorized

        return categorized(self.first, path), categorized(self.second, path)


def contestants(a: Path, b: Path | None, at: int | None, judge: str | None, out: Path | None) -> Contestants:
    """Return who meets whom. Raises `InputError` for what does not go together."""
    from tpo_lite.evaluation.arms import meeting, open_arms
    from tpo_lite.evaluation.outputs import read_outputs, same_instructions

    if b is None:
        if not (a / "recipe.yaml").is_file():
            raise InputError(f"{a} is not a run folder. Give a run with both arms, or the outputs of two models.")
        arms = open_arms(a, at)
        first, second = arms.outputs("thinking"), arms.outputs("direct")
        return Contestants(first, second, list(first.by_id), out or arms.out / "versus", arms.folder, arms)
    if at is not None:
        raise InputError("--at goes with one run. With two models, give RUN/thinking/iteration-<t> for M_<t+1>.")
    if judge is None or out is None:
        raise InputError("Two models need --judge and --out. One run with both arms needs neither.")
    first, second = read_outputs(a), read_outputs(b)
    return Contestants(first, second, same_instructions(first, second), out, None, meeting(a, b))


def pin(folder: RunFolder, gpu: int | None) -> int | None:
    """Let this process see the run's device alone, or the GPU that is given; return the GPU's index, None for the CPU.

    Only before torch or llama.cpp is loaded.
    """
    from tpo_lite.machine.device import place_of

    place = folder.load_place() if gpu is None else place_of(gpu)
    place.pin(os.environ)
    return place.gpu
