"""The gateways in `holdfast status`: in the state that they give themselves at `/health`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
import pytest

from holdfast.core.status import GatewayReport, GatewayStatus
from holdfast.gateway.app import create_app
from holdfast.gateway.cli import gateway_health
from holdfast.gateway.cli.gateway_health import GatewayTold, as_told, ask_gateways, down_since
from tests.unit.gateway.fakes import FakeBackend
from tests.unit.gateway.server import serving
from tests.unit.support.ports import free_port
from tests.unit.support.replicas import PATIENCE_S

MUTE = "it does not answer at http://here/health from here"


def listed(status: GatewayStatus = GatewayStatus.HEALTHY, message: str = "") -> GatewayReport:
    """A gateway as the log and the leases have it."""
    return GatewayReport("gateway-1", 20, status, "http://here", "here", "1", message)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
async def url(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    monkeypatch.setattr(gateway_health, "ANSWER_TIMEOUT_S", PATIENCE_S)
    async with serving(create_app(backend, gateway="gateway-1")) as port:
        yield f"http://127.0.0.1:{port}"


async def test_a_gateway_that_can_not_serve_is_unhealthy_for_the_reasons_that_it_gives(
    backend: FakeBackend, url: str
) -> None:
    seen = as_told(listed(), await ask_gateways({"gateway-1": url}))
    assert (seen.status, seen.message) == (GatewayStatus.HEALTHY, "")
    backend.unhealthy = ["no replica of tiny is ready", "no replica of big is ready"]
    seen = as_told(listed(), await ask_gateways({"gateway-1": url}))
    said = "no replica of tiny is ready; no replica of big is ready"
    assert (seen.status, seen.message) == (GatewayStatus.UNHEALTHY, said)


async def test_one_that_does_not_answer_is_unhealthy_and_so_is_one_in_whose_place_another_answers(url: str) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    told = await ask_gateways({"gateway-1": dead, "gateway-2": url, "gateway-3": "http://"})
    assert told == dict.fromkeys(("gateway-1", "gateway-2", "gateway-3"))
    seen = as_told(listed(), told)
    assert (seen.status, seen.message) == (GatewayStatus.UNHEALTHY, MUTE)


async def test_one_that_hangs_is_given_up_within_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_health, "ANSWER_TIMEOUT_S", 0.1)
    hung = asyncio.Event()

    async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hung.wait()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await ask_gateways({"gateway-1": f"http://127.0.0.1:{port}"}) == {"gateway-1": None}
        hung.set()


def test_one_that_was_told_to_stop_may_answer_no_more() -> None:
    draining = listed(GatewayStatus.DRAINING)
    assert as_told(draining, {"gateway-1": None}) == draining


def test_what_the_log_says_of_a_drain_stays() -> None:
    drained = listed(GatewayStatus.DRAINED, "takes no requests until it is undrained")
    told = GatewayTold("gateway-1", GatewayStatus.DRAINED, ["it is drained"])
    assert as_told(drained, {"gateway-1": told}) == drained


def test_one_that_was_not_asked_is_as_the_log_has_it() -> None:
    lost = listed(GatewayStatus.UNHEALTHY, "its lease ended")
    assert as_told(lost, {}) == lost


def test_the_earliest_word_of_what_is_down_is_taken() -> None:
    first, then = (datetime(2026, 1, 2, 3, minute, tzinfo=UTC) for minute in (4, 5))
    planes = [{"log": {"down_since": then}}, {"log": {"down_since": first}, "leases": {"up": True}}]
    told = {
        str(number): msgspec.convert(
            {"gateway": str(number), "state": "HEALTHY", "details": {"planes": one}}, GatewayTold
        )
        for number, one in enumerate(planes)
    }
    assert down_since({**told, "mute": None}) == {"log": first}
