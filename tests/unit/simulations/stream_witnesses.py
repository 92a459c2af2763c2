"""What misses the guards that keep a stream with one owner, and end it where it can't be served."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import cast
from unittest.mock import patch

import msgspec
import pytest

from holdfast.actors.engines.mock import load_mock
from holdfast.actors.follower import Follower
from holdfast.actors.held import Peer
from holdfast.actors.replica import Replica
from holdfast.actors.specification import ReplicaSpecification
from holdfast.actors.wire import Connection
from holdfast.core import events as ev
from holdfast.core.barren import Barren
from holdfast.core.config import DeploymentConfig, EngineConfig
from holdfast.core.errors import NoReplica, StreamLost
from holdfast.core.frames import PROTOCOL_VERSION, Fence, Frame, FromGateway, Stop, Welcome
from holdfast.core.requests import EngineRequest
from holdfast.core.stream import BARREN_ATTEMPTS_MAX, Stream
from holdfast.gateway.draining import GatewayDrain
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.link_settings import LinkSettings
from holdfast.gateway.pool import Pool
from holdfast.gateway.serving import Serving
from holdfast.gateway.serving_settings import ServingSettings
from holdfast.gateway.session import StreamRun
from holdfast.gateway.stalls import BARREN_STEPS
from holdfast.store.memory import MemoryLogServer
from tests.unit.actors import test_held
from tests.unit.core import test_stream
from tests.unit.serving import test_pool, test_stalls
from tests.unit.support.history import INFO, History, application
from tests.unit.support.virtual_time import virtual_time

SETTINGS = LinkSettings("test", "g")


def unconnected_link(
    on_orphans: Callable[[list[StreamRun], StreamLost], None] = lambda _runs, _cause: None,
) -> ReplicaLink:
    """A link whose replica nobody dials."""
    return ReplicaLink("r", "h:1", 1, SETTINGS, random.Random(1), lambda _link: None, on_orphans)


@virtual_time
async def _hears(frame: FromGateway, method: str) -> None:
    """A replica does what the frame says."""
    specification = ReplicaSpecification("test", "app.tiny.1", "tiny", "h", EngineConfig("mock"), 5.0)
    replica, heard = Replica(specification, load_mock({}, "tiny", random.Random(1))), list[FromGateway]()
    with patch.object(Replica, method, lambda *_: heard.append(frame)):
        replica._on_frame(cast(Peer, None), frame)
    assert heard


def _fences_again() -> None:
    link, sent = unconnected_link(), list[Frame]()
    link._contact.fences.add([("s", 1)])
    link._contact.connection = cast(Connection, SimpleNamespace(send=sent.append, introduced=lambda: None))
    link._on_body(link._contact.connection, msgspec.msgpack.encode(Welcome(PROTOCOL_VERSION, "r", INFO)))
    assert [type(frame) for frame in sent] == [Fence]


@virtual_time
async def _gives_up() -> None:
    follower, history = Follower(MemoryLogServer().client()), History()
    history.decide(ev.ApplicationDeployed(application()))
    follower.state = history.state
    serving = Serving(follower, "test", "g", ServingSettings(replica_wait_s=2.0), random.Random(1))
    serving._sync_pools(follower.state)
    async with serving.open("tiny", [EngineRequest(prompt="x")], stops=[]) as session:
        with pytest.raises(NoReplica):
            await session.next()


def _breaks_engines() -> None:
    stream = Stream(EngineRequest(prompt="x"), migrations_max=BARREN_ATTEMPTS_MAX + 1)
    for _ in range(BARREN_ATTEMPTS_MAX):
        stream.start()
        stream.admitted(1)
        stream.lost(StreamLost("gone"))
    assert stream.ended


def _one_suspect_at_a_time() -> None:
    pool = Pool(DeploymentConfig("tiny", EngineConfig("mock")))
    pool.links = [test_pool.as_link(test_pool.FakeLink(places=1, free_for_suspects=False))]
    assert test_pool.chosen(pool, test_pool.run_of(suspect=True)) is None


@virtual_time
async def _lets_end() -> None:
    """A gateway's streams end by themselves within the time that they have."""
    began_s, turned_away = asyncio.get_running_loop().time(), list[float]()

    def turn_away() -> int:
        turned_away.append(asyncio.get_running_loop().time() - began_s)
        return 0

    gateway = object.__new__(GatewayDrain)
    gateway._serving = cast(
        Serving, SimpleNamespace(idle=partial(asyncio.sleep, 1.0), turn_away=turn_away, standing=SimpleNamespace())
    )
    await gateway.drain("finish", 5.0)
    assert turned_away == [1.0]


@virtual_time
async def _stands_still() -> None:
    orphans: list[StreamRun] = []
    link = unconnected_link(lambda runs, _cause: orphans.extend(runs))
    stream = Stream(EngineRequest(prompt="x"))
    run = cast(StreamRun, SimpleNamespace(stream=stream, name="", avoid=None, link=None, attempt=0))
    link._take(run)
    link._look_for_stalls(0.0)
    link._look_for_stalls(SETTINGS.admission_timeout_s + 1.0)
    assert orphans == [run]


def _leaves_a_barren_engine() -> None:
    barren = Barren(test_stalls.LATE_S, BARREN_STEPS)
    test_stalls.test_one_without_its_first_token_leaves_only_an_engine_that_makes_nothing(barren, found=True)


STREAM_WITNESSES: dict[str, Callable[[], object]] = {
    "stop-frame": lambda: _hears(Stop(1), "_stop"),
    "fence-frame": lambda: _hears(Fence([1], []), "_fence"),
    "fence-again": _fences_again,
    "fence-of-former-gateway": test_held.test_only_what_went_on_elsewhere_is_fenced,
    "later-attempt": test_held.test_an_earlier_attempt_does_not_attach_while_a_later_one_is_waited_for,
    "kept-for-nobody": test_held.test_a_detached_stream_that_nobody_asks_for_ends,
    "wait-for-a-replica": _gives_up,
    "migration-limit": partial(
        test_stream.test_a_stream_may_change_its_replica_so_often_and_then_fails_with_what_it_lost, 1
    ),
    "goes-on-elsewhere": partial(
        test_stream.test_a_stream_may_change_its_replica_so_often_and_then_fails_with_what_it_lost, 1
    ),
    "breaks-engines": _breaks_engines,
    "probation": _one_suspect_at_a_time,
    "gateway-drain": _lets_end,
    "stalled-stream": _stands_still,
    "barren-engine": _leaves_a_barren_engine,
}
"""By the mutant that takes the guard out."""
