"""An OpenAI-compatible server on a port of its own on loopback that answers, or fails, as a test wants."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tpo_lite.judges import openai_server as openai
from tpo_lite.judges.protocol import JudgeRequest

KEY = "sk-very-secret"
REQUEST = JudgeRequest("Add 1 and 2.", "It is 3.", "It is 4.")
REQUESTS = [JudgeRequest(f"Add {i} and 2.", "It is 3.", "It is 4.") for i in range(6)]


def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and no waiting between tries."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(openai, "FIRST_DELAY", 0.001)


@dataclasses.dataclass
class Reply:
    """What the stub answers."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0


def says(text: str | None, finish: str = "stop") -> Reply:
    """A chat completion."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Reply(200, json.dumps({"choices": [choice], "usage": {"total_tokens": 7}}))


@contextmanager
def stub(answer: Callable[[str, dict], Reply]) -> Iterator[tuple[str, list]]:
    """A server that answers a path and body as told: its base URL, and the (path, headers, body) it was sent."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
            received.append((self.path, dict(self.headers), body))
            reply = answer(self.path, body)
            time.sleep(reply.seconds)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body.encode())))
            self.end_headers()
            self.wfile.write(reply.body.encode())

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that timed out has closed its side

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def replies(*each: Reply) -> Callable[[str, dict], Reply]:
    """One reply after the other, the last one for ever."""
    left = list(each)
    return lambda path, body: left.pop(0) if len(left) > 1 else left[0]
