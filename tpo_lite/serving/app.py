"""The HTTP side of `tpo-lite serve`: OpenAI's chat completions, completions and models (Starlette)."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tpo_lite.errors import InputError, TpoError
from tpo_lite.serving.generator import Busy, Event, Finished, Generator, Request
from tpo_lite.serving.loaded import LoadedModel
from tpo_lite.serving.requests import Body, ChatBody, CompletionBody, read_body
from tpo_lite.serving.streamed import Parts

BODY_SECONDS = 30.0
"""Within which a request's body has to come."""
STALL_SECONDS = 60.0
"""After which a client that reads nothing of its stream is given up."""
GONE = 499
"""The status of an answer to a client that has left, as nginx calls it; nobody reads it."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Limits:
    """What the server takes."""

    key: str | None = None
    """The bearer token that a client has to give; None: none."""
    body: int = 1 << 20
    """Bytes of a request."""
    thoughts: bool = True
    """Whether replies have `reasoning_content`, if the client does not say."""


def make_app(model: LoadedModel, limits: Limits) -> Starlette:
    """Return the application that serves one model."""
    api = _Api(model, limits)
    return Starlette(
        routes=[
            Route("/health", api.health),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.one_model),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/v1/completions", api.complete, methods=["POST"]),
        ],
        exception_handlers={
            HTTPException: lambda _request, error: _error(error.status_code, error.detail, error.headers),
            ClientDisconnect: lambda _request, _error: Response(status_code=GONE),
            InputError: lambda _request, error: _error(400, str(error)),
            Busy: lambda _request, error: _error(429, str(error), {"Retry-After": "1"}),
            TpoError: lambda _request, error: _error(500, str(error)),
        },
    )


class _Api:
    def __init__(self, model: LoadedModel, limits: Limits):
        self.model, self.limits = model, limits
        self.name, self.since = model.source.name, int(time.time())

    async def health(self, request: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: HttpRequest) -> Response:
        self._check_key(request)
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def one_model(self, request: HttpRequest) -> Response:
        self._check_key(request)
        self._check_name(request.path_params["name"])
        return JSONResponse(self._card())

    async def chat(self, request: HttpRequest) -> Response:
        body = await self._body(request, ChatBody)
        self.model.generator.check_free()  # before the work of reading a long prompt
        text, context = body.conversation()
        asked = await run_in_threadpool(self.model.request, text, context, body.wishes())
        thoughts = self.limits.thoughts if body.include_reasoning is None else body.include_reasoning
        return await self._reply(request, body, asked, _ChatForm(self.name, thoughts))

    async def complete(self, request: HttpRequest) -> Response:
        body = await self._body(request, CompletionBody)
        self.model.generator.check_free()
        asked = await run_in_threadpool(self.model.raw_request, body.text, body.wishes())
        return await self._reply(request, body, asked, _TextForm(self.name))

    async def _reply(self, request: HttpRequest, body: Body, asked: Request, form: _Form) -> Response:
        reply = _Reply(self.model.generator, asked)
        if body.stream:
            return _Stream(reply, form.stream(reply, body.usage))
        try:
            whole = await _unless_left(request.receive, form.whole(reply))
        finally:
            reply.leave()
        return Response(status_code=GONE) if whole is None else JSONResponse(whole)

    async def _body(self, request: HttpRequest, kind: type[Any]) -> Any:
        self._check_key(request)
        # A page in a browser cannot send this type to another site without being asked first.
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "Send JSON, with content-type: application/json.")
        data = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > self.limits.body:
                        raise HTTPException(413, f"The request has more than {self.limits.body} bytes. Send less.")
        except TimeoutError as error:
            raise HTTPException(408, f"The request did not come within {BODY_SECONDS:.0f} s.") from error
        body = read_body(kind, bytes(data))
        self._check_name(body.model)
        return body

    def _check_key(self, request: HttpRequest) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.limits.key is not None and not hmac.compare_digest(given.encode(), self.limits.key.encode()):
            raise HTTPException(401, "The key is missing or wrong. Send Authorization: Bearer KEY.")

    def _check_name(self, name: str) -> None:
        if name != self.name:
            raise HTTPException(404, f"There is no model {name!r}. This server has {self.name!r}.")

    def _card(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.since, "owned_by": "tpo_lite"}


class _Reply:
    """A request to the generator, and what comes of it in this event loop."""

    def __init__(self, generator: Generator, asked: Request):
        self._generator, self.prompt_tokens = generator, len(asked.prompt)
        self._events: asyncio.Queue[Event] = asyncio.Queue()  # no longer than the reply, which is bounded
        loop = asyncio.get_running_loop()

        def deliver(event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._number = generator.submit(asked, deliver)

    async def __aiter__(self) -> AsyncIterator[Parts | Finished]:
        """Yield the parts of the reply, then its end. Raises `TpoError` if there is no end."""
        while True:
            event = await self._events.get()
            if isinstance(event, TpoError):
                raise event
            yield event
            if isinstance(event, Finished):
                return

    def leave(self) -> None:
        """Give the reply up if it is not finished."""
        self._generator.leave(self._number)

    def usage(self, end: Finished) -> dict[str, Any]:
        """Return OpenAI's count of tokens."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": end.tokens,
            "total_tokens": self.prompt_tokens + end.tokens,
            "completion_tokens_details": {"reasoning_tokens": end.thought_tokens},
        }


class _Form:
    """How a reply is written. A subclass says how its choices look."""

    kind: str
    prefix: str

    def __init__(self, model: str):
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def choice(self, parts: Parts) -> dict[str, Any]:
        """Return the choice of a whole reply."""
        raise NotImplementedError

    def deltas(self, parts: Parts) -> list[dict[str, Any]]:
        """Return the choices that stream these parts, one for each kind of text."""
        raise NotImplementedError

    def last(self) -> dict[str, Any]:
        """Return the choice that ends a stream."""
        raise NotImplementedError

    def first(self) -> list[dict[str, Any]]:
        """Return the choices that begin a stream."""
        return []

    async def whole(self, reply: _Reply) -> dict[str, Any]:
        """Return the body of a reply that is not streamed."""
        thought, response = [], []
        async for event in reply:
            if isinstance(event, Finished):
                end = event
            else:
                thought.append(event.thought)
                response.append(event.response)
        choice = self.choice(Parts("".join(thought), "".join(response)))
        choices = [{"index": 0, **choice, "logprobs": None, "finish_reason": end.reason}]
        return {**self._head, "object": self.kind.removesuffix(".chunk"), "choices": choices, "usage": reply.usage(end)}

    async def stream(self, reply: _Reply, usage: bool) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a streamed reply; an error in its middle is the last."""

        def chunk(choice: dict[str, Any] | None, reason: str | None = None, **more: Any) -> dict[str, Any]:
            choices = [] if choice is None else [{"index": 0, **choice, "logprobs": None, "finish_reason": reason}]
            return {**self._head, "object": self.kind, "choices": choices, **more}

        for choice in self.first():
            yield chunk(choice)
        try:
            async for event in reply:
                if isinstance(event, Finished):
                    yield chunk(self.last(), event.reason)
                    if usage:
                        yield chunk(None, usage=reply.usage(event))
                else:
                    for choice in self.deltas(event):
                        yield chunk(choice)
        except TpoError as error:
            yield _error_body(500, str(error))


class _ChatForm(_Form):
    kind, prefix = "chat.completion.chunk", "chatcmpl"

    def __init__(self, model: str, thoughts: bool):
        super().__init__(model)
        self._thoughts = thoughts

    def choice(self, parts: Parts) -> dict[str, Any]:
        message = {"role": "assistant", "content": parts.response, "refusal": None}
        if self._thoughts:
            message["reasoning_content"] = parts.thought
        return {"message": message}

    def first(self) -> list[dict[str, Any]]:
        return [{"delta": {"role": "assistant", "content": ""}}]

    def deltas(self, parts: Parts) -> list[dict[str, Any]]:
        found = [{"reasoning_content": parts.thought}] if parts.thought and self._thoughts else []
        return [{"delta": delta} for delta in found + ([{"content": parts.response}] if parts.response else [])]

    def last(self) -> dict[str, Any]:
        return {"delta": {}}


class _TextForm(_Form):
    kind, prefix = "text_completion", "cmpl"

    def choice(self, parts: Parts) -> dict[str, Any]:
        return {"text": parts.response}

    def deltas(self, parts: Parts) -> list[dict[str, Any]]:
        return [{"text": parts.response}]

    def last(self) -> dict[str, Any]:
        return {"text": ""}


class _Stream(Response):
    """A response of server-sent events that ends when the client leaves or stops reading."""

    def __init__(self, reply: _Reply, chunks: AsyncIterator[dict[str, Any]]):
        self._reply, self._chunks = reply, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]

        async def write(data: str, more: bool = True) -> None:
            message = {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": more}
            async with asyncio.timeout(STALL_SECONDS):  # Python 3.11's `wait_for` can swallow a cancellation
                await send(message)

        async def stream() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for chunk in self._chunks:
                await write(json.dumps(chunk))
            await write("[DONE]", more=False)

        try:
            with contextlib.suppress(TimeoutError):
                await _unless_left(receive, stream())
        finally:
            self._reply.leave()


async def _unless_left(receive: Receive, work: Awaitable[Answer]) -> Answer | None:
    """Return what `work` comes to, or None if the client leaves before."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _error_body(status: int, message: str) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _error(status: int, message: str, headers: Any = None) -> Response:
    return JSONResponse(_error_body(status, message), status, headers)
