"""The log: a sound one passes, and each way in which it may be unsound is found."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from holdfast.core import events as ev
from holdfast.core import state as production
from holdfast.core.cluster import ClusterState
from holdfast.simulations.checkers.folding import final_log
from holdfast.simulations.records import Acknowledged
from tests.unit.simulations.recorded import EPOCH_1, broken, only, well

OTHER = ("node-2", "i1")


def test_a_run_in_which_all_is_well_breaks_nothing() -> None:
    assert broken(well()) == []


# --- durability -----------------------------------------------------------------------------------------


def test_an_acknowledged_event_that_a_power_failure_took_is_found() -> None:
    run = well()
    run.history.log_lost(20.0, len(run.history.appended) - 1)
    found = broken(run)
    assert any("was told that" in violation.message and "nothing does" in violation.message for violation in found)
    assert "durability" in {violation.checker for violation in found}


def test_what_was_lost_unacknowledged_is_no_violation() -> None:
    run = well()
    run.fact(ev.NodeStopping("node-1"), "node.node-1")
    run.history.acknowledged.pop()
    run.history.log_lost(20.0, len(run.history.appended) - 1)
    assert broken(run) == []


def test_a_loss_of_what_was_acknowledged_is_found() -> None:
    run = well()
    run.fact(ev.StreamsMigrated("gateway-1", "app.tiny.1", 1, "lost"), "gateway.gateway-1")
    run.history.log_lost(20.0, len(run.history.appended) - 1)
    assert "was told that" in only(broken(run), "durability")


def test_an_acknowledged_sequence_at_which_another_event_stands_is_found() -> None:
    run = well()
    run.history.acknowledged.append(Acknowledged(3.0, "node-1", "e999", 4))
    assert "e999 stands at sequence 4" in only(broken(run), "durability")


def test_an_event_that_is_acknowledged_before_it_is_in_the_log_is_found() -> None:
    run = well()
    first = run.history.acknowledged[-1]
    run.history.acknowledged[-1] = msgspec.structs.replace(first, at_s=first.at_s - 0.5)
    assert "durability" in {violation.checker for violation in broken(run)}


def test_an_event_that_stands_in_the_log_twice_is_found() -> None:
    run = well()
    event = run.event(ev.StreamsMigrated("gateway-1", "app.tiny.1", 1, "lost"), "gateway-1", "i1")
    run.append("facts.gateway.gateway-1", event)
    run.append("facts.gateway.gateway-1", event)
    assert f"{event.id} stands in the log twice" in only(broken(run), "durability")


def test_an_event_under_another_id_is_found() -> None:
    run = well()
    run.fact(ev.StreamsMigrated("gateway-1", "app.tiny.1", 1, "lost"), "gateway.gateway-1", message_id="other")
    assert "under the id other" in only(broken(run), "durability")


def test_a_hole_in_the_log_is_found_and_nobody_can_fold_over_it() -> None:
    run = well()
    last = run.history.appended[-1]
    run.history.appended[-1] = msgspec.structs.replace(last, sequence=last.sequence + 1)
    found = [(violation.checker, violation.message) for violation in broken(run)]
    assert ("durability", f"the log has sequence {last.sequence + 1} where {last.sequence} is due") in found
    assert any(checker == "fold" and "the log has a hole" in message for checker, message in found)


# --- fold -----------------------------------------------------------------------------------------------


def test_followers_with_the_state_of_the_log_pass_wherever_they_are() -> None:
    run = well()
    for place, state in enumerate(final_log(run.history).states):
        run.history.state_folded(5.0, f"node-{place}", state)
    assert broken(run) == []


def test_a_follower_with_another_state_is_found() -> None:
    run = well()
    wrong = msgspec.structs.replace(final_log(run.history).state, leader="node-2")
    run.history.state_folded(5.0, "gateway-1", wrong)
    assert "the state of gateway-1 is not the fold of the log: leader differ" in only(broken(run), "fold")


def test_a_follower_beyond_the_end_of_the_log_is_found() -> None:
    run = well()
    beyond = msgspec.structs.replace(final_log(run.history).state, sequence=len(run.history.appended) + 1)
    run.history.state_folded(5.0, "gateway-1", beyond)
    assert "the log ends at" in only(broken(run), "fold")


def test_a_fold_that_depends_on_more_than_state_and_event_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    run = well()
    calls = []

    def counting(state: ClusterState, event: ev.Event, fact: ev.ReplicaReady) -> ClusterState:
        calls.append(event.id)
        return msgspec.structs.replace(state, numbered={"calls": len(calls)})

    reducers = cast(dict[Any, Any], production._REDUCERS)
    monkeypatch.setitem(reducers, ev.ReplicaReady, counting)
    assert any("a snapshot at sequence" in violation.message for violation in broken(run))


def test_bytes_that_are_no_event_are_found() -> None:
    run = well()
    run.history.log_appended(9.0, len(run.history.appended) + 1, "decisions", b"{}", "x")
    found = {violation.checker: violation.message for violation in broken(run)}
    assert "can't be folded" in found["fold"]


# --- leaders --------------------------------------------------------------------------------------------


def test_a_deposed_leaders_decision_is_found_though_it_changes_nothing_unless_the_log_lost_something() -> None:
    run = well()
    run.history.lease_event(2.5, "created", 8, "/holdfast/c/leader", EPOCH_1 + 5, "node-2")
    run.at_s = 3.0
    run.decide(ev.LeaderElected(*OTHER), epoch=EPOCH_1 + 5, by=OTHER)
    run.decide(ev.ReplicaStopOrdered("app.tiny.1", "I still lead"))
    assert final_log(run.history).state.ignored == 1
    assert "ReplicaStopOrdered of deposed node-1 was appended" in only(broken(run), "fences")
    run.history.log_lost(20.0, len(run.history.appended))
    assert broken(run) == []


def test_a_deposed_leaders_decision_that_changes_something_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    run = well()
    run.decide(ev.LeaderElected(*OTHER), epoch=EPOCH_1 + 1, by=OTHER)
    real = production.apply

    def lax(state: ClusterState, record: ev.Record) -> ClusterState:
        void = record.event.epoch == EPOCH_1 and state.epoch > EPOCH_1
        event = msgspec.structs.replace(record.event, epoch=state.epoch if void else record.event.epoch)
        return real(state, msgspec.structs.replace(record, event=event))

    monkeypatch.setattr("holdfast.simulations.checkers.folding.apply", lax)
    monkeypatch.setattr("holdfast.simulations.checkers.log.apply", lax)
    run.decide(ev.ReplicaStopOrdered("app.tiny.1", "I still lead"))
    message = broken(run)
    assert any(
        violation.checker == "leaders" and "ReplicaStopOrdered of deposed node-1 changed replicas" in violation.message
        for violation in message
    )


def test_two_leaders_of_one_epoch_are_found() -> None:
    run = well()
    run.decide(ev.LeaderElected(*OTHER), by=OTHER)
    assert "epoch 10 has two leaders, node-1 and node-2" in broken(run)[0].message


def test_a_decision_by_somebody_who_was_not_elected_is_found() -> None:
    run = well()
    run.decide(ev.GatewayLost("gateway-1", "other", "?"), by=OTHER)
    assert "node-2 decides in epoch 10, which is node-1's" in only(broken(run), "leaders")


def test_a_decision_under_an_epoch_without_election_is_found() -> None:
    run = well()
    run.decide(ev.GatewayLost("gateway-1", "other", "?"), epoch=EPOCH_1 + 1)
    assert "decides before its election" in broken(run)[0].message


def test_an_election_of_somebody_else_is_found() -> None:
    run = well()
    run.decide(ev.LeaderElected("node-1", "i1"), epoch=EPOCH_1 + 1, by=OTHER)
    assert "node-2 elects node-1" in broken(run)[0].message


def test_an_epoch_that_no_leader_key_had_is_found_unless_it_follows_the_last() -> None:
    run = well()
    run.decide(ev.LeaderElected("node-1", "i1"), epoch=EPOCH_1 + 1)
    assert broken(run) == []
    run.decide(ev.LeaderElected("node-1", "i1"), epoch=EPOCH_1 + 3)
    assert "epoch 13, which no leader key was created at" in only(broken(run), "leaders")


def test_an_event_that_does_not_chain_is_found() -> None:
    run = well()
    run.fact(ev.NodeStopping("node-1"), "node.node-1", previous="f" * 64)
    found = broken(run)
    assert "does not chain" in found[0].message


def test_an_incarnation_that_writes_after_a_newer_one_is_found() -> None:
    run = well()
    migrated = ev.StreamsMigrated("gateway-1", "app.tiny.1", 1, "lost")
    run.fact(migrated, "gateway.gateway-1", "i2")
    assert broken(run) == []
    run.fact(migrated, "gateway.gateway-1", "i1")
    assert "incarnation i1 writes on facts.gateway.gateway-1 after a newer" in only(broken(run), "leaders")
