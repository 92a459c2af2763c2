"""What misses guards of gateways: of their links, pools, sessions and requests."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from holdfast.actors.follower import Follower
from holdfast.core.config import DeploymentConfig, EngineConfig
from holdfast.core.errors import DeadlineExceeded, Overloaded
from holdfast.core.frames import Stop
from holdfast.core.requests import EngineRequest
from holdfast.gateway.asking import ask_completion
from holdfast.gateway.backend import DEFAULT_CLAIM
from holdfast.gateway.http_settings import HttpSettings
from holdfast.gateway.kinship import Kinship
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.link_settings import LinkSettings
from holdfast.gateway.peers import Answer as PeerAnswer
from holdfast.gateway.peers import Peers
from holdfast.gateway.pool import Pool
from holdfast.gateway.requests import OpenRequest, Requests
from holdfast.gateway.resuming import Resume, resumed
from holdfast.gateway.serving import Serving
from holdfast.gateway.serving_settings import ServingSettings
from holdfast.gateway.session import StreamRun, StreamSession
from holdfast.store.memory import MemoryLogServer
from tests.unit.gateway import test_draining as test_gateway_draining
from tests.unit.simulations.log_witnesses import one_node
from tests.unit.support.history import application
from tests.unit.support.replicas import Site
from tests.unit.support.virtual_time import settle, virtual_time


def _link() -> ReplicaLink:
    settings = LinkSettings("test", "g")
    return ReplicaLink(
        "r", "h:1", 1, settings, random.Random(1), on_capacity=lambda _link: None, on_orphans=lambda _runs, _cause: None
    )


class _Run:
    link, attempt, name, ordinal, claim, awaits_first, began_s = None, 0, "", 0, DEFAULT_CLAIM, False, 0.0


def _run() -> StreamRun:
    return cast(StreamRun, _Run())


@virtual_time
async def _numbers() -> None:
    link, first, second = _link(), _run(), _run()
    link._take(first)
    link.end(first)
    assert link._take(second) != first.attempt


@virtual_time
async def _no_room() -> None:
    link = _link()
    link._contact.welcomed = True
    assert link.room
    link._take(_run())
    assert not link.room


@virtual_time
async def _told_to_stop() -> None:
    link, run, sent = _link(), _run(), list[object]()
    link._contact.connection = cast(Any, SimpleNamespace(send=sent.append))
    run.name, run.ordinal = "s", 1
    attempt = link._take(run)
    link.end(run)
    assert sent == [Stop(attempt)]
    assert len(link._contact.fences) == 1


@virtual_time
async def _takes_with_it() -> None:
    requests, ended = Requests("g"), list[str]()
    for name, parent in (("p", ""), ("c", "p")):
        request = OpenRequest(name, "", "", None, 0.0, 60.0)
        request.parent = parent
        session = SimpleNamespace(
            timeout_s=60.0,
            replicas=[],
            prompt_tokens=0,
            completion_tokens=0,
            fail=lambda _cause, name=name: ended.append(name),
        )
        requests.opened(request, "", "m", cast(Any, session))
    requests.cancel("", "p", "kill")
    assert ended == ["p", "c"]


@virtual_time
async def _tells_others() -> None:
    asked: list[str] = []

    async def noted(method: str, url: str, _headers: object, _timeout_s: float) -> PeerAnswer:
        asked.append(f"{method} {url}")
        return PeerAnswer(200, b"{}")

    requests = Requests("g")
    kinship = Kinship(requests, Peers("g", lambda: {"g": "http://g", "h": "http://h"}, cast(Any, noted)))
    request = OpenRequest("p", "", "", None, 0.0, 60.0)
    request.elsewhere.add("h")
    running = asyncio.create_task(kinship.run())
    await settle()
    requests.tell(request, "kill")
    await settle()
    running.cancel()
    assert asked == ["DELETE http://h/v1/requests/p?mode=kill&told=children"]


def _notices() -> None:
    link = _link()
    link._contact.connection = cast(Any, SimpleNamespace(last_received_s=0.0))
    assert link._lost_touch(100.0)


@virtual_time
async def _dials_again() -> None:
    link, tries = _link(), 0

    async def connect() -> None:
        nonlocal tries
        tries += 1
        raise OSError("no route")

    link._contact._dial = connect  # type: ignore[method-assign]
    running = asyncio.create_task(link.run())
    await asyncio.sleep(10)
    running.cancel()
    assert tries > 3


def _same_seed() -> None:
    asked = ask_completion(b'{"model": "m", "prompt": "p", "stream": true, "seed": 5}', HttpSettings())
    assert resumed(asked, Resume("id", 7, (1,))).choices[0].sampling.seed == 7


@virtual_time
async def _ends() -> None:
    def nothing(_run: StreamRun) -> None:
        return None

    async with StreamSession([EngineRequest(prompt="x")], [], 3, nothing, nothing, 5.0) as session:
        with pytest.raises(DeadlineExceeded):
            await session.next()


@virtual_time
async def _turned_away() -> None:
    follower = Follower(MemoryLogServer().client())
    follower.state = one_node().state
    serving = Serving(follower, "test", "g", ServingSettings(), random.Random(1))
    serving._sync_pools(follower.state)
    for _ in range(serving._pools["tiny"].config.max_queued_requests):
        serving._pools["tiny"].queue.append(_run())
    with pytest.raises(Overloaded):
        serving.open("tiny", [EngineRequest(prompt="x")], stops=[])


@virtual_time
async def _serves() -> None:
    follower = Follower(MemoryLogServer().client())
    follower.state = one_node().state
    serving = Serving(follower, "test", "g", ServingSettings(), random.Random(1))
    serving._sync_pools(follower.state)
    serving.check_open("tiny", DEFAULT_CLAIM)


def _pool() -> Pool:
    link = _link()
    link._contact.welcomed = True
    pool = Pool(DeploymentConfig("tiny", EngineConfig("mock")))
    pool.links.append(link)
    return pool


def _new() -> StreamRun:
    stream = SimpleNamespace(suspect=False, attempts=0, accepted=[])
    return cast(StreamRun, SimpleNamespace(stream=stream, avoid=None, was_held=False))


@virtual_time
async def _begins() -> None:
    pool = _pool()
    assert pool.choose(_new(), lambda _below: 0) is pool.links[0]


@virtual_time
async def _has_room_again() -> None:
    pool = _pool()
    taken = _run()
    pool.links[0]._take(taken)
    assert pool.choose(_new(), lambda _below: 0) is None
    pool.links[0].end(taken)
    pool.has_room()
    assert pool.choose(_new(), lambda _below: 0) is pool.links[0]


def _obeys() -> None:
    async def scenario() -> None:
        site = Site()
        site.deploy(application())
        await test_gateway_draining.test_a_drained_gateway_refuses_requests_and_serves_again_when_the_drain_is_lifted(
            site
        )

    asyncio.run(scenario())


GATEWAY_WITNESSES: dict[str, Callable[[], object]] = {
    "gateway-obeys": _obeys,
    "attempt-fence": _numbers,
    "resumed-seed": _same_seed,
    "deadline": _ends,
    "queue-bound": _turned_away,
    "streams-per-replica": _no_room,
    "redial": _dials_again,
    "silence": _notices,
    "stop-told": _told_to_stop,
    "children-end-too": _takes_with_it,
    "children-elsewhere": _tells_others,
    "known-models": _serves,
    "replica-chosen": _begins,
    "room-again": _has_room_again,
}
"""By the mutant that takes the guard out."""
