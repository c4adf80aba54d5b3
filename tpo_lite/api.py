"""The functions of the public API that combine several packages. `import tpo_lite` gives them lazily."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tpo_lite.recipe import Recipe
from tpo_lite.settled import SettledRecipe, filled_from

if TYPE_CHECKING:
    from tpo_lite.instructions.slices import Slices
    from tpo_lite.machine.device import Device
    from tpo_lite.run import RunFolder
    from tpo_lite.sampling.policy import LoadedPolicy, Policy


def settle(recipe: Recipe, gpu: int | None = None) -> SettledRecipe:
    """Return `recipe` with a value for each `auto` that depends on the machine.

    `gpu` is the index of the GPU that the run will use; None is the CPU. Raises `InputError` for a model or a judge
    whose size cannot be read and for a GPU that is not there.
    """
    from tpo_lite.machine.cards import choose_card, cpu
    from tpo_lite.plan import choices
    from tpo_lite.plan.shapes import judge_shape, model_shape

    card = cpu() if gpu is None else choose_card(None, gpu)
    return choices.settle(recipe, model_shape(recipe.model), judge_shape(recipe.judge), card)


def train(recipe: Recipe, out: str | Path, gpu: int | None = None) -> RunFolder:
    """Run all iterations of `recipe`, or go on with the run in the folder `out`; return the finished run.

    Each phase is a process of its own, so a script does not need an `if __name__ == "__main__":` guard. Raises
    `InputError` if `out` holds another run, and `TpoError` if a phase fails.
    """
    from tpo_lite.loop import orchestrator
    from tpo_lite.machine.device import place_of
    from tpo_lite.run import RunFolder

    folder = RunFolder(Path(out))
    recipe = folder.as_begun(recipe)
    recorded = folder.load_recorded()
    settled = settle(recipe, gpu) if recorded is None else filled_from(recorded, recipe)
    folder.start(recipe, settled, place_of(gpu), new=False)
    orchestrator.train(folder, lambda iteration: None, debug=False)
    return folder


def load_instructions(recipe: Recipe, out: str | Path) -> Slices:
    """Read the recipe's instructions, clean them, and cut them into disjoint slices.

    The model's tokenizer counts their tokens. A GGUF is first dequantized to OUT/base, as in `base_policy`. Raises
    `InputError` for instructions or a model that cannot be used.
    """
    from tpo_lite.phases.prepare import cut
    from tpo_lite.sampling.base import base_model

    return cut(recipe, base_model(recipe.model, Path(out)).model)[0]


def base_policy(recipe: Recipe, out: str | Path) -> Policy:
    """Return M_0 of `recipe` on disk; `out` is where files made from the model are kept."""
    from tpo_lite.sampling.base import base_model
    from tpo_lite.sampling.policy import Policy

    base = base_model(recipe.model, Path(out))
    return Policy(base.model, None, Path(out), base.gguf)


def open_policy(recipe: SettledRecipe, policy: Policy, device: Device = "cpu") -> LoadedPolicy:
    """Load M_t, ready to sample. Raises `InputError` if it cannot be loaded, and `OutOfMemory`."""
    from tpo_lite.sampling.policy import LoadedPolicy

    return LoadedPolicy(recipe, policy, device)
