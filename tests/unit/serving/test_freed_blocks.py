"""KV blocks of who is not wanted any more: free after the step under way, in the middle of a prompt too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from holdfast.actors.engines.mock import MockEngine
from holdfast.actors.replica import Replica
from holdfast.core.errors import DeadlineExceeded
from holdfast.core.liveness import Liveness
from holdfast.core.thresholds import Thresholds
from holdfast.gateway.backend import Session
from holdfast.gateway.fences import Fences
from holdfast.gateway.serving import Serving
from tests.unit.support.history import application
from tests.unit.support.replicas import LocalReplica, Site, ask, engine_of, eventually
from tests.unit.support.stepped import Stepped, freed_after_one_step

LONG_PROMPT = "word " * 3_000


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site() as site:
        site.deploy(application(replicas=1))
        yield site


async def replica_of(site: Site, **arguments: Any) -> tuple[LocalReplica, Stepped]:
    """A replica whose engine steps only when it is let."""
    stepped = Stepped(engine_of(**arguments))
    return await site.replica(engine=cast(MockEngine, stepped)), stepped


async def entered(serving: Serving, prompt: str = "tell me", timeout_s: float | None = None, name: str = "") -> Session:
    """A session under way."""
    session = serving.open("tiny", [ask(prompt, tokens=1000)], stops=[], timeout_s=timeout_s, name=name)
    return await session.__aenter__()


@pytest.mark.parametrize("way", ["leave", "stop", "fail", "deadline"])
async def test_in_the_middle_of_a_long_prompt(site: Site, way: str) -> None:
    replica, stepped = await replica_of(site, prefill_tokens_per_s=10_000)
    gateway = await site.gateway()
    session = await entered(gateway, LONG_PROMPT, 0.2 if way == "deadline" else None)
    await stepped.let(2)
    assert 0 < stepped.load().prefill_tokens_waiting < 3_000
    if way == "stop":
        session.stop()
    elif way == "fail":
        session.fail(RuntimeError("killed"))
    elif way == "leave":
        await session.__aexit__()
    else:
        with pytest.raises(DeadlineExceeded):
            await session.next()
    await freed_after_one_step(replica, stepped)


@pytest.mark.parametrize("way", ["leave", "stop"])
async def test_after_some_tokens_and_while_another_waits_for_room(site: Site, way: str) -> None:
    site.deploy(application(thresholds=Thresholds(requests_in_flight_threshold=2)))
    replica, stepped = await replica_of(site, streams_max=1)
    gateway = await site.gateway()
    first = await entered(gateway)
    await stepped.let(3)
    second = await entered(gateway)
    await eventually(lambda: stepped.load().waiting == 1)
    for session in (second, first):
        if way == "stop":
            session.stop()
        else:
            await session.__aexit__()
    await freed_after_one_step(replica, stepped)


async def test_of_a_stream_that_outlived_its_gateway_when_its_requests_time_is_over(site: Site) -> None:
    replica, stepped = await replica_of(site)
    gateway = await site.gateway()
    session = await entered(gateway, timeout_s=0.4, name="cmpl-1")
    await stepped.let(3)
    assert len(await session.next()) == 1
    replica.cut()
    await session.__aexit__()
    await eventually(lambda: not replica.replica._peers or len(replica.replica._held.by_key) == 0)
    await eventually(lambda: replica.replica._held._detached == 0)
    await freed_after_one_step(replica, stepped)


async def test_of_a_stream_whose_gateway_stands_still(site: Site) -> None:
    replica, stepped = await replica_of(site)
    gateway = await site.gateway()
    session = await entered(gateway, timeout_s=0.2, name="cmpl-1")
    await stepped.let(3)
    (held,) = replica.replica._held.by_key.values()
    session._deadline.cancel()  # type: ignore[attr-defined]
    loop = asyncio.get_running_loop()
    assert held.until_s == pytest.approx(loop.time() + 0.2, abs=0.2)
    await freed_after_one_step(replica, stepped)
    assert loop.time() >= held.until_s
    await session.__aexit__()


async def test_of_a_stream_whose_stop_was_lost_with_the_connection(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a name, and would go on for whoever asks for it: it is fenced over the next connection."""
    replica, stepped = await replica_of(site)
    gateway = await site.gateway()
    session = await entered(gateway, name="cmpl-1")
    await stepped.let(3)
    monkeypatch.setattr(Replica, "_stop", lambda _self, _peer, _attempt: None)
    monkeypatch.setattr(Liveness, "beat", lambda _self, _heard, _load, _now_s: None)
    monkeypatch.setattr(Fences, "heard", lambda _self, _ping: None)
    await session.__aexit__()
    await eventually(lambda: len(gateway._links["app.tiny.1"]._contact.fences) == 1)
    monkeypatch.undo()
    replica.cut()
    await freed_after_one_step(replica, stepped)


async def test_stops_that_were_heard_are_not_remembered(site: Site) -> None:
    await site.replica()
    gateway = await site.gateway()
    for number in range(50):
        await (await entered(gateway, name=f"cmpl-{number}")).__aexit__()
    await eventually(lambda: len(gateway._links["app.tiny.1"]._contact.fences) == 0)
