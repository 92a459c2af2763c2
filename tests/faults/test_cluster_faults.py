"""Servers that `holdfast up` keeps running die or freeze under streams: nobody notices, and all is whole again."""

from __future__ import annotations

import os
import signal

import pytest

from tests.acceptance.conftest import Cluster
from tests.faults.test_replica_faults import assert_right, running, under_streams


@pytest.fixture
def cluster(paced_cluster: Cluster) -> Cluster:
    return paced_cluster


@pytest.mark.parametrize("service", ["nats", "etcd"])
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_streams_do_not_notice_that_a_server_is_gone(
    cluster: Cluster, service: str, fault: signal.Signals
) -> None:
    status = cluster.wait(lambda status: not status["degraded"] and len(running(status)) == 2)
    pid = status["services"][service]["pid"]
    try:
        assert_right(await under_streams(cluster, lambda: os.kill(pid, fault)))
        assert_right(await under_streams(cluster, lambda: None))
    finally:
        if fault is signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
    after = cluster.wait(lambda status: not status["degraded"] and len(running(status)) == 2)
    assert {one["pid"] for one in running(after)} == {one["pid"] for one in running(status)}
