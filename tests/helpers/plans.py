"""Recipes with the shapes of their models, and the plan's command, for tests of the plan."""

from __future__ import annotations

from click.testing import CliRunner

from tpo_lite.cli.plan import plan as plan_command
from tpo_lite.machine.cards import choose_card
from tpo_lite.plan.shapes import PUBLISHED, judge_shape, model_shape, shape_of
from tpo_lite.recipe import load_recipe, with_keys
from tpo_lite.settled import as_settled

DEFAULT = "llama-3.1-8b-24gb"
CRITIC = (
    "judge.model=hub:QuantFactory/Skywork-Critic-Llama-3.1-8B-GGUF/*Q4_K_M.gguf",
    "judge.mode=verdict",
    "judge.context=65536",
    "judge.batch=2048",
    "judge.kv_type=q8_0",
)
"""A GGUF judge instead of the default recipe's reward model."""
LARGE = shape_of(PUBLISHED["llama-3.1-8b"], "8B")
"""Llama-3.1-8B."""
CARD = choose_card(24)


def asked(name=DEFAULT, *overrides):
    """A recipe as a person wrote it, with its model's and judge's shapes; the default recipe with a GGUF judge."""
    recipe = load_recipe(name, [*CRITIC, *overrides] if name == DEFAULT else overrides)
    return recipe, model_shape(recipe.model), judge_shape(recipe.judge)


def planned(name=DEFAULT, *overrides):
    """The same, settled; the engine is transformers and the base in NF4 where the recipe does not say."""
    recipe, model, judge = asked(name, *overrides)
    engine = "transformers" if recipe.engine == "auto" else recipe.engine
    quantize = "nf4" if recipe.quantize == "auto" else recipe.quantize
    return as_settled(with_keys(recipe, {"engine": engine, "quantize": quantize})), model, judge


def run_plan(*arguments):
    """`tpo-lite plan` in this process."""
    return CliRunner().invoke(plan_command, [str(argument) for argument in arguments])
