"""A replica that serves, and whose first tokens take far longer than the others': it is passed over.

Also where it is so slow that nobody waits for a first token of it, so that none ever comes.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import Cluster, Start, until_value
from tests.faults.test_replica_faults import happened

FIRST_IS_SLOW = """
import asyncio, os
from engine_class import Echo

class FirstIsSlow(Echo):
    def __init__(self, mark, slow_s):
        super().__init__(pace_s=0.0)
        self.slow_s, self.due_s = 0.0, {}
        try:
            with open(mark, "x") as file:
                file.write(str(os.getpid()))
            self.slow_s = slow_s
        except FileExistsError:
            pass

    async def admit(self, key, request):
        self.due_s[key] = asyncio.get_running_loop().time() + self.slow_s
        return await super().admit(key, request)

    def drop(self, key):
        self.due_s.pop(key, None)
        super().drop(key)

    async def step(self):
        await asyncio.sleep(0.005)
        now_s = asyncio.get_running_loop().time()
        early = {key: self._streams.pop(key) for key in list(self._streams) if self.due_s[key] > now_s}
        output = await super().step()
        self._streams.update({key: stream for key, stream in early.items() if key in self.due_s})
        return output
"""
"""Whoever is made first leaves its process's id, and brings first tokens so much later."""

EXAMPLES = Path(__file__).parents[2] / "examples"
CLIENTS = 8
FOUND_TIMEOUT_S = 200.0


@pytest.mark.parametrize(
    ("slow_s", "patience_s", "statuses"), [(2.0, 60.0, {200}), (300.0, 3.0, {200, 504})], ids=["late", "never"]
)
async def test_a_replica_that_is_far_slower_than_the_others_is_passed_over(
    start_cluster: Start, tmp_path: Path, slow_s: float, patience_s: float, statuses: set[int]
) -> None:
    (tmp_path / "first_is_slow.py").write_text(FIRST_IS_SLOW)
    mark, folders = tmp_path / "mark", (str(tmp_path), str(EXAMPLES), os.environ.get("PYTHONPATH", ""))
    cluster = start_cluster(
        "--deployment-args",
        json.dumps({"canary": False}),
        engine="class",
        engine_args={"import_path": "first_is_slow:FirstIsSlow", "mark": str(mark), "slow_s": slow_s},
        replicas=3,
        environment={"PYTHONPATH": os.pathsep.join(folders), "HOLDFAST_ADMISSION__OUTLIER_INTERVAL_S": "0.2"},
    )
    (slow,) = [replica["id"] for replica in cluster.status()["replicas"] if replica["pid"] == int(mark.read_text())]
    seen, found = await asked_until_one_is_passed_over(cluster, patience_s)
    assert seen == statuses
    assert {event["payload"]["replica"] for event in found} == {slow}
    assert found[0]["payload"]["reason"].startswith("its first tokens took")


async def asked_until_one_is_passed_over(cluster: Cluster, patience_s: float) -> tuple[set[int], list[dict[str, Any]]]:
    """Some clients ask again and again: which statuses they got, and what the log has of replicas passed over."""
    over, seen = asyncio.Event(), set[int]()
    body = {"model": "firstisslow", "prompt": "hold fast", "max_tokens": 4, "stream": True}
    headers = {"x-request-timeout-seconds": str(patience_s)}
    client = httpx.AsyncClient(base_url=cluster.url, timeout=120, trust_env=False)

    async def ask_on() -> None:
        while not over.is_set():
            answer = await client.post("/v1/completions", json=body, headers=headers)
            seen.add(answer.status_code)

    def ejected() -> list[dict[str, Any]]:
        return happened(cluster, "ReplicaEjected")

    async with client, asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(ask_on())
        found = await asyncio.to_thread(until_value, ejected, bool, FOUND_TIMEOUT_S)
        over.set()
    return seen, found
