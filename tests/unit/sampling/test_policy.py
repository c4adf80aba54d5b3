"""Drawing samples: prompts are given as they end, in an order that a resumed run repeats."""

import shutil
from datetime import date

import pytest

from tests.helpers.clock import set_template_clock
from tests.helpers.tiny_run import start
from tpo_lite.chat import load_tokenizer
from tpo_lite.machine.device import CPU
from tpo_lite.records import Instruction
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import LoadedPolicy, Policy, policy
from tpo_lite.settled import SettledRecipe
from tpo_lite.thoughts import DIRECT, GENERIC, thought_prompt

INSTRUCTIONS = [Instruction(str(number), "word " * (number + 1), "test") for number in range(3)]


class Script:
    """A sampler of one batch whose rows end in a given order; `outputs` by key."""

    rows = 64

    def __init__(self, order, outputs):
        self.order, self.outputs, self.given = order, outputs, 0

    def stream(self, prompts, keys):
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
