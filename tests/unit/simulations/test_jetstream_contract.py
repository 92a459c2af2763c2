"""The production log over simulated JetStream keeps the promises of the `Log` port: its suite in virtual time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from holdfast.core.ports import Log
from holdfast.simulations.jetstream import JetStream
from holdfast.simulations.jetstream_client import dialler
from holdfast.simulations.process import SimProcess
from holdfast.simulations.world import World
from holdfast.store.jetstream import JetStreamLog
from holdfast.store.settings import JetStreamSettings
from tests.contract import test_log
from tests.contract.worlds import jetstream_settings

UNTIL_S = 300.0
LOG_WORLDS = ("log_world", "frail_log_world")


class SimulatedJetStreamWorld:
    """As `tests.contract.worlds.JetStreamWorld`."""

    def __init__(self, process: SimProcess, stack: AsyncExitStack, servers: int) -> None:
        self._process = process
        self._stack = stack
        self._servers = JetStream(process.world, [f"n{number}" for number in range(servers)], election_s=(1.0, 3.0))
        self._settings = jetstream_settings(*self._servers.urls, name="test", replicas=servers)
        for index in range(servers):
            self._servers.start(index)

    async def client(self) -> JetStreamLog:
        return await self._open(self._settings)

    async def limited(self, max_bytes: int) -> Log:
        return await self._open(
            self._settings.model_copy(update={"stream": "limited", "subject_prefix": "limited", "max_bytes": max_bytes})
        )

    async def crash(self) -> None:
        up = [member for member in self._servers.members if member.server is not None]
        leading = [member for member in up if member.server is self._servers.leader]
        crashing = (leading or up)[0]
        assert crashing.server is not None
        crashing.server.process.kill()
        self._crashed = crashing.index

    async def recover(self) -> None:
        self._servers.start(self._crashed)

    async def trim(self, below: int) -> None:
        log = await self.client()
        await log._api.call(f"STREAM.PURGE.{self._settings.stream}", {"seq": below}, timeout_s=5)

    async def _open(self, settings: JetStreamSettings) -> JetStreamLog:
        log = await JetStreamLog.open(
            settings, dial=dialler(self._process, self._process.rng), chance=self._process.rng
        )
        self._stack.push_async_callback(log.close)
        return log


def cases() -> Iterator[Any]:
    """Each test of the suite with each of its parameters, but for what only one server tells."""
    for name, test in inspect.getmembers(test_log, inspect.iscoroutinefunction):
        names = [name for name in inspect.signature(test).parameters if name in LOG_WORLDS]
        if not names:
            continue
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        for number, value in enumerate(marks[0].args[1] if marks else [None]):
            more = {marks[0].args[0]: value} if marks else {}
            yield pytest.param(test, names[0], more, id=f"{name}-{number}" if marks else name)


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize(("test", "world_name", "more"), list(cases()))
def test_the_contract_holds(test: Any, world_name: str, more: dict[str, Any], servers: int) -> None:
    if servers == 3 and test is test_log.test_status_tells_how_the_stream_stands:
        pytest.skip("it expects a stream with one copy")
    ended: list[str] = []

    async def main(process: SimProcess) -> None:
        async with AsyncExitStack() as stack:
            await test(**{world_name: SimulatedJetStreamWorld(process, stack, servers)}, **more)
        ended.append("well")

    world = World(f"{test.__name__} {more}")
    unhandled: list[str] = []
    world.on_unhandled = lambda process, text: unhandled.append(f"{process.name}: {text}")
    world.spawn("test", "t", main)
    world.scheduler.run(UNTIL_S)
    world.close()
    assert not unhandled, unhandled[0]
    assert ended == ["well"]
