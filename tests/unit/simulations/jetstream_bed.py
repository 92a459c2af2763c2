"""Simulated NATS servers, processes with logs on them, and what must hold whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from holdfast.core.ports import LogEntry
from holdfast.simulations.history import History
from holdfast.simulations.nats.client import dialler
from holdfast.simulations.nats.jetstream import ELECTION_S, JetStream
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import World
from holdfast.store.jetstream import JetStreamLog
from tests.contract.worlds import jetstream_settings

Body = Callable[[SimProcess], Coroutine[Any, Any, None]]

HOSTS = ("n0", "n1", "n2")


class Bed:
    """One world. Processes that end by an exception fail the test."""

    def __init__(
        self,
        servers: int = 1,
        seed: str = "1",
        *,
        sync_interval_s: float = 0.0,
        election_s: tuple[float, float] = ELECTION_S,
        **settings: Any,
    ) -> None:
        self.world = World(seed)
        self.history = History()
        self.servers = JetStream(
            self.world,
            HOSTS[:servers],
            sync_interval_s=sync_interval_s,
            election_s=election_s,
            history=self.history,
            subject_prefix="test",
        )
        self.rng = Random(f"{seed}/faults")
        self.settings = jetstream_settings(
            *self.servers.urls, name="test", replicas=servers, **{"append_timeout_s": 20.0, **settings}
        )
        self.unhandled: list[str] = []
        self.world.on_unhandled = lambda process, text: self.unhandled.append(f"{process.name}: {text}")
        for index in range(servers):
            self.servers.start(index)

    @property
    def happened(self) -> dict[str, int]:
        """How often which fault struck."""
        return self.servers.troubles.happened

    async def open(self, process: SimProcess, *urls: str) -> JetStreamLog:
        """A log, on these servers or on any."""
        settings = self.settings.model_copy(update={"urls": urls}) if urls else self.settings
        return await JetStreamLog.open(settings, dial=dialler(process, process.rng), chance=process.rng)

    def run(self, *bodies: Body, until_s: float = 120.0) -> None:
        """Run each as a process on a host of its own, to its end. Then check what must always hold."""
        for number, body in enumerate(bodies):
            self.world.spawn(f"p{number}", f"h{number}", body)
        try:
            self.world.scheduler.run(until_s)
            assert not self.unhandled, self.unhandled[0]
            assert [process.status for process in self.world.processes if process.host.name[0] == "h"] == [0] * len(
                bodies
            )
            self.check_nothing_acknowledged_is_lost()
        finally:
            self.world.close()

    def check_nothing_acknowledged_is_lost(self) -> None:
        """Whatever a client was told to be in the log is there, once, under the sequence that was told."""
        held = {entry.sequence: entry.message_id for entry in self.servers.entries("test")}
        assert len(set(held.values())) == len(held)
        for told in self.servers.acknowledgements:
            assert held[told.sequence] == told.message_id

    def power_failure(self, *indexes: int) -> None:
        """Let hosts lose power, and start their servers again."""
        for index in indexes:
            self.world.power_off(HOSTS[index])
        for index in indexes:
            self.world.power_on(HOSTS[index])
            self.servers.start(index)

    def cut(self, one: str, other: str) -> None:
        """Let nothing through between two hosts."""
        self.world.network.block(one, other)
        self.world.network.block(other, one)

    def mend(self, one: str, other: str) -> None:
        self.world.network.unblock(one, other)
        self.world.network.unblock(other, one)


async def write(log: JetStreamLog, subject: str, count: int, *, last: int = 0, tag: str = "m") -> int:
    """Append messages one after the other; the last one's sequence."""
    for number in range(count):
        message_id = f"{subject}-{tag}-{number}"
        last = await log.append(subject, str(number).encode(), message_id=message_id, expected_last=last)
    return last


async def read(log: JetStreamLog, count: int, after: int = 0) -> list[LogEntry]:
    """The next entries, waited for."""
    entries: list[LogEntry] = []
    following = log.follow(after)
    try:
        async for entry in following:
            entries.append(entry)
            if len(entries) == count:
                break
    finally:
        await following.aclose()
    return entries
