"""Every guard that a mutant takes out is missed by a test, and is there again afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from holdfast.actors.follower import Follower
from holdfast.actors.replica import Replica
from holdfast.core import events as ev
from holdfast.core.detector import LeaseEvidence
from holdfast.core.liveness import Liveness, Suspicion
from holdfast.core.ports import LogEntry
from holdfast.core.requests import EngineLoad, EngineRequest
from holdfast.core.stream import Stream
from holdfast.gateway.gateway_process import GatewayProcess
from holdfast.simulations.mutants import MUTANTS, removed
from holdfast.store.memory import MemoryLogServer
from tests.unit.actors import (
    test_controller,
    test_draining,
    test_leasing,
    test_node,
    test_reach,
    test_replica_run,
    test_replica_watch,
)
from tests.unit.core import test_drains, test_overloads, test_reconcile, test_stream, test_unhealthy
from tests.unit.serving import test_waiting
from tests.unit.simulations.gateway_witnesses import GATEWAY_WITNESSES
from tests.unit.simulations.lenient_witnesses import LENIENT_WITNESSES
from tests.unit.simulations.log_witnesses import LOG_WITNESSES
from tests.unit.simulations.stream_witnesses import STREAM_WITNESSES
from tests.unit.simulations.telling_witnesses import TELLING_WITNESSES
from tests.unit.simulations.wish_witnesses import WISH_WITNESSES
from tests.unit.support.history import History, application
from tests.unit.support.virtual_time import settle, virtual_time
from tests.unit.support.world import World as Cluster
from tests.unit.support.world import identity_of

MEMBER = frozenset({("a", "1")})
NOBODY: frozenset[tuple[str, str]] = frozenset()


def _never_seen() -> None:
    evidence = LeaseEvidence(3.0)
    evidence.listed(NOBODY, MEMBER, 0.0)
    evidence.listed(NOBODY, MEMBER, 1.0)
    assert not evidence.expired()


def _away() -> None:
    evidence = LeaseEvidence(3.0)
    for second in range(5):
        evidence.listed(MEMBER, MEMBER, float(second))
    evidence.unreachable()
    evidence.listed(NOBODY, MEMBER, 10.0)
    evidence.listed(NOBODY, MEMBER, 11.0)
    assert not evidence.expired()


def _stuck() -> None:
    liveness = Liveness(0.1, 8.0, 1.0, 0.0)
    for beat in range(1, 400):
        now_s = beat * 0.1
        liveness.ping()
        load = EngineLoad(running=1, waiting=0, kv_blocks_used=0, kv_blocks=1, step=min(beat, 10))
        liveness.beat(beat, load, now_s)
        if liveness.look(now_s) is Suspicion.STUCK:
            return
    raise AssertionError("nobody noticed")


def _stream(*texts: str, stops: tuple[str, ...] = (), delivered: int = 0) -> Stream:
    stream = Stream(EngineRequest(prompt="x"), stops, delivered=delivered)
    stream.start()
    for position, text in enumerate(texts):
        stream.token(position, position, text)
    return stream


def _twice() -> None:
    stream = _stream("a", "b")
    stream.token(0, 0, "a")
    assert test_stream.text_of(stream.take()) == "ab"


def _delivered() -> None:
    assert test_stream.text_of(_stream("a", "b", "c", delivered=2).take()) == "c"


def _held_back() -> None:
    assert test_stream.text_of(_stream("a", "b", stops=("bc",)).take()) == "a"


@virtual_time
async def _decides_once() -> None:
    """Whoever follows the log reads everything half a second late."""
    taken = Follower._take

    def late(follower: Follower, entry: LogEntry) -> None:
        asyncio.get_running_loop().call_later(0.5 + entry.sequence * 1e-6, taken, follower, entry)

    with patch.object(Follower, "_take", late):
        await _deployed_once()


async def _deployed_once() -> None:
    async with Cluster() as cluster:
        cluster.node("a", latency_s=0.05)
        await cluster.deploy(application(replicas=3))
        await cluster.running(3, within_s=20.0)
        assert len(cluster.happened(ev.ReplicaPlaced)) == 3


@virtual_time
async def _joins_again() -> None:
    history = History()
    joined = ev.GatewayJoined("g", "host", 1, "http://g", "0")
    history.fact(joined, by="gateway.g")
    history.decide(ev.LeaderElected("a", "1"), epoch=1)
    history.decide(ev.GatewayLost("g", "1", "its lease expired"))
    facts: list[ev.Fact] = []
    gateway = object.__new__(GatewayProcess)
    gateway._identity = identity_of("g", role="gateway")
    gateway._follower = Follower(MemoryLogServer().client())
    gateway._follower.state = history.state
    gateway._joining = lambda: joined  # type: ignore[method-assign]
    gateway._facts = SimpleNamespace(record=lambda fact, _cause: facts.append(fact), flush=settle)  # type: ignore[assignment]
    joining = asyncio.create_task(gateway._rejoin_when_given_up())
    await settle()
    joining.cancel()
    assert facts == [joined]


def _drains() -> None:
    drained: list[bool] = []

    async def drain(_self: Replica) -> None:
        drained.append(True)

    with patch.object(Replica, "drain", drain):
        test_replica_run.test_it_serves_until_sigterm_and_ends_with_0()
    assert drained


WITNESSES: dict[str, Callable[[], object]] = {
    **LOG_WITNESSES,
    "deposed-leader": test_controller.test_a_leader_without_its_lease_steps_down_and_may_lead_again,
    "reads-its-decisions": _decides_once,
    "own-leader-key": lambda: test_controller.test_a_candidate_whose_attempt_had_an_unknown_outcome_leads_in_the_end(
        0.15
    ),
    "blast-radius": test_reconcile.test_leases_alone_never_empty_the_cluster_at_once,
    "second-look": _never_seen,
    "outage-patience": _away,
    "renewal-in-time": test_leasing.test_renewals_come_at_half_of_the_remaining_time_or_a_little_earlier,
    "new-lease": test_leasing.test_a_lease_that_was_revoked_is_told_of_and_granted_anew_with_its_keys,
    "superseded": test_node.test_a_node_that_was_given_up_ends_all_it_runs,
    "alone-cut-off": (
        test_reach.test_a_log_that_nobody_reaches_costs_no_node_its_lease_also_where_one_is_cut_off_first
    ),
    "rejoins": _joins_again,
    "taken-up-once": lambda: test_node.test_a_replica_is_launched_once_however_slowly_the_log_answers(None),
    "disowned": test_node.test_a_replica_that_is_told_to_stop_before_its_node_had_read_of_it_is_disowned,
    "free-slots": test_reconcile.test_what_finds_no_room_waits_for_a_node,
    "one-at-a-time": test_reconcile.test_a_rolling_update_goes_one_by_one_and_never_below_the_number_wanted,
    "never-below-wanted": test_reconcile.test_a_rolling_update_goes_one_by_one_and_never_below_the_number_wanted,
    "drain-before-stop": _drains,
    "replaced-first": test_drains.test_replicas_of_a_drained_node_go_elsewhere_before_they_stop,
    "relieved-first": test_draining.test_a_node_that_stops_waits_until_others_run_what_it_ran,
    "undrained": test_drains.test_a_drained_node_gets_nothing_until_it_is_undrained_and_then_like_any_other,
    "token-contiguity": test_stream.test_a_token_from_the_future_is_the_replicas_violation_and_changes_nothing,
    "token-once": _twice,
    "held-back-text": _held_back,
    "resumed-position": _delivered,
    "lowest-first": test_waiting.test_the_last_that_came_of_the_lowest_priority_gives_way,
    "made-to-what-holds": (
        test_overloads.test_changes_that_are_asked_for_at_once_all_hold_in_the_end_each_by_its_own_decision
    ),
    "engine-watch": _stuck,
    "start-pause": test_reconcile.test_failed_starts_are_tried_again_after_longer_and_longer_waits,
    "lost-gateways": lambda: test_reconcile.test_a_gateway_whose_lease_expired_is_given_up_once(False),
    **STREAM_WITNESSES,
    **WISH_WITNESSES,
    **TELLING_WITNESSES,
    "canary": test_replica_watch.test_a_change_is_told_once_with_its_reason_and_an_end_once_no_check_fails,
    "health-budget": test_unhealthy.test_only_one_goes_at_a_time_where_a_part_would_be_less_than_one,
    **GATEWAY_WITNESSES,
    **LENIENT_WITNESSES,
}


@pytest.mark.parametrize("name", list(MUTANTS))
def test_a_guard_is_missed(name: str) -> None:
    witness = WITNESSES[name]
    witness()
    with removed(name), pytest.raises(BaseException):  # noqa: B017, PT011 - whatever breaks
        witness()
    witness()
