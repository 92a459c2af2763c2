"""A node tells the log addresses that gateways on other machines can use."""

from __future__ import annotations

import msgspec
import pytest

from holdfast.actors.specification import Ready
from tests.unit.support.history import INFO, application
from tests.unit.support.virtual_time import virtual_time
from tests.unit.support.world import World


@pytest.mark.parametrize(
    ("bound", "told", "expected"),
    [
        ("127.0.0.1:9", "", "127.0.0.1:9"),
        ("::1:9", "", "[::1]:9"),
        ("0.0.0.0:9", "10.0.0.7", "10.0.0.7:9"),
        (":::9", "fd00::7", "[fd00::7]:9"),
    ],
)
def test_a_replicas_address_is_told_as_others_reach_it(bound: str, told: str, expected: str) -> None:
    @virtual_time
    async def check() -> None:
        async with World() as world:
            node = world.node("a")
            node._node._settings = msgspec.structs.replace(node._node._settings, advertise_host=told)
            node.launcher.script = lambda process: process.says(Ready(bound, INFO))
            await world.deploy(application())
            await world.running(1)
            assert world.state.replicas["app.tiny.1"].address == expected

    check()
