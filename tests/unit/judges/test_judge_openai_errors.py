"""A judge's server that is busy, away or refuses, and the key that never shows."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time

import httpx
import pytest

from tests.helpers.stub_server import KEY, REQUEST, REQUESTS, Reply, no_waiting, replies, says, stub
from tpo_lite.errors import InputError, TpoError
from tpo_lite.judges import openai_server as openai
from tpo_lite.judges.open import check_judge, open_judge
from tpo_lite.judges.openai_server import OpenAiJudge
from tpo_lite.recipe_keys import JudgeSettings


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    no_waiting(monkeypatch)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(status):
    with stub(replies(Reply(status, "busy"), Reply(status), says("[[B]]"))) as (url, received):
        assert OpenAiJudge("m", url).compare([REQUEST])[0].label == "B"
    assert len(received) == 3


def test_a_server_that_does_not_answer_in_time_is_asked_again(monkeypatch):
    monkeypatch.setattr(openai, "TIMEOUT", 0.1)
    slow = dataclasses.replace(says("[[A]]"), seconds=0.3)
    with stub(replies(slow, says("[[B]]"))) as (url, received):
        assert OpenAiJudge("m", url).compare([REQUEST])[0].label == "B"
    assert len(received) == 2


def test_delays_double_and_the_server_may_ask_for_more(monkeypatch):
    waited = []
    monkeypatch.setattr(openai, "FIRST_DELAY", 1.0)
    monkeypatch.setattr(threading.Event, "wait", lambda self, delay=None: delay is None or waited.append(delay))
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    busy = [{}, {"Retry-After": "9"}, {"Retry-After": "soon"}, {"Retry-After": soon}, {"Retry-After": "86400"}]
    judge = OpenAiJudge("m", "http://127.0.0.1:1/v1")
    answers = iter([httpx.Response(429, headers=headers) for headers in busy] + [httpx.Response(200)])
    monkeypatch.setattr(judge, "_send", lambda *_, **__: next(answers))
    assert judge._answered({}).status_code == 200
    assert waited[:3] == [1.0, 9.0, 4.0]
    assert 25 < waited[3] <= 30
    assert waited[4] == 120.0


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        (Reply(500, f"out of order, {KEY}"), TpoError, "after 6 tries .* still answers 500 .out of order, "),
        (Reply(404, "no such model"), InputError, "judge.model: .* has no model 'm' or no chat .* .no such model"),
        (Reply(401, f"Incorrect key: {KEY}"), InputError, "does not accept the key .* OPENAI_API_KEY"),
        (Reply(422, f"bad value {KEY}"), InputError, "refuses the request about 'Add . and 2.' with 422 .bad value"),
        (Reply(200, f"<html>{KEY}"), InputError, "something other than a chat completion: '<html>.* Its form is https"),
        (Reply(200, '{"choices": []}'), InputError, "something other than a chat completion"),
        (Reply(200, "[]"), InputError, "something other than a chat completion"),
        (Reply(302, headers={"Location": "/"}), InputError, "refuses the request about 'Add . and 2.' with 302"),
    ],
)
def test_a_server_that_cannot_judge(reply, kind, text, capfd, caplog):
    with stub(replies(reply)) as (url, _), pytest.raises(kind, match=text) as caught, caplog.at_level("DEBUG"):
        OpenAiJudge("m", url).compare(REQUESTS[:3])
    assert type(caught.value) is kind
    said = str(caught.value) + caplog.text + "".join(capfd.readouterr())
    assert KEY not in said


def test_no_server_there():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = JudgeSettings(mode="openai", base_url=f"http://127.0.0.1:{port}/v1")
    for refuse in (lambda: check_judge(settings), lambda: open_judge(settings).compare([REQUEST])):
        with pytest.raises(InputError, match=f"judge.base_url: no server at http://127.0.0.1:{port}/v1 .*Start it"):
            refuse()
    for address in ("localhost:80", "http://[", ""):
        with pytest.raises(InputError, match="judge.base_url: "):
            check_judge(JudgeSettings(mode="openai", base_url=address))


def test_a_key_is_asked_for_where_there_is_none(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with stub(replies(Reply(401, "who are you?"))) as (url, received), pytest.raises(InputError, match="needs a key"):
        check_judge(JudgeSettings(mode="openai", base_url=url))
    assert "Authorization" not in received[0][1]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-two\nlines")
    with pytest.raises(InputError, match="OPENAI_API_KEY has characters that no key contains") as caught:
        OpenAiJudge("m", "http://127.0.0.1:1/v1")
    assert "sk-two" not in str(caught.value)


def test_a_server_without_a_list_of_models_will_do():
    with stub(replies(Reply(404))) as (url, received):
        check_judge(JudgeSettings(mode="openai", base_url=url))
    assert [path for path, _, _ in received] == ["/v1/models"]


def test_a_server_that_restarts_is_asked_again(monkeypatch):
    with stub(replies(says("[[B]]"))) as (url, received):
        judge = OpenAiJudge("m", url)
        judge.compare(REQUESTS[:1])
        request, refused = judge._client.request, []

        def refused_once(*arguments: object, **options: object) -> httpx.Response:
            if not refused:
                refused.append(True)
                raise httpx.ConnectError("Connection refused")
            return request(*arguments, **options)

        monkeypatch.setattr(judge._client, "request", refused_once)
        assert judge.compare(REQUESTS[1:2])[0].label == "B"
    assert refused and len(received) == 2
