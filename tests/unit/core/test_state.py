"""The fold: strict about order and authority, indifferent to hash seeds, and right in the cases easily missed."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, MemberStatus, ReplicaStatus
from holdfast.core.errors import CorruptLog
from holdfast.core.reconcile import Evidence, reconcile
from holdfast.core.state import apply, state_hash
from tests.unit.support.history import DECISIONS, INFO, History, application

LOST_A = ev.NodeLost("a", "1", "its lease expired")


def joined(node: str, slots: int = 4) -> ev.NodeJoined:
    return ev.NodeJoined(node, "host", 7, "0", slots)


@pytest.fixture
def history() -> History:
    """Node a joined and leads with epoch 10; nothing is deployed."""
    history = History()
    history.fact(joined("a"), by="node.a")
    history.decide(ev.LeaderElected("a", "1"), epoch=10)
    return history


@pytest.fixture
def running(history: History) -> History:
    """As `history`, with app.tiny.1 running on a."""
    history.decide(ev.ApplicationDeployed(application()))
    history.decide(ev.ReplicaPlaced("app.tiny.1", "app", "tiny", "a", "1"))
    history.fact(ev.ReplicaStarted("app.tiny.1", "a", 9), by="node.a")
    history.fact(ev.ReplicaReady("app.tiny.1", "a", "h:1", INFO), by="node.a")
    assert history.state.replicas["app.tiny.1"].status is ReplicaStatus.RUNNING
    return history


def converge(history: History) -> None:
    """Append what the controller decides until it is quiet."""
    for _ in range(50):
        plan = reconcile(history.state, Evidence(), history.now)
        if not plan.proposals:
            return
        for proposal in plan.proposals:
            history.decide(proposal.payload, proposal.cause)
    raise AssertionError("never quiet")


# --- order and authority --------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence", [0, 1, 2, 4, 9])
def test_a_record_that_is_not_the_next_one_is_refused(history: History, sequence: int) -> None:
    record = msgspec.structs.replace(history.records[-1], sequence=sequence)
    with pytest.raises(CorruptLog, match="hole"):
        apply(history.state, record)


def test_a_record_that_does_not_chain_to_the_one_before_it_on_its_subject_is_refused(history: History) -> None:
    forged = msgspec.structs.replace(history.records[-1], sequence=3)
    with pytest.raises(CorruptLog, match="does not chain"):
        apply(history.state, forged)
    with pytest.raises(CorruptLog, match="does not chain"):
        apply(history.state, msgspec.structs.replace(forged, subject="facts.node.a"))


def test_each_subject_has_its_own_chain(history: History) -> None:
    history.fact(joined("b"), by="node.b")
    assert history.state.head("facts.node.b").sequence == 3
    assert history.state.head(DECISIONS).sequence == 2
    assert history.state.head("facts.node.c").sequence == 0


def test_a_deposed_leaders_decision_changes_nothing_and_is_counted(running: History) -> None:
    running.decide(ev.LeaderElected("b", "1"), epoch=20)
    before = running.state
    running.decide(ev.ReplicaStopOrdered("app.tiny.1", "I still lead"), epoch=10)
    running.decide(ev.LeaderElected("a", "1"), epoch=10)
    after = running.state
    assert after.ignored == 2
    assert (after.leader, after.epoch) == ("b", 20)
    assert after.replicas == before.replicas
    assert after.head(DECISIONS).sequence == after.sequence, "it is in the log, and the chain goes on after it"


def test_an_epoch_that_was_not_elected_can_not_decide(history: History) -> None:
    with pytest.raises(CorruptLog, match="epoch 11 decides before its election"):
        history.decide(LOST_A, epoch=11)


def test_facts_need_no_epoch(history: History) -> None:
    history.fact(ev.NodeStopping("a"), by="node.a")
    assert history.state.nodes["a"].status is MemberStatus.STOPPING


# --- determinism ----------------------------------------------------------------------------------------

SCRIPT = """
from tests.unit.core.test_state import converge, joined
from tests.unit.support.history import History, application
from holdfast.core import events as ev
from holdfast.core.state import state_hash
history = History()
for node in "abcdefgh":
    history.fact(joined(node), by=f"node.{node}")
history.decide(ev.LeaderElected("a", "1"), epoch=1)
for name in ("one", "two", "three"):
    history.fact(ev.DeployRequested(application(name, f"model-{name}", 5)), by="operator.o")
converge(history)
history.decide(ev.NodeLost("b", "1", ""))
converge(history)
history.fact(ev.DeleteRequested("two"), by="operator.o")
converge(history)
print(history.state.sequence, state_hash(history.state))
"""


def test_the_same_history_folds_to_the_same_state_under_any_hash_seed() -> None:
    hashes = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_the_hash_tells_states_apart_and_does_not_see_the_order_of_keys(running: History) -> None:
    state = running.state
    backwards = msgspec.structs.replace(state, heads=dict(reversed(list(state.heads.items()))))
    assert state_hash(backwards) == state_hash(state)
    assert state_hash(msgspec.structs.replace(state, ignored=1)) != state_hash(state)


def test_folding_again_from_the_log_gives_the_same_state(running: History) -> None:
    state = ClusterState()
    for record in running.records:
        state = apply(state, record)
    assert state == running.state


def test_a_state_comes_back_from_a_snapshot_as_it_was(running: History) -> None:
    running.decide(LOST_A)
    copy = msgspec.json.decode(msgspec.json.encode(running.state), type=ClusterState)
    assert copy == running.state
    assert state_hash(copy) == state_hash(running.state)


# --- nodes ----------------------------------------------------------------------------------------------


def test_a_node_that_restarts_has_lost_what_it_ran(running: History) -> None:
    running.fact(joined("a"), by="node.a", incarnation="2")
    replica = running.state.replicas["app.tiny.1"]
    assert (replica.status, replica.message) == (ReplicaStatus.EXITED, "node a restarted")


def test_a_node_that_joins_twice_in_one_life_keeps_what_it_runs(running: History) -> None:
    running.fact(joined("a"), by="node.a")
    assert running.state.replicas["app.tiny.1"].status is ReplicaStatus.RUNNING


def test_what_an_earlier_life_of_a_node_says_concerns_only_that_life(running: History) -> None:
    before = running.state.replicas
    running.fact(ev.NodeLeft("a"), by="node.a", incarnation="0")
    running.fact(ev.NodeStopping("a"), by="node.a", incarnation="0")
    running.fact(ev.ReplicaExited("app.tiny.1", "a", 9, 1, None, False, ""), by="node.a", incarnation="0")
    assert running.state.replicas == before
    assert running.state.nodes["a"].status is MemberStatus.ALIVE


def test_a_node_that_was_given_up_stays_given_up_whatever_it_still_says(running: History) -> None:
    running.decide(LOST_A)
    running.fact(ev.ReplicaReady("app.tiny.1", "a", "h:2", INFO), by="node.a")
    running.fact(ev.NodeStopping("a"), by="node.a")
    running.fact(ev.NodeLeft("a"), by="node.a")
    assert running.state.nodes["a"].status is MemberStatus.LOST
    assert running.state.replicas["app.tiny.1"].status is ReplicaStatus.EXITED


def test_a_loss_that_is_decided_after_the_node_left_in_order_is_void(running: History) -> None:
    running.fact(ev.NodeLeft("a"), by="node.a")
    running.decide(LOST_A)
    assert running.state.nodes["a"].status is MemberStatus.LEFT


def test_a_gateway_that_left_is_not_lost_as_well(history: History) -> None:
    history.fact(ev.GatewayJoined("g", "host", 1, "http://h", "0"), by="gateway.g")
    history.fact(ev.GatewayLeft("g"), by="gateway.g")
    history.decide(ev.GatewayLost("g", "1", "its lease expired"))
    history.fact(ev.GatewayJoined("g", "host", 1, "http://h", "0"), by="gateway.g")
    assert history.state.gateways["g"].status is MemberStatus.LEFT


# --- replicas -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["left", "restarted", "lost"])
def test_a_replica_placed_on_a_node_that_has_just_gone_is_placed_anew(history: History, how: str) -> None:
    """The plan was made before the node ended, and its decision landed after."""
    history.decide(ev.ApplicationDeployed(application()))
    match how:
        case "left":
            history.fact(ev.NodeLeft("a"), by="node.a")
        case "restarted":
            history.fact(joined("a"), by="node.a", incarnation="2")
        case "lost":
            history.decide(LOST_A)
    history.decide(ev.ReplicaPlaced("app.tiny.1", "app", "tiny", "a", "1"))
    assert history.state.replicas["app.tiny.1"].status is ReplicaStatus.EXITED
    history.fact(joined("b"), by="node.b")
    converge(history)
    (replica,) = history.state.replicas.values()
    assert replica.status is ReplicaStatus.STARTING
    assert replica.node_incarnation == ("2" if replica.node == "a" else "1")


def test_a_deployment_that_comes_back_numbers_its_replicas_on(running: History) -> None:
    running.decide(ev.ApplicationDeleted("app"))
    running.decide(ev.ReplicaStopOrdered("app.tiny.1", ""))
    running.fact(ev.DeployRequested(application()), by="operator.o")
    converge(running)
    assert set(running.state.replicas) == {"app.tiny.1", "app.tiny.2"}
    assert running.state.replicas["app.tiny.1"].status is ReplicaStatus.STOPPING


def test_a_replica_of_a_deleted_deployment_is_not_taken_for_one_of_its_successor(running: History) -> None:
    """Deleted and deployed with another engine before the controller looked again."""
    running.decide(ev.ApplicationDeleted("app"))
    running.decide(ev.ApplicationDeployed(application(version=1)))
    running.passes(1)
    converge(running)
    running.fact(ev.ReplicaStarted("app.tiny.2", "a", 9), by="node.a")
    running.fact(ev.ReplicaReady("app.tiny.2", "a", "h:2", INFO), by="node.a")
    converge(running)
    assert running.state.replicas["app.tiny.1"].status is ReplicaStatus.STOPPING
    assert running.state.replicas["app.tiny.2"].status is ReplicaStatus.RUNNING


def test_an_exit_is_remembered_with_its_reason(running: History) -> None:
    running.fact(ev.ReplicaExited("app.tiny.1", "a", 9, None, "SIGKILL", False, ""), by="node.a")
    replica = running.state.replicas["app.tiny.1"]
    assert (replica.status, replica.message) == (
        ReplicaStatus.EXITED,
        "signal SIGKILL: somebody sent it, or the kernel, for want of memory",
    )
    assert (replica.pid, replica.address) == (0, "")


def test_a_replica_that_ended_does_not_come_back_by_a_late_fact(running: History) -> None:
    running.fact(ev.ReplicaExited("app.tiny.1", "a", 9, 1, None, False, "boom"), by="node.a")
    before = running.state.replicas
    running.fact(ev.ReplicaReady("app.tiny.1", "a", "h:1", INFO), by="node.a")
    running.fact(ev.ReplicaStarted("app.tiny.1", "a", 10), by="node.a")
    assert running.state.replicas == before


def test_a_replica_that_was_told_to_stop_is_forgotten_when_it_ended(running: History) -> None:
    running.decide(ev.ReplicaStopOrdered("app.tiny.1", "fewer are wanted"))
    running.fact(ev.ReplicaReady("app.tiny.1", "a", "h:1", INFO), by="node.a")
    assert running.state.replicas["app.tiny.1"].status is ReplicaStatus.STOPPING
    running.fact(ev.ReplicaExited("app.tiny.1", "a", 9, 0, None, True, ""), by="node.a")
    assert not running.state.replicas
    running.fact(ev.ReplicaExited("app.tiny.1", "a", 9, 0, None, True, ""), by="node.a")
    assert not running.state.replicas


def test_what_another_node_says_of_a_replica_is_void_even_if_its_incarnation_is_named_alike(running: History) -> None:
    before = running.state.replicas
    running.fact(joined("b"), by="node.b")
    for fact in (
        ev.ReplicaStarted("app.tiny.1", "b", 11),
        ev.ReplicaReady("app.tiny.1", "b", "h:2", INFO),
        ev.ReplicaExited("app.tiny.1", "b", 11, 1, None, False, ""),
    ):
        running.fact(fact, by="node.b")
    assert running.state.replicas == before


def test_an_old_revisions_replica_does_not_clear_a_new_revisions_failures(history: History) -> None:
    history.decide(ev.ApplicationDeployed(application()))
    history.decide(ev.ReplicaPlaced("app.tiny.1", "app", "tiny", "a", "1"))
    history.decide(ev.ApplicationDeployed(application(version=1)))
    history.decide(ev.ReplicaPlaced("app.tiny.2", "app", "tiny", "a", "1"))
    history.fact(ev.ReplicaExited("app.tiny.2", "a", 9, 1, None, False, "broken"), by="node.a")
    history.fact(ev.ReplicaReady("app.tiny.1", "a", "h:1", INFO), by="node.a")
    deployment = history.state.applications["app"].deployments["tiny"]
    assert (deployment.start_failures, deployment.message) == (1, "broken")


def test_facts_about_unknown_replicas_nodes_and_gateways_change_nothing_but_the_log(history: History) -> None:
    before = history.state
    history.fact(ev.ReplicaReady("none", "a", "h:1", INFO), by="node.a")
    history.fact(ev.ReplicaExited("none", "a", 1, 1, None, False, ""), by="node.a")
    history.fact(ev.NodeLeft("none"), by="node.none")
    history.fact(ev.GatewayLeft("none"), by="gateway.none")
    history.decide(ev.ReplicaStopOrdered("none", ""))
    history.decide(ev.ReplicaPlaced("x.y.1", "x", "y", "a", "1"))
    after = history.state
    assert msgspec.structs.replace(after, sequence=before.sequence, heads=before.heads) == before


def test_a_wish_that_comes_before_an_earlier_one_is_decided_is_not_lost(running: History) -> None:
    first = running.fact(ev.DeployRequested(application(replicas=2)), by="operator.a")
    second = running.fact(ev.DeleteRequested("app"), by="operator.a")
    running.decide(ev.ApplicationDeployed(application(replicas=2)), first)
    assert running.state.requests["app"].event == second
    running.decide(ev.ApplicationDeleted("app"), second)
    assert running.state.requests == {}
    assert running.state.applications == {}
