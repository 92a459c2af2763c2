"""What a gateway tells a trace of its requests, where nobody records any: the client's place in it is passed on.

`recording.py` has the same with spans. Which of the two a gateway has is settled at its start, so that one that does
not trace pays for the look at one header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from holdfast.core.frames import TRACE_STATE_CHARS_MAX
from holdfast.gateway.tracing_settings import TracingSettings

if TYPE_CHECKING:
    from holdfast.gateway.asking import Asked
    from holdfast.gateway.link import ReplicaLink
    from holdfast.gateway.openai import Usage
    from holdfast.gateway.session import StreamRun

TRACEPARENT: Final = b"traceparent"
TRACESTATE: Final = b"tracestate"

_STATE_MEMBER: Final = re.compile(r"[\t\x20-\x7e]*=[\t\x20-\x7e]*")
_TRACEPARENT: Final = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

FINISHED: Final = "finished"
LOST: Final = "lost"
POSTPONED: Final = "postponed"
REFUSED: Final = "refused"
ENDED: Final = "ended"
DECLINED: Final = "declined"
"""How an attempt ended: with its last token, with its replica, for want of room there, by the engine's refusal, because
its stream ended here (it was cancelled, or failed), or before it began, since the stream did not move after all."""


class Place(NamedTuple):
    """A place in a trace, as W3C Trace Context writes it: empty if nobody traces."""

    parent: str = ""
    state: str = ""


NOWHERE: Final = Place()


class Prepared:
    """An attempt that is prepared on a replica while the stream goes on elsewhere. `place` goes there."""

    def __init__(self, place: Place = NOWHERE) -> None:
        self.place = place

    def adopted(self) -> None:
        """It is the stream's attempt from now on."""

    def declined(self) -> None:
        """It came to nothing: the stream stays where it is, or has ended."""


class StreamTrace:
    """One stream's attempts, one after the other."""

    def __init__(self, place: Place = NOWHERE) -> None:
        self._place = place

    def begun(self, run: StreamRun, link: ReplicaLink) -> Place:
        """The run's next attempt begins on this replica; the place in the trace that goes there."""
        return self._place

    def prepared(self, run: StreamRun, link: ReplicaLink, ordinal: int, accepted: int) -> Prepared:
        """What may become the run's next attempt begins on this replica, with so many tokens."""
        return Prepared(self._place)

    def ended(self, outcome: str, error: str = "") -> None:
        """The attempt under way ended, if there is one; `error` is a word for what went wrong."""


class RequestTrace:
    """One request."""

    def __init__(self, place: Place = NOWHERE) -> None:
        self._stream = StreamTrace(place)

    def asked(self, asked: Asked, response_id: str) -> None:
        """It was understood."""

    def found(self, model: str) -> None:
        """The model that it asks for is deployed: it may be rejected before it is understood."""

    def stream(self, choice: int) -> StreamTrace:
        """The trace of one of its streams."""
        return self._stream

    def first_token(self, after_s: float) -> None:
        """Its first token came."""

    def used(self, usage: Usage) -> None:
        """It took so many tokens."""

    def ended(self, outcome: str) -> None:
        """It is over, as the metrics call it."""


UNTRACED_STREAM: Final = StreamTrace()
UNTRACED: Final = RequestTrace()
"""A request that no client traces, at a gateway that doesn't."""


def bounded_state(state: str) -> str:
    """As much of a `tracestate` as goes over the wire: whole members from its begin, none where it is no such thing."""
    kept, chars = list[str](), -1
    for member in state.split(","):
        chars += len(member) + 1
        if chars > TRACE_STATE_CHARS_MAX:
            break
        if member.strip(" \t") and _STATE_MEMBER.fullmatch(member) is None:
            return ""
        kept.append(member)
    return ",".join(kept)


class Tracer:
    """Begins the traces of requests."""

    def request(self, route: str, headers: Mapping[bytes, bytes]) -> RequestTrace:
        """A request came in for tokens. Its client may have its own trace, of which it is a part."""
        given = headers.get(TRACEPARENT)
        if given is None or _TRACEPARENT.fullmatch(given) is None:
            return UNTRACED
        return RequestTrace(Place(given.decode(), bounded_state(headers.get(TRACESTATE, b"").decode("latin-1"))))

    async def close(self) -> None:
        """Hand out what is left, for a bounded time."""


def tracer_of(settings: TracingSettings, cluster: str, gateway: str) -> Tracer:
    """What the settings ask for. Raises `InvalidConfig` where a package is missing for it."""
    if settings.otlp_endpoint is None:
        return Tracer()
    from holdfast.gateway.recording import exporting_tracer

    return exporting_tracer(settings.otlp_endpoint, settings.sample_ratio, cluster, gateway)
