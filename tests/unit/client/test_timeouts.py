"""The asyncio client's waits, in virtual time: what httpx is stuck in, a try and a call end when they should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

import httpx
import pytest

from holdfast.gateway.client import AsyncHoldfast, ConnectionFailed, DeadlinePassed, RetryPolicy, StreamBroken
from holdfast.gateway.client.machine import DRAIN_TIMEOUT_S
from tests.unit.client.fleet import EVENTS, answer, continued
from tests.unit.support.virtual_time import now_s, virtual_time

SENT = answer()
POLICY = RetryPolicy(try_timeout_s=10.0, deadline_s=100.0, jitter=0.0)


class Body(httpx.AsyncByteStream):
    """An event each `every_s`; `stuck` after so many; noted when it is closed."""

    def __init__(self, transport: Slow, last_id: str | None) -> None:
        self._transport = transport
        self._sent = continued(SENT, last_id)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number, event in enumerate(self._sent):
            await asyncio.sleep(float("inf") if number == self._transport.stuck_after else self._transport.every_s)
            yield event.bytes()
        if self._transport.stuck == "end":
            await asyncio.sleep(float("inf"))

    async def aclose(self) -> None:
        self._transport.closed += 1


class Slow(httpx.AsyncBaseTransport):
    """A server that is slow, or stuck, at opening, in the body or behind its end."""

    def __init__(self, stuck: Literal["opening", "body", "end", "never"], every_s: float = 1.0) -> None:
        self.stuck = stuck
        self.stuck_after = 3 if stuck == "body" else -1
        self.every_s = every_s
        self.opened_at: list[float] = []
        self.closed = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.opened_at.append(now_s())
        if self.stuck == "opening":
            await asyncio.sleep(float("inf"))
        return httpx.Response(200, headers=EVENTS, stream=Body(self, request.headers.get("last-event-id")))


async def text(transport: Slow, policy: RetryPolicy = POLICY) -> str:
    http = httpx.AsyncClient(transport=transport)
    async with http, AsyncHoldfast("http://a", policy=policy, http=http, clock=now_s) as client:
        return await client.chat_stream(model="m", messages=[]).text()


@virtual_time
async def test_a_gateway_that_never_answers_is_tried_again_after_each_try_timeout_until_the_deadline() -> None:
    transport = Slow("opening")
    with pytest.raises(DeadlinePassed) as raised:
        await text(transport)
    assert isinstance(raised.value.__cause__, ConnectionFailed)
    assert transport.opened_at == pytest.approx([0, 10.1, 20.5, 32.1, 48.5, 84.1])
    assert now_s() == pytest.approx(94.1)


@virtual_time
async def test_the_deadline_ends_a_try_that_is_under_way() -> None:
    with pytest.raises(DeadlinePassed):
        await text(Slow("opening"), RetryPolicy(try_timeout_s=10.0, deadline_s=7.0))
    assert now_s() == pytest.approx(7.0)


@virtual_time
async def test_a_stream_that_trickles_is_not_cut_but_by_the_deadline() -> None:
    assert await text(Slow("never", every_s=9.0)) == "aa\u2028éaa"
    began, transport = now_s(), Slow("never", every_s=9.0)
    with pytest.raises(DeadlinePassed):
        await text(transport, RetryPolicy(try_timeout_s=10.0, deadline_s=30.0))
    assert now_s() - began == pytest.approx(30.0)
    assert transport.closed == 1


@virtual_time
async def test_each_stuck_body_is_closed_and_taken_up_behind_what_came() -> None:
    transport = Slow("body")
    assert await text(transport) == "aa\u2028éaa"
    assert transport.opened_at == pytest.approx([0, 13.1, 26.2])
    assert transport.closed == 3
    assert now_s() == pytest.approx(29.2)


@virtual_time
async def test_without_retries_the_first_silence_is_the_end() -> None:
    with pytest.raises(StreamBroken, match="silent for too long"):
        await text(Slow("body"), RetryPolicy(try_timeout_s=10.0, retries_max=0))
    assert now_s() == pytest.approx(13.0)


@virtual_time
async def test_a_connection_that_stays_open_behind_the_end_holds_nothing_up() -> None:
    transport = Slow("end", every_s=0.0)
    assert await text(transport) == "aa\u2028éaa"
    assert now_s() == pytest.approx(DRAIN_TIMEOUT_S)
    assert transport.closed == 1
