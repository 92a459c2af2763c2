"""What a call makes of each way in which a try can fail, over a transport that fails as the test says."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from holdfast.core.errors import LeasesUnavailable
from holdfast.store.etcd import EtcdLeases
from holdfast.store.etcd_gateway import EtcdGateway, GatewayError
from holdfast.store.etcd_transport import NoAnswer, NotSent, Reply, Silent
from holdfast.store.settings import EtcdSettings
from tests.unit.support.virtual_time import now_s, virtual_time

VERSION = (200, {"etcdserver": "3.5.1"})
DONE = (200, {"header": {"revision": "5"}})
LEASE_GONE = (404, {"error": "etcdserver: requested lease not found", "code": 5})
NO_LEADER = (503, {"error": {"grpc_code": 14, "message": "etcdserver: no leader"}})


class Scripted:
    """Gives each request the next outcome: an answer, or an exception that it raises."""

    def __init__(self, *outcomes: Reply | Exception, version: Reply = VERSION) -> None:
        self.asked: list[tuple[str, str]] = []
        self._outcomes = deque(outcomes)
        self._version = version

    async def get(self, endpoint: str, path: str, timeout_s: float) -> Reply:
        version, self._version = self._version, VERSION
        return version

    async def post(
        self, endpoint: str, path: str, payload: dict[str, Any], headers: dict[str, str], timeout_s: float
    ) -> Reply:
        self.asked.append((endpoint, path))
        outcome = self._outcomes.popleft()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def lines(
        self,
        endpoint: str,
        path: str,
        payload: dict[str, Any],
        headers: dict[str, str],
        *,
        timeout_s: float,
        silence_s: float,
    ) -> AsyncGenerator[Reply, None]:
        while self._outcomes:
            yield await self.post(endpoint, path, payload, headers, timeout_s)

    async def close(self) -> None:
        self._outcomes.clear()


def gateway(transport: Scripted, *endpoints: str) -> EtcdGateway:
    settings = EtcdSettings(endpoints=endpoints or ("http://a:1", "http://b:1"))
    return EtcdGateway(settings, transport, random.Random(1))


@pytest.mark.parametrize(
    ("failure", "again"),
    [
        (NotSent("refused"), False),
        (NoAnswer("reset"), True),
        (OSError("broken"), True),
        (ValueError("no JSON"), True),
        (NO_LEADER, True),
    ],
)
def test_only_a_request_that_was_not_sent_can_not_have_had_its_effect(failure: Reply | Exception, again: bool) -> None:
    transport = Scripted(failure, DONE)
    answer = asyncio.run(gateway(transport).call("kv/put", {}))
    assert (answer.again, answer.revision) == (again, 5)
    assert transport.asked == [("http://a:1", "/v3/kv/put"), ("http://b:1", "/v3/kv/put")]


def test_a_final_refusal_tells_whether_an_earlier_try_may_have_had_its_effect() -> None:
    for tries, again in (((LEASE_GONE,), False), ((NoAnswer("reset"), LEASE_GONE), True)):
        with pytest.raises(GatewayError) as caught:
            asyncio.run(gateway(Scripted(*tries)).call("kv/put", {}))
        assert caught.value.again == again


def test_an_endpoint_that_does_not_tell_its_version_is_passed_over() -> None:
    transport = Scripted(DONE, version=(503, None))
    asyncio.run(gateway(transport).call("kv/put", {}))
    assert transport.asked == [("http://b:1", "/v3/kv/put")]


@virtual_time
async def test_when_all_fail_the_last_failure_of_each_endpoint_is_told_in_time() -> None:
    client = gateway(Scripted(*[NotSent("refused"), NoAnswer("reset")] * 50))
    with pytest.raises(LeasesUnavailable, match=r"within 5 s: http://a:1: refused; http://b:1: reset"):
        await client.call("kv/put", {})
    assert now_s() == pytest.approx(5.0)
    assert not client.connected


def test_lines_tell_their_error_and_their_silence() -> None:
    async def read(*outcomes: Reply | Exception) -> list[Any]:
        return [item async for item in gateway(Scripted(*outcomes)).lines("http://a:1", "watch", {})]

    assert asyncio.run(read((200, {"result": 1}), (200, {"result": 2}))) == [1, 2]
    with pytest.raises(GatewayError, match="no leader") as caught:
        asyncio.run(read((200, {"result": 1}), (200, NO_LEADER[1])))
    assert caught.value.code == 14
    with pytest.raises(GatewayError, match="no leader"):
        asyncio.run(read(NO_LEADER))
    with pytest.raises(Silent):
        asyncio.run(read((200, {"result": 1}), Silent("ReadTimeout")))


def test_lease_ids_follow_from_the_chance_that_is_given() -> None:
    async def granted() -> list[int]:
        transport = Scripted(*[(200, {"TTL": "5"})] * 2)
        leases = EtcdLeases(gateway(transport))
        return [(await leases.grant(5)).id for _ in range(2)]

    first = asyncio.run(granted())
    assert first == asyncio.run(granted())
    assert first[0] != first[1]
