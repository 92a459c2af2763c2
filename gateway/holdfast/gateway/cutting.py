"""Cuts connections that Granian holds, and bounds their buffers, from outside of it.

A handler can end its answer, but Granian then goes on trying to send what it has in its buffers, for as long as
the client keeps the connection open without reading. Only the operating system can end that: the descriptor is
found by its two ends, and the connection reset. Nor does Granian have an option for how much the system keeps for a
connection: a listening socket's is that of all which it accepts.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Final

from starlette.types import Scope

DESCRIPTORS: Final = "/dev/fd"
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""`struct linger`: what is unsent is dropped, and the peer gets a reset."""

_MAPPED: Final = "::ffff:"


def cut_client(scope: Scope) -> None:
    """Reset the connection on which an exchange came."""
    server, client = scope.get("server"), scope.get("client")
    if server is not None and client is not None:
        reset_connections(int(server[1]), (client[0], int(client[1])))


def reset_connections(port: int, client: tuple[str, int] | None = None) -> int:
    """Reset this process's connections on its own `port`, or only the one from `client`; how many there were."""
    return sum(_reset(descriptor, port, client) for descriptor in map(int, os.listdir(DESCRIPTORS)))


def bound_buffers(port: int, send_bytes: int) -> None:
    """Let the system keep about so many unsent bytes of each connection that is accepted on `port` from now on."""
    for descriptor in map(int, os.listdir(DESCRIPTORS)):
        listener = _copy(descriptor)
        if listener is None:
            continue
        with listener, contextlib.suppress(OSError):
            if listener.getsockname()[1] == port and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)


def _reset(descriptor: int, port: int, client: tuple[str, int] | None) -> bool:
    connection = _copy(descriptor)
    if connection is None:
        return False
    with connection, contextlib.suppress(OSError):
        here, there = connection.getsockname(), connection.getpeername()
        if here[1] != port or (client is not None and _end(there) != _end(client)):
            return False
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        connection.shutdown(socket.SHUT_RDWR)
        return True
    return False


def _copy(descriptor: int) -> socket.socket | None:
    """A second descriptor of a TCP socket, so that a number that changes hands meanwhile does no harm.

    Whoever uses the first sees the end, and closes; as the last to do so it sends the reset.
    """
    try:
        copy = os.dup(descriptor)
    except OSError:
        return None
    try:
        connection = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        return connection
    connection.close()
    return None


def _end(address: tuple[str, int]) -> tuple[str, int]:
    return address[0].removeprefix(_MAPPED), address[1]
