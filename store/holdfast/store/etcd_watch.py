"""A watch that never ends.

etcd's own watch ends with its connection, its member, its token or a compaction, and a silent one can't be told
from a dead one. So it is opened again, at the revision after the last one seen: when it ends for any reason, and
when it has been silent for `watch_silence_s`. Before each opening a linearizable read finds an endpoint that has a
quorum behind it; the watch goes there. A revision that was compacted meanwhile, or a server that was restored to
an older one, can't be resumed: then the difference between a fresh listing and what was told is told.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from holdfast.core.errors import LeasesUnavailable
from holdfast.core.ports import KeyChange, KeyValue, Listing
from holdfast.store.changes import Told
from holdfast.store.etcd_gateway import OUT_OF_RANGE, Answer, EtcdGateway, GatewayError, prefix_range
from holdfast.store.etcd_transport import NoAnswer, Silent

logger = logging.getLogger(__name__)

DELETED = "DELETE"


class _Broken(Exception):
    """The watch can't be resumed at its revision."""


class Watcher:
    """One reader's position in the changes below a prefix (the prefix as the server knows it)."""

    def __init__(self, gateway: EtcdGateway, prefix: str, after: int) -> None:
        self._gateway = gateway
        self._prefix = prefix
        self._position = after
        self._told: Told | None = None

    async def changes(self) -> AsyncGenerator[Sequence[KeyChange], None]:
        """Batches of changes. Raises `LeasesUnavailable` only once the client is closed, and `Misuse`."""
        backoff = self._gateway.backoff()
        while True:
            try:
                async with aclosing(self._until_renewal()) as batches:
                    async for batch in batches:
                        backoff.reset()
                        yield batch
            except Silent:
                backoff.reset()
            except (NoAnswer, GatewayError, OSError, ValueError) as error:
                logger.debug("watch on %s: %s", self._prefix, error)
            except LeasesUnavailable:
                if self._gateway.closed:
                    raise
            await asyncio.sleep(backoff.pause_s())

    async def _until_renewal(self) -> AsyncGenerator[Sequence[KeyChange], None]:
        if self._told is None:
            self._told = await self._told_before()
        found = await self._gateway.call("kv/range", {**prefix_range(self._prefix), "count_only": True})
        try:
            if found.revision < self._position:
                raise _Broken
            async with aclosing(self._stream(found.endpoint)) as batches:
                async for batch in batches:
                    self._told.note(batch)
                    yield batch
        except _Broken:
            listing = await read_listing(self._gateway, self._prefix)
            difference = self._told.difference(listing)
            self._position = listing.revision
            if difference:
                yield difference

    async def _told_before(self) -> Told:
        """The keys that the reader knows: those of a listing at the revision it starts after."""
        if self._position == 0:
            return Told()
        try:
            return Told((await read_listing(self._gateway, self._prefix, revision=self._position)).items)
        except GatewayError as error:
            if error.code != OUT_OF_RANGE:
                raise
            # Compacted already, or restored to an older revision: all that is there will be told.
            return Told()

    async def _stream(self, endpoint: str) -> AsyncGenerator[Sequence[KeyChange], None]:
        # At the last revision seen, not after it: of what was deleted at the very revision that was compacted, etcd
        # before 3.5.18 tells nothing to a watch that starts there (issue 19179); one that starts below is cancelled.
        request = {**prefix_range(self._prefix), "start_revision": str(self._position or 1), "progress_notify": True}
        async with aclosing(self._gateway.lines(endpoint, "watch", {"create_request": request})) as lines:
            try:
                async for result in lines:
                    self._check_alive(result)
                    if events := result.get("events"):
                        if batch := [change for each in events if (change := _change(each)).revision > self._position]:
                            self._position = batch[-1].revision
                            yield batch
                    elif not result.get("created"):
                        # A progress notification: all up to its revision has been told.
                        self._position = max(self._position, int(result["header"].get("revision", 0)))
            except NoAnswer:
                self._gateway.turn_from(endpoint)
                raise

    def _check_alive(self, result: dict[str, Any]) -> None:
        """Raises when the server has cancelled the watch."""
        if not result.get("canceled"):
            return
        if int(result.get("compact_revision", 0)) > 0:
            raise _Broken
        # Also what an expired token looks like.
        self._gateway.forget_token()
        raise GatewayError(0, str(result.get("cancel_reason", "cancelled")))


async def read_listing(gateway: EtcdGateway, prefix: str, *, revision: int = 0) -> Listing:
    """All keys below a prefix, now or at a revision. Raises what `EtcdGateway.call` raises."""
    answer = await gateway.call("kv/range", {**prefix_range(prefix), "revision": str(revision)})
    return Listing(revision or answer.revision, tuple(key_value(item) for item in answer.body.get("kvs", ())))


def key_value(item: dict[str, Any]) -> KeyValue:
    """A key as the gateway writes it; numbers are strings, and zeroes and empty values are left out."""
    return KeyValue(
        key=base64.b64decode(item["key"]).decode(),
        value=base64.b64decode(item.get("value", "")),
        create_revision=int(item.get("create_revision", 0)),
        mod_revision=int(item.get("mod_revision", 0)),
        lease=int(item.get("lease", 0)),
    )


def succeeded(answer: Answer) -> bool:
    """Whether a transaction's comparison held."""
    return bool(answer.body.get("succeeded"))


def _change(event: dict[str, Any]) -> KeyChange:
    item = key_value(event["kv"])
    return KeyChange(item.mod_revision, item.key, None if event.get("type") == DELETED else item.value)
