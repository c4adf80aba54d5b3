"""Binding a port and serving an application on it (uvicorn)."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

from tpo_lite.errors import InputError

if TYPE_CHECKING:
    import uvicorn

CONNECTIONS = 1000
"""The most open connections; more are answered with status 503."""
GRACE_SECONDS = 5
"""What replies that are going on get when the server is stopped."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket on which nobody is heard yet; port 0 is any free one.

    Raises `InputError` for a port that is in use or not allowed, and for an address that this machine does not have.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except BaseException:
            found.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} of {host} is in use. Give another with --port, or end its server."
            ) from error
        raise InputError(f"{host}:{port} cannot be used ({error.strerror}). Give another --host or --port.") from error
    return found


def is_loopback(listening: socket.socket) -> bool:
    """Return whether only this machine can reach a socket."""
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def server_of(app: Any) -> uvicorn.Server:
    """Return a server; `serve(sockets=[...])` runs it until `should_exit`."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
