"""A gateway and a node put into the log what others can reach."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from holdfast.core.entries import decode_record
from holdfast.core.events import GatewayJoined
from tests.unit.gateway.processes import gateway_on
from tests.unit.support.history import application
from tests.unit.support.replicas import LocalReplica, Site, engine_of, eventually


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"host": "::1"}, "http://[::1]:"),
        ({"host": "0.0.0.0", "advertise_host": "gpu-7"}, "http://gpu-7:"),
    ],
)
async def test_the_log_has_a_url_that_others_can_use(settings: dict[str, Any], url: str) -> None:
    async with Site() as site, gateway_on(site, **settings) as gateway:
        await eventually(lambda: site.server.last_on("facts.gateway.g") is not None)
        entry = site.server.last_on("facts.gateway.g")
        assert entry is not None
        joined = decode_record(entry).event.payload
        assert isinstance(joined, GatewayJoined)
        assert joined.url == f"{url}{gateway.port}"


async def test_a_replica_on_ipv6_is_reached() -> None:
    site = Site()
    site.deploy(application())
    async with site:
        replica = LocalReplica("app.tiny.1", engine_of())
        specification = replica.replica._specification
        replica.replica._specification = msgspec.structs.replace(specification, host="::1")
        await replica.start()
        site.replicas[replica.name] = replica
        site.announce(replica.name, f"[::1]:{replica.address.rpartition(':')[2]}")
        async with gateway_on(site) as gateway:
            await gateway.until(200)
