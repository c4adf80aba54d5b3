"""Drawing samples: prompts are given as they end, in an order that a resumed run repeats."""

import shutil
from collections import Counter
from datetime import date

import pytest

from tests.helpers.clock import set_template_clock
from tests.helpers.tiny_model import write_tiny_model
from tests.helpers.tiny_run import start
from tpo_lite.chat import load_tokenizer
from tpo_lite.embedded.world import puzzles
from tpo_lite.hub import ASSETS
from tpo_lite.machine.device import CPU
from tpo_lite.recipe_keys import Thought
from tpo_lite.records import Instruction
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import LoadedPolicy, Policy, policy
from tpo_lite.settled import SettledRecipe, SettledSampling
from tpo_lite.thoughts import DIRECT, GENERIC, thought_prompt

INSTRUCTIONS = [Instruction(str(number), "word " * (number + 1), "test") for number in range(3)]


class Script:
    """A sampler of one batch whose rows end in a given order; `outputs` by key."""

    rows = 64

    def __init__(self, order, outputs):
        self.order, self.outputs, self.given = order, outputs, 0

    def stream(self, prompts, keys, insertion=None):
        for row in self.order or range(len(prompts)):
            self.given += 1
            yield row, self.outputs[keys[row]]
        self.order = None


@pytest.fixture
def loaded(tiny_model, tmp_path):
    return LoadedPolicy(SettledRecipe(model=str(tiny_model)), Policy(str(tiny_model), None, tmp_path), "cpu")


def text_ids(loaded, text):
    return [*loaded.chat.tokenizer.encode(text, add_special_tokens=False), loaded.stops[0]]


def test_a_prompt_is_given_as_soon_as_it_and_those_before_it_have_ended(loaded):
    outputs = {f"key/{id}/{k}": text_ids(loaded, "one two") for id in "012" for k in range(2)}
    # Rows 0 and 1 are prompt 0's. Prompt 2 ends first, but is given last.
    script = loaded.sampler = Script([5, 4, 1, 0, 3, 2], outputs)
    stream = loaded.draw(INSTRUCTIONS, DIRECT, "key", k=2)
    first = next(stream)
    assert (first.instruction.id, script.given) == ("0", 4)
    assert [sample.k for sample in first.samples] == [0, 1]
    assert [prompt.instruction.id for prompt in stream] == ["1", "2"]


def test_what_is_finished_is_sampled_with_its_batch_but_not_given_again(loaded):
    outputs = {f"key/{id}/0": text_ids(loaded, "one two") for id in "012"}
    script = loaded.sampler = Script(None, outputs)
    drawn = loaded.draw(INSTRUCTIONS, DIRECT, "key", k=1, finished=frozenset("02"))
    assert [prompt.instruction.id for prompt in drawn] == ["1"]
    assert script.given == 3


def test_malformed_outputs_are_sampled_again_so_often_and_others_are_not(loaded):
    good, bad = text_ids(loaded, "one two"), [loaded.stops[0]]
    outputs = {"key/0/0": good, "key/1/0": bad, "key/1/1": good, **{f"key/2/{number}": bad for number in range(3)}}
    script = loaded.sampler = Script(None, outputs)
    drawn = list(loaded.draw(INSTRUCTIONS, DIRECT, "key", k=1, retries=2))
    assert [[sample.outcome for sample in prompt.samples] for prompt in drawn] == [
        ["ok"],
        ["empty_response", "ok"],
        ["empty_response"] * 3,
    ]
    assert script.given == 6


def test_the_turns_before_an_instruction_stand_before_its_thought_prompt(loaded):
    history = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Elbe."}]
    loaded.sampler = Script(None, {"key/x/0": text_ids(loaded, "one")})
    asked = Instruction("x", "And where does it end?", "test", context=history)
    (drawn,) = loaded.draw([asked], GENERIC, "key", k=1)
    turns = [*history, {"role": "user", "content": thought_prompt(GENERIC, "And where does it end?")}]
    assert drawn.instruction == asked
    assert drawn.prompt_ids == loaded.chat.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A random policy whose outputs are longer: it writes any token, and never a whole marker."""
    return write_tiny_model(tmp_path_factory.mktemp("talker"), end=0.04)


def with_budget(model, tmp_path, engine, batch=64):
    """A policy whose thoughts may have three tokens, and the same without a bound."""
    folder = tmp_path / engine
    folder.mkdir(exist_ok=True)
    keys = {"model": str(model), "engine": engine, "sampling": SettledSampling(max_new_tokens=32, batch=batch)}
    recipes = [SettledRecipe(**keys, thought=Thought(budget=budget)) for budget in (3, None)]
    return [LoadedPolicy(recipe, Policy(str(model), None, folder), "cpu") for recipe in recipes]


def numbered(drawn):
    return {(prompt.instruction.id, sample.k): sample for prompt in drawn for sample in prompt.samples}


@pytest.mark.parametrize("engine", ["transformers", "gguf"])
def test_a_thought_that_reaches_its_budget_is_ended_and_other_outputs_are_as_ever(talker, tmp_path, engine):
    bounded, free = with_budget(talker, tmp_path, engine)
    given, plain = (numbered(policy.draw(INSTRUCTIONS, GENERIC, "key", k=8)) for policy in (bounded, free))
    outcomes = Counter(sample.outcome for sample in given.values())
    assert outcomes["budget_forced"] > 4 and outcomes["no_marker"] > 2
    marker = bounded.chat.text_ids(f"\n\n{GENERIC.response_marker}")
    for number, sample in given.items():
        if len(plain[number].token_ids) <= 3:
            assert sample == plain[number]
            continue
        begun = [*plain[number].token_ids[:3], *marker]
        assert sample.token_ids[: len(begun)] == begun
        assert len(sample.token_ids) <= 32
        if sample.outcome == "budget_forced":
            assert sample.well_formed and sample.token_ids[-1] in bounded.stops
            assert sample.response == bounded.chat.text(sample.token_ids[len(begun) : -1]).strip()
            assert sample.thought == bounded.chat.text(begun[:3]).strip()
        else:
            assert sample.outcome == ("truncated" if len(sample.token_ids) == 32 else "empty_response")
    assert numbered(bounded.draw(INSTRUCTIONS, DIRECT, "key", k=8)) == numbered(
        free.draw(INSTRUCTIONS, DIRECT, "key", k=8)
    )


def test_the_embedded_policy_answers_where_its_thought_is_cut(tmp_path):
    base = Policy(str(ASSETS / "policy"), None, tmp_path)
    recipe = SettledRecipe(sampling=SettledSampling(max_new_tokens=96), thought=Thought(budget=24))
    asked = [Instruction(str(number), puzzle.text, "test") for number, puzzle in enumerate(puzzles(4, 0))]
    drawn = numbered(LoadedPolicy(recipe, base, "cpu").draw(asked, GENERIC, "key", k=2))
    forced = [sample for sample in drawn.values() if sample.outcome == "budget_forced"]
    assert len(forced) >= 4
    for sample in forced:
        assert sample.text.count(GENERIC.response_marker) == 1
        assert 0 < sample.thought_tokens <= 24 and 0 < sample.response_tokens < 40


def test_a_bounded_run_goes_on_with_what_it_would_have_drawn(talker, tmp_path):
    for batch in (64, 4):
        bounded, _ = with_budget(talker, tmp_path, "transformers", batch)
        whole = list(bounded.draw(INSTRUCTIONS, GENERIC, "key", k=4))
        assert any(sample.outcome == "budget_forced" for prompt in whole for sample in prompt.samples)
        finished = frozenset({whole[0].instruction.id})
        assert list(bounded.draw(INSTRUCTIONS, GENERIC, "key", k=4, finished=finished)) == whole[1:]
        assert list(bounded.draw(INSTRUCTIONS[::-1], GENERIC, "key", k=4)) == whole


def test_a_model_that_writes_the_marker_in_time_is_left_alone_and_a_forced_output_is_not_sampled_again(loaded):
    late, early = "one two three four five six", f"one {GENERIC.response_marker} two"
    loaded.recipe = loaded.recipe.model_copy(update={"thought": Thought(budget=9)})
    insertions = []

    class Asked(Script):
        def stream(self, prompts, keys, insertion=None):
            insertions.append(insertion)
            for row, ids in super().stream(prompts, keys):
                put_in = insertion.tokens(row, ids[:9]) if len(ids) > 9 else []
                yield row, [*ids[:9], *put_in, *ids[9:]]

    outputs = {"key/0/0": text_ids(loaded, early * 2), "key/1/0": text_ids(loaded, late * 2)}
    loaded.sampler = Asked(None, outputs)
    drawn = list(loaded.draw(INSTRUCTIONS[:2], GENERIC, "key", k=1, retries=2))
    assert [insertion.after for insertion in insertions] == [9]
    assert sorted(sample.outcome for prompt in drawn for sample in prompt.samples) == [
        "budget_forced",
        "no_thought_marker",
    ]


def test_a_runs_prompts_have_the_date_of_its_start_whatever_today_is(tiny_model, tmp_path, monkeypatch):
    dated = tmp_path / "dated"
    shutil.copytree(tiny_model, dated)
    tokenizer = load_tokenizer(str(dated))
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + tokenizer.chat_template
    tokenizer.save_pretrained(dated)
    recipe, run = SettledRecipe(model=str(dated)), RunFolder(tmp_path / "run")
    start(run, recipe)
    run._write_settled(recipe, CPU, date(2025, 12, 31))
    ids = []
    for day in (3, 4):
        set_template_clock(monkeypatch, 2026, 1, day)
        loaded = LoadedPolicy(recipe, policy(run, recipe, "thinking", 0), "cpu")
        ids.append(loaded.prompt_ids(INSTRUCTIONS[0], GENERIC))
    assert ids[0] == ids[1]
    assert "31 Dec 2025\n" in loaded.chat.text(ids[0])
