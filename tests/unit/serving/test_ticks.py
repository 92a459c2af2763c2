"""Links look at replicas, and replicas at their engines, as often as it takes and no more."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from holdfast.actors.engine_watch import STALL_LOOK_S, EngineHung, EngineWatch
from holdfast.actors.engines.mock import MockEngine, MockSettings
from holdfast.actors.replica import Replica
from holdfast.actors.specification import ReplicaSpecification
from holdfast.actors.wire import Connection
from holdfast.core.config import EngineConfig
from holdfast.core.frames import PROTOCOL_VERSION, Heartbeat, Hello, Start
from holdfast.core.liveness import Liveness, Suspicion
from holdfast.core.requests import EngineLoad, EngineRequest
from holdfast.gateway.alarm import Alarm
from holdfast.gateway.link import STALL_LOOK_S as LINK_STALL_LOOK_S
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.link_settings import LinkSettings
from holdfast.gateway.session import StreamRun
from tests.unit.support.memory_network import MemoryNetworkLoop

WATCHED_S = 100.0
STALL_S = 2.0


def specification(heartbeat_interval_s: float, stall_s: float = STALL_S) -> ReplicaSpecification:
    return ReplicaSpecification(
        "test",
        "app.tiny.1",
        "tiny",
        "127.0.0.1",
        EngineConfig("mock"),
        5.0,
        heartbeat_interval_s=heartbeat_interval_s,
        engine_stall_timeout_s=stall_s,
    )


async def looks(interval_s: float, monkeypatch: pytest.MonkeyPatch) -> float:
    """How often a second a link looks at a replica that is well, whose heartbeats come every `interval_s`."""
    count = 0
    look = Liveness.look

    def counted(liveness: Liveness, now_s: float) -> Suspicion | None:
        nonlocal count
        count += 1
        return look(liveness, now_s)

    monkeypatch.setattr(Liveness, "look", counted)
    replica = Replica(specification(interval_s), MockEngine(MockSettings(), "tiny", random.Random(1)))
    _server, address = await replica.listen()
    running = asyncio.create_task(replica.run())
    settings = LinkSettings("test", "g", heartbeat_interval_s=interval_s, heartbeat_timeout_s=8 * interval_s)
    nothing = lambda *_args: None  # noqa: E731
    link = ReplicaLink("app.tiny.1", address, 8, settings, random.Random(1), nothing, nothing)
    linked = asyncio.create_task(link.run())
    await asyncio.sleep(WATCHED_S)
    assert link.ready, "heartbeats as rare as these are no reason for suspicion"
    link.retire()
    retired_s = asyncio.get_running_loop().time()
    await asyncio.sleep(0)
    await linked
    assert asyncio.get_running_loop().time() - retired_s < 0.1, "an empty link that is retired ends at once"
    running.cancel()
    await asyncio.wait([running])
    return count / WATCHED_S


@pytest.mark.parametrize(("interval_s", "a_second"), [(0.1, 10.0), (0.5, 2.0), (1.0, 1.0), (5.0, 0.2)])
def test_a_link_looks_once_a_heartbeat_while_all_is_well(
    interval_s: float, a_second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with asyncio.Runner(loop_factory=MemoryNetworkLoop) as runner:
        assert runner.run(looks(interval_s, monkeypatch)) == pytest.approx(a_second, rel=0.05)


async def first_looks_for_stalls(interval_s: float, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long after a stream came to an idle link that looked for ones that stand still."""
    looked: list[float] = []
    monkeypatch.setattr(ReplicaLink, "_look_for_stalls", lambda _link, now_s: looked.append(now_s))
    replica = Replica(specification(interval_s), MockEngine(MockSettings(), "tiny", random.Random(1)))
    _server, address = await replica.listen()
    running = asyncio.create_task(replica.run())
    settings = LinkSettings("test", "g", heartbeat_interval_s=interval_s, heartbeat_timeout_s=8 * interval_s)
    nothing = lambda *_args: None  # noqa: E731
    link = ReplicaLink("app.tiny.1", address, 8, settings, random.Random(1), nothing, nothing)
    linked = asyncio.create_task(link.run())
    await asyncio.sleep(4.25 * interval_s)
    looked.clear()
    begun_s = asyncio.get_running_loop().time()
    link._take(cast(StreamRun, SimpleNamespace(stream=SimpleNamespace(unsent=0))))
    await asyncio.sleep(2.0)
    link._attempts.clear()
    for task in (linked, running):
        task.cancel()
    await asyncio.wait([linked, running])
    return [now_s - begun_s for now_s in looked]


@pytest.mark.parametrize("interval_s", [0.1, 1.0, 20.0])
def test_a_stream_that_stands_still_is_looked_for_in_its_time_however_rare_heartbeats_are(
    interval_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with asyncio.Runner(loop_factory=MemoryNetworkLoop) as runner:
        looked = runner.run(first_looks_for_stalls(interval_s, monkeypatch))
    assert looked[0] < LINK_STALL_LOOK_S
    assert len(looked) >= 4


class ReadLate(Alarm):
    """Waits in a process whose loop runs timers before it reads sockets, as uvloop's does, and that is always held up
    just so long that its timers come in time: a heartbeat is there, but is read one turn later."""

    def __init__(self, link: ReplicaLink, turns: int) -> None:
        super().__init__()
        self._link = link
        self._turns = turns

    async def wait(self, seconds: float | None = None) -> None:
        assert seconds is not None
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MemoryNetworkLoop)
        loop._jumping.now_s += seconds
        self._turns -= 1
        if self._turns == 0:
            self._link._contact.lost = True
        loop.call_soon(self._read)

    def _read(self) -> None:
        connection = self._link._contact.connection
        assert connection is not None
        connection.last_received_s = asyncio.get_running_loop().time()
        beat = Heartbeat(EngineLoad(0, 0, 0, 9, 1), False, self._link._contact._liveness._pinged)
        self._link._on_heartbeat(connection, beat)


def test_what_has_come_is_read_before_it_is_missed() -> None:
    found: list[Suspicion] = []

    async def scenario() -> None:
        nothing = lambda *_args: None  # noqa: E731
        settings = LinkSettings("test", "g", heartbeat_interval_s=1.0, heartbeat_timeout_s=8.0)
        link = ReplicaLink(
            "app.tiny.1", "r:1", 8, settings, random.Random(1), nothing, nothing, lambda *told: found.append(told[1])
        )
        contact, now_s = link._contact, asyncio.get_running_loop().time()
        contact.connection = Connection(nothing, nothing)
        contact.connection.last_received_s = now_s
        contact._liveness = contact._fresh_liveness(now_s)
        contact.lost = False
        contact._alarm = ReadLate(link, 200)
        await link._watch()

    with asyncio.Runner(loop_factory=MemoryNetworkLoop) as runner:
        runner.run(scenario())
    assert found == []


async def run_with_gateway(replica: Replica) -> tuple[asyncio.Task[None], Connection]:
    """The replica's run, and a gateway's connection to it, without a stream yet."""
    server, _address = await replica.listen()
    running = asyncio.create_task(replica.run())
    port = server.sockets[0].getsockname()[1]
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Connection(lambda *_frame: None, lambda _lost: None), "127.0.0.1", port
    )
    connection.send(Hello(PROTOCOL_VERSION, "test", "g", "app.tiny.1"))
    return running, connection


def test_an_engine_that_hangs_after_a_long_rest_is_noticed_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    sleep = asyncio.sleep

    async def counted(delay_s: float, result: None = None) -> None:
        nonlocal looked
        looked += delay_s == STALL_LOOK_S
        await sleep(delay_s, result)

    async def scenario() -> None:
        engine = MockEngine(MockSettings(itl_ms=100.0), "tiny", random.Random(1))
        replica = Replica(specification(1.0), engine)
        running, connection = await run_with_gateway(replica)
        loop = asyncio.get_running_loop()
        connection.send(Start(1, EngineRequest(prompt="x", max_tokens=20)))
        await asyncio.sleep(5.0)
        worked = looked
        await asyncio.sleep(1_000.0)
        assert looked <= worked + 1, "nobody looks at an engine that has nothing to do"
        engine.hang()
        connection.send(Start(2, EngineRequest(prompt="x", max_tokens=20)))
        began_s = loop.time()
        with pytest.raises(ExceptionGroup) as raised:
            await running
        assert raised.group_contains(EngineHung)
        assert STALL_S <= loop.time() - began_s <= STALL_S + 0.5

    monkeypatch.setattr(asyncio, "sleep", counted)
    with asyncio.Runner(loop_factory=MemoryNetworkLoop) as runner:
        runner.run(scenario())
    assert looked > STALL_S / STALL_LOOK_S


class NeverTakesIn(MockEngine):
    """Its second request is never taken in."""

    taken = 0

    async def admit(self, key: int, request: EngineRequest) -> int:
        self.taken += 1
        if self.taken > 1:
            await asyncio.Event().wait()
        return await super().admit(key, request)


def test_an_engine_that_does_not_take_a_request_in_is_noticed_while_it_steps_others() -> None:
    longest_s = 30.0

    async def scenario() -> None:
        engine = NeverTakesIn(MockSettings(itl_ms=100.0), "tiny", random.Random(1))
        told = msgspec.structs.replace(specification(1.0), engine_first_step_timeout_s=longest_s)
        replica = Replica(told, engine)
        running, connection = await run_with_gateway(replica)
        loop = asyncio.get_running_loop()
        connection.send(Start(1, EngineRequest(prompt="x", max_tokens=1_000)))
        await asyncio.sleep(2 * longest_s)
        connection.send(Start(2, EngineRequest(prompt="x", max_tokens=20)))
        began_s = loop.time()
        with pytest.raises(ExceptionGroup) as raised:
            await running
        assert raised.group_contains(EngineHung, match="the engine did not take a request in for 3")
        assert longest_s <= loop.time() - began_s <= longest_s + 3.0

    with asyncio.Runner(loop_factory=MemoryNetworkLoop) as runner:
        runner.run(scenario())


def test_an_engine_with_long_steps_is_not_blamed_for_what_its_process_stood_still() -> None:
    step_s, still_s = 13.0, 6.0

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MemoryNetworkLoop)
        watch = EngineWatch(stall_timeout_s=16.0, first_step_timeout_s=60.0)
        watch.warmed_up()
        watch.begins(loop.time() - 0.1)
        watch.ended(loop.time())
        watch.begins(loop.time())
        watching = asyncio.create_task(watch.run())
        await asyncio.sleep(step_s / 2)
        loop._jumping.now_s += still_s
        await asyncio.sleep(step_s / 2)
        assert not watching.done()
        with pytest.raises(EngineHung):
            await watching

    with asyncio.Runner(loop_factory=MemoryNetworkLoop) as runner:
        runner.run(scenario())
