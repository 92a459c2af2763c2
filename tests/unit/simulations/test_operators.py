"""Simulated operators on a whole simulated cluster to which nothing happens but what they do."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from holdfast.core.cluster import ClusterState, MemberStatus, ReplicaStatus
from holdfast.core.entries import decode_record
from holdfast.core.events import (
    ApplicationDeleted,
    ApplicationDeployed,
    DrainLifted,
    DrainOrdered,
    GatewayDrained,
    GatewayJoined,
    GatewayLeft,
    NodeJoined,
    NodeLeft,
    Payload,
)
from holdfast.core.ports import LogEntry
from holdfast.core.state import apply
from holdfast.simulations.history import History
from holdfast.simulations.plan import SCENARIOS, Knobs, Plan
from holdfast.simulations.simulation import run
from holdfast.simulations.work.items import (
    APPLICATION,
    DELETE,
    DEPLOY,
    DRAIN_GATEWAY,
    DRAIN_NODE,
    ROLL_BACK,
    SCALE,
    TAKE_OUT,
    TAKE_OUT_GATEWAY,
    UPDATE,
    Operation,
    first_application,
)

CALM = msgspec.structs.replace(SCENARIOS["calm"], lasts_s=40.0, healed_s=20.0)
KNOBS = Knobs()
FIRST = first_application(CALM, KNOBS)


def after(*kinds: str, amount: float = 0.25) -> tuple[ClusterState, list[Payload], History]:
    """The state in the end, and what the log holds, when operators have deployed and then done this."""
    times_s = [0.3, *(8.0 + 6.0 * number for number in range(len(kinds)))]
    work = tuple(
        Operation(number, at_s, kind, amount)
        for number, (at_s, kind) in enumerate(zip(times_s, (DEPLOY, *kinds), strict=True))
    )
    result, history = run(Plan(1, CALM, KNOBS, (), work, CALM.lasts_s))
    assert result.violations == []
    state, payloads = fold(history)
    return state, payloads, history


def fold(history: History) -> tuple[ClusterState, list[Payload]]:
    state = ClusterState()
    payloads: list[Payload] = []
    for entry in history.appended:
        record = decode_record(LogEntry(entry.sequence, entry.subject, entry.data, entry.message_id))
        state = apply(state, record)
        payloads.append(record.event.payload)
    return state, payloads


def running(state: ClusterState) -> list[int]:
    """How many replicas of each model run, of the revision that is wanted; none is on its way."""
    assert {replica.status for replica in state.replicas.values()} == {ReplicaStatus.RUNNING}
    deployments = state.applications[APPLICATION].deployments
    assert {deployments[replica.deployment].revision for replica in state.replicas.values()} == {
        replica.revision for replica in state.replicas.values()
    }
    names = [replica.deployment for replica in state.replicas.values()]
    return [names.count(name) for name in deployments]


def happened(payloads: Sequence[Payload], *kinds: type[Payload]) -> list[type[Payload]]:
    return [type(payload) for payload in payloads if isinstance(payload, kinds)]


def test_what_is_deployed_runs() -> None:
    state, payloads, _ = after()
    assert running(state) == [4, 2]
    assert happened(payloads, ApplicationDeployed) == [ApplicationDeployed]


@pytest.mark.parametrize(("amount", "counts"), [(0.0, [1, 2]), (0.0009, [5, 2]), (0.5, [4, 1]), (0.5009, [4, 3])])
def test_one_model_is_scaled(amount: float, counts: list[int]) -> None:
    state, _, _ = after(SCALE, amount=amount)
    assert running(state) == counts


@pytest.mark.parametrize(("amount", "changed"), [(0.1001, [True, False]), (0.9001, [True, True])])
def test_an_update_replaces_the_replicas_of_what_changed(amount: float, changed: list[bool]) -> None:
    state, _, _ = after(UPDATE, amount=amount)
    assert running(state) == [4, 2]
    now = [deployment.config.engine for deployment in state.applications[APPLICATION].deployments.values()]
    assert [engine != old.engine for engine, old in zip(now, FIRST.deployments, strict=True)] == changed
    for old, new in zip(FIRST.deployments, changed, strict=True):
        numbers = sorted(int(name.rsplit(".", 1)[1]) for name in state.replicas if f".{old.name}." in name)
        first = old.num_replicas + 1 if new else 1
        assert numbers == list(range(first, first + old.num_replicas))


def test_a_roll_back_deploys_what_was_before() -> None:
    state, payloads, _ = after(UPDATE, ROLL_BACK, amount=0.9001)
    assert running(state) == [4, 2]
    now = [deployment.config for deployment in state.applications[APPLICATION].deployments.values()]
    assert now == FIRST.deployments
    assert len(happened(payloads, ApplicationDeployed)) == 3


def test_what_is_deleted_is_deployed_again() -> None:
    state, payloads, _ = after(DELETE)
    assert running(state) == [4, 2]
    assert happened(payloads, ApplicationDeployed, ApplicationDeleted) == [
        ApplicationDeployed,
        ApplicationDeleted,
        ApplicationDeployed,
    ]


@pytest.mark.parametrize(
    ("kind", "joined", "left"), [(DRAIN_NODE, NodeJoined, NodeLeft), (DRAIN_GATEWAY, GatewayJoined, GatewayLeft)]
)
def test_a_member_that_is_drained_leaves_in_order_and_comes_back(
    kind: str, joined: type[Payload], left: type[Payload]
) -> None:
    state, payloads, history = after(kind)
    assert running(state) == [4, 2]
    members = state.nodes if kind == DRAIN_NODE else state.gateways
    assert {member.status for member in members.values()} == {MemberStatus.ALIVE}
    assert happened(payloads, joined, left) == [joined] * len(members) + [left, joined]
    ended = [life for life in history.processes if life.status is not None and life.role in kind]
    assert [life.status for life in ended] == [0]


@pytest.mark.parametrize("kind", TAKE_OUT)
def test_who_is_drained_by_the_log_is_in_use_again_afterwards(kind: str) -> None:
    state, payloads, history = after(kind)
    assert running(state) == [4, 2]
    assert happened(payloads, DrainOrdered) == [DrainOrdered]
    assert not [node for node in state.nodes.values() if node.drain is not None]
    assert not [gateway for gateway in state.gateways.values() if gateway.drain is not None]
    assert all(life.status is None for life in history.processes if life.role in ("node", "gateway"))
    if kind == TAKE_OUT_GATEWAY:
        assert happened(payloads, GatewayDrained, DrainLifted) == [GatewayDrained, DrainLifted]


def test_an_operator_waits_for_a_log_that_is_away() -> None:
    early = Operation(0, 0.0, DEPLOY, 0.0)
    result, history = run(Plan(1, CALM, KNOBS, (), (early,), 30.0))
    assert result.violations == []
    assert running(fold(history)[0]) == [4, 2]
