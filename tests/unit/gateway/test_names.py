"""A gateway's name belongs to one machine at a time."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.actors.leasing import NameTaken
from holdfast.core.events import GatewayJoined
from holdfast.gateway.cli.running import EXIT_MISUSE, exit_code, first_known
from holdfast.store.memory_leases import MemoryLeasesServer
from tests.unit.gateway.processes import gateway_on
from tests.unit.support.replicas import PATIENCE_S, Site


async def test_a_gateway_whose_name_lives_on_another_machine_ends_with_one_line() -> None:
    leases = MemoryLeasesServer()
    lease = leases.grant(60.0)
    leases.put("gateways/g/0", b"", lease.id)
    async with Site() as site:
        site.fact(GatewayJoined("g", "elsewhere", 9, "http://elsewhere:8000", "0"), by="gateway.g", incarnation="0")
        with pytest.raises(BaseExceptionGroup) as caught:
            async with gateway_on(site, leases) as gateway, asyncio.timeout(PATIENCE_S):
                await asyncio.wait([gateway.stopped])
    error = first_known(caught.value)
    assert isinstance(error, NameTaken)
    assert "gateway g runs on host elsewhere already (process 9)" in str(error)
    assert exit_code(error) == EXIT_MISUSE
