"""The production log over simulated JetStream keeps the promises of the `Log` port: its suite in virtual time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from types import ModuleType
from typing import Any

import pytest

from holdfast.core.ports import Log
from holdfast.simulations.nats.client import SimConnection, dialler
from holdfast.simulations.nats.jetstream import JetStream
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import World
from holdfast.store.jetstream import JetStreamLog
from holdfast.store.nats_link import Link
from holdfast.store.settings import JetStreamSettings
from tests.contract import test_jetstream_failures, test_log
from tests.contract.worlds import jetstream_settings

UNTIL_S = 300.0


class SimulatedJetStreamWorld:
    """As `tests.contract.worlds.JetStreamWorld`."""

    def __init__(self, process: SimProcess, stack: AsyncExitStack, servers: int) -> None:
        self._process = process
        self._stack = stack
        self._servers = JetStream(process.world, [f"n{number}" for number in range(servers)], election_s=(1.0, 3.0))
        self._settings = jetstream_settings(*self._servers.urls, name="test", replicas=servers, append_timeout_s=20.0)
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


class SimulatedProxy:
    """As `tests.contract.proxy.TcpProxy`: it stands in the way of one log's connections."""

    def __init__(self, process: SimProcess) -> None:
        self._network = process.world.network
        self._dial = dialler(process, process.rng)
        self._connections: list[SimConnection] = []
        self.refusing = False
        self.accepted = 0

    async def dial(self, settings: JetStreamSettings, url: str) -> Link:
        self.accepted += 1
        if self.refusing:
            raise ConnectionResetError(url)
        connection = await self._dial(settings, url)
        assert isinstance(connection, SimConnection)
        self._connections.append(connection)
        return connection

    def cut(self) -> None:
        for connection in self._connections:
            connection._end.other.abort()
            self._network.unclog(connection._end.other)
        self._connections.clear()

    def hold_answers(self) -> None:
        for connection in self._connections:
            self._network.clog(connection._end.other)

    def freeze(self) -> None:
        self.hold_answers()
        for connection in self._connections:
            self._network.clog(connection._end)


class SimulatedRig(test_jetstream_failures.Rig):
    """A log through a proxy, and a witness beside it."""

    def __init__(self, process: SimProcess, proxy: Any, log: JetStreamLog, witness: JetStreamLog) -> None:
        super().__init__(proxy, log, witness, log._settings)
        self._process = process

    @classmethod
    async def set_up(cls, process: SimProcess, stack: AsyncExitStack) -> SimulatedRig:
        servers = JetStream(process.world, ["n0"])
        servers.start()
        proxy = SimulatedProxy(process)
        settings = jetstream_settings(*servers.urls, name="test", duplicate_window_s=0.2)
        witness = await JetStreamLog.open(settings, dial=dialler(process, process.rng), chance=process.rng)
        stack.push_async_callback(witness.close)
        log = await JetStreamLog.open(settings, dial=proxy.dial, chance=process.rng)
        stack.push_async_callback(log.close)
        return cls(process, proxy, log, witness)

    async def open(self, **changes: Any) -> JetStreamLog:
        settings = self.settings.model_copy(update=changes)
        dial: Any = self.proxy.dial  # type: ignore[attr-defined]
        return await JetStreamLog.open(settings, dial=dial, chance=self._process.rng)


def cases(module: ModuleType, fixtures: set[str]) -> list[Any]:
    """Each test of a module that asks for one of these fixtures and nothing else, with each of its parameters."""
    found = []
    for name, test in inspect.getmembers(module, inspect.iscoroutinefunction):
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        wanted = set(inspect.signature(test).parameters) - {mark.args[0] for mark in marks}
        if not name.startswith("test_") or len(wanted) != 1 or not wanted <= fixtures:
            continue
        for number, value in enumerate(marks[0].args[1] if marks else [None]):
            more = {marks[0].args[0]: value} if marks else {}
            found.append(pytest.param(test, min(wanted), more, id=f"{name}-{number}"))
    return found


def run(main: Callable[[SimProcess, AsyncExitStack], Coroutine[Any, Any, None]], seed: str) -> None:
    """Run a test as a process of a world."""
    ended: list[str] = []
    unhandled: list[str] = []

    async def body(process: SimProcess) -> None:
        async with AsyncExitStack() as stack:
            await main(process, stack)
        ended.append("well")

    world = World(seed)
    world.on_unhandled = lambda process, text: unhandled.append(f"{process.name}: {text}")
    world.spawn("test", "t", body)
    world.scheduler.run(UNTIL_S)
    world.close()
    assert not unhandled, unhandled[0]
    assert ended == ["well"]


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize(("test", "fixture", "more"), cases(test_log, {"log_world", "frail_log_world"}))
def test_the_contract_holds(test: Any, fixture: str, more: dict[str, Any], servers: int) -> None:
    if servers == 3 and test is test_log.test_status_tells_how_the_stream_stands:
        pytest.skip("it expects a stream with one copy")

    async def main(process: SimProcess, stack: AsyncExitStack) -> None:
        await test(**{fixture: SimulatedJetStreamWorld(process, stack, servers)}, **more)

    run(main, f"{test.__name__} {more}")


@pytest.mark.parametrize(("test", "fixture", "more"), cases(test_jetstream_failures, {"rig"}))
def test_failures_come_to_what_they_come_to_on_a_real_server(test: Any, fixture: str, more: dict[str, Any]) -> None:
    async def main(process: SimProcess, stack: AsyncExitStack) -> None:
        await test(**{fixture: await SimulatedRig.set_up(process, stack)}, **more)

    run(main, test.__name__)
