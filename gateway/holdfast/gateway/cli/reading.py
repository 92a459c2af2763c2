"""Reads the log and the leases for commands. Nothing here writes, and every wait is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from holdfast.actors.follower import Follower
from holdfast.actors.identity import LEADER_KEY, members_at
from holdfast.core.cluster import ClusterState
from holdfast.core.errors import LogUnavailable
from holdfast.core.ports import KeyValue, LeaseInfo, LeasesStatus, LogStatus
from holdfast.core.status import GatewayHeld, LeaderHeld, LeaseView
from holdfast.gateway.processes import open_leases
from holdfast.gateway.settings import Settings
from holdfast.store.etcd import EtcdLeases
from holdfast.store.jetstream import JetStreamLog
from holdfast.store.nats_session import Session

READ_TIMEOUT_S = 30.0
"""Reading a whole log may take this long, in seconds."""


class LogPicture(msgspec.Struct, frozen=True):
    """The log's stream, and the state that follows from it."""

    status: LogStatus
    state: ClusterState


class LeasePicture(msgspec.Struct, frozen=True):
    """All leases and all keys at about the same time."""

    status: LeasesStatus
    leases: list[LeaseInfo]
    keys: list[KeyValue]


@contextlib.asynccontextmanager
async def existing_log(settings: Settings) -> AsyncIterator[JetStreamLog]:
    """The cluster's log as it is: unlike `open_log` this never creates the stream. Raises `LogUnavailable`."""
    configuration = settings.log_settings()
    session = Session(configuration)
    await session.open()
    log = JetStreamLog(session, configuration)
    try:
        yield log
    finally:
        await log.close()


async def read_log(settings: Settings) -> LogPicture:
    """Fold the log as far as it goes now. Raises `LogUnavailable`, `CorruptLog`."""
    async with existing_log(settings) as log:
        status = await log.status()
        follower = Follower(log)
        if status.last_sequence:
            await _fold(follower, status.last_sequence)
        return LogPicture(status, follower.state)


async def _fold(follower: Follower, sequence: int) -> None:
    folding = asyncio.create_task(follower.run())
    reached = asyncio.create_task(follower.reached(sequence))
    try:
        done, _ = await asyncio.wait({folding, reached}, timeout=READ_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if folding in done:
            folding.result()
        if not done:
            raise LogUnavailable(f"read only {follower.state.sequence} of {sequence} entries in {READ_TIMEOUT_S:g} s")
    finally:
        for task in (folding, reached):
            task.cancel()
        await asyncio.gather(folding, reached, return_exceptions=True)


async def read_leases(settings: Settings) -> LeasePicture:
    """All leases with their keys. Raises `LeasesUnavailable`."""
    async with open_leases(settings) as leases:
        return await picture_of(leases)


async def picture_of(leases: EtcdLeases) -> LeasePicture:
    """All leases with their keys. Raises `LeasesUnavailable`."""
    listing = await leases.list("")
    return LeasePicture(await leases.status(), list(await leases.inspect_all()), list(listing.items))


def lease_view(picture: LeasePicture) -> LeaseView:
    """What the leases say about members and leader."""
    leader = None
    incarnations = set()
    for item in picture.keys:
        holder = holder_of(item)
        if item.key == LEADER_KEY:
            leader = LeaderHeld(
                str(holder.get("holder", "?")),
                str(holder.get("incarnation", "")),
                int(holder.get("pid", 0)),
                item.create_revision,
            )
        elif "incarnation" in holder:
            incarnations.add(str(holder["incarnation"]))
    return LeaseView(frozenset(incarnations), leader, _gateways_of(picture))


def _gateways_of(picture: LeasePicture) -> tuple[GatewayHeld, ...]:
    alive = members_at([item.key for item in picture.keys], "gateway")
    found = []
    for holder in map(holder_of, picture.keys):
        member = (str(holder.get("holder", "")), str(holder.get("incarnation", "")))
        if member in alive:
            found.append(GatewayHeld(*member, int(holder.get("pid", 0)), str(holder.get("host", ""))))
    return tuple(found)


def holder_of(item: KeyValue) -> dict[str, Any]:
    """What stands at a lease key, as `Identity.lease_value` wrote it; empty when somebody else wrote it."""
    return parse_holder(item.value)


def parse_holder(data: bytes) -> dict[str, Any]:
    """As `holder_of`, of a key's value."""
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
