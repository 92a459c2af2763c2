"""What a replica has to forget of one gateway's streams, and has not shown to have heard.

Streams that have names go on when their gateway is gone. So those that were taken elsewhere, or stopped, must be
fenced there even if the connection broke before that arrived: over the next one. A stop was heard for certain once
a heartbeat gives back a ping that was sent after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.gateway.session import StreamRun

ORPHANS_MAX = 10_000
"""So many streams are remembered to be fenced at a replica that is not reached, and as many stops that it may not
have heard."""

Name = tuple[str, int]
"""A stream, and the highest of its ordinals that is fenced: as in `Fence.streams`."""


def names_of(runs: Iterable[StreamRun]) -> list[Name]:
    """Of those that have one, up to the ordinals that they have now."""
    return [(run.name, run.ordinal) for run in runs if run.name]


class Fences:
    """Of one link. The oldest are forgotten first."""

    __slots__ = ("_stopped", "_streams")

    def __init__(self) -> None:
        self._streams: deque[Name] = deque(maxlen=ORPHANS_MAX)
        self._stopped: deque[tuple[int, Name]] = deque(maxlen=ORPHANS_MAX)

    def __len__(self) -> int:
        return len(self._streams) + len(self._stopped)

    def add(self, streams: Iterable[Name]) -> None:
        """These are to be fenced, now or over the next connection."""
        self._streams.extend(streams)

    def stopped(self, stream: Name, pinged: int) -> None:
        """It was told to stop, after the ping of this number."""
        self._stopped.append((pinged, stream))

    def heard(self, ping: int) -> None:
        """The replica has heard this ping, and all that was sent before it."""
        stopped = self._stopped
        while stopped and stopped[0][0] < ping:
            stopped.popleft()

    def broke(self) -> None:
        """The connection is lost, with what was on its way."""
        self._streams.extend(stream for _pinged, stream in self._stopped)
        self._stopped.clear()

    def take(self) -> list[Name]:
        """All that are to be fenced, which are being told now."""
        streams = list(self._streams)
        self._streams.clear()
        return streams

    def clear(self) -> None:
        """The replica is known to have forgotten them."""
        self._streams.clear()
