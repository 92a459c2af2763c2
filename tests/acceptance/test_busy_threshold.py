"""Thresholds that are changed at several gateways at once: each change holds, and who may make one."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.acceptance.conftest import HTTP_TIMEOUT_S, WAIT_TIMEOUT_S, Cluster, Start, until

KEYS = {"HOLDFAST_HTTP__API_KEYS": '["user"]', "HOLDFAST_HTTP__ADMIN_KEYS": '["boss"]'}


@pytest.fixture(scope="module")
def cluster(start_cluster: Start) -> Cluster:
    return start_cluster(gateways=2, environment=KEYS)


def client_of(cluster: Cluster, gateway: int, key: str = "boss") -> httpx.AsyncClient:
    url = f"http://127.0.0.1:{cluster.port + gateway}"
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=HTTP_TIMEOUT_S, trust_env=False)


def told_by(cluster: Cluster, gateway: int) -> dict[str, object]:
    url = f"http://127.0.0.1:{cluster.port + gateway}/busy_threshold"
    answer = httpx.get(url, headers={"authorization": "Bearer user"}, timeout=HTTP_TIMEOUT_S, trust_env=False)
    (found,) = answer.json()["thresholds"]
    assert isinstance(found, dict)
    return found


def until_told(cluster: Cluster, gateway: int, wanted: dict[str, object]) -> None:
    until(
        lambda: told_by(cluster, gateway).items() >= wanted.items(),
        WAIT_TIMEOUT_S,
        lambda: told_by(cluster, gateway),
    )


@pytest.mark.parametrize("second", [0, 1], ids=["at one gateway", "at two gateways"])
async def test_changes_that_are_asked_for_at_once_all_hold_at_all_gateways(cluster: Cluster, second: int) -> None:
    before = len([event for event in cluster.log() if event["payload"]["type"] == "BusyThresholdSet"])
    for value in (5, 6, 7):
        changes: list[dict[str, object]] = [
            {"requests_in_flight_threshold": value},
            {"queue_age_threshold_s": float(value)},
        ]
        async with client_of(cluster, 0) as one, client_of(cluster, second) as other:
            answers = await asyncio.gather(
                *(
                    client.post("/busy_threshold", json={"model": "mock", **change})
                    for client, change in zip((one, other), changes, strict=True)
                )
            )
        assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
        for answer, change in zip(answers, changes, strict=True):
            assert answer.json().items() >= change.items()
        for gateway in (0, 1):
            await asyncio.to_thread(until_told, cluster, gateway, {**changes[0], **changes[1]})
    log = cluster.log()
    asked = [event["id"] for event in log if event["payload"]["type"] == "BusyThresholdRequested"]
    decided = [event["cause"] for event in log if event["payload"]["type"] == "BusyThresholdSet"]
    assert decided == asked
    assert len(decided) == before + 6


async def test_only_an_admin_may_have_everybodys_requests_rejected(cluster: Cluster) -> None:
    before = told_by(cluster, 0)
    change = {"model": "mock", "requests_in_flight_threshold": 1}
    async with client_of(cluster, 0, "user") as user, client_of(cluster, 0, "nobody") as nobody:
        refused = await user.post("/busy_threshold", json=change)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_required")
        assert (await nobody.post("/busy_threshold", json=change)).status_code == 401
    assert told_by(cluster, 0) == before
