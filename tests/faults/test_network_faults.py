"""A node's network that falls silent without a reset: streams leave its replicas, which serve again afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from examples.bench.fault_cluster import FAR_NODE, deploy, far_node, following
from examples.bench.silence import BOTH, Direction, SilentNetwork
from holdfast.actors.follower import Follower
from holdfast.core.cluster import ClusterState, ReplicaState, ReplicaStatus
from holdfast.core.events import ReplicaSuspected
from holdfast.gateway.cli.finding import find_cluster
from holdfast.gateway.goal import Wish
from tests.acceptance.conftest import WAIT_TIMEOUT_S, Cluster
from tests.faults.streams import many_streaming
from tests.faults.test_replica_faults import PACE, assert_right, ready, under_streams

LEASE_TTL_S = 60
"""Longer than the silence lasts on however slow a machine, so that the node is not given up for it (seconds)."""


@pytest.mark.parametrize(
    "directions", [BOTH, frozenset({Direction.OUT}), frozenset({Direction.IN})], ids=["both", "out", "in"]
)
async def test_streams_leave_a_node_whose_network_is_silent_and_it_serves_again_afterwards(
    start_cluster: Any, directions: frozenset[Direction]
) -> None:
    cluster: Cluster = start_cluster("--lease-ttl-s", str(LEASE_TTL_S), replicas=0)
    settings = find_cluster(cluster.data_dir, None, None).settings.model_copy(update={"lease_ttl_s": LEASE_TTL_S})
    suspicions: list[ReplicaSuspected] = []
    async with (
        SilentNetwork() as network,
        following(settings) as follower,
        far_node(settings, follower, network, cluster.data_dir),
    ):
        follower.observe(lambda record, _state: keep(suspicions, record.event.payload))
        await deploy(settings, follower, Wish(4, "mock", json.dumps(PACE)))
        await observed(follower, lambda state: len(serving(state)) == 4)
        await asyncio.to_thread(cluster.wait_health, lambda health: ready(health) == 4)
        far = {one.id: one.pid for one in serving(follower.state) if one.node == FAR_NODE}
        assert len(far) == 2
        async with many_streaming(cluster, 8):
            assert_right(await under_streams(cluster, lambda: network.silence(directions)))
            assert_right(await under_streams(cluster, lambda: None))
            await observed(follower, lambda state: all(state.replicas[one].suspected_by for one in far))
        network.heal()
        await observed(follower, lambda state: len(serving(state)) == 4)
        await asyncio.to_thread(cluster.wait_health, lambda health: ready(health) == 4)
        assert_right(await under_streams(cluster, lambda: None))
        assert {one.id: one.pid for one in serving(follower.state) if one.node == FAR_NODE} == far
    assert {one.replica for one in suspicions} >= far.keys()
    if Direction.OUT in directions:  # else the streams that were there had all that they needed
        assert sum(one.streams for one in suspicions) > 0


def keep(suspicions: list[ReplicaSuspected], payload: object) -> None:
    if isinstance(payload, ReplicaSuspected):
        suspicions.append(payload)


def serving(state: ClusterState) -> list[ReplicaState]:
    """Replicas that run and that nobody suspects."""
    return [one for one in state.replicas.values() if one.status is ReplicaStatus.RUNNING and not one.suspected_by]


async def observed(follower: Follower, predicate: Callable[[ClusterState], bool]) -> None:
    """Wait until the log says so."""
    async with asyncio.timeout(WAIT_TIMEOUT_S):
        await follower.until(predicate)
