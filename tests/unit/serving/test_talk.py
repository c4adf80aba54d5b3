"""A conversation: what is remembered, commands, and the base beside a run's model."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf
from tpo_lite.errors import InputError
from tpo_lite.serving.loaded import LoadedModel
from tpo_lite.serving.source import find_source
from tpo_lite.serving.talk import HELP, Talk
from tpo_lite.thoughts import DIRECT


def open_model(source):
    return LoadedModel(source, context=512)


def talking_to(request, *arguments):
    found = Talk(*arguments)
    request.addfinalizer(found.close)
    return found


@pytest.fixture
def talk(tmp_path, request):
    """With a model that says "Ok 5" to everything."""
    script = ("ĊĊ", "O", "k", "Ġ", "5", "<|eot_id|>")
    file = write_tiny_gguf(tmp_path / "ok.gguf", script=script)
    return talking_to(request, find_source(str(file)), open_model, tmp_path / "history.jsonl")


def ask(talk, text):
    for _ in talk.ask(text):
        pass
    return [answer.response for answer in talk.answers]


def prompt(talk, text):
    """What the model would be asked next."""
    return talk.model.generator.chat.text(talk._request(talk.model, text).prompt)


def test_what_was_said_is_remembered_without_its_thoughts(talk, tmp_path):
    talk.model.style = find_source("embedded", "specific").style  # what it says is a thought, then a response
    talk.answers.clear()
    (response,) = ask(talk, "Hello")
    assert talk.answers[0].thought == "Ok 5" and response
    asked = prompt(talk, "Bye")
    assert asked.count(response.strip()) >= 1 and "Hello" in asked and "<R>" not in asked
    assert talk._turns == [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": response}]
    assert talk.command("/clear") == "The conversation is forgotten."
    assert "Hello" not in prompt(talk, "Bye")
    (line,) = (tmp_path / "history.jsonl").read_text().splitlines()
    exchange = json.loads(line)
    assert exchange["user"] == "Hello"
    assert exchange["answers"] == [{"model": "ok", "thought": "Ok 5", "response": response}]


def test_an_exchange_that_is_broken_off_is_not_remembered(talk):
    stream = talk.ask("Hello")
    assert next(stream).event.response == "O"
    stream.close()
    assert talk._turns == [] and talk.model.generator._rows == {}
    assert ask(talk, "Hi") == ["Ok 5"]


def test_the_oldest_turns_are_forgotten_when_there_is_no_room(talk):
    for number in range(6):
        assert ask(talk, f"{number} " + "word " * 30) == ["Ok 5"]
    asked = prompt(talk, "last")
    assert "0 word" not in asked and "5 word" in asked and "last" in asked
    with pytest.raises(InputError, match="Shorten the prompt"):
        ask(talk, "word " * 600)


def test_commands(talk):
    assert talk.command("/help") == HELP
    assert talk.command("/thoughts").startswith("Thoughts are shown.")
    assert talk.command("/thoughts") == "Thoughts are hidden."
    assert talk.command("/budget 12") == "Thoughts end after 12 tokens."
    assert talk._request(talk.model, "Hi").budget == 12
    assert talk.command("/budget") == "Thoughts are as long as the model is used to."
    assert talk.command("/quit") is None
    for line, message in [
        ("/budget x", "give a whole number"),
        ("/nope", "no command /nope"),
        ("/iter 1", "only a run"),
    ]:
        with pytest.raises(InputError, match=message):
            talk.command(line)


def test_a_history_that_cannot_be_written_shows_at_once(tmp_path):
    with pytest.raises(InputError, match="history.* cannot be written"):
        Talk(find_source("embedded"), open_model, tmp_path / "no" / "history.jsonl")


def test_the_models_of_a_run_with_the_base_beside_them(tiny_run, tmp_path, request):
    root = shutil.copytree(tiny_run, tmp_path / "run")
    talk = talking_to(request, find_source(str(root)), open_model)
    assert talk.names == ["run-direct-M_2"]
    said = talk.command("/iter 1")
    assert said == "run-direct-M_1 answers, and the base beside it. The run has M_0 to M_2."
    assert talk.names == ["run-direct-M_1", "base"]
    assert len(ask(talk, "old music")) == 2
    assert talk._base.source.policy.adapter is None and talk._base.style == DIRECT
    with pytest.raises(InputError, match="M_0 to M_2"):
        talk.command("/iter 7")
    assert talk.names == ["run-direct-M_1", "base"]
    assert talk.command("/iter") == "run-direct-M_2 answers. The run has M_0 to M_2."
    assert len(ask(talk, "old music")) == 1
