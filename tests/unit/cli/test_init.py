"""`tpo-lite init`: a recipe that the plan accepts, for the card, the hours and the data that were asked for."""

import re
from unittest.mock import patch

import pytest
import yaml
from click.testing import CliRunner

from tests.helpers.tiny_run import invoke, write_prompts
from tpo_lite.cli import main
from tpo_lite.machine import cards
from tpo_lite.plan import fitted
from tpo_lite.plan.report import make_plan
from tpo_lite.recipe import load_recipe


def planned_hours(path, gib):
    return make_plan(load_recipe(str(path)), cards.choose_card(gib)).seconds / 3600


@pytest.mark.parametrize(
    ("gib", "hours", "model", "iterations"),
    [
        (24, 8, "meta-llama/Llama-3.1-8B-Instruct", 3),
        (24, 1, "meta-llama/Llama-3.1-8B-Instruct", 1),
        (12, 4, "meta-llama/Llama-3.2-3B-Instruct", 3),
        (4, 20, "meta-llama/Llama-3.2-3B-Instruct", 3),  # with the plan's smallest changes
    ],
)
def test_the_plan_accepts_the_recipe_and_it_uses_the_hours(gib, hours, model, iterations, tmp_path):
    path = tmp_path / "recipe.yaml"
    done = invoke("init", "--card-gb", gib, "--hours", hours, "--data", "-", "--out", path)
    assert done.exit_code == 0, done.output
    recipe = load_recipe(str(path))
    assert (recipe.model, recipe.iterations) == (model, iterations)
    # Ten more instructions in every iteration would take too long.
    assert 0.75 * hours < planned_hours(path, gib) <= hours
    plan = invoke("plan", "--recipe", path, "--card-gb", gib)
    assert plan.exit_code == 0, plan.output


def test_every_key_has_a_comment(tmp_path):
    invoke("init", "--card-gb", 24, "--hours", 8, "--data", "-", "--out", tmp_path / "recipe.yaml")
    lines = (tmp_path / "recipe.yaml").read_text().splitlines()
    keys = [index for index, line in enumerate(lines) if re.match(r" *[a-z_]+:", line)]
    assert len(keys) > 30
    assert all(lines[index - 1].lstrip().startswith("# ") for index in keys)
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 120


def test_without_hours_and_data_it_is_the_shipped_recipe_but_for_batches(tmp_path):
    done = invoke("init", "--card-gb", 24, "--out", tmp_path / "r.yaml", "--data", "-", "--hours", 10_000)
    assert done.exit_code == 0
    longest = load_recipe("llama-3.1-8b-24gb-paper").instructions.per_iteration
    assert load_recipe(str(tmp_path / "r.yaml")).instructions.per_iteration == longest
    made = fitted.fit(cards.choose_card(24), None, None).recipe.model_dump()
    shipped = load_recipe("llama-3.1-8b-24gb").model_dump()
    changed = {
        f"{section}.{key}": value
        for section, keys in made.items()
        for key, value in (keys.items() if isinstance(keys, dict) else [("", keys)])
        if value != (shipped[section][key] if isinstance(keys, dict) else shipped[section])
    }
    assert set(changed.values()) == {"auto"}
    assert set(changed) == {"judge.context", "sampling.batch", "train.micro_batch", "train.gradient_checkpointing"}


def test_a_file_has_enough_instructions_for_what_is_written(tmp_path):
    prompts = write_prompts(tmp_path / "mine.jsonl", 650)
    done = invoke("init", "--card-gb", 24, "--hours", 100, "--data", prompts, "--out", tmp_path / "recipe.yaml")
    assert done.exit_code == 0, done.output
    settings = load_recipe(str(tmp_path / "recipe.yaml")).instructions
    assert settings.source == str(prompts)
    assert (settings.per_iteration, settings.validation, settings.test) == (150, 100, 100)


def test_three_questions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    done = CliRunner().invoke(main, ["init"], input="12\n4\neveryday\n")
    assert done.exit_code == 0, done.output
    assert "(cpu for none) [cpu]" in done.output
    recipe = load_recipe("recipe.yaml")
    assert (recipe.model, recipe.instructions.source) == ("meta-llama/Llama-3.2-3B-Instruct", "everyday")
    assert planned_hours("recipe.yaml", 12) <= 4


def test_on_the_cpu(tmp_path):
    """The layer probe is left out: it only chooses a precision, by the clock."""
    with (
        patch("tpo_lite.plan.choices.measure", lambda layers, fitting: {name: [1.0, 1.0] for name in fitting}),
        patch("tpo_lite.plan.choices.seconds", lambda *_: 1.0),
    ):
        done = invoke("init", "--cpu", "--hours", 3, "--data", "everyday", "--out", tmp_path / "recipe.yaml")
    assert done.exit_code == 0, done.output
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize(
    ("arguments", "answers", "text"),
    [
        ("--card-gb 24 --cpu", "", "--card-gb and --cpu exclude each other; give one."),
        ("--card-gb nan", "", "--card-gb takes a number of GiB, such as 24."),
        ("--card-gb 24 --hours inf", "", "--hours takes a number, such as 8."),
        ("--card-gb 24 --hours -1", "", "-1"),
        ("--card-gb 1 --hours 8 --data -", "", "init: no shipped recipe fits this card."),
        ("--card-gb 24 --hours 0.1 --data -", "", "one iteration with 100 instructions. Allow more hours."),
        ("--card-gb 24 --hours 8 --data none.jsonl", "", "none.jsonl"),
        ("--card-gb 24 --hours 8 --data few.jsonl", "", "few.jsonl has 30 instructions, and a run needs 300"),
        ("--card-gb 24 --hours 8", "", "init needs answers. Give --card-gb or --cpu, --hours and --data"),
        ("--card-gb 24", "soon\n", "'soon' is not a number above 0. Answer with one, or give --hours."),
        ("--card-gb 24 --out few.jsonl", "", "few.jsonl exists, and init overwrites nothing. Give another --out."),
    ],
)
def test_bad_input_is_one_message_and_no_file(arguments, answers, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "few.jsonl", 30)
    done = CliRunner().invoke(main, ["init", *arguments.split()], input=answers)
    assert done.exit_code == 2, done.output
    assert text in done.output
    assert not (tmp_path / "recipe.yaml").exists()
