"""Ends a blocking call's wait on a connection when its time is up.

httpx's blocking client bounds each `recv`, with one number for a whole response. Neither a deadline (the sum of many
waits) nor a body that trickles is bounded by that. So one thread per client, started when it is first needed, shuts
down the sockets whose time is up; the reader then sees the end of the connection at once.
"""

from __future__ import annotations

import math
import socket
import threading
import time
import weakref
from contextlib import suppress
from typing import Any, Final

IDLE_S: Final = 30.0
"""After so long without a wait to guard the thread ends; the next wait starts another."""


class Guard:
    """The waits of one call, one after the other. `expired` tells whether the last one was ended."""

    __slots__ = ("__weakref__", "_dog", "expired", "socket", "until")

    def __init__(self, dog: Watchdog) -> None:
        self._dog = dog
        self.until = math.inf
        self.expired = False
        self.socket: socket.socket | None = None

    def begin(self, timeout_s: float) -> None:
        """A wait begins."""
        self.expired = False
        self._dog.watch(self, time.monotonic() + timeout_s)

    def end(self) -> None:
        """It is over."""
        self.until = math.inf

    def trace(self, name: str, info: dict[str, Any]) -> None:
        """httpx's `trace` extension: notes the socket as soon as there is one."""
        if name in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self.hold(info["return_value"])

    def hold(self, stream: Any) -> None:
        """Guard this network stream of httpx (None: nothing)."""
        found = stream.get_extra_info("socket") if stream is not None else None
        self.socket = found if isinstance(found, socket.socket) else None
        if self.expired:
            self.shut()

    def shut(self) -> None:
        """Whoever reads from the socket sees its end."""
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """The call is over."""
        self.until = math.inf
        self.socket = None
        self._dog.forget(self)


class Watchdog:
    """A client's guards, and the thread that looks after them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._guards: weakref.WeakSet[Guard] = weakref.WeakSet()
        self._thread: threading.Thread | None = None
        self._wakes_at = 0.0

    def watch(self, guard: Guard, until: float) -> None:
        """End the guard's wait at `until` (of the monotonic clock)."""
        with self._changed:
            guard.until = until
            self._guards.add(guard)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="holdfast-client-watchdog", daemon=True)
                self._thread.start()
            elif until < self._wakes_at:
                self._changed.notify()

    def forget(self, guard: Guard) -> None:
        """The guard has nothing more to guard."""
        with self._changed:
            self._guards.discard(guard)

    def _run(self) -> None:
        with self._changed:
            while self._guards:
                now = time.monotonic()
                for guard in [guard for guard in self._guards if guard.until <= now]:
                    guard.until = math.inf
                    guard.expired = True
                    guard.shut()
                earliest = min((guard.until for guard in self._guards), default=math.inf)
                self._wakes_at = min(earliest, now + IDLE_S)
                self._changed.wait(self._wakes_at - now)
            self._thread = None
