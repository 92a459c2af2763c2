"""The client that users ship with: as any OpenAI client, but one that retries, and resumes a broken stream.

`machine` decides and does no I/O; `asynchronous` and `blocking` do what it says, with httpx. See docs/client.md.
"""

from __future__ import annotations

from holdfast.gateway.client.asynchronous import AsyncHoldfast, AsyncStream
from holdfast.gateway.client.blocking import Holdfast, Stream
from holdfast.gateway.client.errors import (
    ApiError,
    BadAnswer,
    CannotResume,
    ClientError,
    ConnectionFailed,
    DeadlinePassed,
    Refused,
    ServerFault,
    StreamBroken,
    Unavailable,
)
from holdfast.gateway.client.events import Answer, Event, text_of
from holdfast.gateway.client.policy import RetryPolicy
from holdfast.gateway.client.setup import Options

__all__ = [
    "Answer",
    "ApiError",
    "AsyncHoldfast",
    "AsyncStream",
    "BadAnswer",
    "CannotResume",
    "ClientError",
    "ConnectionFailed",
    "DeadlinePassed",
    "Event",
    "Holdfast",
    "Options",
    "Refused",
    "RetryPolicy",
    "ServerFault",
    "Stream",
    "StreamBroken",
    "Unavailable",
    "text_of",
]
