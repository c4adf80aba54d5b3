"""Which model of a run is exported, and what it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tpo_lite.errors import InputError
from tpo_lite.evaluation.outputs import count_finished, worker_in
from tpo_lite.hub import is_gguf, is_hub_id, model_folder
from tpo_lite.kinds import Arm
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.sampling.policy import Policy, bare_base, policy
from tpo_lite.settled import SettledRecipe
from tpo_lite.thoughts import ThoughtStyle


@dataclass(frozen=True)
class Chosen:
    """M_n of an arm, as the run left it."""

    folder: RunFolder
    recipe: SettledRecipe
    arm: Arm
    model: int
    """n; an earlier model if later iterations kept M_t."""
    policy: Policy
    """What the run samples from."""
    base: Policy
    """The base that all adapters of the run are for, without an adapter."""
    base_name: str
    """What the base is called in the files of an export: a hub id if it is one, never a path."""
    notes: tuple[str, ...]
    """What the user has to know."""

    @property
    def name(self) -> str:
        """The model's name, such as "thinking M_2"."""
        return f"{self.arm} M_{self.model}"

    @property
    def style(self) -> ThoughtStyle:
        """The thought prompt that it was trained with."""
        return self.recipe.style(self.arm)


def choose(folder: RunFolder, arm_name: str | None, iteration: int | None, base_name: str | None) -> Chosen:
    """Return the model that `iteration` ended with, by default the last finished one; `arm_name` None: the first arm.

    Raises `InputError` for an arm or an iteration that the run does not have or has not finished, for a run that is
    still going (unless a finished iteration is named), and for a model that is the base itself.
    """
    recipe = folder.load_settled()
    arm = next((each for each in recipe.arms if arm_name in (None, each)), None)
    if arm is None:
        raise InputError(f"this run has no arm {arm_name!r}; it has {', '.join(recipe.arms)}.")
    finished = count_finished(folder, arm, "fold")
    going_on = f"`tpo-lite train --out {folder.root}` with the same settings goes on."
    if iteration is None and (process := worker_in(folder.root)):
        named = f", or export a finished iteration with --iteration {finished - 1}" if finished else ""
        raise InputError(f"{folder.root} is still going (process {process}). Wait until it ends{named}.")
    if finished == 0:
        raise InputError(f"{folder.root} has no finished iteration of {arm}, so there is nothing to export. {going_on}")
    if iteration is not None and iteration >= finished:
        raise InputError(f"iteration {iteration} of {arm} is not finished; 0 to {finished - 1} are. {going_on}")
    asked = finished if iteration is None else iteration + 1
    model = folder.trained(arm, asked)
    found = policy(folder, recipe, arm, asked)
    if model == 0 and found.adapter is None:
        raise InputError(
            f"{arm} M_{asked} is the base itself: the judge preferred none of the checkpoints, so training has changed "
            f"nothing and there is no adapter. Use {recipe.model}, or train on."
        )
    notes = []
    if iteration is None and finished < recipe.iterations:
        notes.append(f"only {finished} of {recipe.iterations} iterations are finished. {going_on}")
    if model < asked:
        notes.append(f"later iterations kept it: {arm} M_{asked} is M_{model}.")
    name = base_name or recipe.model
    if base_name is None and not is_hub_id(recipe.model):
        name = Path(recipe.model).name
        notes.append(_unnamed(recipe.model, name))
    elif base_name is None and is_gguf(recipe.model):
        name = recipe.model.rpartition("/")[2]
        notes.append(_unnamed(recipe.model, name))
    return Chosen(folder, recipe, arm, model, found, bare_base(folder, recipe), name, tuple(notes))


def _unnamed(model: str, name: str) -> str:
    where = "a GGUF, dequantized in the run folder" if is_gguf(model) else f"the local folder {model_folder(model)}"
    return (
        f"the base is {where}. An adapter works with that base only; its files call it {name!r}. "
        "--base-model OWNER/NAME says where others find it."
    )


def made_in(chosen: Chosen) -> list[Path]:
    """Return the adapters of the checkpoints whose updates make up the model, in order.

    With `merge: requantize` every iteration's checkpoint is an update of the model before it. Otherwise the last
    adapter holds all.
    """
    if chosen.policy.adapter is not None:
        return [chosen.policy.adapter]
    adapters = []
    for iteration in range(chosen.model):
        name = chosen.folder.chosen(chosen.arm, iteration)
        if name != KEPT:
            adapters.append(chosen.folder.iteration(chosen.arm, iteration) / "train" / name)
    return adapters
