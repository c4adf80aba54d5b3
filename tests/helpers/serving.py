"""A server in a thread of this process, on a port of its own on loopback."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tpo_lite.serving.app import Limits, make_app
from tpo_lite.serving.loaded import LoadedModel
from tpo_lite.serving.server import bind, server_of


@contextmanager
def serving(model: LoadedModel, limits: Limits = Limits()) -> Iterator[str]:  # noqa: B008  frozen
    """Its base URL; it ends with the block."""
    listening = bind("127.0.0.1", 0)
    server = server_of(make_app(model, limits))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
