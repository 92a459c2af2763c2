"""What the log needs of a connection to its servers. `nats_connection` has the one over nats-py.

**What is left unknown.** A request that fails with `ConnectionLost` or times out may have reached the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

STATUS_HEADER = "Status"
NO_RESPONDERS = "503"


class ConnectionLost(Exception):
    """The connection ended with a request under way; whether the server got it is unknown."""


class NoResponders(Exception):
    """Nobody serves the subject now: no leader, or JetStream is starting."""


class Message(Protocol):
    """What arrives: an answer, or a delivery to a subscription."""

    @property
    def subject(self) -> str: ...

    @property
    def reply(self) -> str: ...

    @property
    def data(self) -> bytes: ...

    @property
    def headers(self) -> dict[str, str] | None: ...


class Link(Protocol):
    """A live connection with requests on it. Once `lost` is set it is of no more use."""

    url: str
    lost: asyncio.Event

    @property
    def server_version(self) -> str: ...

    @property
    def discovered_urls(self) -> list[str]:
        """Servers of the cluster that this one told us of."""
        ...

    async def request(
        self, subject: str, data: bytes, timeout_s: float, headers: dict[str, str] | None = None
    ) -> Message:
        """Ask, and wait for one answer. Raises `TimeoutError`, `ConnectionLost`, `NoResponders`."""
        ...

    async def publish(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Send, and expect nothing. Raises `ConnectionLost`."""
        ...

    async def subscribe(self, inbox: str, deliver: Callable[[Any], Awaitable[None]]) -> Any:
        """Have each `Message` to the inbox delivered, one after the other. Raises `ConnectionLost`."""
        ...

    async def unsubscribe(self, subscription: Any) -> None:
        """End what `subscribe` gave."""
        ...

    def new_inbox(self) -> str:
        """A subject that nobody else uses; its last word is a name that nobody else has."""
        ...

    async def probe(self, timeout_s: float) -> None:
        """Give the connection up unless its server answers a ping in time."""
        ...

    async def close(self) -> None:
        """End at once; what was not sent is dropped."""
        ...
