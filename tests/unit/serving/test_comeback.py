"""When a gateway expects a replica where there is none, and what it then tells clients."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.core import events as ev
from holdfast.core.errors import NoReplica, StreamLost
from holdfast.core.reconcile import START_BACKOFF_FIRST_S
from holdfast.gateway.comeback import Comeback
from tests.unit.support.history import INFO, History, application
from tests.unit.support.replicas import Answer, Site, answer_to, ask, eventually, opened, replicas_ready


class Read:
    """A comeback that has read a history, of a node on which replicas take 8 s to start."""

    def __init__(self) -> None:
        self.history = History()
        self.comeback = Comeback()
        self._read = 0
        self.history.fact(ev.NodeJoined("a", "host", 1, "0", 99), by="node.a")
        self.history.decide(ev.LeaderElected("a", "1"), epoch=1)
        self.history.decide(ev.ApplicationDeployed(application()))

    def starts(self, name: str, took_s: float | None = None) -> None:
        self.history.decide(ev.ReplicaPlaced(name, "app", "tiny", "a", "1"))
        self.history.fact(ev.ReplicaStarted(name, "a", 7), by="node.a")
        if took_s is not None:
            self.history.passes(took_s)
            self.history.fact(ev.ReplicaReady(name, "a", "h:1", INFO), by="node.a")

    def fails(self, name: str) -> None:
        self.history.fact(ev.ReplicaExited(name, "a", 7, 1, None, False, "broken"), by="node.a")

    def due_s(self, name: str = "tiny") -> float | None:
        for record in self.history.records[self._read :]:
            self.comeback.read(record, self.history.state)
        self._read = len(self.history.records)
        return self.comeback.due_s(self.history.state, name)


async def test_nothing_is_known_before_a_replica_was_seen_to_start() -> None:
    read = Read()
    assert read.due_s() is None
    read.starts("app.tiny.1")
    assert read.due_s() is None
    assert read.due_s("other") is None


async def test_one_that_starts_takes_as_long_as_the_others_did() -> None:
    read = Read()
    read.starts("app.tiny.1", took_s=8.0)
    read.due_s()
    read.starts("app.tiny.2", took_s=4.0)
    read.due_s()
    read.starts("app.tiny.3")
    due_s = read.due_s()
    assert due_s is not None
    assert 5.0 < due_s <= 6.0
    read.comeback._starting["app.tiny.3"] = (read.history.now, asyncio.get_running_loop().time() - 100.0)
    assert read.due_s() == 0.0, "it is late, and due at any moment"


async def test_after_failures_the_pause_before_the_next_start_is_counted_too() -> None:
    read = Read()
    read.starts("app.tiny.1", took_s=2.0)
    read.due_s()
    for number in (1, 2):
        read.fails(f"app.tiny.{number}")
        read.starts(f"app.tiny.{number + 1}")
    read.fails("app.tiny.3")
    due_s = read.due_s()
    assert due_s is not None
    assert 4 * START_BACKOFF_FIRST_S + 1.0 < due_s <= 4 * START_BACKOFF_FIRST_S + 2.0


async def test_what_is_gone_is_forgotten() -> None:
    read = Read()
    read.starts("app.tiny.1", took_s=2.0)
    read.due_s()
    read.starts("app.tiny.2")
    read.due_s()
    read.comeback.keep(read.history.state, {"tiny"})
    assert list(read.comeback._starting) == ["app.tiny.2"]
    read.fails("app.tiny.2")
    read.due_s()
    read.starts("app.tiny.3")
    read.due_s()
    read.history.fact(ev.ReplicaExited("app.tiny.3", "a", 7, None, "SIGKILL", False, ""), by="node.a")
    read.comeback.keep(read.history.state, set())
    comeback = read.comeback
    assert (comeback._starting, comeback._takes_s, comeback._failed_s) == ({}, {}, {})


async def test_who_finds_no_replica_is_told_when_one_should_be_there() -> None:
    async with Site() as site:
        site.deploy(application(replicas=1))
        replica = await site.replica()
        gateway = await site.gateway(replica_wait_s=0.01)
        gateway._comeback._takes_s["tiny"] = 20.0
        await replica.kill()
        site.exits(replica.name)
        await eventually(lambda: replicas_ready(gateway) == 0)
        with pytest.raises(NoReplica) as rejection:
            await answer_to(gateway, ask())
        assert 19.0 < rejection.value.retry_after_s <= 30.0


async def test_who_lost_the_only_replica_once_too_often_is_told_when_one_should_be_there() -> None:
    async with Site() as site:
        site.deploy(application(replicas=1))
        replica = await site.replica(itl_ms=1)
        gateway = await site.gateway(migration_limit=0)
        gateway._comeback._takes_s["tiny"] = 20.0
        async with opened(gateway, ask(tokens=10_000)) as session:
            await Answer().read(session, tokens=1)
            await replica.kill()
            with pytest.raises(StreamLost) as lost:
                await Answer().read(session)
        assert lost.value.retry_after_s == pytest.approx(20.0, abs=1.0)
