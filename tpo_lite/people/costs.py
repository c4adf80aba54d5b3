"""What each phase of a run took, in time and memory, beside what was planned for it and what the card has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tpo_lite.errors import InputError
from tpo_lite.files import read_json
from tpo_lite.kinds import Arm
from tpo_lite.phase_order import WARM_PHASES, phases_of, warm_phases
from tpo_lite.run import RunFolder
from tpo_lite.settled import SettledRecipe

PLAN = "plan.json"
"""The file in the run folder of the plan that a run was started with, as `tpo_lite.plan.report.as_data` gives it."""


@dataclass(frozen=True)
class PhaseCost:
    """What one phase took."""

    phase: str
    seconds: float
    """Wall time over all iterations and arms."""
    peak: int
    """The highest peak in bytes: of the GPU where there is one, else of RAM."""
    host: int
    """The highest peak of RAM in bytes."""
    planned_seconds: float | None
    """What the plan expected over as many iterations and arms; None without a plan."""
    planned_peak: int | None
    """The peak in bytes that the plan expected; None without a plan."""


@dataclass(frozen=True)
class Costs:
    """What a run took so far."""

    phases: list[PhaseCost]
    """Those that have run, in their order."""
    where: str
    """What the peaks are those of: the card's name, or "CPU"."""
    memory: int | None
    """What the card has, or for a CPU the machine, in bytes; None without a plan."""
    on_gpu: bool

    @property
    def seconds(self) -> float:
        """Return the wall time of all phases."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def line(self) -> str:
        """Return the card in a few words, with its memory if it is known."""
        return self.where if self.memory is None else f"{self.where}, {self.memory / 2**30:.1f} GiB"


def costs(folder: RunFolder, recipe: SettledRecipe) -> Costs:
    """Return the costs of all that has run so far."""
    plan = read_plan(folder)
    on_gpu = folder.load_place().gpu is not None
    phases = ("prepare", *warm_phases(recipe), *phases_of(recipe))
    found = [_phase(folder, recipe, phase, on_gpu, plan) for phase in phases]
    where = str(plan["card"]["name"]) if plan else "GPU" if on_gpu else "CPU"
    memory = int(plan["card"]["bytes"]) if plan else None
    return Costs([cost for cost in found if cost is not None], where, memory, on_gpu)


def read_plan(folder: RunFolder) -> dict[str, Any] | None:
    """Read the plan that `train` showed before the run started; None in a run that has none, or none that is whole."""
    path = folder.root / PLAN
    if not path.exists():
        return None
    try:
        plan = dict(read_json(path))
        _ = plan["card"]["name"], plan["card"]["bytes"], plan["phases"].items()
    except (InputError, AttributeError, KeyError, TypeError, ValueError):
        return None  # a plan is not worth a report
    return plan


def _phase(
    folder: RunFolder, recipe: SettledRecipe, phase: str, on_gpu: bool, plan: dict[str, Any] | None
) -> PhaseCost | None:
    times = [(place, folder.seconds(*place, beside=phase).get(phase)) for place in _places(recipe, phase)]
    run = [(place, seconds) for place, seconds in times if seconds is not None]
    if not run:
        return None
    peaks = [folder.done(phase, *place)["peak_bytes"] for place, _ in run if folder.is_done(phase, *place)]
    host = max((peak["host"] for peak in peaks), default=0)
    gpu = max((peak.get("gpu", 0) for peak in peaks), default=0)
    planned = plan["phases"].get(phase) if plan else None
    return PhaseCost(
        phase=phase,
        seconds=sum(seconds for _, seconds in run),
        peak=gpu if on_gpu and gpu else host,
        host=host,
        planned_seconds=planned["seconds"] * len(run) if planned else None,
        planned_peak=planned["peak_bytes"] if planned else None,
    )


def _places(recipe: SettledRecipe, phase: str) -> Iterator[tuple[Arm | None, int]]:
    """Yield the arm and the iteration of each time that a phase runs."""
    if phase == "prepare":
        yield None, 0
        return
    for iteration in range(1 if phase in WARM_PHASES else recipe.iterations):
        for arm in recipe.arms:
            yield arm, iteration
