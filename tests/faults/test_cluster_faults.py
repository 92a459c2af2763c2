"""Leaders, nodes and servers that die or freeze under streams: nobody notices, and the cluster is whole again."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.acceptance.conftest import Cluster
from tests.faults.test_replica_faults import PACE, assert_right, running, under_streams


async def test_another_node_leads_when_the_leader_is_killed_and_streams_do_not_notice(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE, nodes=2, replicas=4)
    before = cluster.status()["controller"]
    texts = await under_streams(cluster, lambda: os.kill(before["pid"], signal.SIGKILL))
    assert_right(texts)
    after = cluster.wait(lambda status: status["controller"]["epoch"] > before["epoch"] and len(running(status)) == 4)
    assert after["controller"]["pid"] != before["pid"]


async def test_a_node_killed_with_its_replicas_is_made_up_for(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE, nodes=2, replicas=4)
    status = cluster.status()
    victim = next(node for node in status["nodes"] if node["id"] != status["controller"]["node"])
    pids = [victim["pid"], *(one["pid"] for one in running(status) if one["node"] == victim["id"])]
    assert len(pids) == 3

    def kill() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    assert_right(await under_streams(cluster, kill))
    cluster.wait(lambda status: len(running(status)) == 4 and not {one["pid"] for one in running(status)} & {*pids})


@pytest.mark.parametrize("service", ["nats", "etcd"])
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_streams_do_not_notice_that_a_server_is_gone(
    start_cluster: Any, service: str, fault: signal.Signals
) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE)
    status = cluster.status()
    pid = status["services"][service]["pid"]
    try:
        assert_right(await under_streams(cluster, lambda: os.kill(pid, fault)))
        assert_right(await under_streams(cluster, lambda: None))
    finally:
        if fault is signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
    after = cluster.wait(lambda status: not status["degraded"] and len(running(status)) == 2)
    assert {one["pid"] for one in running(after)} == {one["pid"] for one in running(status)}
