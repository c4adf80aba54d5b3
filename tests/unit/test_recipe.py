"""Recipes: every shipped one is valid, and every mistake is one message with key, value and remedy."""

import pytest

from tpo_lite.errors import InputError
from tpo_lite.recipe import Recipe, differences, load_recipe, recipe_path, shipped
from tpo_lite.recipe_keys import JudgeSettings

SHIPPED = [
    "embedded",
    "llama-3.1-8b-24gb",
    "llama-3.1-8b-24gb-paper",
    "llama-3.1-8b-24gb-specific-rm",
    "llama-3.2-3b-12gb",
    "smollm2-135m-cpu",
]


def test_shipped_recipes_are_these():
    assert [path.stem for path in shipped()] == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_load_and_take_the_direct_baseline(name):
    assert "thinking" in load_recipe(name).arms
    assert load_recipe(name, ["thought.style=direct"]).arms == ["direct"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_start_with_a_header(name):
    header = [line for line in recipe_path(name).read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header).lower()
    assert "tpo-lite train" in text
    assert "measured" in text or "estimated" in text


def test_the_paper_recipe_has_the_papers_sizes():
    recipe = load_recipe("llama-3.1-8b-24gb-paper")
    assert (recipe.instructions.per_iteration, recipe.sampling.k, recipe.train.epochs, recipe.iterations) == (
        5000,
        8,
        10,
        4,
    )
    assert (recipe.sampling.temperature, recipe.sampling.top_p) == (0.8, 0.95)
    # Its judge explains itself, and is asked as the paper's was.
    assert (recipe.judge.mode, recipe.judge.prompt) == ("explain", "self-taught-evaluator")


def test_the_specific_recipe_differs_from_the_default_in_its_thought_prompt():
    old, new = (load_recipe(f"llama-3.1-8b-24gb{suffix}") for suffix in ("", "-specific-rm"))
    assert differences(old, new) == ["thought.style: 'generic' -> 'specific'"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("thoughts.style=direct", "did you mean thought"),
        ("thought.styl=direct", "thought.styl: unknown key (value 'direct'); did you mean thought.style?"),
        ("train.learning_rate=-1", "train.learning_rate: -1 does not fit"),
        ("length_control.rho=0.7", "length_control.rho: 0.7 does not fit: input should be less than or equal to 0.5"),
        ("sampling.k=1", "sampling.k: 1 does not fit"),
        ("judge.mode=loud", "'reward-model' or 'openai'"),
        ("thought.style=custom", "give thought.prompt and thought.response_marker too"),
        ("thought.prompt=Think. {instruction}", "set it to custom"),
        ("thought.response_marker=X", "thought.response_marker is given, but thought.style is generic"),
        ("seed=-1", "seed: -1 does not fit"),
        ("seed=4294967296", "seed: 4294967296 does not fit"),
        ("sampling.temperature=.inf", "sampling.temperature: inf does not fit"),
        ("train.warmup=1.0", "train.warmup: 1.0 does not fit"),
        ("train.optimizer=sgd", "'adamw_torch', 'adamw_8bit' or 'paged_adamw_8bit'"),
        ("thought.budget=128", "thought.budget: 128 leaves nothing of sampling.max_new_tokens (128) for a response"),
        ("train.micro_batch=6", "train.micro_batch: 6 must divide train.batch (8). Use 4."),
        ("thought.style=specific", "thought.style: 'specific' does not fit the embedded policy"),
        ("thought.style=think", "thought.style: 'think' does not fit the embedded policy"),
        ("iterations", "is not key.path=value"),
        ("seed.value=3", "seed is not a section"),
        ("seed=[1", "is not a YAML value"),
    ],
)
def test_mistakes_name_key_value_and_remedy(override, message):
    with pytest.raises(InputError) as raised:
        load_recipe("embedded", [override])
    assert message in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_recipe_that_is_not_there_lists_those_that_are():
    with pytest.raises(InputError, match="llama-3.1-8b-24gb-paper"):
        load_recipe("llama-9")


def test_a_file_that_is_not_yaml(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("seed: [1")
    with pytest.raises(InputError, match="is not YAML"):
        load_recipe(str(path))


def test_a_file_of_the_users_own_and_overrides(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\nmodel: some/model\ntrain:\n  epochs: 4\n")
    recipe = load_recipe(str(path), ["train.beta=0.2", "thought.style=specific"])
    assert (recipe.seed, recipe.train.epochs, recipe.train.beta, recipe.thought.style) == (3, 4, 0.2, "specific")


def test_a_second_judge_has_the_keys_of_the_first():
    recipe = load_recipe("embedded", ["select.judge.model=b.gguf", "select.judge.mode=verdict"])
    assert recipe.select.judge == JudgeSettings(model="b.gguf", mode="verdict")
    assert load_recipe("embedded").select.judge is None
    with pytest.raises(InputError, match=r"select.judge.modell: unknown key .*; did you mean select.judge.model\?"):
        load_recipe("embedded", ["select.judge.modell=b.gguf"])
    with pytest.raises(InputError, match=r"select.judge.prompt: skywork-critic .* but select.judge.mode is explain"):
        load_recipe("embedded", ["select.judge.model=b.gguf", "select.judge.prompt=skywork-critic"])


def test_differences_of_a_second_judge():
    one, two = (load_recipe("embedded", [f"select.judge.model={name}.gguf"]) for name in "ab")
    assert differences(one, two) == ["select.judge.model: 'a.gguf' -> 'b.gguf'"]
    (line,) = differences(load_recipe("embedded"), one)
    assert line.startswith("select.judge: None -> JudgeSettings(model='a.gguf'")


def test_differences_are_named_by_key():
    old = Recipe()
    new = old.model_copy(update={"seed": 4, "train": old.train.model_copy(update={"epochs": 9})})
    assert differences(old, new) == ["seed: 0 -> 4", "train.epochs: 2 -> 9"]
    assert differences(old, old) == []


def test_gpu_audit_11_adapters_of_hub_models_learn_at_an_adapters_rate():
    """About ten times what full fine-tuning takes (5e-6); only the recipe that repeats the paper's keeps its rate."""
    rates = {name: load_recipe(name).train.learning_rate for name in SHIPPED}
    assert {name for name, rate in rates.items() if rate < 5e-5} == {"llama-3.1-8b-24gb-paper"}
