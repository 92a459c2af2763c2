"""What the client of etcd needs of a network: a request with its answer, and an answer that comes in lines.

The client speaks JSON as Python objects; how they travel is the transport's business. `etcd_http` is the one over
HTTP. Another one puts the same client on another network.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from holdfast.core.errors import WorldFailure

OK = 200

Reply = tuple[int, Any]
"""The HTTP status and the JSON in the body; None where an error's body is no JSON."""


class NoAnswer(WorldFailure):
    """No answer came, or not all of it. The request may have taken effect."""


class NotSent(NoAnswer):
    """There was no connection: the request has taken no effect."""


class Silent(NoAnswer):
    """An answer in lines has been silent for longer than was allowed."""


class Transport(Protocol):
    """Connections to the endpoints. Besides `NoAnswer`, calls raise `OSError`, and `ValueError` on broken JSON."""

    async def get(self, endpoint: str, path: str, timeout_s: float) -> Reply:
        """`timeout_s` bounds each step (connecting, sending, receiving), not the whole."""
        ...

    async def post(
        self, endpoint: str, path: str, payload: dict[str, Any], headers: dict[str, str], timeout_s: float
    ) -> Reply:
        """As `get`."""
        ...

    def lines(
        self,
        endpoint: str,
        path: str,
        payload: dict[str, Any],
        headers: dict[str, str],
        *,
        timeout_s: float,
        silence_s: float,
    ) -> AsyncGenerator[Reply, None]:
        """The answer's lines, each with the answer's status; with another one than `OK` there is one, the error.

        `timeout_s` bounds connecting and sending. Raises `Silent` after `silence_s` without a line.
        """
        ...

    async def close(self) -> None: ...
