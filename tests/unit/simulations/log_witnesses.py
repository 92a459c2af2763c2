"""What misses guards of the log and of its fold."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from holdfast.core import events as ev
from holdfast.core.placement import occupancy
from holdfast.simulations.nats.client import dialler
from holdfast.simulations.nats.jetstream import JetStream
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import World
from holdfast.store.jetstream import JetStreamLog
from tests.contract import test_log
from tests.contract.worlds import jetstream_settings
from tests.unit.core import test_state
from tests.unit.simulations.test_jetstream_contract import test_the_contract_holds as holds_in_simulation
from tests.unit.support.history import INFO, History, application

UNTIL_S = 120.0


def contract(test: Any, world: str = "log_world") -> Callable[[], None]:
    """A test of the log's contract, on a simulated server."""
    return lambda: holds_in_simulation(test, world, {}, 1)


def on_a_server(scenario: Callable[[JetStream, JetStreamLog], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A scenario with a log on a simulated server; it must come to its end."""

    def witness() -> None:
        ended: list[bool] = []

        async def main(process: SimProcess) -> None:
            servers = JetStream(process.world, ["n0"])
            servers.start(0)
            settings = jetstream_settings(*servers.urls, name="test", replicas=1)
            log = await JetStreamLog.open(settings, dial=dialler(process, process.rng), chance=process.rng)
            await scenario(servers, log)
            await log.close()
            ended.append(True)

        world = World("witness")
        world.on_unhandled = lambda _process, _text: None
        world.spawn("test", "t", main)
        world.scheduler.run(UNTIL_S)
        world.close()
        assert ended, "it did not come to its end"

    return witness


async def _append(log: JetStreamLog, last: int, count: int) -> int:
    for _ in range(count):
        last = await log.append("facts.a", b"x", message_id=f"id{last + 1}", expected_last=last)
    return last


async def _lost_answer(servers: JetStream, log: JetStreamLog) -> None:
    await _append(log, 0, 1)
    servers.trouble("append refused", 2.0, random.Random(1))
    servers.trouble("api mute", 2.0, random.Random(1))
    servers.members[0].server.process.freeze()  # type: ignore[union-attr]
    appending = asyncio.create_task(_append(log, 1, 1))
    await asyncio.sleep(3.0)
    assert not appending.done()
    servers.members[0].server.process.thaw()  # type: ignore[union-attr]
    await appending
    assert len(servers.entries("test")) == 2


async def _skipped(servers: JetStream, log: JetStreamLog) -> None:
    last = await _append(log, 0, 2)
    got: list[int] = []
    async for entry in log.follow():
        got.append(entry.sequence)
        if len(got) == 2:
            servers.skip_deliveries(random.Random(1))
            last = await _append(log, last, 3)
        if entry.sequence == 5:
            break
    assert got == [1, 2, 3, 4, 5]


async def _stalled(servers: JetStream, log: JetStreamLog) -> None:
    last = await _append(log, 0, 1)
    async for entry in log.follow():
        if entry.sequence == 1:
            servers.stall_consumers(10 * UNTIL_S, random.Random(1))
            await _append(log, last, 1)
        else:
            break


def one_node() -> History:
    """As the fixture `running` of the state's tests."""
    history = History()
    history.fact(ev.NodeJoined("a", "host", 1, "0", 9), by="node.a")
    history.decide(ev.LeaderElected("a", "1"), epoch=10)
    history.decide(ev.ApplicationDeployed(application()))
    history.decide(ev.ReplicaPlaced("app.tiny.1", "app", "tiny", "a", "1"))
    history.fact(ev.ReplicaReady("app.tiny.1", "a", "h:1", INFO), by="node.a")
    return history


def _deposed() -> None:
    history = one_node()
    history.decide(ev.LeaderElected("b", "1"), epoch=20)
    history.decide(ev.ReplicaStopOrdered("app.tiny.1", "I still lead"), epoch=10)
    assert history.state.replicas["app.tiny.1"].live


def _restarted() -> None:
    history = one_node()
    history.fact(ev.NodeJoined("a", "host", 2, "0", 9), by="node.a", incarnation="2")
    assert not history.state.replicas["app.tiny.1"].live


def _placed_on_gone() -> None:
    history = one_node()
    history.fact(ev.NodeLeft("a"), by="node.a")
    history.decide(ev.ReplicaPlaced("app.tiny.2", "app", "tiny", "a", "1"))
    assert not history.state.replicas["app.tiny.2"].live


def _comes_back() -> None:
    history = one_node()
    history.decide(ev.ApplicationDeleted("app"))
    history.decide(ev.ApplicationDeployed(application()))
    assert history.state.applications["app"].deployments["tiny"].replicas_placed == 1


def _stopping() -> None:
    history = one_node()
    history.decide(ev.ReplicaStopOrdered("app.tiny.1", "fewer are wanted"))
    assert occupancy(history.state) == {"a": 1}


LOG_WITNESSES: dict[str, Callable[[], object]] = {
    "expected-sequence": contract(test_log.test_a_stale_expectation_is_refused_and_appends_nothing),
    "entry-of-another": contract(test_log.test_a_stale_expectation_is_refused_and_appends_nothing),
    "own-entry": contract(test_log.test_the_same_append_again_returns_the_same_sequence),
    "unknown-outcome": on_a_server(_lost_answer),
    "log-contiguity": on_a_server(_skipped),
    "hole-in-the-fold": lambda: test_state.test_a_record_that_is_not_the_next_one_is_refused(one_node(), 99),
    "silent-consumer": on_a_server(_stalled),
    "log-redial": contract(test_log.test_follow_and_appends_ride_out_a_crash, "frail_log_world"),
    "epoch-check": _deposed,
    "restarted-node": _restarted,
    "gone-node": _placed_on_gone,
    "stopping-holds-slot": _stopping,
    "numbers-go-on": _comes_back,
}
"""By the mutant that takes the guard out."""
