"""A node whose way to the log alone falls silent: it is replaced, and what runs on it runs on until it reads that."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from examples.bench.fault_cluster import FAR_NODE, deploy, far_node, following
from examples.bench.silence import SilentNetwork
from holdfast.actors.identity import LOG_KEY
from holdfast.core.cluster import MemberStatus
from holdfast.core.events import NodeLost
from holdfast.gateway.cli.finding import find_cluster
from holdfast.gateway.goal import Wish
from holdfast.gateway.processes import open_leases
from tests.acceptance.conftest import Cluster
from tests.faults.test_network_faults import observed, serving
from tests.faults.test_replica_faults import PACE, assert_right, ready, under_streams

CUT_OFF_TIMEOUT_S = 6.0
"""A leader that is silent for half of it, on a busy machine, is not believed to reach the log any more (seconds)."""


async def test_a_node_without_the_log_is_replaced_and_keeps_its_replicas_until_it_reads_so(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(
        replicas=0, environment={"HOLDFAST_NODE__CUT_OFF_TIMEOUT_S": f"{CUT_OFF_TIMEOUT_S}"}
    )
    known = find_cluster(cluster.data_dir, None, None).settings
    node = known.node.model_copy(update={"cut_off_timeout_s": CUT_OFF_TIMEOUT_S})
    settings = known.model_copy(update={"node": node})
    told: list[object] = []
    async with (
        SilentNetwork() as network,
        following(settings) as follower,
        far_node(settings, follower, network, cluster.data_dir, only_log=True) as process,
    ):
        follower.observe(lambda record, _state: told.append(record.event.payload))
        await deploy(settings, follower, Wish(4, "mock", json.dumps(PACE)))
        await observed(follower, lambda state: len(serving(state)) == 4)
        await asyncio.to_thread(cluster.wait_health, lambda health: ready(health) == 4)
        far = [one.pid for one in serving(follower.state) if one.node == FAR_NODE]
        assert len(far) == 2
        async with open_leases(settings) as leases:
            assert (await leases.list(LOG_KEY)).items, "the leader says that it reaches the log"
        assert_right(await under_streams(cluster, network.silence))
        await observed(follower, lambda state: state.nodes[FAR_NODE].status is MemberStatus.LOST)
        (lost,) = (one for one in told if isinstance(one, NodeLost))
        assert lost.reason == "it can't reach the log and gave up its lease"
        await observed(follower, lambda state: len(serving(state)) == 4)
        assert all(one.node != FAR_NODE for one in serving(follower.state))
        for pid in far:
            os.kill(pid, 0)  # raises where it has ended
        network.heal()
        assert await process.wait() != 0
        assert "the log holds node node-2 for LOST" in (cluster.data_dir / "logs" / f"{FAR_NODE}.log").read_text()
