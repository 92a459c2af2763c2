"""One HTTP request's streams, and how its handler waits for them."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from holdfast.core.errors import DeadlineExceeded, RequestRefused
from holdfast.core.requests import EngineRequest, TokenLogprob
from holdfast.core.stream import Stream, StreamStatus
from holdfast.gateway.backend import DEFAULT_CLAIM, Claim, Delta, Resumption
from holdfast.gateway.moves import CANCELLED, FAILED, Move
from holdfast.gateway.tracing import ENDED, FINISHED, REFUSED, UNTRACED, UNTRACED_STREAM, RequestTrace, StreamTrace

_encode = msgspec.msgpack.Encoder().encode

if TYPE_CHECKING:
    from holdfast.gateway.link import ReplicaLink
    from holdfast.gateway.search import Search
    from holdfast.gateway.waiting import WaitingQueue


RESUMED_ORDINALS = 1 << 20
"""A stream that is resumed counts its attempts from so much times more than the tokens that its client has, so that
they are later ones than any of the gateway that the client left, which may not know yet, and go on with it too."""


class StreamRun:
    """A stream and the attempt that runs it now. `link` is None while it waits for a replica.

    `queue` is where it waits, `waiting` ends that wait, and `waiting_since_s` is when it began: a replica
    that turns it away does not begin it anew. `name` is what replicas keep its tokens under, if they should,
    `ordinal` counts its attempts over all gateways, `avoid` is where it stood still, `resumed_at` is how many tokens
    the client has from another gateway, and `search` looks for the replica that holds it. `began_s` is when its last
    attempt began, `awaits_first` whether that one's first token is to come, `move` is there from the loss of a replica
    to the next token, and `trace` is told of its attempts. `claim` is the request's, `counted` whether it counts as
    its tenant's; waiting for longer than `patience_s` it makes room for others. `taken` is called once the client took
    what there is, if the stream is held back until then; `was_held` is true from then on until an engine takes it in
    again: meanwhile it waits for a place as who has not begun, but until the request's deadline.
    """

    __slots__ = (
        "_session",
        "attempt",
        "avoid",
        "awaits_first",
        "began_s",
        "choice",
        "claim",
        "counted",
        "link",
        "move",
        "name",
        "ordinal",
        "patience_s",
        "queue",
        "reported",
        "resumed_at",
        "search",
        "stops",
        "stream",
        "taken",
        "trace",
        "waiting",
        "waiting_since_s",
        "was_held",
    )

    def __init__(
        self,
        session: StreamSession,
        choice: int,
        stream: Stream,
        stops: bool,
        name: str = "",
        trace: StreamTrace = UNTRACED_STREAM,
    ) -> None:
        self._session = session
        self.trace = trace
        self.name = name
        self.ordinal = 0
        self.avoid: ReplicaLink | None = None
        self.resumed_at: int | None = None
        self.search: Search | None = None
        self.choice = choice
        self.stream = stream
        self.stops = stops
        self.link: ReplicaLink | None = None
        self.attempt = 0
        self.began_s = 0.0
        self.move: Move | None = None
        self.reported = False
        self.taken: Callable[[StreamRun], None] | None = None
        self.claim = DEFAULT_CLAIM
        self.awaits_first = self.counted = self.was_held = False
        self.patience_s: float | None = None
        self.queue: WaitingQueue | None = None
        self.waiting: asyncio.TimerHandle | None = None
        self.waiting_since_s: float | None = None

    def leave_queue(self) -> None:
        """Wait and search no longer, if it does."""
        if self.search is not None:
            self.search.cancel()
            self.search = None
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None
        queue, self.queue = self.queue, None
        if queue is not None:
            queue.remove(self)

    def token(self, position: int, token: int, text: str, logprob: TokenLogprob | None) -> None:
        """A token came in for the current attempt."""
        stream = self.stream
        had = len(stream.accepted)
        stream.token(position, token, text, logprob)
        if self.move is not None and len(stream.accepted) > had:
            self._resumed(self.move)
        if self.awaits_first and self.link is not None:
            self.link.record.first_token(self)
        if self.stops and stream.ended and self.link is not None:
            link, self.link = self.link, None
            link.end(self)
            self.trace.ended(FINISHED)
        self._session.wake()

    def finished(self, reason: str) -> None:
        """The engine is done with it."""
        self.link = None
        self.stream.finished(reason)
        self.trace.ended(FINISHED)
        if self.move is not None:
            self._resumed(self.move)
        self._session.wake()

    def refused(self, refusal: RequestRefused) -> None:
        """The engine won't take it."""
        self.link = None
        self.stream.refused(refusal)
        self.trace.ended(REFUSED, refusal.code)
        self.end_move(FAILED)
        self._session.wake()

    def fail(self, cause: Exception) -> None:
        """It can't go on."""
        self._leave()
        self.stream.fail(cause)
        self.end_move(FAILED)
        self._session.wake()

    def release(self, cause: Exception) -> None:
        """Its client goes on at another gateway: its replica keeps it."""
        self.leave_queue()
        link, self.link = self.link, None
        if link is not None:
            link.release(self)
        self.trace.ended(ENDED)
        self.stream.fail(cause)
        self.end_move(CANCELLED)
        self._session.wake()

    def stop(self) -> None:
        """Nobody wants more: it ends well with what it has."""
        self._leave()
        self.stream.stop()
        self.end_move(CANCELLED)
        self._session.wake()

    @property
    def has_tokens(self) -> bool:
        """Whether its request has some, of any choice: its client may have them, and must not lose the rest."""
        return self._session.completion_tokens > 0

    @property
    def left_s(self) -> float:
        """How long its request may still take, in seconds, rounded up to milliseconds."""
        return self._session.left_s

    def _leave(self) -> None:
        self.leave_queue()
        link, self.link = self.link, None
        if link is not None:
            link.end(self)
        self.trace.ended(ENDED)

    def end_move(self, outcome: str) -> None:
        """It moves no longer, if it did."""
        move, self.move = self.move, None
        if move is not None:
            move.ended(outcome)

    def _resumed(self, move: Move) -> None:
        self.move = None
        move.resumed(asyncio.get_running_loop().time())


class StreamSession:
    """As `Session`: the runs of one request, one per choice."""

    def __init__(
        self,
        choices: Sequence[EngineRequest],
        stops: Sequence[str],
        migrations_max: int,
        submit: Callable[[StreamRun], None],
        withdraw: Callable[[StreamRun], None],
        timeout_s: float,
        name: str = "",
        resumption: Resumption | None = None,
        trace: RequestTrace = UNTRACED,
        claim: Claim = DEFAULT_CLAIM,
    ) -> None:
        self._runs = []
        for number, choice in enumerate(choices):
            counted = resumption.counts[number] if resumption is not None and not resumption.replay else 0
            stream = Stream(choice, stops, migrations_max, counted)
            named = _stream_name(name, number, choice) if name else ""
            run = StreamRun(self, number, stream, bool(stops), named, trace.stream(number))
            run.claim = claim
            if resumption is not None:
                run.resumed_at = resumption.counts[number]
                run.ordinal = (run.resumed_at + 1) * RESUMED_ORDINALS
            self._runs.append(run)
        self._submit = submit
        self._withdraw = withdraw
        self.timeout_s = timeout_s
        self._deadline: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None

    async def __aenter__(self) -> StreamSession:
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self.timeout_s, self._expire)
        for run in self._runs:
            self._submit(run)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        for run in self._runs:
            self._withdraw(run)

    async def next(self) -> list[Delta]:
        """As `Session.next`."""
        if self._failure is not None:
            raise self._failure
        while True:
            deltas = self._collect()
            if deltas:
                return deltas
            if self._failure is not None:
                raise self._failure
            if all(run.stream.ended for run in self._runs):
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    @property
    def prompt_tokens(self) -> int:
        """As `Session.prompt_tokens`."""
        return next((run.stream.prompt_tokens for run in self._runs if run.stream.prompt_tokens is not None), 0)

    def prompt_tokens_of(self, choice: int) -> int:
        """As `Session.prompt_tokens_of`."""
        return self._runs[choice].stream.prompt_tokens or 0

    @property
    def replicas(self) -> list[str]:
        """As `Session.replicas`."""
        return sorted({run.link.replica for run in self._runs if run.link is not None})

    @property
    def left_s(self) -> float:
        """As `StreamRun.left_s`."""
        if self._deadline is None:
            return self.timeout_s
        return max(0.001, math.ceil((self._deadline.when() - asyncio.get_running_loop().time()) * 1000) / 1000)

    def stop(self) -> None:
        """As `Session.stop`."""
        for run in self._runs:
            if not run.stream.ended:
                run.stop()

    def fail(self, cause: Exception) -> None:
        """As `Session.fail`."""
        for run in self._runs:
            if not run.stream.ended:
                run.fail(cause)

    @property
    def completion_tokens(self) -> int:
        """As `Session.completion_tokens`: what the client has counts, also while it is drawn again."""
        return sum(max(len(run.stream.accepted), run.resumed_at or 0) for run in self._runs)

    @property
    def drawn_tokens(self) -> int:
        """As `Session.drawn_tokens`."""
        return sum(len(run.stream.accepted) for run in self._runs)

    def wake(self) -> None:
        """Something changed for the handler."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _collect(self) -> list[Delta]:
        deltas = []
        for run in self._runs:
            stream = run.stream
            pieces = stream.take()
            if run.taken is not None:
                run.taken(run)
            finished = stream.status is StreamStatus.FINISHED and not run.reported
            if finished:
                run.reported = True
            if pieces or finished:
                deltas.append(Delta(run.choice, pieces, stream.finish_reason if finished else None))
            if stream.failure is not None and self._failure is None:
                self._failure = stream.failure
        return deltas

    def _expire(self) -> None:
        self.fail(DeadlineExceeded(f"The request did not end within {round(self.timeout_s, 3):g} seconds."))


def _stream_name(name: str, number: int, choice: EngineRequest) -> str:
    """What replicas keep a stream under: who knows the response's id and repeats the request finds it."""
    digest = hashlib.blake2b(_encode(choice), digest_size=8).hexdigest()
    return f"{name}/{number}/{digest}"
