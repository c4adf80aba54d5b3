"""The generator: what it delivers, who gets an error, and that an error or a bad client ends nothing else."""

from __future__ import annotations

import queue
import threading
import time

import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf
from tpo_lite.errors import InputError, OutOfMemory, TpoError
from tpo_lite.serving.generator import Busy, Finished
from tpo_lite.serving.loaded import LoadedModel, TooLong, Wishes
from tpo_lite.serving.source import find_source
from tpo_lite.serving.streamed import Parts

OK = Parts("", "Ok 5")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A model that says "Ok 5" to everything: it begins after the header of the assistant's turn."""
    script = ("ĊĊ", "O", "k", "Ġ", "5", "<|eot_id|>")
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "ok.gguf", script=script)


@pytest.fixture
def model(file):
    loaded = LoadedModel(find_source(str(file)), rows=2, queue=1, context=512)
    yield loaded
    loaded.close()


def ask(model, text="Hi", **wishes):
    """Submit, and return the queue of what comes."""
    events = queue.SimpleQueue()
    model.generator.submit(model.request(text, [], Wishes(temperature=0, **wishes)), events.put)
    return events


def whole(events):
    """All parts in one, and what came last."""
    parts = []
    while isinstance(event := events.get(timeout=30), Parts):
        parts.append(event)
    return Parts("".join(part.thought for part in parts), "".join(part.response for part in parts)), event


def test_a_reply_and_its_end(model):
    assert whole(ask(model)) == (OK, Finished("stop", 5, 0))
    assert whole(ask(model, max_tokens=2)) == (("", "Ok"), Finished("length", 2, 0))
    assert whole(ask(model, stops=("k 5",))) == (("", "O"), Finished("stop", 4, 0))


def test_a_model_that_does_not_answer_is_made_to(file):
    """It ends its turn within the thought: the response marker comes in place of that, and after it a response."""
    model = LoadedModel(find_source(str(file), "specific"), context=512)
    (thought, response), end = whole(ask(model, max_tokens=64))
    assert thought == "Ok 5"
    assert end.thought_tokens < end.tokens
    assert "<R>" not in response
    model.close()


def test_characters_of_several_tokens_come_whole(tmp_path):
    script = ("ĊĊ", *("Ã", "¤"), *("â", "Ĥ", "¬"), "<|eot_id|>")  # the bytes of an a-umlaut and a euro sign
    model = LoadedModel(find_source(str(write_tiny_gguf(tmp_path / "signs.gguf", script=script))), context=512)
    events = ask(model)
    assert [events.get(timeout=30) for _ in range(3)] == [("", "ä"), ("", "€"), Finished("stop", 6, 0)]
    model.close()


def test_too_many_requests_and_too_long_ones_are_refused(model):
    free = threading.Event()
    request = model.request("Hi", [], Wishes(max_tokens=8))
    numbers = [model.generator.submit(request, lambda event: free.wait(30)) for _ in range(3)]
    with pytest.raises(Busy, match="3 requests are being answered or wait"):
        ask(model)
    model.generator.leave(numbers[2])
    events = ask(model)
    free.set()
    assert whole(events)[0] == OK
    with pytest.raises(TooLong, match="Shorten the prompt"):
        ask(model, "word " * 600)
    with pytest.raises(InputError, match="do not fit the context of 512 tokens"):
        ask(model, max_tokens=511)


def test_a_client_that_raises_ends_nobody_else(model):
    def gone(event):
        raise RuntimeError("the event loop is closed")

    request = model.request("Hi", [], Wishes(max_tokens=8))
    for _ in range(5):
        model.generator.submit(request, gone)
        assert whole(ask(model))[0] == OK


@pytest.mark.parametrize("kind", [OutOfMemory, TpoError, ValueError])
def test_an_error_ends_the_replies_that_are_going_on_and_no_more(model, monkeypatch, kind):
    def broken(parts):
        raise kind("llama.cpp could not decode.")

    with monkeypatch.context() as patch:
        patch.setattr(model.generator.context, "decode_batch", broken)
        _, error = whole(ask(model))
    assert isinstance(error, TpoError) and "could not decode" in str(error)
    assert whole(ask(model)) == (OK, Finished("stop", 5, 0))


def test_closing_tells_those_who_wait(file):
    model = LoadedModel(find_source(str(file)), rows=1, queue=4, context=512)
    began, free, events = threading.Event(), threading.Event(), queue.SimpleQueue()

    def slow(event):
        began.set()
        free.wait(30)

    model.generator.submit(model.request("Hi", [], Wishes(temperature=0)), slow)
    assert began.wait(30)
    model.generator.submit(model.request("Hi", [], Wishes(temperature=0)), events.put)
    closing = threading.Thread(target=model.close)
    closing.start()
    deadline = time.monotonic() + 30
    while not model.generator._closed:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    free.set()
    closing.join()
    _, error = whole(events)
    assert "is being unloaded" in str(error)
