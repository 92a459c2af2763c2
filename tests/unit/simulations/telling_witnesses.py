"""What misses the guards of what is said, for `test_mutants.py`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from holdfast.actors.child import Child
from holdfast.actors.follower import Follower
from holdfast.core import events as ev
from holdfast.core.cluster import Drain
from holdfast.core.frames import Start
from holdfast.core.placement import occupancy
from holdfast.core.thresholds import Thresholds
from holdfast.gateway.dispatch import Dispatch
from holdfast.gateway.draining import GatewayDrain
from holdfast.gateway.serving import Serving
from holdfast.gateway.serving_settings import ServingSettings
from holdfast.gateway.session import StreamRun
from holdfast.gateway.tracing import UNTRACED_STREAM
from holdfast.store.memory import MemoryLogServer
from tests.unit.actors import test_draining, test_node
from tests.unit.simulations.stream_witnesses import unconnected_link
from tests.unit.support.history import INFO, History, application
from tests.unit.support.virtual_time import EPOCH, virtual_time


def _one_replica() -> History:
    history = History()
    history.fact(ev.NodeJoined("a", "host", 1, "0", 9), by="node.a")
    history.decide(ev.LeaderElected("a", "1"), epoch=10)
    history.decide(ev.ApplicationDeployed(application()))
    history.decide(ev.ReplicaPlaced("app.tiny.1", "app", "tiny", "a", "1"))
    history.fact(ev.ReplicaReady("app.tiny.1", "a", "h:1", INFO), by="node.a")
    return history


@virtual_time
async def _ends_by_itself() -> None:
    child = object.__new__(Child)
    child.specification = cast(Any, SimpleNamespace(replica="r"))
    child._node, child._message, child._drains_itself, child._stopping = "n", "", False, asyncio.Event()
    assert not child._exited(7, 1).expected


def _holds_its_slot() -> None:
    history = _one_replica()
    history.fact(ev.ReplicaDraining("app.tiny.1", "a"), by="node.a")
    assert occupancy(history.state) == {"a": 1}


def _heard_again() -> None:
    history = _one_replica()
    history.fact(ev.ReplicaSuspected("g", "app.tiny.1", 1.0, 0, "silent"), by="gateway.g")
    history.fact(ev.ReplicaTrusted("g", "app.tiny.1", 1.0), by="gateway.g")
    assert history.state.replicas["app.tiny.1"].suspected_by == ()


@virtual_time
async def _second_attempt() -> None:
    link, sent = unconnected_link(), list[Start]()
    link._contact.connection = cast(Any, SimpleNamespace(send=sent.append))
    stream = SimpleNamespace(start=lambda: None, suspect=False)
    run = SimpleNamespace(
        stream=stream, ordinal=0, name="", left_s=5.0, trace=UNTRACED_STREAM, claim=SimpleNamespace(priority=1)
    )
    for _ in range(2):
        link.begin(cast(StreamRun, run))
    assert [start.timeout_s for start in sent] == [5.0, 5.0]


@virtual_time
async def _is_drained() -> None:
    drain, told = Drain("e", EPOCH, "finish", 3.0), list[float]()
    gateway = object.__new__(GatewayDrain)
    gateway._name = "g"
    gateway._follower = cast(
        Any, SimpleNamespace(known=0, state=SimpleNamespace(gateways={"g": SimpleNamespace(drain=drain)}))
    )
    gateway._follower.until = partial(asyncio.sleep, 0)  # type: ignore[method-assign, assignment]
    gateway._serving = cast(
        Serving, SimpleNamespace(idle=partial(asyncio.sleep, 1.0), turn_away=lambda: 0, standing=SimpleNamespace())
    )
    loop = asyncio.get_running_loop()
    gateway._settings, gateway._longest_s = cast(Any, SimpleNamespace(drain="finish")), 9.0
    gateway._facts = cast(Any, SimpleNamespace(record=lambda _fact, _cause: told.append(loop.time())))
    began_s = loop.time()
    await gateway._obey(drain)
    assert told == [began_s + 2.0]


def _leaves() -> None:
    left: list[bool] = []
    run = SimpleNamespace(end_move=lambda _how: None, link=None, leave_queue=lambda: left.append(True))
    run.trace = SimpleNamespace(ended=lambda _how: None)
    dispatch = object.__new__(Dispatch)
    dispatch.pool_of, dispatch._idle = {}, asyncio.Event()
    dispatch.holding = cast(Any, SimpleNamespace(forget=lambda _run: None))
    dispatch.withdraw(cast(StreamRun, run))
    assert left


@virtual_time
async def _holds_to_thresholds() -> None:
    follower, history = Follower(MemoryLogServer().client()), _one_replica()
    history.decide(ev.BusyThresholdSet("tiny", Thresholds(requests_in_flight_threshold=2)))
    follower.state = history.state
    serving = Serving(follower, "test", "g", ServingSettings(), random.Random(1))
    serving._sync_pools(follower.state)
    assert serving.thresholds("tiny").requests_in_flight_threshold == 2


TELLING_WITNESSES: dict[str, Callable[[], object]] = {
    "killed-in-time": test_node.test_a_replica_that_does_not_stop_in_its_time_is_killed,
    "ends-by-itself": test_draining.test_streams_leave_at_the_deadline_and_nothing_waits_for_ever,
    "unexpected-ends": _ends_by_itself,
    "drains-in-its-slot": _holds_its_slot,
    "suspected-no-more": _heard_again,
    "deadline-goes-along": _second_attempt,
    "drained-when-empty": _is_drained,
    "leaves-the-queue": _leaves,
    "thresholds-hold": _holds_to_thresholds,
}
"""By the mutant that takes the guard out."""
