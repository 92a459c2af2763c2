"""A gateway that was given up, and is back, joins again: however often, and however soon after it joined."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.core import events as ev
from holdfast.core.cluster import MemberStatus
from holdfast.core.entries import SCHEMA_VERSION, decode_record, digest, encode_event
from holdfast.core.events import Event
from holdfast.store.memory import MemoryLogServer
from tests.unit.gateway.processes import gateway_on
from tests.unit.support.history import application
from tests.unit.support.replicas import Site, eventually
from tests.unit.support.virtual_time import EPOCH

LOST = ev.GatewayLost("g", "1", "its lease expired")


def joins(server: MemoryLogServer) -> int:
    """How often the gateway has joined."""
    entries = (server.entry(sequence) for sequence in range(1, server.last_sequence + 1))
    return sum(entry is not None and type(decode_record(entry).event.payload) is ev.GatewayJoined for entry in entries)


def give_up(server: MemoryLogServer) -> None:
    """The leader's decision, after whatever is there."""
    last = server.last_on("decisions")
    assert last is not None
    name = f"a.1.d{server.last_sequence + 1}"
    event = Event(
        id=name,
        time=EPOCH,
        writer="a",
        incarnation="1",
        epoch=1,
        cause=None,
        schema=SCHEMA_VERSION,
        previous=digest(last.data),
        payload=LOST,
    )
    server.append("decisions", encode_event(event), name, last.sequence)


async def test_it_joins_again_even_if_it_is_given_up_before_it_has_seen_that_it_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site()
    site.deploy(application(replicas=1))
    append = site.server.append

    def given_up_at_once(subject: str, data: bytes, message_id: str, expected_last: int) -> int:
        """The second time that it joins, its loss follows before anybody has read that it did."""
        sequence = append(subject, data, message_id, expected_last)
        if subject == "facts.gateway.g" and joins(site.server) == 2:
            give_up(site.server)
        return sequence

    async with site:
        await site.replica()
        async with gateway_on(site) as gateway:
            await gateway.until(200)
            follower = await site.gateway("bystander")
            await eventually(lambda: joins(site.server) == 1)
            monkeypatch.setattr(site.server, "append", given_up_at_once)
            give_up(site.server)
            await eventually(lambda: joins(site.server) == 3)
            await eventually(lambda: follower._follower.state.gateways["g"].status is MemberStatus.ALIVE)
            await asyncio.sleep(0)
            assert joins(site.server) == 3
