"""The words between a call's machine and the shell that has the sockets.

The machine gives one step at a time; the shell does it and says what happened. The step that is out is the machine's
state, so these types and the table in `machine.py` are the whole protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from holdfast.gateway.client.errors import ClientError
from holdfast.gateway.client.events import Event


@dataclass(frozen=True, slots=True)
class Open:
    """Close what is open, send the request, wait for the status: `Answered` or `Failed`."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    connect_timeout_s: float
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Read:
    """Wait for a piece of the answer's body: `Received`, `Ended` or `Failed`."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Drain(Read):
    """As `Read`: the answer is complete, but a connection whose end was read can be used again."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Close what is open, wait: `Woke`. `why` is for the log."""

    seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give the caller these: `Delivered` when it wants more."""

    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """Close what is open. The answer is complete."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Close what is open, raise this."""

    error: ClientError


Step = Open | Read | Drain | Pause | Deliver | Finish | Fail


@dataclass(frozen=True, slots=True)
class Begin:
    """The caller wants the first event."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The status came. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Received:
    """A piece of the body came."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The body ended as HTTP says that a body ends."""


@dataclass(frozen=True, slots=True)
class Failed:
    """There was no connection, the other end was silent for the time given, or the connection broke."""

    kind: Literal["connect", "timeout", "broken"]
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Woke:
    """The pause is over."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The caller wants more."""


Happening = Begin | Answered | Received | Ended | Failed | Woke | Delivered
