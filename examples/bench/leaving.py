"""What `bench faults` takes out of use in order: by SIGTERM, and by drains as operators ask for them.

Nothing is lost then, so that streams may pause no longer than for a moment: a longer pause makes the bench fail. A
fault is over once who was to leave has left, and whoever was drained has been taken back.
"""

from __future__ import annotations

import os
import signal

from examples.bench.fault_cluster import FaultCluster
from examples.bench.scenarios import Fault, Scenario, Times
from holdfast.core.cluster import ClusterState, MemberStatus, NodeState, ReplicaStatus
from holdfast.core.config import DrainMode

LEAVING_MS = 50.0
"""The pause that somebody who leaves in order may cost."""

LONG_TOKENS = 1_300
"""Some 8 s: streams that go on for much longer than it takes to let them go."""


def ask_to_end(*pids: int | None) -> None:
    """SIGTERM to processes that run."""
    for pid in pids:
        assert pid, "a process to be ended does not run"
        os.kill(pid, signal.SIGTERM)


async def replica_ended(cluster: FaultCluster, _times: Times) -> None:
    """SIGTERM to a replica from somebody else than its node."""
    replica = cluster.running()[0]
    ask_to_end(replica.pid)
    await cluster.until(lambda state: gone(state, replica.id))


async def node_ended(cluster: FaultCluster, _times: Times) -> None:
    """SIGTERM to a node that does not lead, which ends its replicas; `up` starts it again."""
    node = follower(cluster)
    ask_to_end(node.pid)
    await cluster.until(lambda state: returned(state, node))


async def node_ended_with_replicas(cluster: FaultCluster, _times: Times) -> None:
    """The same, and SIGTERM to its replicas too, as a service manager does that stops a service."""
    node = follower(cluster)
    ask_to_end(node.pid, *(one.pid for one in cluster.running() if one.node == node.id))
    await cluster.until(lambda state: returned(state, node))


async def leader_ended(cluster: FaultCluster, _times: Times) -> None:
    """SIGTERM to the node that leads."""
    node = cluster.leader()
    ask_to_end(node.pid)
    await cluster.until(lambda state: returned(state, node))


async def gateway_ended(cluster: FaultCluster, _times: Times) -> None:
    """SIGTERM to a gateway, which `up` starts again."""
    gateway = cluster.gateway(0)
    ask_to_end(gateway.pid)
    await cluster.until(lambda state: state.gateways[gateway.id].incarnation != gateway.incarnation)


def replica_drained(mode: DrainMode) -> Fault:
    """`holdfast drain` of a replica."""

    async def fault(cluster: FaultCluster, _times: Times) -> None:
        replica = cluster.running()[0].id
        async with cluster.operating() as operator:
            await operator.drain("replica", replica, mode)
        await cluster.until(lambda state: gone(state, replica))

    return fault


def node_drained(mode: DrainMode) -> Fault:
    """`holdfast drain` of a node that does not lead, and `undrain` once nothing of it is in use any more."""

    async def fault(cluster: FaultCluster, _times: Times) -> None:
        node = follower(cluster).id
        had = {one.id for one in cluster.running() if one.node == node}
        assert had, "the node that is drained has no replicas"
        async with cluster.operating() as operator:
            await operator.drain("node", node, mode)
            await cluster.until(lambda state: all(gone(state, one) for one in had))
            await operator.undrain("node", node)

    return fault


def gateway_drained(mode: DrainMode) -> Fault:
    """`holdfast drain` of a gateway, and `undrain` once it has nothing open any more."""

    async def fault(cluster: FaultCluster, _times: Times) -> None:
        gateway = cluster.gateway(0).id
        async with cluster.operating() as operator:
            await operator.drain("gateway", gateway, mode)
            await cluster.until(lambda state: state.gateways[gateway].drained)
            await operator.undrain("gateway", gateway)

    return fault


def follower(cluster: FaultCluster) -> NodeState:
    """A node that does not lead."""
    leader = cluster.leader().id
    return next(node for node in cluster.state.nodes.values() if node.id != leader)


def gone(state: ClusterState, replica: str) -> bool:
    """Whether the replica has ended, or so long ago that nobody remembers it."""
    known = state.replicas.get(replica)
    return known is None or known.status is ReplicaStatus.EXITED


def returned(state: ClusterState, before: NodeState) -> bool:
    """Whether the node's process is another one, and joined."""
    node = state.nodes[before.id]
    return node.incarnation != before.incarnation and node.status is MemberStatus.ALIVE


def leaving(name: str, fault: Fault, *, resumes: bool = False, retries: bool = False, tokens_min: int = 0) -> Scenario:
    """A row that fails where streams paused for longer."""
    return Scenario(name, fault, LEAVING_MS, resumes=resumes, retries=retries, tokens_min=tokens_min, strict=True)


LEAVING = [
    leaving("replica SIGTERM", replica_ended),
    leaving("node SIGTERM", node_ended),
    leaving("node and its replicas SIGTERM", node_ended_with_replicas),
    leaving("leader SIGTERM", leader_ended),
    leaving("gateway SIGTERM, client resumes", gateway_ended, resumes=True),
    leaving("gateway SIGTERM, any client", gateway_ended, retries=True, tokens_min=LONG_TOKENS),
    leaving("replica drained, streams finish", replica_drained("finish")),
    leaving("replica drained, streams migrate", replica_drained("migrate")),
    leaving("node drained, streams finish", node_drained("finish")),
    leaving("node drained, streams migrate", node_drained("migrate")),
    leaving(
        "gateway drained, streams finish, any client",
        gateway_drained("finish"),
        retries=True,
        tokens_min=LONG_TOKENS,
    ),
    leaving("gateway drained, streams migrate, client resumes", gateway_drained("migrate"), resumes=True),
]
