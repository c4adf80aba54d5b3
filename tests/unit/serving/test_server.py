"""The server, asked by OpenAI's own client and by clients that behave badly."""

from __future__ import annotations

import asyncio
import json
import socket
import string
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.helpers.serving import serving
from tests.helpers.tiny_gguf import write_tiny_gguf
from tpo_lite.errors import TpoError
from tpo_lite.serving import app
from tpo_lite.serving.app import Limits
from tpo_lite.serving.loaded import LoadedModel, Wishes
from tpo_lite.serving.source import find_source
from tpo_lite.serving.streamed import Parts

QUESTIONS = [f"The word {word} changes its letters: first flip. What is it now?" for word in ("ate", "eat", "tea")]
LIMITED = {"max_tokens": 96, "temperature": 0}


def client_of(url, key="none", retries=0):
    return openai.OpenAI(base_url=url, api_key=key, max_retries=retries)


@pytest.fixture(scope="module")
def client(url):
    return client_of(url)


def ask(client, text, **more):
    return client.chat.completions.create(
        model="embedded", messages=[{"role": "user", "content": text}], **(LIMITED | more)
    )


def directly(model, text, **wishes):
    """Thought and response of the same request without the server."""
    done, parts = threading.Event(), []

    def deliver(event):
        parts.append(event)
        if not isinstance(event, Parts):
            done.set()

    model.generator.submit(model.request(text, [], Wishes(**wishes)), deliver)
    assert done.wait(30)
    assert not isinstance(parts[-1], TpoError), parts[-1]
    return Parts("".join(part.thought for part in parts[:-1]), "".join(part.response for part in parts[:-1]))


@pytest.fixture(scope="module")
def expected(embedded):
    return [directly(embedded, text, max_tokens=96, temperature=0.0) for text in QUESTIONS]


def test_models(client):
    assert [model.id for model in client.models.list()] == ["embedded"]
    assert client.models.retrieve("embedded").owned_by == "tpo_lite"
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-9'. This server has 'embedded'."):
        client.models.retrieve("gpt-9")


def test_a_reply_has_a_clean_content_and_its_thought_apart(client, expected):
    for text, (thought, response) in zip(QUESTIONS, expected, strict=True):
        reply = ask(client, text)
        (choice,) = reply.choices
        assert (choice.message.reasoning_content, choice.message.content) == (thought, response)
        assert thought and response and "Here is my" not in response
        assert choice.finish_reason == "stop"
        usage = reply.usage
        assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens < 96
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_comes_to_the_same(client, expected):
    for text, (thought, response) in zip(QUESTIONS, expected, strict=True):
        chunks = list(ask(client, text, stream=True, stream_options={"include_usage": True}))
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert deltas[0].role == "assistant"
        assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == thought
        assert "".join(delta.content or "" for delta in deltas) == response
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
        assert chunks[-1].usage.completion_tokens > 0
        assert len({chunk.id for chunk in chunks}) == 1


def test_thoughts_can_be_left_out(client, expected):
    reply = ask(client, QUESTIONS[0], extra_body={"include_reasoning": False})
    assert not hasattr(reply.choices[0].message, "reasoning_content")
    assert reply.choices[0].message.content == expected[0].response
    chunks = ask(client, QUESTIONS[0], stream=True, extra_body={"include_reasoning": False})
    assert not any(hasattr(chunk.choices[0].delta, "reasoning_content") for chunk in chunks)


def test_a_thought_budget_ends_the_thought(client):
    whole = ask(client, QUESTIONS[0])
    short = ask(client, QUESTIONS[0], extra_body={"thought_budget": 10})
    assert whole.choices[0].message.reasoning_content.startswith(short.choices[0].message.reasoning_content)
    assert (
        short.usage.completion_tokens_details.reasoning_tokens < whole.usage.completion_tokens_details.reasoning_tokens
    )
    assert short.choices[0].message.content
    none = ask(client, QUESTIONS[0], extra_body={"thought_budget": 0})
    assert none.choices[0].message.reasoning_content == ""
    assert none.choices[0].message.content


def test_stops_apply_to_the_response_only(client, expected):
    thought, response = expected[0]
    first, second = response.split()[:2]
    assert first in thought or "e" in thought
    reply = ask(client, QUESTIONS[0], stop=["e", second])
    assert reply.choices[0].message.reasoning_content == thought
    assert reply.choices[0].message.content == response[: min(response.find("e"), response.find(second))]
    assert reply.choices[0].finish_reason == "stop"


def test_a_reply_is_no_longer_than_asked(client):
    reply = ask(client, QUESTIONS[0], max_tokens=5)
    assert reply.usage.completion_tokens == 5
    assert reply.choices[0].finish_reason == "length"


def test_the_same_seed_gives_the_same_reply(client):
    texts = [ask(client, "Hello", temperature=1.5, seed=seed).choices[0].message for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_completions_go_on_with_the_text_as_it_is(client):
    reply = client.completions.create(
        model="embedded", prompt="Here is my thought process:", max_tokens=24, temperature=0
    )
    assert reply.choices[0].text
    assert reply.usage.completion_tokens <= 24
    stream = client.completions.create(
        model="embedded", prompt="Here is my thought process:", max_tokens=24, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == reply.choices[0].text


def test_a_conversation_is_read_as_a_run_reads_one(client, embedded):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    turns += [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": [{"type": "text", "text": "Bye"}]}]
    reply = client.chat.completions.create(model="embedded", messages=turns, **LIMITED)
    context = [*turns[:3]]
    assert reply.usage.prompt_tokens == len(embedded.request("Bye", context, Wishes(max_tokens=9)).prompt)


BAD = [
    ({"messages": []}, "messages: List should have at least 1 item"),
    ({"messages": [{"role": "assistant", "content": "Hi"}]}, "the last one is the assistant's. End with the user's."),
    ({"messages": [{"role": "user", "content": "a"}] * 2}, "alternates between user and assistant"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content is not text"),
    ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
    ({"max_tokens": 201}, "max_tokens: 201 is more than 200. Ask for fewer."),
    ({"temperature": -1}, "temperature: "),
    ({"n": 2}, "n: 2 is not supported. Leave it out."),
    ({"logprobs": True}, "logprobs: True is not supported"),
    ({"tools": [{"type": "function"}]}, "tools: "),
    ({"thought_budget": 96}, "a thought budget of 96 tokens leaves nothing of 96 for the response. Lower it."),
    ({"messages": [{"role": "user", "content": "word " * 1200}]}, "Shorten the prompt"),
    ({"stop": [""]}, "stop"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_what_cannot_be_answered_is_refused(url, fields, message):
    body = {"model": "embedded", "messages": [{"role": "user", "content": "Hi"}], **LIMITED} | fields
    reply = httpx.post(f"{url}/chat/completions", json=body)
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]


def test_requests_of_no_form_are_refused(url):
    chat, json_type = f"{url}/chat/completions", {"content-type": "application/json"}
    assert httpx.post(chat, content=b"{", headers=json_type).status_code == 400
    assert httpx.post(chat, content=b'{"model": "\\ud800"}', headers=json_type).status_code == 400
    assert httpx.post(chat, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert httpx.post(chat, content=b" " * (1 << 21), headers=json_type).status_code == 413
    assert httpx.get(chat).status_code == 405
    assert httpx.get(f"{url}/nothing").json()["error"]["message"] == "Not Found"
    assert httpx.get(url.removesuffix("/v1") + "/health").json() == {"status": "ok"}


def test_a_key_is_asked_for(embedded):
    with serving(embedded, Limits(key="secret")) as url:
        for key in ("wrong", "secre", "secrets"):
            with pytest.raises(openai.AuthenticationError, match="The key is missing or wrong"):
                client_of(url, key).models.list()
        assert httpx.post(f"{url}/completions", json={}).status_code == 401
        assert [model.id for model in client_of(url, "secret").models.list()] == ["embedded"]


# Under load


def held(model):
    """The requests that are being answered or wait."""
    return len(model.generator._rows)


def wait_until(holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_64_clients_get_whole_replies_to_their_own_prompts(client, embedded):
    """Streams and whole replies, four times as many as are decoded together."""

    texts = [f"{QUESTIONS[number % 3]} {number}" for number in range(64)]

    def one(number):
        if number % 2:
            reply = ask(client, texts[number])
            return reply.choices[0].message.content, reply.choices[0].finish_reason, reply.usage
        chunks = list(ask(client, texts[number], stream=True, stream_options={"include_usage": True}))
        content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        return content, chunks[-2].choices[0].finish_reason, chunks[-1].usage

    with ThreadPoolExecutor(64) as pool:
        replies = list(pool.map(one, range(64)))
    for text, (content, reason, usage) in zip(texts, replies, strict=True):
        assert usage.prompt_tokens == len(embedded.request(text, [], Wishes()).prompt)
        assert "Here is my" not in content
        assert (usage.completion_tokens == 96) if reason == "length" else (0 < usage.completion_tokens <= 96)
    assert sum(bool(content) for content, _, _ in replies) > 32
    wait_until(lambda: held(embedded) == 0)


CHAIN = string.ascii_uppercase + string.digits


def test_64_clients_get_what_they_would_get_alone(tmp_path):
    """A model that says the next sign of a chain after each: a mixed or lost sign shows, however it rounds."""
    file = write_tiny_gguf(tmp_path / "chain.gguf", script=(*CHAIN, CHAIN[0]))
    model = LoadedModel(find_source(str(file)), rows=16, queue=48)

    def one(number):
        start, length, stream = number % len(CHAIN), 40 + number, number % 2 == 0
        reply = client.completions.create(
            model="chain", prompt=f"{number}:{CHAIN[start]}", max_tokens=length, temperature=0, stream=stream
        )
        text = "".join(chunk.choices[0].text for chunk in reply) if stream else reply.choices[0].text
        return text == (CHAIN * 4)[start + 1 :][:length]

    with serving(model) as url, ThreadPoolExecutor(64) as pool:
        client = client_of(url)
        assert all(pool.map(one, range(64)))
        wait_until(lambda: held(model) == 0)
    model.close()


def test_one_request_too_many_is_told_to_come_again(client, embedded):
    blocked, free = [], threading.Event()
    request = embedded.request("Hi", [], Wishes(max_tokens=8))
    # The thread waits in the first delivery, so that no request ends.
    for _ in range(embedded.generator.most):
        blocked.append(embedded.generator.submit(request, lambda event: free.wait(30)))
    try:
        with pytest.raises(openai.RateLimitError, match="64 requests are being answered or wait. Try again later."):
            ask(client, "Hi")
    finally:
        free.set()
    wait_until(lambda: held(embedded) == 0)
    assert ask(client, QUESTIONS[0]).choices[0].message.content


def raw_stream(url, text, **more):
    """A socket on which a stream has begun."""
    body = {"model": "embedded", "messages": [{"role": "user", "content": text}], "stream": True} | more
    data = json.dumps(body).encode()
    split = urlsplit(url)
    found = socket.create_connection((split.hostname, split.port))
    head = ["POST /v1/chat/completions HTTP/1.1", "Host: a", "Content-Type: application/json"]
    head += [f"Content-Length: {len(data)}", "", ""]
    found.sendall("\r\n".join(head).encode() + data)
    assert b"200 OK" in found.recv(200)
    return found


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(url, embedded, client, expected, stream):
    for _ in range(20):
        if stream:
            raw_stream(url, QUESTIONS[0], max_tokens=200, temperature=2, stop=["never"]).close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                body = {"model": "embedded", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200}
                httpx.post(
                    f"{url}/chat/completions", json=body | {"temperature": 2}, timeout=httpx.Timeout(5, read=1e-4)
                )
    wait_until(lambda: held(embedded) == 0)
    assert ask(client, QUESTIONS[0]).choices[0].message.content == expected[0].response


def test_a_client_that_leaves_in_the_middle_of_its_request(url, client, expected, caplog):
    for _ in range(3):
        split = urlsplit(url)
        with socket.create_connection((split.hostname, split.port)) as found:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            found.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
    assert ask(client, QUESTIONS[0]).choices[0].message.content == expected[0].response
    assert caplog.records == []


class Held:
    """A reply that never ends."""

    def __init__(self):
        self.left = False

    def leave(self):
        self.left = True


async def endless():
    while True:
        yield {"part": 1}


async def forever(*_):
    await asyncio.Event().wait()


def test_a_stream_that_nobody_reads_is_given_up(monkeypatch):
    """`send` waits for the client to read what is there already, and it never does."""
    monkeypatch.setattr(app, "STALL_SECONDS", 0.01)

    async def send(message):
        if message["type"] == "http.response.body":
            await forever()

    reply = Held()
    asyncio.run(asyncio.wait_for(app._Stream(reply, endless())({}, forever, send), 30))
    assert reply.left


def test_a_stream_ends_with_its_client():
    sent = []

    async def send(message):
        sent.append(message)
        await asyncio.sleep(0)

    async def receive():
        while len(sent) < 10:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    reply = Held()
    asyncio.run(asyncio.wait_for(app._Stream(reply, endless())({}, receive, send), 30))
    assert reply.left and 10 <= len(sent) < 100


@pytest.mark.parametrize("stream", [True, False])
def test_an_error_of_the_model_is_told(client, embedded, expected, monkeypatch, stream):
    decode, calls = embedded.generator.context.decode_batch, []

    def broken(parts):
        calls.append(1)
        if len(calls) > 12:
            raise TpoError("llama.cpp could not decode.")
        return decode(parts)

    with monkeypatch.context() as patch:
        patch.setattr(embedded.generator.context, "decode_batch", broken)
        with pytest.raises(openai.APIError, match="llama.cpp could not decode."):
            list(ask(client, QUESTIONS[0], stream=stream))
    assert ask(client, QUESTIONS[0]).choices[0].message.content == expected[0].response


def test_a_client_that_reads_nothing_holds_up_nobody(url, embedded, client):
    slow = [raw_stream(url, QUESTIONS[0]) for _ in range(20)]
    assert ask(client, QUESTIONS[1]).choices[0].finish_reason in ("stop", "length")
    wait_until(lambda: held(embedded) == 0)
    for each in slow:
        each.close()
