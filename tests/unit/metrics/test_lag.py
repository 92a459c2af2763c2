"""How far behind the log a gateway is, and how old its lease: in virtual time, so that durations are exact."""

from __future__ import annotations

import asyncio
import random

from holdfast.actors.follower import Follower
from holdfast.actors.leasing import LeaseSession
from holdfast.actors.metric_families import GATEWAY, LEASE_AGE
from holdfast.actors.metrics import Ledger
from holdfast.actors.node_metrics import lease_age
from holdfast.core import events as ev
from holdfast.core.entries import encode_event
from holdfast.gateway.lag import LogLag
from holdfast.store.memory import MemoryLogServer
from holdfast.store.memory_leases import MemoryLeasesServer
from tests.unit.support.history import History
from tests.unit.support.virtual_time import virtual_time

TTL_S = 4.0


class WrittenHistory(History):
    """A history that is in a log as well."""

    def __init__(self) -> None:
        super().__init__()
        self.server = MemoryLogServer()

    def _append(self, subject: str, event: ev.Event) -> str:
        self.server.append(subject, encode_event(event), event.id, self.state.head(subject).sequence)
        return super()._append(subject, event)


@virtual_time
async def test_lag_counts_from_when_the_log_first_told_of_more_until_that_is_read() -> None:
    history = WrittenHistory()
    history.fact(ev.NodeJoined("a", "host", 1, "0", 9), by="node.a")
    follower = Follower(history.server.client("f"))
    lag = LogLag(history.server.client("g"), follower)
    assert (lag.sequences, lag.seconds) == (0, 0.0)
    await lag.status()
    await asyncio.sleep(3.0)
    assert (lag.sequences, lag.seconds) == (1, 3.0)
    history.fact(ev.NodeStopping("a"), by="node.a")
    await lag.status()
    await asyncio.sleep(2.0)
    assert (lag.sequences, lag.seconds) == (2, 5.0)
    following = asyncio.create_task(follower.run())
    await follower.reached(2)
    assert (lag.sequences, lag.seconds) == (0, 0.0)
    history.fact(ev.NodeLeft("a"), by="node.a")
    await follower.reached(3)
    await lag.status()
    await asyncio.sleep(1.0)
    assert (lag.sequences, lag.seconds) == (0, 0.0)
    following.cancel()


@virtual_time
async def test_a_leases_age_begins_anew_with_each_renewal_and_grows_while_servers_are_away() -> None:
    server = MemoryLeasesServer()
    session = LeaseSession(server.client("g"), TTL_S, {"gateways/g/1": b""}, random.Random(1))
    ledger = Ledger(GATEWAY)
    ledger.read(LEASE_AGE, lease_age(session))
    assert session.age_s is None
    assert "\nholdfast_lease_age_seconds " not in ledger.text().decode()
    running = asyncio.create_task(session.run())
    await session.held()
    for _ in range(40):
        await asyncio.sleep(0.25)
        assert session.age_s is not None
        assert session.age_s < TTL_S / 2 + 0.5
    server.stop()
    before_s = session.age_s
    await asyncio.sleep(10.0)
    assert session.age_s is not None
    assert before_s is not None
    assert session.age_s >= 10.0
    assert "\nholdfast_lease_age_seconds " in ledger.text().decode()
    running.cancel()
