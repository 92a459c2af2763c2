"""The canary wants a token: who is silent, or makes none, is told; who is busy, drains or has no room is left alone."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Coroutine

import msgspec
import pytest

from holdfast.actors import canary as canaries
from holdfast.actors.canary import LOOK_S, Canary, CanarySettings, Verdict
from holdfast.actors.engines.base import ENGINE_OVERLOADED, StepOutput
from holdfast.actors.engines.mock import MockEngine, MockSettings
from holdfast.actors.replica import Replica
from holdfast.actors.specification import ReplicaSpecification
from holdfast.actors.wire import Connection
from holdfast.core.barren import UNSHOWN_S
from holdfast.core.config import EngineConfig
from holdfast.core.errors import RequestRefused
from holdfast.core.frames import PROTOCOL_VERSION, Hello, Start
from holdfast.core.requests import EngineLoad, EngineRequest
from tests.unit.support.memory_network import MemoryNetworkLoop, MemoryServer
from tests.unit.support.virtual_time import now_s

WAIT_S, TIMEOUT_S = 10.0, 3.0
NAME = "app.tiny.1"
STALL_S = 600.0


class Engine(MockEngine):
    """A mock that can step without bringing anything, refuse, and counts what it took in."""

    def __init__(self, settings: MockSettings | None = None) -> None:
        super().__init__(settings or MockSettings(itl_ms=10), "tiny", random.Random(1))
        self.admitted: list[EngineRequest] = []
        self.refusal = ""
        self.barren = False
        self.barren_s = 0.1
        self.shows = True

    def load(self) -> EngineLoad:
        load = super().load()
        return load if self.shows else msgspec.structs.replace(load, prefill_tokens_waiting=0)

    async def admit(self, key: int, request: EngineRequest) -> int:
        if self.refusal:
            raise RequestRefused("no", code=self.refusal)
        self.admitted.append(request)
        return await super().admit(key, request)

    async def step(self) -> StepOutput:
        if not self.barren:
            return await super().step()
        await asyncio.sleep(self.barren_s)
        self._steps += 1
        return StepOutput()


class Scene:
    """A replica, and a canary that watches it. `told` are its verdicts with their times."""

    def __init__(self, engine: Engine, server: MemoryServer, address: str, replica: Replica) -> None:
        self.engine, self.server, self.address, self.replica = engine, server, address, replica
        self.told: list[tuple[float, Verdict]] = []
        self.settings: CanarySettings | None = CanarySettings(WAIT_S, TIMEOUT_S, "Hello")

    def tell(self, verdict: Verdict) -> None:
        self.told.append((now_s(), verdict))

    @property
    def kinds(self) -> list[str]:
        return [verdict.kind for _at_s, verdict in self.told]

    async def user(self, tokens: int = 1000, prompt: str = "tell me") -> Connection:
        """A gateway that asks for a stream."""
        host, port = self.address.split(":")
        loop = asyncio.get_running_loop()
        _transport, connection = await loop.create_connection(
            lambda: Connection(lambda _connection, _body: None, lambda _connection: None), host, int(port)
        )
        connection.send(Hello(PROTOCOL_VERSION, "test", "g", NAME))
        connection.send(Start(1, EngineRequest(prompt=prompt, max_tokens=tokens)))
        return connection


@contextlib.asynccontextmanager
async def scene(engine: Engine | None = None) -> AsyncIterator[Scene]:
    engine = engine or Engine()
    told = ReplicaSpecification(
        "test", NAME, "tiny", "127.0.0.1", EngineConfig("mock"), 5.0, engine_stall_timeout_s=STALL_S
    )
    replica = Replica(told, engine)
    replica._engine_watch.warmed_up()
    server, address = await replica.listen()
    here = Scene(engine, server, address, replica)  # type: ignore[arg-type]  # the loop makes servers in memory
    canary = Canary("test", "n", NAME, address, lambda: here.settings, here.tell)
    running = [asyncio.create_task(replica.run()), asyncio.create_task(canary.run())]
    try:
        yield here
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)


def in_virtual_time(work: Coroutine[object, object, None]) -> None:
    with asyncio.Runner(loop_factory=MemoryNetworkLoop) as runner:
        runner.run(work)


def test_an_idle_replica_is_asked_for_a_token_and_nobody_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with scene() as here:
            counted: list[object] = []
            monkeypatch.setattr(here.replica.metrics, "admitted", lambda *told: counted.append(told))
            await asyncio.sleep(5 * WAIT_S)
            assert here.kinds == [""] * 4
            assert [request.max_tokens for request in here.engine.admitted] == [1] * 4
            assert here.engine.load().running == 0
            assert counted == []
            await here.user(1)
            await asyncio.sleep(1)
            assert len(counted) == 1

    in_virtual_time(scenario())


def test_one_that_makes_tokens_anyway_is_not_asked() -> None:
    async def scenario() -> None:
        async with scene(Engine(MockSettings(itl_ms=100))) as here:
            await here.user(1000)
            await asyncio.sleep(60)
            assert set(here.kinds) == {""}
            assert [request.prompt for request in here.engine.admitted] == ["tell me"]

    in_virtual_time(scenario())


def test_an_engine_that_hangs_idle_is_told_within_wait_and_timeout_and_stays_so_until_a_token_comes() -> None:
    async def scenario() -> None:
        async with scene() as here:
            here.engine.hang()
            await asyncio.sleep(WAIT_S + TIMEOUT_S + 0.001)
            assert here.kinds == ["canary"]
            assert here.told[0][0] == pytest.approx(WAIT_S + TIMEOUT_S)
            await asyncio.sleep(4 * WAIT_S)
            assert "" not in here.kinds
            here.engine.resume()
            await asyncio.sleep(2 * WAIT_S)
            assert here.kinds[-1] == ""

    in_virtual_time(scenario())


def test_a_frozen_replica_is_told_within_wait_and_timeout_and_well_when_it_is_back() -> None:
    async def scenario() -> None:
        async with scene() as here:
            await asyncio.sleep(1.5 * WAIT_S)
            here.server.freeze()
            froze_s = now_s()
            await asyncio.sleep(WAIT_S + TIMEOUT_S)
            at_s, verdict = here.told[-1]
            assert (verdict.kind, verdict.message) == ("silent", "the replica has not answered its node for 3 s")
            assert at_s <= froze_s + WAIT_S + TIMEOUT_S
            here.server.thaw()
            await asyncio.sleep(2 * WAIT_S)
            assert here.kinds[-1] == ""

    in_virtual_time(scenario())


def test_one_that_nobody_reaches_is_silent() -> None:
    async def scenario() -> None:
        async with scene() as here:
            here.server.close()
            await asyncio.sleep(WAIT_S + TIMEOUT_S + 0.001)
            assert here.kinds == ["silent"]

    in_virtual_time(scenario())


def test_an_engine_that_is_busy_with_one_long_step_is_left_alone() -> None:
    async def scenario() -> None:
        async with scene() as here:
            await here.user()
            await asyncio.sleep(1.0)
            here.engine.hang()
            await asyncio.sleep(20 * WAIT_S)
            assert set(here.kinds) == {""}
            assert len(here.engine.admitted) == 1

    in_virtual_time(scenario())


def test_work_that_comes_while_the_canary_waits_is_no_reason_to_blame_the_engine() -> None:
    async def scenario() -> None:
        async with scene() as here:
            here.engine.hang()
            await asyncio.sleep(WAIT_S + TIMEOUT_S / 2)
            await here.user()
            await asyncio.sleep(TIMEOUT_S)
            assert here.kinds == []

    in_virtual_time(scenario())


@pytest.mark.parametrize("waits", [0, 1.3, 3.7])
def test_an_engine_that_steps_and_steps_for_nobody_is_told_within_wait_and_timeout(waits: float) -> None:
    """Whenever that begins, between two looks, and whether or not the stream had tokens before."""

    async def scenario() -> None:
        async with scene() as here:
            await asyncio.sleep(waits * WAIT_S)
            await here.user()
            await asyncio.sleep(0.3 * waits)
            here.engine.barren = True
            began_s = now_s()
            await asyncio.sleep(WAIT_S + TIMEOUT_S - 2 * LOOK_S)
            assert set(here.kinds) <= {""}
            await asyncio.sleep(2 * LOOK_S)
            assert here.kinds[-1] == "canary"
            assert here.told[-1][1].message.endswith(" s with work, and no token for anybody")
            assert here.told[-1][0] <= began_s + WAIT_S + TIMEOUT_S

    in_virtual_time(scenario())


def test_an_engine_that_reads_a_prompt_for_long_is_left_to_it() -> None:
    async def scenario() -> None:
        settings = MockSettings(itl_ms=10, prefill_tokens_per_s=5)
        async with scene(Engine(settings)) as here:
            await here.user(5, "word " * 400)
            await asyncio.sleep(6 * WAIT_S)
            assert here.engine.load().prefill_tokens_waiting > 0
            assert set(here.kinds) <= {""}

    in_virtual_time(scenario())


def test_an_engine_of_slow_steps_is_given_some_of_them() -> None:
    async def scenario() -> None:
        async with scene(Engine(MockSettings(itl_ms=10))) as here:
            here.engine.barren, here.engine.barren_s = True, 2.0
            await here.user()
            await asyncio.sleep(2.0 * (canaries.BARREN_STEPS - 1))
            assert here.kinds == []
            await asyncio.sleep(2 * 2.0)
            assert here.kinds[-1] == "canary"

    in_virtual_time(scenario())


def test_an_engine_that_never_shows_that_it_reads_prompts_is_given_two_minutes() -> None:
    """Such as one that asks a server elsewhere for its tokens, which reads the prompt meanwhile."""

    async def scenario() -> None:
        async with scene() as here:
            here.engine.barren, here.engine.barren_s, here.engine.shows = True, 0.05, False
            await here.user(20_000)
            await asyncio.sleep(UNSHOWN_S - 1.0)
            assert set(here.kinds) <= {""}
            here.engine.barren = False
            await asyncio.sleep(2 * WAIT_S)
            here.engine.barren = True
            here.told.clear()
            await asyncio.sleep(UNSHOWN_S - 1.0)
            assert set(here.kinds) <= {""}
            await asyncio.sleep(WAIT_S + TIMEOUT_S)
            assert here.kinds[-1] == "canary"

    in_virtual_time(scenario())


def test_no_room_and_a_drain_are_answers_and_another_refusal_is_a_fault() -> None:
    async def scenario() -> None:
        async with scene() as here:
            here.engine.refusal = ENGINE_OVERLOADED
            await asyncio.sleep(4 * WAIT_S)
            assert here.kinds == []
            here.engine.refusal = "unsupported_value"
            await asyncio.sleep(2 * WAIT_S)
            assert here.told[-1][1] == Verdict("canary", "the engine refuses the canary: no")
            count = len(here.told)
            here.replica._draining = True
            await asyncio.sleep(4 * WAIT_S)
            assert len(here.told) == count

    in_virtual_time(scenario())


def test_a_canary_that_is_off_asks_nothing_and_blames_nobody() -> None:
    async def scenario() -> None:
        async with scene() as here:
            here.settings = None
            here.engine.hang()
            await asyncio.sleep(10 * WAIT_S)
            assert set(here.kinds) == {""}
            assert here.engine.admitted == []

    in_virtual_time(scenario())


def test_time_in_which_the_node_stood_still_is_not_the_replicas() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with scene() as here:
            await asyncio.sleep(WAIT_S - 0.1)
            here.server.freeze()
            await asyncio.sleep(0.2)
            # The whole machine is stopped for a minute: this process, and what it waits for.
            loop._jumping.now_s += 60.0  # type: ignore[attr-defined]
            await asyncio.sleep(0)
            here.server.thaw()
            await asyncio.sleep(TIMEOUT_S)
            assert here.kinds == [""]

    in_virtual_time(scenario())


def test_a_look_is_as_late_as_it_must_be_for_a_stand_still() -> None:
    assert canaries.STOOD_STILL_S < canaries.LOOK_S
