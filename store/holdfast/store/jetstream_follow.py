"""Reading the log in order, without holes, for as long as the reader likes.

An ephemeral pull consumer delivers from a given sequence. Every message says its sequence in the stream, and only
the next one is passed on. Whatever else happens (a gap, silence, a lost connection, a consumer that is gone, a new
leader) ends in the same way: a new consumer that starts at the next sequence. So nothing depends on any state that
the server keeps for us.

Pulls bound what can be under way: no more is asked for than fits two batches, counted until the *reader* took it,
so that a slow reader holds back the server and no queue in between can overflow. While there is nothing to
deliver the server sends idle heartbeats; without them a half-open connection would look like a quiet log. They
count what was delivered, which shows a loss that no later message would. A server that is cut off from the others of
its cluster sends heartbeats too, and would look like a quiet log for as long: so a reader that gets nothing else asks
the leader now and then how far the log is. A consumer dies with its server, which need not be the one that we are
connected to: answers to whatever is asked or appended tell sooner than missed heartbeats that it delivers nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from holdfast.core.errors import CorruptLog, LogUnavailable
from holdfast.core.ports import LogEntry
from holdfast.store.jetstream_api import API, MESSAGE_ID_HEADER, STREAM_NOT_FOUND, ApiError, JetStreamApi
from holdfast.store.jetstream_stream import NANOSECONDS
from holdfast.store.nats_link import STATUS_HEADER, ConnectionLost, Link, Message, NoResponders

HEARTBEATS_MISSED_MAX = 3
LOOK_S = 10.0
"""A reader that gets heartbeats only asks for the log's end so often, in seconds."""

BEHIND_READS_MAX = 3
"""Reads' timeouts for which a stream may end before what was read: a leader that was cut off goes on for some time."""

BEHIND_S = 2.0
"""What an answer tells to be in the log comes to a reader within this time (seconds), or it takes a new consumer.

Each next one gets twice the time until an entry came, but no more than heartbeats have: delivery may be slow.
"""

PULL_EXPIRES_S = 30.0
PULL_BYTES_MAX = 64 << 20
CONSUMER_INACTIVE_S = 60.0
DELIVERED_HEADER = "Nats-Last-Consumer"
PENDING_HEADER = "Nats-Pending-Messages"
IDLE_HEARTBEAT = "100"
REQUEST_TIMEOUT = "408"
CONFLICT = "409"
# A 409 that only ends one pull; every other one ends the consumer.
PULL_ENDED = ("Message Size Exceeds MaxBytes", "Batch Completed")
# Fields of an acknowledgement subject: `$JS.ACK.<stream>.<consumer>.<tries>.<sequence>...`, or with
# `<domain>.<account hash>` after ACK where it has eleven or more (ADR-15).
SHORT_FIELDS = 9
SEQUENCE_FIELD = 5
LONG_SEQUENCE_FIELD = 7
PENDING_FIELD_AFTER = 3
"""The number of messages that are pending comes so many fields behind the sequence."""


logger = logging.getLogger(__name__)


class _Renew(Exception):
    """This consumer is of no more use; take a new one from the next sequence."""


class _Gap(_Renew):
    """A later message came than the next one."""


class Follower:
    """One reader's position in the log."""

    def __init__(self, api: JetStreamApi, after: int) -> None:
        self._api = api
        self._position = after
        self._gap_at: int | None = None
        self._behind_since: float | None = None
        self._allowance_s = BEHIND_S

    async def entries(self) -> AsyncGenerator[LogEntry, None]:
        """Every entry after the position. Raises `CorruptLog`; `LogUnavailable` only once the session is closed."""
        backoff = self._api.backoff()
        while True:
            try:
                async with aclosing(self._until_renewal()) as entries:
                    async for entry in entries:
                        backoff.reset()
                        yield entry
            except _Gap:
                self._note_gap()
            except (_Renew, ConnectionLost, NoResponders, TimeoutError) as error:
                logger.debug("following %s anew: %s", self._api.settings.stream, error or type(error).__name__)
            except LogUnavailable:
                if self._api.session.closed:
                    raise
            await asyncio.sleep(backoff.pause_s())

    async def _until_renewal(self) -> AsyncGenerator[LogEntry, None]:
        await self._check_range()
        connection = await self._api.session.connection(self._api.settings.read_timeout_s)
        consumer = await _Consumer.create(self._api, connection, self._position + 1, self._allowance_s)
        self._allowance_s = min(2 * self._allowance_s, max(BEHIND_S, consumer.silence_max_s))
        try:
            while True:
                message = await consumer.next()
                sequence = consumer.position
                if sequence <= self._position:
                    continue
                if sequence > self._position + 1:
                    raise _Gap
                self._position = sequence
                self._allowance_s = BEHIND_S
                headers = message.headers or {}
                message_id = headers.get(MESSAGE_ID_HEADER, "")
                yield LogEntry(sequence, self._api.local(message.subject), message.data, message_id, consumer.pending)
        finally:
            await consumer.discard()

    async def _check_range(self) -> None:
        """Raises `CorruptLog` when the position lies outside of what the stream holds, `_Renew` while that may pass."""
        settings = self._api.settings
        try:
            state = (await self._api.stream_info(settings.read_timeout_s))["state"]
        except ApiError as error:
            if error.code != STREAM_NOT_FOUND:
                raise LogUnavailable(str(error)) from error
            return self._behind(f"stream {settings.stream} is gone from the servers")
        first, last = int(state["first_seq"]), int(state["last_seq"])
        if self._position + 1 < first:
            raise CorruptLog(
                f"stream {settings.stream} begins at sequence {first}, but {self._position + 1} is needed: "
                "somebody removed history; restore the servers' data from a copy, or begin with a new log"
            )
        if last < self._position:
            return self._behind(
                f"stream {settings.stream} ends at sequence {last}, but {self._position} was read before: "
                "the servers lost history, or this is another stream"
            )
        self._behind_since = None

    def _behind(self, problem: str) -> None:
        # A leader just elected may lag behind what was committed, for a moment; one that is cut off takes itself for
        # the leader until it has missed the others for some seconds.
        now = asyncio.get_running_loop().time()
        if self._behind_since is None:
            self._behind_since = now
        if now - self._behind_since > self._api.settings.read_timeout_s * BEHIND_READS_MAX:
            raise CorruptLog(problem)
        raise _Renew

    def _note_gap(self) -> None:
        if self._gap_at == self._position:
            raise CorruptLog(
                f"sequence {self._position + 1} is missing from the middle of stream {self._api.settings.stream}"
            )
        self._gap_at = self._position


class _Consumer:
    """An ephemeral pull consumer on one connection. `position` is the sequence of the last message that it gave,
    `pending` how many the server had behind that one. Its first message may take `allowance_s` after an answer that
    tells of it.
    """

    def __init__(self, api: JetStreamApi, connection: Link, name: str, start: int, allowance_s: float) -> None:
        settings = api.settings
        self._api = api
        self._connection = connection
        self.position = start - 1
        self.pending = 0
        self._delivered = 0
        self._allowance_s = allowance_s
        self._heard_s = asyncio.get_running_loop().time()
        self._batch = settings.follow_batch_messages
        self.silence_max_s = settings.follow_heartbeat_s * HEARTBEATS_MISSED_MAX
        self._probe_timeout_s = settings.publish_timeout_s
        self._subject = f"{settings.stream}.{name}"
        self._pull = json.dumps(
            {
                "batch": self._batch,
                "expires": int(PULL_EXPIRES_S * NANOSECONDS),
                "idle_heartbeat": int(settings.follow_heartbeat_s * NANOSECONDS),
                "max_bytes": max(PULL_BYTES_MAX, settings.max_message_bytes * 2),
            }
        ).encode()
        self._inbox = connection.new_inbox()
        self._arrived: deque[Message] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._asked = 0
        self._due: asyncio.TimerHandle | None = None
        self._subscription: Any = None

    @classmethod
    async def create(cls, api: JetStreamApi, connection: Link, start: int, allowance_s: float) -> _Consumer:
        """Raises `_Renew`, and what `JetStreamApi.call_once` raises."""
        name = connection.new_inbox().rpartition(".")[2]
        config: dict[str, Any] = {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": int(CONSUMER_INACTIVE_S * NANOSECONDS),
            "mem_storage": True,
            "num_replicas": 1,
        }
        request = {"stream_name": api.settings.stream, "config": config, "action": "create"}
        try:
            await api.call_once(
                f"CONSUMER.CREATE.{api.settings.stream}.{name}", request, timeout_s=api.settings.read_timeout_s
            )
        except ApiError as error:
            raise _Renew from error
        consumer = cls(api, connection, name, start, allowance_s)
        consumer._subscription = await connection.subscribe(consumer._inbox, consumer._deliver)
        api.readers[consumer._told] = None
        return consumer

    async def next(self) -> Message:
        """The next message, waited for. Raises `_Renew`, `ConnectionLost`."""
        while True:
            if self._asked <= self._batch:
                self._asked += self._batch
                await self._connection.publish(f"{API}.CONSUMER.MSG.NEXT.{self._subject}", self._pull, self._inbox)
            if not self._arrived:
                await self._wait()
            message = self._arrived.popleft()
            status = message.headers.get(STATUS_HEADER) if message.headers and not message.data else None
            if status is None:
                self._asked -= 1
                self._delivered += 1
                self._allowance_s = BEHIND_S
                self.position, self.pending = _counts(message)
                self._heard_s = asyncio.get_running_loop().time()
                return message
            self._take_status(status, message.headers or {})
            if not self._arrived and asyncio.get_running_loop().time() - self._heard_s >= LOOK_S:
                await self._look()

    async def discard(self) -> None:
        self._api.readers.pop(self._told, None)
        if self._due is not None:
            self._due.cancel()
        if self._subscription is not None:
            await self._connection.unsubscribe(self._subscription)
        if not self._connection.lost.is_set():
            try:
                await self._connection.publish(f"{API}.CONSUMER.DELETE.{self._subject}", b"")
            except ConnectionLost:
                return  # The server forgets an inactive consumer by itself.

    def _take_status(self, status: str, headers: dict[str, str]) -> None:
        if status == IDLE_HEARTBEAT:
            if int(headers.get(DELIVERED_HEADER, 0)) > self._delivered:
                raise _Renew
            return
        ended = status == REQUEST_TIMEOUT or (
            status == CONFLICT and headers.get("Description", "").startswith(PULL_ENDED)
        )
        if not ended or PENDING_HEADER not in headers:
            raise _Renew
        self._asked -= int(headers[PENDING_HEADER])

    def _told(self, last: int) -> None:
        """An answer says that the log has reached `last`."""
        if last > self.position and self._due is None:
            self._due = asyncio.get_running_loop().call_later(self._allowance_s, self._is_behind, last, self._delivered)

    def _is_behind(self, last: int, delivered: int) -> None:
        self._due = None
        if self.position < last and self._delivered == delivered:
            self._wake()

    async def _look(self) -> None:
        """Ask the leader for the log's end. Where none answers the session gives the connection up, after a while."""
        settings = self._api.settings
        try:
            info = await self._api.call_once(f"STREAM.INFO.{settings.stream}", None, timeout_s=settings.read_timeout_s)
        except (NoResponders, TimeoutError, ApiError) as error:
            logger.debug("following %s: no leader tells its end: %s", settings.stream, error)
            return
        self._heard_s = asyncio.get_running_loop().time()
        if int(info["state"]["last_seq"]) > self.position and not self._arrived:
            raise _Renew

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._reader = loop.create_future()
        timer = loop.call_later(self.silence_max_s, self._wake)
        try:
            await self._reader
        finally:
            self._reader = None
            timer.cancel()
        if not self._arrived:
            await self._connection.probe(self._probe_timeout_s)
        if not self._arrived:
            raise _Renew

    def _wake(self) -> None:
        """A message came, or none for too long."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _deliver(self, message: Message) -> None:
        self._arrived.append(message)
        self._wake()


def _counts(message: Message) -> tuple[int, int]:
    """Its sequence, and how many messages were pending behind it."""
    fields = message.reply.split(".")
    place = SEQUENCE_FIELD if len(fields) == SHORT_FIELDS else LONG_SEQUENCE_FIELD
    return int(fields[place]), int(fields[place + PENDING_FIELD_AFTER])
