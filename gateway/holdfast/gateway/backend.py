"""What the HTTP side needs from the serving side, as protocols.

`serving.py` implements them over replicas' sockets; nothing in the HTTP code knows of replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from holdfast.core.admission import Priority
from holdfast.core.requests import EngineRequest
from holdfast.core.status import GatewayStatus
from holdfast.core.stream import Piece
from holdfast.core.thresholds import ThresholdChanges, Thresholds
from holdfast.gateway.tracing import UNTRACED, RequestTrace


class Delta(msgspec.Struct, frozen=True):
    """What one choice of a request got since it was last asked. `finish_reason` is set on its last delta."""

    choice: int
    pieces: list[Piece]
    finish_reason: str | None


class Resumption(msgspec.Struct, frozen=True):
    """The client has `counts` tokens of each choice already. `replay`: hand those out too, its text depends on them."""

    counts: tuple[int, ...]
    replay: bool


class Claim(msgspec.Struct, frozen=True):
    """On what grounds a request is served: how important it is, and whose it is (empty: nobody in particular's)."""

    priority: Priority = Priority.DEFAULT
    tenant: str = ""


DEFAULT_CLAIM = Claim()


class ModelInfo(msgspec.Struct, frozen=True):
    """A model that is deployed. `context_tokens_max` is 0 while no replica has told it yet."""

    id: str
    application: str
    created: datetime
    context_tokens_max: int
    replicas_running: int
    replicas_wanted: int


class Health(msgspec.Struct, frozen=True):
    """Whether every application that should run can be served, and if not, why not."""

    healthy: bool
    reasons: list[str]
    details: dict[str, Any]
    state: GatewayStatus


class Session(Protocol):
    """One request's streams, one per choice. Use as an async context manager: leaving it frees everything."""

    async def __aenter__(self) -> Session: ...

    async def __aexit__(self, *error: object) -> None: ...

    async def next(self) -> list[Delta]:
        """What came since the last call, waiting until there is something; an empty list once all have ended.

        Raises what broke the request: `RequestRefused` (the client's fault), `Overloaded` or `NoReplica`,
        `DeadlineExceeded`, `StreamLost`. Before it raises, everything that was accepted has been handed out, but for
        text that may begin a stop string.
        The first call raises before any delta where the request can't be served at all.
        """
        ...

    @property
    def prompt_tokens(self) -> int:
        """The prompt's tokens, counted once however many choices there are. Known after the first delta."""
        ...

    def prompt_tokens_of(self, choice: int) -> int:
        """The prompt's tokens of one choice: a request may hold several prompts. Known after its first delta."""
        ...

    @property
    def completion_tokens(self) -> int:
        """Tokens so far over all choices: those that the client has from another gateway count, drawn again or not."""
        ...

    @property
    def drawn_tokens(self) -> int:
        """Those of them that came to this gateway: a client that resumes only says what it has."""
        ...

    @property
    def timeout_s(self) -> float:
        """How long it may take from when it is entered, in seconds."""
        ...

    @property
    def replicas(self) -> list[str]:
        """Where its streams run now; empty while all of them wait."""
        ...

    def stop(self) -> None:
        """End it well with what there is: engines are told at once, `next` gives the rest with a finish reason."""
        ...

    def fail(self, cause: Exception) -> None:
        """End it at once: engines are told, and `next` raises `cause` after what was accepted."""
        ...


class Backend(Protocol):
    """Serves models."""

    def models(self) -> Sequence[ModelInfo]: ...

    def open(
        self,
        model: str,
        choices: Sequence[EngineRequest],
        *,
        stops: Sequence[str],
        timeout_s: float | None = None,
        name: str = "",
        resumption: Resumption | None = None,
        trace: RequestTrace = UNTRACED,
        claim: Claim = DEFAULT_CLAIM,
    ) -> Session:
        """A session that will run `choices` at once; `timeout_s` bounds it from now (None: the setting).

        Under its `name`, the same request can be resumed at any gateway; without one it can't. With a `resumption`
        the session goes on after what the client has, from the replica that still holds the tokens, or with the same
        tokens drawn again. Raises `UnknownModel` and `Overloaded`; its first `next` raises `RequestRefused`
        (`cannot_resume`) where no replica holds the stream and the model's engines would not draw it again. `trace`
        is told of its attempts.
        """
        ...

    def check_open(self, model: str, claim: Claim) -> None:
        """Raise `Overloaded` if `open` would do so now for the smallest request; costs hardly anything."""
        ...

    def crowded(self) -> bool:
        """Whether requests were turned away of late: who asks `check_open` first may save work."""
        ...

    def thresholds(self, model: str) -> Thresholds:
        """Those that hold for a model. Raises `UnknownModel`."""
        ...

    async def set_thresholds(self, model: str, changes: ThresholdChanges) -> None:
        """Change a model's thresholds for all gateways; None is back to the configuration's. Returns once they hold.

        Raises `UnknownModel`, and `HttpRefusal` (503) where that is not known in time.
        """
        ...

    def health(self) -> Health: ...
