"""Settled recipes: plain values where a recipe may say `auto`."""

import pytest

from tpo_lite.errors import InputError
from tpo_lite.recipe import load_recipe, parse_as, value_of, with_keys
from tpo_lite.settled import AUTO_KEYS, SettledRecipe, as_settled, filled_from, open_keys

RECIPE = load_recipe("embedded")
AUTO = with_keys(RECIPE, dict.fromkeys(AUTO_KEYS, "auto"))


@pytest.mark.parametrize("key", AUTO_KEYS)
def test_auto_is_an_error_in_a_settled_recipe(key):
    with pytest.raises(InputError, match=rf"  {key}: 'auto' does not fit"):
        parse_as(SettledRecipe, with_keys(RECIPE, {key: "auto"}).model_dump(), "test")


def test_a_recipe_that_leaves_nothing_open_is_settled_as_it_is():
    assert open_keys(RECIPE) == []
    assert as_settled(RECIPE).model_dump() == RECIPE.model_dump() | {"dtype": "float32"}
    assert as_settled(RECIPE).length_control.rho == "auto"  # found from each iteration's data


def test_open_keys_are_named_where_nothing_settles_them():
    assert open_keys(AUTO) == list(AUTO_KEYS)
    with pytest.raises(InputError, match="leaves engine, sampling.batch auto. Give a value for each"):
        as_settled(with_keys(RECIPE, {"engine": "auto", "sampling.batch": "auto"}))


def test_what_is_open_is_filled_from_an_earlier_recipe_and_the_rest_stays():
    keys = {"engine": "gguf", "sampling.batch": 24, "train.micro_batch": 2, "seed": 9, "select.judge.context": 1024}
    earlier = with_keys(as_settled(RECIPE), keys)
    filled = filled_from(earlier, with_keys(AUTO, {"sampling.batch": 16}))
    assert {key: value_of(filled, key) for key in AUTO_KEYS} == {key: value_of(earlier, key) for key in AUTO_KEYS} | {
        "sampling.batch": 16
    }
    assert filled.seed == RECIPE.seed
