"""Streams that leave a replica which asked for it, while they go on there.

Theory of operation. A replica that is about to end dismisses its streams, and repeats that with every heartbeat. A few
at a time are begun on another replica, from the tokens accepted so far; the first replica goes on meanwhile. Only once
the other engine has taken the stream in is the first attempt stopped. What came from it meanwhile the new one draws
again, and the stream drops it, as it drops every token that it has. So a stream that finds no room, or is refused,
stays where it is and loses nothing; and none waits for the prompts of the others to be read.

That the new attempt draws the same tokens is what deterministic engines promise. Of any other engine's stream the
first attempt ends before the second begins, which costs the time that the prompt takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast.core.requests import EngineRequest
from holdfast.core.stream import StreamStatus
from holdfast.gateway.tracing import Place, Prepared

if TYPE_CHECKING:
    from holdfast.gateway.link import ReplicaLink
    from holdfast.gateway.pool import Pool
    from holdfast.gateway.session import StreamRun

AT_ONCE = 4
"""So many streams of one replica are on their way at a time."""

DRAINED = "drained"
"""The metrics' word for why these streams migrate."""


class Handover:
    """One stream on its way: `attempt` on `source` goes on until the other replica has taken it in."""

    __slots__ = ("_attempt", "_left", "_source", "_trace", "ordinal", "request", "run")

    def __init__(self, run: StreamRun, source: ReplicaLink, left: Callable[[Handover, bool], None]) -> None:
        self.run = run
        run.ordinal += 1
        self.ordinal = run.ordinal
        self.request: EngineRequest = run.stream.again()
        self._source = source
        self._attempt = run.attempt
        self._left = left
        self._trace = Prepared()

    def prepared(self, target: ReplicaLink) -> Place:
        """It is being sent there; the place in the trace that goes with it."""
        self._trace = self.run.trace.prepared(self.run, target, self.ordinal, len(self.request.accepted))
        return self._trace.place

    def admitted(self, target: ReplicaLink, attempt: int, prompt_tokens: int) -> None:
        """The other replica has it; unless it ended or broke off meanwhile, it goes on there."""
        run = self.run
        goes_on = run.link is self._source and run.attempt == self._attempt and not run.stream.ended
        if goes_on:
            self._source.end(run)
            target.adopt(run, attempt)
            run.stream.admitted(prompt_tokens)
        else:
            target.decline(self, attempt)
        self._left(self, goes_on)
        if goes_on:
            self._trace.adopted()
        else:
            self._trace.declined()

    def failed(self) -> None:
        """The other replica won't have it, or is gone."""
        self._trace.declined()
        self._left(self, False)


class Incoming:
    """What is being prepared on one link, by its attempts."""

    def __init__(self) -> None:
        self._handovers: dict[int, Handover] = {}

    def __len__(self) -> int:
        return len(self._handovers)

    def add(self, attempt: int, handover: Handover) -> None:
        """It is being sent."""
        self._handovers[attempt] = handover

    def take(self, attempt: int) -> Handover | None:
        """The replica answered to it, if it is one of these."""
        return self._handovers.pop(attempt, None)

    def drop(self) -> tuple[list[int], list[tuple[str, int]]]:
        """None will be admitted here: each stays where it is. What is to be fenced here, as in `Fence`."""
        handovers, self._handovers = self._handovers, {}
        for handover in handovers.values():
            handover.failed()
        return list(handovers), [(one.run.name, one.ordinal) for one in handovers.values() if one.run.name]


class _Leaving:
    """A replica that dismissed its streams: those that are on their way, and how many have gone since all was told."""

    def __init__(self) -> None:
        self.under_way: dict[StreamRun, Handover] = {}
        self.gone = 0


class Handovers:
    """All streams of a gateway that are on their way.

    `pool_of(run)` is among whose replicas a stream may move, None if it may not; `choose(run, pool)` finds one with
    room for it. `moved(run, source)` is told of each before its next token comes, `told(source, streams)` how many
    have left a replica once none is on its way.
    """

    def __init__(
        self,
        pool_of: Callable[[StreamRun], Pool | None],
        choose: Callable[[StreamRun, Pool], ReplicaLink | None],
        moved: Callable[[StreamRun, ReplicaLink], None],
        told: Callable[[ReplicaLink, int], None],
    ) -> None:
        self._pool_of = pool_of
        self._choose = choose
        self._moved = moved
        self._told = told
        self._leaving: dict[ReplicaLink, _Leaving] = {}

    def dismissed(self, source: ReplicaLink) -> None:
        """The replica asks for its streams to be taken away: begin as many as may be on their way at once."""
        leaving = self._leaving.setdefault(source, _Leaving())
        for run in source.runs():
            if len(leaving.under_way) >= AT_ONCE:
                break
            if run not in leaving.under_way and not self._begin(run, source, leaving):
                break
        if not leaving.under_way:
            del self._leaving[source]
            if leaving.gone:
                self._told(source, leaving.gone)

    def _begin(self, run: StreamRun, source: ReplicaLink, leaving: _Leaving) -> bool:
        """Begin to move it, if it can be; False where nobody has room."""
        pool = self._pool_of(run)
        if pool is None or run.stream.status is not StreamStatus.RUNNING or not run.stream.admitted_now:
            return True
        target = self._choose(run, pool)
        if target is None:
            return False
        if pool.erratic:
            source.end(run)
            run.stream.postponed()
            self._moved(run, source)
            leaving.gone += 1
            target.begin(run)
        else:
            leaving.under_way[run] = Handover(run, source, lambda one, goes_on: self._left(source, one, goes_on))
            target.prepare(leaving.under_way[run])
        return True

    def _left(self, source: ReplicaLink, handover: Handover, moved: bool) -> None:
        leaving = self._leaving[source]
        del leaving.under_way[handover.run]
        if moved:
            self._moved(handover.run, source)
            leaving.gone += 1
            self.dismissed(source)
        elif not leaving.under_way:
            # The next heartbeat asks again.
            del self._leaving[source]
            if leaving.gone:
                self._told(source, leaving.gone)
