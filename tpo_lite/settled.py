"""A settled recipe: the recipe of a run that has started, with every choice made for its machine.

A `Recipe` may leave some values "auto". `tpo_lite.plan.choices.settle` replaces each by a value that suits the
machine, once, when a run starts. Phases, engines, judges, the plan and the back-off take the settled recipe only.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from tpo_lite.errors import InputError
from tpo_lite.kinds import Dtype, Engine, KvType, Precision, Quantize, SampledGguf
from tpo_lite.machine.device import Device
from tpo_lite.recipe import Keys, Recipe, parse_as, value_of, with_keys
from tpo_lite.recipe_keys import JudgeSettings, Positive, Sampling, Selection, Train, WarmStart

AUTO_KEYS = (
    "engine",
    "quantize",
    "judge.kv_type",
    "judge.context",
    "select.judge.kv_type",
    "select.judge.context",
    "sampling.batch",
    "train.gradient_checkpointing",
    "train.micro_batch",
)
"""Keys that may be "auto" in a recipe and never are in a settled one."""

BEFORE: Keys = {"instructions.test": 0, "quantize": "nf4", "warm_start": WarmStart(kind="none").model_dump()}
"""Keys that recipes did not always have, with the value that leaves a run as the version without the key made it."""

Limits = dict[str, int]
"""The largest values for which there was memory, by the recipe's key."""


class SettledSampling(Sampling):
    """`Sampling` without "auto"."""

    batch: Positive = 64


class SettledJudge(JudgeSettings):
    """`JudgeSettings` without "auto"."""

    context: Positive = 8192
    kv_type: KvType = "f16"


class SettledSelection(Selection):
    """`Selection` without "auto"."""

    judge: SettledJudge | None = None


class SettledTrain(Train):
    """`Train` without "auto"."""

    micro_batch: Positive = 1
    gradient_checkpointing: bool = False


class SettledRecipe(Recipe):
    """A `Recipe` in which none of `AUTO_KEYS` is "auto".

    `length_control.rho` may still be: it is found anew from the data of each iteration, not chosen for the machine.
    """

    engine: Engine = "transformers"
    quantize: Quantize = "nf4"
    dtype: Dtype = "float32"
    """With `quantize: none`, the type of the base's weights on a CPU. On a GPU it is bfloat16."""
    sampling: SettledSampling = SettledSampling()
    judge: SettledJudge = SettledJudge()
    select: SettledSelection = SettledSelection()
    train: SettledTrain = SettledTrain()

    def precision(self, device: Device) -> Precision:
        """Return what the base's linear layers are held in on `device`."""
        if self.quantize == "nf4":
            return "nf4"
        return "bfloat16" if device == "cuda" else self.dtype

    @property
    def gguf_type(self) -> SampledGguf:
        """The type of the GGUF that engine gguf makes of a model: the one nearest to what is trained."""
        return "Q4_K_M" if self.quantize == "nf4" else "F16"


def unknown_before(data: dict[str, Any]) -> Keys:
    """Return those of `BEFORE` that a recipe's data lacks, since an earlier version wrote it."""

    def lacks(key: str) -> bool:
        *sections, name = key.split(".")
        return name not in reduce(lambda section, part: section.get(part, {}), sections, data)

    return {key: value for key, value in BEFORE.items() if lacks(key)}


def open_keys(recipe: Recipe) -> list[str]:
    """Return the keys that a recipe leaves "auto"."""
    return [key for key in AUTO_KEYS if value_of(recipe, key) == "auto"]


def as_settled(recipe: Recipe, source: str = "with its values as they are") -> SettledRecipe:
    """Return a recipe that leaves nothing open as a settled one. Raises `InputError` that names a key left "auto"."""
    if missing := open_keys(recipe):
        raise InputError(f"recipe {source} leaves {', '.join(missing)} auto. Give a value for each.")
    return parse_as(SettledRecipe, recipe.model_dump(), source)


def filled_from(earlier: SettledRecipe, recipe: Recipe) -> SettledRecipe:
    """Return `recipe` with what it leaves open as `earlier` has it: a run that goes on keeps what was chosen for it."""
    known = {key: value_of(earlier, key) for key in open_keys(recipe)}
    # What `earlier` has no section for stays open.
    filled = as_settled(with_keys(recipe, {key: value for key, value in known.items() if value is not None}))
    return with_keys(filled, {"dtype": earlier.dtype})


def limited(recipe: SettledRecipe, limits: Limits) -> SettledRecipe:
    """Return `recipe` with no value above its limit. Raises `InputError` for limits that no recipe can have."""
    lowered = with_keys(recipe, limits)
    return with_keys(recipe, {key: min(value_of(recipe, key), value_of(lowered, key)) for key in limits})
