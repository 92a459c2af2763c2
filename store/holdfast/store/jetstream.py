"""The log on NATS JetStream.

**Exactly one of what was meant.** An append carries the expected last sequence of its subject (the fence: the
server refuses it when anything else was appended since) and a message id (an optimisation: the server forgets ids
after some minutes). When an answer fails to come, the append is sent again, unchanged. Whether an earlier try
landed is then read, not guessed: because of the fence, an append that landed is the *first* message on its
subject after the expected one. That holds even if others have appended behind it meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator
from typing import Any

from holdfast.core.errors import IncompatibleServer, LogFull, LogUnavailable, Misuse, WrongLastSequence
from holdfast.core.ports import LogEntry, LogStatus
from holdfast.store.entries import check_append, check_subject
from holdfast.store.jetstream_api import MESSAGE_ID_HEADER, ApiError, JetStreamApi
from holdfast.store.jetstream_follow import Follower
from holdfast.store.jetstream_stream import ensure_stream
from holdfast.store.nats_connection import Connection
from holdfast.store.nats_link import ConnectionLost, NoResponders
from holdfast.store.nats_session import Dial, Session
from holdfast.store.settings import JetStreamSettings

EXPECTED_HEADER = "Nats-Expected-Last-Subject-Sequence"

WRONG_LAST_SEQUENCE = 10071
WRONG_LAST_SEQUENCE_IN_FLIGHT = 10164
STORE_FAILED = 10077
NO_ROOM = {10002, 10023, 10028, 10047}
MESSAGE_TOO_LARGE = 10054

FORMER_LEADER_MAX_S = 15.0
"""A leader that is cut off takes itself for one for less than this, in seconds, and refuses by what it knew then."""


class JetStreamLog:
    """Implements the `Log` port on a JetStream stream. `JetStreamLog.open` connects; `close` when done."""

    def __init__(self, session: Session, settings: JetStreamSettings) -> None:
        self._session = session
        self._settings = settings
        self._api = JetStreamApi(session, settings)

    @classmethod
    async def open(
        cls, settings: JetStreamSettings, *, dial: Dial = Connection.dial, chance: random.Random | None = None
    ) -> JetStreamLog:
        """Connect, and create or check the stream. `dial` and `chance` are those of `Session`.

        Raises `LogUnavailable` (nobody answered within `open_timeout_s`), `IncompatibleServer` (server too old,
        or a stream that differs in what matters), `InvalidConfig` (credentials or certificates refused).
        """
        session = Session(settings, dial=dial, chance=chance)
        await session.open()
        log = cls(session, settings)
        try:
            await ensure_stream(log._api)
        except BaseException:
            await session.close()
            raise
        log._api.opened = True
        return log

    @property
    def connected(self) -> bool:
        """Whether there is a connection now. A half-open one is noticed after its missed pings."""
        return self._session.connected

    @property
    def down_since(self) -> float | None:
        """Time of the running loop at which the connection was lost; None while there is one."""
        return self._session.down_since

    async def append(self, subject: str, data: bytes, *, message_id: str, expected_last: int) -> int:
        """See `Log.append`. The bound is `append_timeout_s`; further raises `Misuse` for a message id used before."""
        check_append(subject, data, message_id, self._settings.max_message_bytes)
        loop, backoff = asyncio.get_running_loop(), self._api.backoff()
        deadline = loop.time() + self._settings.append_timeout_s
        problem = "no connection"
        while (left_s := deadline - loop.time()) > 0:
            try:
                acknowledgement = await self._publish(subject, data, message_id, expected_last, left_s)
                landed: int | None = int(acknowledgement["seq"])
                if acknowledgement.get("duplicate"):
                    landed = await self._resolve_duplicate(
                        subject, message_id, expected_last, int(acknowledgement["seq"]), deadline - loop.time()
                    )
                    problem = "it is there already, but can't be read yet"
                if landed is not None:
                    return landed
            except (ConnectionLost, NoResponders, TimeoutError) as error:
                problem = str(error) or type(error).__name__
            except ApiError as error:
                problem = str(error)
                landed = await self._resolve(subject, message_id, expected_last, error, deadline - loop.time())
                if landed is not None:
                    return landed
            await asyncio.sleep(min(backoff.pause_s(), max(0.0, deadline - loop.time())))
        raise LogUnavailable(
            f"{subject}: the outcome of appending {message_id} is unknown after "
            f"{self._settings.append_timeout_s:g} s ({problem}); append it again unchanged, or read"
        )

    def follow(self, after: int = 0) -> AsyncGenerator[LogEntry, None]:
        """See `Log.follow`. Raises `LogUnavailable` only once this log is closed."""
        return Follower(self._api, after).entries()

    async def last_on(self, subject: str) -> LogEntry | None:
        check_subject(subject)
        return await self._api.message({"last_by_subj": self._api.wire(subject)}, self._settings.read_timeout_s)

    async def status(self) -> LogStatus:
        try:
            info = await self._api.stream_info(self._settings.read_timeout_s)
        except ApiError as error:
            raise LogUnavailable(f"stream {self._settings.stream}: {error}") from error
        connection = await self._session.connection(self._settings.read_timeout_s)
        config, state = info["config"], info["state"]
        return LogStatus(
            last_sequence=int(state["last_seq"]),
            first_sequence=int(state["first_seq"]),
            messages=int(state["messages"]),
            bytes=int(state["bytes"]),
            bytes_max=int(config["max_bytes"]),
            replicas=int(config["num_replicas"]),
            server_version=connection.server_version,
            url=connection.url,
        )

    async def close(self) -> None:
        await self._session.close()

    async def _publish(
        self, subject: str, data: bytes, message_id: str, expected_last: int, left_s: float
    ) -> dict[str, Any]:
        """One try. Raises what `JetStreamApi.ask` raises."""
        headers = {MESSAGE_ID_HEADER: message_id, EXPECTED_HEADER: str(expected_last)}
        acknowledgement = await self._api.ask(self._api.wire(subject), data, headers, timeout_s=left_s)
        if acknowledgement.get("stream") != self._settings.stream:
            raise IncompatibleServer(
                f"{subject} is taken by stream {acknowledgement.get('stream')}, not by {self._settings.stream}: "
                "give each Holdfast cluster its own subject_prefix"
            )
        return acknowledgement

    async def _resolve(
        self, subject: str, message_id: str, expected_last: int, refusal: ApiError, left_s: float
    ) -> int | None:
        """What a refusal means: our sequence if an earlier try landed; None to try again; else the error for it."""
        following = await self._following(subject, expected_last, left_s)
        if following is not None and following.message_id == message_id:
            return following.sequence
        if following is not None:
            raise WrongLastSequence(subject, expected_last) from refusal
        if refusal.code == WRONG_LAST_SEQUENCE and not self._may_pass(refusal, expected_last, left_s):
            raise WrongLastSequence(subject, expected_last) from refusal
        if refusal.code in NO_ROOM or (refusal.code == STORE_FAILED and "maximum" in refusal.description):
            raise LogFull(
                f"{subject}: stream {self._settings.stream} is full ({refusal.description}): "
                "raise HOLDFAST_NATS__MAX_BYTES and start again"
            ) from refusal
        if refusal.code == MESSAGE_TOO_LARGE:
            raise Misuse(f"{subject}: {refusal.description}; lower max_message_bytes to the stream's") from refusal
        return None

    def _may_pass(self, refusal: ApiError, expected_last: int, left_s: float) -> bool:
        """Whether a wrong last sequence is of a server that lags: behind itself, or as a former leader of copies."""
        told = re.search(r"\d+$", refusal.description)
        if told is None:
            return False
        if int(told.group()) > expected_last:
            return True
        tried_s = self._settings.append_timeout_s - left_s
        return self._settings.replicas > 1 and tried_s < FORMER_LEADER_MAX_S

    async def _resolve_duplicate(
        self, subject: str, message_id: str, expected_last: int, claimed: int, left_s: float
    ) -> int | None:
        """What a duplicate means: our sequence; None when the read lags behind what answered before; or an error."""
        following = await self._following(subject, expected_last, left_s)
        if following is not None and following.message_id == message_id:
            return following.sequence
        if following is not None:
            raise WrongLastSequence(subject, expected_last)
        used = await self._api.message({"seq": claimed}, left_s)
        if used is None or (used.subject == subject and used.sequence > expected_last):
            return None
        raise Misuse(f"{subject}: message id {message_id} is used already, by sequence {claimed}")

    async def _following(self, subject: str, after: int, left_s: float) -> LogEntry | None:
        """The first entry on a subject after a sequence. Raises `LogUnavailable`."""
        return await self._api.message({"seq": after + 1, "next_by_subj": self._api.wire(subject)}, left_s)
