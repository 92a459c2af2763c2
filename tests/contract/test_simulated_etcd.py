"""The simulated etcd answers each request with the very body that the real one has for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

from holdfast.simulations.etcd.client import EtcdTransport
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import World
from holdfast.store.embedded import etcd_server
from holdfast.store.etcd_gateway import encoded
from holdfast.store.etcd_http import HttpTransport
from holdfast.store.etcd_transport import Reply, Transport
from tests.contract.simulated import SimulatedEtcdWorld, run_in
from tests.contract.worlds import etcd_settings

A, B, D, LEADER, NONE = (encoded(key) for key in ("a", "b", "d", "leader", "none"))
SOME = {"key": A, "range_end": encoded("z")}
SILENCE_S = 0.5
TIMEOUT_S = 60.0


def put(key: str, value: str = "", lease: int = 0) -> dict[str, str]:
    return {"key": key, "value": encoded(value), "lease": str(lease)}


def txn(key: str, revision: int, step: dict[str, Any]) -> dict[str, Any]:
    return {
        "compare": [{"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": str(revision)}],
        "success": [step],
        "failure": [{"request_range": {"key": key}}],
    }


def watch(start_revision: int) -> tuple[str, dict[str, Any]]:
    return "watch", {"create_request": {**SOME, "start_revision": str(start_revision), "progress_notify": True}}


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("lease/grant", {"ID": "7", "TTL": "60"}),
    ("lease/grant", {"ID": "7", "TTL": "60"}),
    ("lease/grant", {"ID": "9", "TTL": "1"}),
    ("lease/revoke", {"ID": "9"}),
    ("lease/grant", {"ID": "8", "TTL": "60"}),
    ("kv/put", put(A, "1", 7)),
    ("kv/put", put(A, "", 7)),
    ("kv/put", put(A, "1", 99)),
    ("kv/put", put("", "1", 7)),
    ("kv/range", {**SOME, "revision": "0"}),
    ("kv/range", {**SOME, "revision": "2"}),
    ("kv/range", {**SOME, "revision": "99"}),
    ("kv/range", {"key": NONE, "count_only": True}),
    ("kv/range", {"key": A, "count_only": True}),
    ("kv/range", {"key": "", "count_only": True}),
    ("kv/txn", txn(LEADER, 0, {"request_put": put(LEADER, "x", 7)})),
    ("kv/txn", txn(LEADER, 0, {"request_put": put(LEADER, "y", 7)})),
    ("kv/txn", txn(LEADER, 0, {"request_put": put(LEADER, "y", 99)})),
    ("kv/txn", txn(NONE, 0, {"request_put": put(NONE, "y", 99)})),
    ("kv/txn", txn(NONE, 5, {"request_delete_range": {"key": NONE}})),
    ("kv/txn", txn(LEADER, 4, {"request_delete_range": {"key": LEADER}})),
    ("kv/deleterange", {"key": NONE}),
    ("kv/put", put(D, "1", 7)),
    ("kv/put", put(B, "1")),
    ("kv/deleterange", {"key": D}),
    ("lease/keepalive", {"ID": "7"}),
    ("lease/keepalive", {"ID": "99"}),
    ("lease/timetolive", {"ID": "7", "keys": True}),
    ("lease/timetolive", {"ID": "8", "keys": True}),
    ("lease/timetolive", {"ID": "99", "keys": True}),
    ("lease/leases", {}),
    ("lease/revoke", {"ID": "99"}),
    ("lease/revoke", {"ID": "8"}),
    ("lease/leases", {}),
    ("auth/authenticate", {"name": "a", "password": "b"}),
    ("nonsense", {}),
    watch(1),
    watch(8),
    watch(99),
    ("kv/compaction", {"revision": "6", "physical": True}),
    ("kv/compaction", {"revision": "6", "physical": True}),
    ("kv/compaction", {"revision": "500", "physical": True}),
    watch(5),
    watch(6),
    ("kv/range", {**SOME, "revision": "5"}),
    ("kv/range", {**SOME, "revision": "6"}),
    ("lease/revoke", {"ID": "7"}),
    watch(7),
    ("kv/compaction", {"revision": "9", "physical": True}),
    watch(9),
    watch(8),
    ("kv/put", put(A, "2")),
    watch(9),
]


async def answers(transport: Transport, endpoint: str, expected: Sequence[Sequence[Reply]] = ()) -> list[list[Reply]]:
    """What comes for each request, without what only names the member. For as much as is `expected` it waits."""
    replies: list[list[Reply]] = [[await transport.get(endpoint, "/version", TIMEOUT_S)]]
    for path, payload in REQUESTS:
        url = f"/v3/{path}"
        if path == "watch":
            lines = len(expected[len(replies)]) if expected else 0
            replies.append(await _lines(transport, endpoint, url, payload, lines))
        else:
            replies.append([await transport.post(endpoint, url, payload, {}, TIMEOUT_S)])
    await transport.close()
    return [[(status, _plain(body)) for status, body in each] for each in replies]


async def _lines(transport: Transport, endpoint: str, url: str, payload: dict[str, Any], expected: int) -> list[Reply]:
    found: list[Reply] = []
    lines = transport.lines(endpoint, url, payload, {}, timeout_s=TIMEOUT_S, silence_s=TIMEOUT_S)
    async with aclosing(lines):
        with contextlib.suppress(TimeoutError, StopAsyncIteration):
            while True:
                async with asyncio.timeout(TIMEOUT_S if len(found) < expected else SILENCE_S):
                    found.append(await anext(lines))
    return found


def _plain(body: Any) -> Any:
    if isinstance(body, dict):
        names = {"cluster_id", "member_id", "raft_term"}
        plain = {key: _plain(value) for key, value in body.items() if key not in names}
        if "grantedTTL" in plain and plain["TTL"] != "-1":
            plain["TTL"] = 0 <= int(plain["TTL"]) <= int(plain["grantedTTL"])  # time passes between requests
        if "leases" in plain:
            plain["leases"].sort(key=lambda lease: lease["ID"])
        return plain
    return [_plain(item) for item in body] if isinstance(body, list) else body


async def test_every_answer_is_that_of_the_real_etcd(tmp_path: Path, stack: AsyncExitStack) -> None:
    server = await stack.enter_async_context(etcd_server(tmp_path))
    simulated: list[list[list[Reply]]] = []
    etcd = SimulatedEtcdWorld(World("bodies"), 1)

    async def main(process: SimProcess) -> None:
        simulated.append(await answers(EtcdTransport(process), etcd.servers.endpoints[0]))

    run_in(etcd.world, "client", main)
    real = await answers(HttpTransport(etcd_settings(server.url)), server.url, simulated[0])
    requests = [("version", {}), *REQUESTS]
    for request, expected, found in zip(requests, real, simulated[0], strict=True):
        assert found == expected, json.dumps(request)
