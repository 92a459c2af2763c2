"""What a cluster is: the records that the fold of the log is made of. `state.py` folds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec

from holdfast.core.config import ApplicationConfig, DeploymentConfig, DrainMode
from holdfast.core.entries import GENESIS
from holdfast.core.events import DrainTarget, Event, Payload
from holdfast.core.requests import EngineInfo
from holdfast.core.thresholds import NONE_SET, ThresholdChanges, Thresholds


class MemberStatus(StrEnum):
    """Whether a node or a gateway takes part."""

    ALIVE = "ALIVE"
    STOPPING = "STOPPING"
    LEFT = "LEFT"
    LOST = "LOST"

    @property
    def ended(self) -> bool:
        """Whether it is out of the cluster, by its own word or the leader's."""
        return self in (MemberStatus.LEFT, MemberStatus.LOST)


class ReplicaStatus(StrEnum):
    """A replica's life. The first three are Ray Serve's; EXITED waits for the controller to replace it."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    EXITED = "EXITED"


LOSS_INTERVAL_S = 5.0
"""Replicas that are given up with their nodes are summed up over this long, to bound them (seconds)."""


class Losses(msgspec.Struct, frozen=True):
    """How many replicas were given up with their nodes since `since`, in one interval."""

    since: datetime
    replicas: int

    def recent(self, now: datetime) -> bool:
        """Whether `now` is in the interval. A clock that went back begins a new one."""
        return 0 <= (now - self.since).total_seconds() < LOSS_INTERVAL_S


class Drain(msgspec.Struct, frozen=True):
    """Who is taken out of use, by the decision `event` of `since`. `mode` and `deadline_s` as in `DrainRequested`."""

    event: str
    since: datetime
    mode: DrainMode | None = None
    deadline_s: float | None = None

    @property
    def ends(self) -> datetime | None:
        """When it is over at the latest, by the clock of the leader that decided."""
        return None if self.deadline_s is None else self.since + timedelta(seconds=self.deadline_s)


class PendingDrain(msgspec.Struct, frozen=True):
    """A drain that an operator asked for, or its end, and that is not decided yet."""

    event: str
    kind: DrainTarget
    name: str
    wanted: bool
    mode: DrainMode | None = None
    deadline_s: float | None = None


class NodeState(msgspec.Struct, frozen=True):
    """A node as the log knows it. `event` is the id of the last event that changed its status.

    `drain` outlasts the node's incarnations.
    """

    id: str
    incarnation: str
    status: MemberStatus
    host: str
    pid: int
    version: str
    slots: int
    event: str
    drain: Drain | None = None
    system_port: int = 0


class GatewayState(msgspec.Struct, frozen=True):
    """A gateway as the log knows it. `drain` outlasts its incarnations; `drained`: this one has done as it says."""

    id: str
    incarnation: str
    status: MemberStatus
    host: str
    pid: int
    url: str
    version: str
    event: str
    drain: Drain | None = None
    drained: bool = False


class FailedStarts(msgspec.Struct, frozen=True):
    """Starts of a deployment's replicas that failed on one incarnation of a node since one last got ready there.

    The last did at `failed_at`, by the node's clock, with `message`; the last placement before that was at
    `failed_after`, by the leader's. For how long the node rests follows in `starts.py`.
    """

    node_incarnation: str
    failures: int
    failed_at: datetime
    failed_after: datetime | None
    message: str


class DeploymentState(msgspec.Struct, frozen=True):
    """A deployment: its goal and what its replicas' starts have come to.

    `revision` counts changes of the engine; replicas of an older one are replaced. `replicas_placed` counts all
    replicas ever placed, which numbers the next; the last was placed at `placed_at`, by the leader's clock.

    A start fails when the replica ends before it is ready, or takes too long for that, or ends by itself within
    `STABLE_AFTER_S` of that (`starts.py`); the last did at `failed_at`, by its node's clock, and the last placement
    before that was at `failed_after`, by the leader's. `unstable_starts` counts failures until a replica has stayed
    ready for that long, and sets the pause before the next start. `start_failures` is the same number while no replica
    has got ready since, and 0 once one has.
    `failed_on` is what came of starts by node, where the last one failed.

    A breakdown (`breakdowns.py`) is the end of a replica that was ready and then failed by itself, or was found
    unhealthy. `breakdowns` counts those in a row, the last with `breakdown_message`: of replicas later than number
    `broken_after`, until one has been well for long enough. `kills` counts replicas in a row that a signal from outside
    ended soon after they were ready, the last when number `killed_after` had been placed. `ran` says whether one of
    this revision ever was ready.

    `thresholds` were set at run time, and go before those of `config` until others are deployed.
    """

    config: DeploymentConfig
    event: str
    revision: int = 1
    replicas_placed: int = 0
    start_failures: int = 0
    unstable_starts: int = 0
    failed_at: datetime | None = None
    failed_after: datetime | None = None
    placed_at: datetime | None = None
    failed_on: Mapping[str, FailedStarts] = {}
    message: str = ""
    breakdowns: int = 0
    broken_after: int = 0
    breakdown_message: str = ""
    kills: int = 0
    killed_after: int = 0
    ran: bool = False
    thresholds: Thresholds = NONE_SET


class ApplicationState(msgspec.Struct, frozen=True):
    """An application: what was asked for, and its deployments by name."""

    name: str
    deployed_at: datetime
    event: str
    deployments: Mapping[str, DeploymentState]


class ReplicaState(msgspec.Struct, frozen=True):
    """A replica from its placement until it is gone and replaced. `event` is the last event about its life.

    `ready_at` is when it first was ready, by its node's clock. `suspected_by` are the gateways that hear nothing from
    it just now. `unhealthy` is what its node found wrong with it (a `ReplicaUnhealthy.kind`), empty while it is well.
    One with a `drain` goes on until it is replaced. `stop_mode` and `stop_deadline_s` are how it was told to stop,
    where that is not as its deployment has it.
    """

    id: str
    application: str
    deployment: str
    revision: int
    node: str
    node_incarnation: str
    status: ReplicaStatus
    event: str
    pid: int = 0
    address: str = ""
    info: EngineInfo | None = None
    ready_at: datetime | None = None
    message: str = ""
    suspected_by: tuple[str, ...] = ()
    drain: Drain | None = None
    stop_mode: DrainMode | None = None
    stop_deadline_s: float | None = None
    unhealthy: str = ""
    system_port: int = 0

    @property
    def live(self) -> bool:
        """Whether it runs or is about to, and is meant to go on."""
        return self.status in (ReplicaStatus.STARTING, ReplicaStatus.RUNNING)

    @property
    def number(self) -> int:
        """Its number among all replicas that its deployment ever placed, from 1."""
        return int(self.id.rpartition(".")[2])


class Head(msgspec.Struct, frozen=True):
    """The last event of a subject."""

    sequence: int
    digest: str


class PendingRequest(msgspec.Struct, frozen=True):
    """What an operator asked for and the controller has not decided yet."""

    event: str
    application: ApplicationConfig | str


class PendingThresholds(msgspec.Struct, frozen=True):
    """Changes of a model's thresholds that were asked for and are not decided yet."""

    model: str
    changes: ThresholdChanges


class ClusterState(msgspec.Struct, frozen=True):
    """Everything the log says. `ignored` counts decisions of deposed leaders, which change nothing else.

    `numbered` is how many replicas deployments had placed before they were changed or deleted, by
    `application.deployment`: one that comes back goes on counting, so that no replica's id is used twice.
    """

    sequence: int = 0
    epoch: int = 0
    leader: str | None = None
    leader_incarnation: str | None = None
    nodes: Mapping[str, NodeState] = {}
    gateways: Mapping[str, GatewayState] = {}
    applications: Mapping[str, ApplicationState] = {}
    replicas: Mapping[str, ReplicaState] = {}
    requests: Mapping[str, PendingRequest] = {}
    drain_requests: Mapping[str, PendingDrain] = {}
    threshold_requests: Mapping[str, PendingThresholds] = {}
    heads: Mapping[str, Head] = {}
    numbered: dict[str, int] = {}
    losses: Losses | None = None
    ignored: int = 0

    def live_nodes(self) -> Iterator[NodeState]:
        """Nodes that can be given replicas."""
        return (node for node in self.nodes.values() if node.status is MemberStatus.ALIVE and node.drain is None)

    def takes_part(self, node_id: str, incarnation: str) -> bool:
        """Whether this incarnation of the node is in the cluster. Its end is final: late facts don't bring it back."""
        node = self.nodes.get(node_id)
        return node is not None and node.incarnation == incarnation and not node.status.ended

    def replicas_of(self, application: str, deployment: str) -> Iterator[ReplicaState]:
        """All replicas of a deployment that the cluster has not done with, oldest first."""
        return (
            replica
            for replica in self.replicas.values()
            if replica.deployment == deployment and replica.application == application
        )

    def head(self, subject: str) -> Head:
        """The last event on a subject; sequence 0 if there is none."""
        return self.heads.get(subject, _NO_HEAD)


_NO_HEAD = Head(0, GENESIS)

Reducers = Mapping[type[Payload], Callable[[ClusterState, Event, Any], ClusterState]]
"""How events change the state, by the types of their payloads: the payload comes as the last argument."""
