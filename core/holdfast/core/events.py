"""What happened: the events of the log, and the envelope that they travel in.

Decisions (by the leader) share one subject; facts have one subject per writer. In a subject every event
carries the hash of the one before it, so that a changed or missing event shows. How events stand in the log is said
in `entries.py`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from holdfast.core.config import ApplicationConfig, DrainMode
from holdfast.core.payload import Decision as Decision
from holdfast.core.payload import Fact as Fact
from holdfast.core.payload import Payload as Payload
from holdfast.core.requests import EngineInfo
from holdfast.core.shedding import BusyThresholdRequested as BusyThresholdRequested
from holdfast.core.shedding import BusyThresholdSet as BusyThresholdSet
from holdfast.core.shedding import RejectionsBegan as RejectionsBegan
from holdfast.core.shedding import RejectionsEnded as RejectionsEnded
from holdfast.core.shedding import ReplicaEjected as ReplicaEjected
from holdfast.core.shedding import ReplicaReinstated as ReplicaReinstated

# --- facts of nodes -------------------------------------------------------------------------------------


class NodeJoined(Fact, frozen=True):
    """A node process started under a new incarnation. Everything that its earlier incarnation ran is gone.

    `slots` is how many replicas it can hold. `system_port` is where it answers `/health`, `/live` and `/metrics`; 0 if
    it has none.
    """

    node: str
    host: str
    pid: int
    version: str
    slots: int
    system_port: int = 0


class NodeStopping(Fact, frozen=True):
    """The node was told to stop: it takes no new replicas and is about to end those that it has."""

    node: str


class NodeLeft(Fact, frozen=True):
    """The node ended in an orderly way; nothing of it runs any more."""

    node: str


class LeaderDeposed(Fact, frozen=True):
    """The node led under `epoch` and found out that it does no longer, for the reason given.

    `refused` is the decision that it tried to append, and that the log's servers refused, as another leader had been
    elected; None when it found out otherwise. `by_epoch` is that election's, once the node has read it.
    """

    node: str
    epoch: int
    reason: str
    refused: str | None
    by_epoch: int | None


class ReplicaDraining(Fact, frozen=True):
    """Somebody else than its node told the replica to stop (SIGTERM or SIGINT): it ends once its streams have."""

    replica: str
    node: str


class ReplicaStarted(Fact, frozen=True):
    """The node started the replica's process."""

    replica: str
    node: str
    pid: int


class ReplicaReady(Fact, frozen=True):
    """The replica loaded its engine and listens at `address` (`host:port`).

    `system_port` is where it answers `/health`, `/live` and `/metrics`; 0 if it has none.
    """

    replica: str
    node: str
    address: str
    info: EngineInfo
    system_port: int = 0


class ReplicaExited(Fact, frozen=True):
    """The replica's process ended: by itself with `exit_code`, or by a signal (its name, as in SIGKILL).

    `expected` says whether the node had told it to stop. `message` is the process's last words, if any.
    A process that could not even be started has neither code nor signal, and a message.
    """

    replica: str
    node: str
    pid: int
    exit_code: int | None
    signal: str | None
    expected: bool
    message: str


# --- facts about health ---------------------------------------------------------------------------------


class ReplicaUnhealthy(Fact, frozen=True):
    """The node found that the replica is sick though its process lives: it is to be replaced.

    `kind` is "check_health" (the engine's own check failed), "canary" (it made no token for the node), "silent" (it
    does not answer), or "start" (it did not get ready in time: its start has failed). `message` says how, with the last
    exception where there is one.
    """

    replica: str
    node: str
    kind: str
    message: str


class ReplicaHealthy(Fact, frozen=True):
    """The replica passes its checks again, or has passed them for long enough that what failed before it is over."""

    replica: str
    node: str


# --- facts of gateways and operators --------------------------------------------------------------------


class GatewayJoined(Fact, frozen=True):
    """A gateway process started under a new incarnation and listens at `url`."""

    gateway: str
    host: str
    pid: int
    url: str
    version: str


class GatewayStopping(Fact, frozen=True):
    """The gateway was told to stop: it takes no new requests, and lets open streams go on for its drain timeout."""

    gateway: str


class GatewayLeft(Fact, frozen=True):
    """The gateway ended in an orderly way."""

    gateway: str


class GatewayDrained(Fact, frozen=True):
    """A gateway that was told to drain, by the decision that is the cause, has no open request any more.

    `turned_away` were told to go on at another gateway.
    """

    gateway: str
    turned_away: int


class ReplicaSuspected(Fact, frozen=True):
    """A gateway moved `streams` away from the replica and routes around it: it is "silent" (it sends nothing), "deaf"
    (it does not hear this gateway) or "stuck" (its engine makes no steps). `silence_s`: how long there was no word.
    """

    gateway: str
    replica: str
    silence_s: float
    streams: int
    reason: str = ""


class ReplicaTrusted(Fact, frozen=True):
    """The replica is heard again, and gets streams from this gateway again."""

    gateway: str
    replica: str
    suspected_s: float


class StreamsMigrated(Fact, frozen=True):
    """`streams` left the replica and went on elsewhere, for the reason given: its connection broke, say."""

    gateway: str
    replica: str
    streams: int
    reason: str


class StreamsFenced(Fact, frozen=True):
    """`streams` still ran on the replica when the gateway was back and said that they had gone on elsewhere."""

    node: str
    replica: str
    gateway: str
    streams: int


class DeployRequested(Fact, frozen=True):
    """An operator asks for this application to be as configured. The controller decides."""

    application: ApplicationConfig


class DeleteRequested(Fact, frozen=True):
    """An operator asks for this application to be gone."""

    application: str


DrainTarget = Literal["node", "replica", "gateway"]


class DrainRequested(Fact, frozen=True):
    """An operator asks that a node, a replica or a gateway be taken out of use. The controller decides.

    `mode` None: as the deployment, or the gateway, is configured. `deadline_s`: all is over so long after the decision,
    whether or not there was a replacement; None: streams get the time that they are configured to have, and who has to
    be replaced first waits for that.
    """

    kind: DrainTarget
    name: str
    mode: DrainMode | None = None
    deadline_s: float | None = None


class UndrainRequested(Fact, frozen=True):
    """An operator asks that what was drained be used again."""

    kind: DrainTarget
    name: str


# --- decisions ------------------------------------------------------------------------------------------


class LeaderElected(Decision, frozen=True):
    """This node leads from here on, under the epoch in the envelope. Lower epochs are void from here on."""

    node: str
    node_incarnation: str


class ApplicationDeployed(Decision, frozen=True):
    """The goal for this application from here on."""

    application: ApplicationConfig


class ApplicationDeleted(Decision, frozen=True):
    """The application is no longer wanted; its replicas are stopped."""

    application: str


class ReplicaPlaced(Decision, frozen=True):
    """A new replica of a deployment shall run on this incarnation of this node."""

    replica: str
    application: str
    deployment: str
    node: str
    node_incarnation: str


class ReplicaReplaced(Decision, frozen=True):
    """As `ReplicaPlaced`, in place of `replaces`, which is gone for the reason given."""

    replica: str
    application: str
    deployment: str
    node: str
    node_incarnation: str
    replaces: str
    reason: str


class ReplicaStopOrdered(Decision, frozen=True):
    """The replica shall finish its streams, or see them migrate, and end. None: as the deployment has it."""

    replica: str
    reason: str
    mode: DrainMode | None = None
    deadline_s: float | None = None


class DrainOrdered(Decision, frozen=True):
    """This node, replica or gateway is taken out of use, as in `DrainRequested`.

    Nodes and gateways stay drained, whatever becomes of their processes, until the drain is lifted.
    """

    kind: DrainTarget
    name: str
    mode: DrainMode | None = None
    deadline_s: float | None = None


class DrainLifted(Decision, frozen=True):
    """What was drained is used again."""

    kind: DrainTarget
    name: str


class NodeLost(Decision, frozen=True):
    """This incarnation of the node is held for dead; its replicas are gone as far as the cluster goes."""

    node: str
    node_incarnation: str
    reason: str


class GatewayLost(Decision, frozen=True):
    """This incarnation of the gateway is held for dead."""

    gateway: str
    gateway_incarnation: str
    reason: str


FactTypes = (
    NodeJoined
    | NodeStopping
    | NodeLeft
    | LeaderDeposed
    | ReplicaDraining
    | ReplicaStarted
    | ReplicaReady
    | ReplicaExited
    | ReplicaUnhealthy
    | ReplicaHealthy
    | GatewayJoined
    | GatewayStopping
    | GatewayLeft
    | GatewayDrained
    | ReplicaSuspected
    | ReplicaTrusted
    | StreamsMigrated
    | StreamsFenced
    | DeployRequested
    | DeleteRequested
    | DrainRequested
    | UndrainRequested
    | RejectionsBegan
    | RejectionsEnded
    | ReplicaEjected
    | ReplicaReinstated
    | BusyThresholdRequested
)
DecisionTypes = (
    LeaderElected
    | ApplicationDeployed
    | ApplicationDeleted
    | ReplicaPlaced
    | ReplicaReplaced
    | ReplicaStopOrdered
    | DrainOrdered
    | DrainLifted
    | NodeLost
    | GatewayLost
    | BusyThresholdSet
)


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The envelope.

    `id` is unique over the cluster's life (writer, incarnation, counter). `time` is the writer's wall clock,
    for people and for back-off; nothing is ordered by it. `epoch` is the leader's (the etcd revision of the
    leader key) on decisions and 0 on facts. `cause` is the id of the event that led to this one. `previous`
    is the SHA-256 of the event before it in the same subject.
    """

    id: str
    time: datetime
    writer: str
    incarnation: str
    epoch: int
    cause: str | None
    schema: int
    previous: str
    payload: FactTypes | DecisionTypes


class Record(msgspec.Struct, frozen=True):
    """An event at its place in the log. `digest` is the hash that the subject's next event must carry."""

    sequence: int
    subject: str
    event: Event
    digest: str


def type_name(payload: Payload) -> str:
    """The event's type as it stands in the log."""
    return type(payload).__name__
