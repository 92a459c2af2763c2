"""What an operator may ask for."""

from __future__ import annotations

import pytest

from holdfast.core.errors import InvalidConfig
from tests.unit.support.history import application
from tests.unit.support.virtual_time import virtual_time
from tests.unit.support.world import World


@virtual_time
async def test_a_model_that_another_application_was_asked_to_serve_is_refused() -> None:
    async with World() as world:
        await world.deploy(application("one", "tiny"))
        with pytest.raises(InvalidConfig, match="tiny is served by application one already"):
            await world.deploy(application("two", "tiny"))
        await world.deploy(application("two", "other"))
        await world.deploy(application("one", "tiny", version=1))


@virtual_time
async def test_a_model_is_free_again_when_the_application_that_served_it_is_deleted() -> None:
    async with World() as world:
        world.node("a")
        await world.deploy(application("one", "tiny"))
        await world.running(1)
        with pytest.raises(InvalidConfig, match="tiny is served by application one already"):
            await world.deploy(application("two", "tiny"))
        await world.delete("one")
        await world.until(lambda state: "one" not in state.applications)
        await world.deploy(application("two", "tiny"))
        await world.running(1)


@virtual_time
async def test_an_application_is_deleted_once_and_may_come_back() -> None:
    async with World() as world:
        world.node("a")
        assert not await world.delete("one"), "there is none"
        await world.deploy(application("one", "tiny"))
        assert await world.delete("one"), "what is only asked for yet is asked to go"
        assert not await world.delete("one")
        await world.deploy(application("one", "tiny"))
        await world.running(1)
        assert await world.delete("one")
        await world.until(lambda state: not state.applications and not state.replicas)
        assert not await world.delete("one")
