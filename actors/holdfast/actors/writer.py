"""Appends events so that they chain, and so that an older incarnation of the same writer is shut out.

Every append expects the subject's last sequence. A writer that meets another event there has been replaced.
An append whose outcome is unknown is tried again with the same bytes and the same expectation for as long as
it takes: the log's port resolves it, and nothing is appended twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

import msgspec

from holdfast.actors.identity import DECISIONS, Identity
from holdfast.core.cluster import Head
from holdfast.core.entries import GENESIS, SCHEMA_VERSION, digest, encode_event
from holdfast.core.errors import LogFull, LogUnavailable
from holdfast.core.events import Decision, Event, Fact, Payload, type_name
from holdfast.core.ports import Clock, Log

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
OUTBOX_FACTS_MAX = 10_000
"""Facts that may wait while the log is away. A node meets a few per replica: this is hours of crashes."""

NOTES_MAX = 5_000
"""Where so many facts wait already, those that are only for people to read are dropped."""

logger = logging.getLogger(__name__)


class EventAppender:
    """Makes events of payloads and appends them to one subject, one at a time, each after the one before."""

    def __init__(
        self, log: Log, clock: Clock, identity: Identity, subject: str, *, waits_when_full: bool = True
    ) -> None:
        self._waits_when_full = waits_when_full
        self._log = log
        self._clock = clock
        self._identity = identity
        self._subject = subject
        self._count = 0

    def next_id(self) -> str:
        """A fresh event id."""
        self._count += 1
        return f"{self._identity.name}.{self._identity.incarnation}.{self._subject[0]}{self._count}"

    def event(self, payload: Payload, cause: str | None, *, epoch: int = 0) -> Event:
        """The payload in its envelope, stamped now; `previous` is filled in when it is appended."""
        return Event(
            id=self.next_id(),
            time=self._clock.now(),
            writer=self._identity.name,
            incarnation=self._identity.incarnation,
            epoch=epoch,
            cause=cause,
            schema=SCHEMA_VERSION,
            previous=GENESIS,
            payload=payload,  # type: ignore[arg-type]  # Payload's subclasses are exactly the union
        )

    async def append(self, event: Event, head: Head) -> Head:
        """Append after `head`; the new head. Waits out an absent log.

        Raises `WrongLastSequence`, and `LogFull` unless it waits for that to end as well.
        """
        data = encode_event(msgspec.structs.replace(event, previous=head.digest))
        wait_s = RETRY_FIRST_S
        while True:
            try:
                sequence = await self._log.append(self._subject, data, message_id=event.id, expected_last=head.sequence)
                return Head(sequence, digest(data))
            except LogUnavailable as error:
                if isinstance(error, LogFull) and not self._waits_when_full:
                    raise
                logger.warning("%s waits for the log: %s", type_name(event.payload), error)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RETRY_MAX_S)


class FactWriter:
    """An actor's facts, in the order in which it recorded them. `run` appends them in the background."""

    def __init__(self, log: Log, clock: Clock, identity: Identity) -> None:
        self._log = log
        self._subject = identity.fact_subject
        self._appender = EventAppender(log, clock, identity, self._subject)
        self._outbox: deque[Event] = deque()
        self._wakeup = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self._sequence = 0
        self.dropped = 0

    def note(self, fact: Fact, cause: str | None) -> str | None:
        """Take down a fact that nobody acts on; its event id, None where too many wait. Never raises."""
        if len(self._outbox) < NOTES_MAX:
            return self.record(fact, cause)
        if not self.dropped:
            logger.warning("%d facts wait for the log; notes such as %s are dropped", NOTES_MAX, type_name(fact))
        self.dropped += 1
        return None

    def record(self, fact: Fact, cause: str | None) -> str:
        """Take down a fact as of now; its event id. It is appended as soon as the log takes it.

        Raises `OverflowError` when the log has been away for so long that the outbox is full.
        """
        if len(self._outbox) >= OUTBOX_FACTS_MAX:
            raise OverflowError(f"{OUTBOX_FACTS_MAX} facts wait for the log; this process can't go on without it")
        event = self._appender.event(fact, cause)
        self._outbox.append(event)
        self._written.clear()
        self._wakeup.set()
        return event.id

    async def run(self) -> None:
        """Append what is recorded until cancelled. Raises `WrongLastSequence` when a newer incarnation writes."""
        head = await self._first_head()
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            while self._outbox:
                head = await self._appender.append(self._outbox[0], head)
                self._sequence = head.sequence
                self._outbox.popleft()
            self._written.set()

    async def flush(self) -> int:
        """Wait until everything recorded so far is in the log; the sequence of the last of it."""
        await self._written.wait()
        return self._sequence

    async def _first_head(self) -> Head:
        wait_s = RETRY_FIRST_S
        while True:
            try:
                entry = await self._log.last_on(self._subject)
                return Head(entry.sequence, digest(entry.data)) if entry else Head(0, GENESIS)
            except LogUnavailable as error:
                logger.warning("the log is not there yet: %s", error)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RETRY_MAX_S)


class DecisionWriter:
    """The leader's decisions, each appended right after the last one that it has read."""

    def __init__(self, log: Log, clock: Clock, identity: Identity) -> None:
        self._appender = EventAppender(log, clock, identity, DECISIONS)

    async def append(self, decision: Decision, cause: str | None, *, epoch: int, head: Head) -> Head:
        """Append after `head`; the new head. Raises `WrongLastSequence` when somebody else decided meanwhile."""
        return await self._appender.append(self._appender.event(decision, cause, epoch=epoch), head)
