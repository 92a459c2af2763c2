"""Replicas that end by a signal: those that crashed, and those that somebody, or the kernel, has killed."""

from __future__ import annotations

import random

import pytest

from holdfast.core import events as ev
from holdfast.core.breakdowns import BREAKDOWNS_FATAL, KILLED_AT_ONCE_S, KILLS_FREE, proven_s
from holdfast.core.cluster import ReplicaStatus
from holdfast.core.endings import OWN_SIGNALS
from holdfast.core.reconcile import START_BACKOFF_FIRST_S, START_BACKOFF_MAX_S
from holdfast.core.starts import STABLE_AFTER_S
from holdfast.core.status import ApplicationStatus, report
from tests.unit.core.test_reconcile import Cluster, deployment
from tests.unit.core.test_unhealthy import is_well, only, running

CHAOS_EVERY_S = 2.0
SEEN_LATE_S = 0.2


def ends_by(cluster: Cluster, replica: str, signal: str = "SIGKILL", message: str = "") -> None:
    node = cluster.state.replicas[replica].node
    cluster.fact(ev.ReplicaExited(replica, node, 9, None, signal, False, message), by=f"node.{node}")


def pause_s(cluster: Cluster) -> float:
    """How long the next start waits, once it is over."""
    retry_at = cluster.plan().look_again_at
    pause = (retry_at - cluster.now).total_seconds() if retry_at else 0.0
    cluster.passes(pause)
    return pause


def pauses(cluster: Cluster, times: int, after_s: float, signal: str = "SIGKILL") -> list[float]:
    """The only replica ends by a signal so long after each time that it is ready; the pauses before the next starts."""
    waited = []
    for _ in range(times):
        cluster.passes(after_s)
        ends_by(cluster, only(cluster), signal)
        waited.append(pause_s(cluster))
        cluster.settle()
    return waited


def doubling(times: int) -> list[float]:
    return [min(START_BACKOFF_FIRST_S * 2**n, START_BACKOFF_MAX_S) for n in range(times)]


@pytest.mark.parametrize("signal", sorted(OWN_SIGNALS))
def test_an_engine_that_crashes_soon_after_each_start_is_started_less_and_less_often(signal: str) -> None:
    cluster = running(1)
    assert pauses(cluster, 9, 0.4, signal) == doubling(9)
    seen = report(cluster.state, None).applications["app"]
    assert seen.status is ApplicationStatus.UNHEALTHY
    said = f"tiny: 9 replicas in a row broke down: signal {signal}: see the end of logs/app.tiny.9.log on a"
    assert seen.message == said


def test_an_engine_that_crashes_some_time_after_each_start_is_a_row_of_breakdowns() -> None:
    cluster = running(1)
    assert pauses(cluster, 5, 3 * STABLE_AFTER_S, "SIGSEGV") == [0.0, *doubling(4)]


def test_an_engine_that_crashes_before_it_is_ready_has_failed_to_deploy() -> None:
    cluster = Cluster(a=8)
    cluster.deploy(1)
    cluster.step()
    for _ in range(3):
        cluster.step()
        ends_by(cluster, only(cluster), "SIGABRT", "terminate called")
        cluster.passes(START_BACKOFF_MAX_S)
    seen = report(cluster.state, None).applications["app"]
    assert seen.status is ApplicationStatus.DEPLOY_FAILED
    crash = "terminate called (signal SIGABRT: see the end of logs/app.tiny.3.log on a)"
    assert seen.message == f"tiny: 3 starts in a row failed: {crash}"


def test_a_crash_of_a_replica_that_was_told_to_stop_counts_for_nothing() -> None:
    cluster = running(1)
    cluster.fact(ev.ReplicaExited(only(cluster), "a", 9, None, "SIGABRT", True, ""), by="node.a")
    assert (deployment(cluster).breakdowns, deployment(cluster).unstable_starts) == (0, 0)


@pytest.mark.parametrize("after_s", [0.0, 0.4, STABLE_AFTER_S - 1])
def test_a_replica_whose_every_replacement_is_killed_soon_is_replaced_later_and_later(after_s: float) -> None:
    """As by the kernel, when the engine takes more memory than there is."""
    cluster = running(1)
    assert pauses(cluster, 10, after_s) == [*[0.0] * (KILLS_FREE + 1), *doubling(9 - KILLS_FREE)]
    seen = report(cluster.state, None).applications["app"]
    assert seen.status is ApplicationStatus.UNHEALTHY
    assert seen.message.endswith("signal SIGKILL: somebody sent it, or the kernel, for want of memory")


def test_what_was_killed_again_and_again_is_healthy_once_it_has_been_well_for_long_enough() -> None:
    cluster = running(1)
    pauses(cluster, KILLS_FREE + BREAKDOWNS_FATAL, 0.4)
    assert report(cluster.state, None).applications["app"].status is ApplicationStatus.UNHEALTHY
    cluster.passes(proven_s(deployment(cluster).config))
    is_well(cluster, only(cluster))
    assert report(cluster.state, None).applications["app"].status is ApplicationStatus.RUNNING
    assert pauses(cluster, KILLS_FREE, 0.4) == [0.0] * KILLS_FREE


def test_kills_of_replicas_that_had_run_for_a_while_make_no_row() -> None:
    cluster = running(1)
    assert pauses(cluster, 10, STABLE_AFTER_S) == [0.0] * 10
    assert (deployment(cluster).kills, deployment(cluster).breakdowns) == (0, 0)


def test_one_bad_place_among_others_that_are_well_makes_a_row() -> None:
    cluster = running(3, a=8, b=8, c=8)
    cluster.passes(STABLE_AFTER_S)
    for _ in range(1 + KILLS_FREE + BREAKDOWNS_FATAL):
        ends_by(cluster, list(cluster.state.replicas)[-1])
        pause_s(cluster)
        cluster.settle()
        cluster.passes(3 * KILLED_AT_ONCE_S)
    assert deployment(cluster).breakdowns == BREAKDOWNS_FATAL


def test_replicas_that_are_all_killed_at_once_after_each_start_make_a_row_by_the_round() -> None:
    cluster = running(4)
    for killed in range(1, KILLS_FREE + BREAKDOWNS_FATAL + 1):
        cluster.passes(KILLED_AT_ONCE_S / 2)
        for replica in [one.id for one in cluster.state.replicas.values() if one.live]:
            ends_by(cluster, replica)
            cluster.step()
        assert deployment(cluster).kills == killed
        pause_s(cluster)
        cluster.settle()
    assert deployment(cluster).breakdowns == BREAKDOWNS_FATAL


def test_one_kill_of_all_replicas_is_one() -> None:
    cluster = running(4)
    for replica in list(cluster.state.replicas):
        ends_by(cluster, replica)
    assert deployment(cluster).kills == 1


@pytest.mark.parametrize("replicas", [3, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_whoever_kills_a_random_replica_every_2_s_finds_it_replaced_at_once(replicas: int, seed: int) -> None:
    rng, cluster = random.Random(seed), running(replicas, a=8, b=8)
    for _ in range(30):
        alive = [one.id for one in cluster.state.replicas.values() if one.status is ReplicaStatus.RUNNING]
        assert len(alive) == replicas
        ends_by(cluster, rng.choice(alive))
        cluster.passes(SEEN_LATE_S)
        assert [type(decision) for decision in cluster.step()] == [ev.ReplicaReplaced]
        cluster.settle()
        cluster.passes(CHAOS_EVERY_S - SEEN_LATE_S)
    assert report(cluster.state, None).applications["app"].status is ApplicationStatus.RUNNING


def test_a_new_engine_begins_without_a_row_of_kills() -> None:
    cluster = running(1)
    pauses(cluster, KILLS_FREE + 2, 0.4)
    cluster.deploy(1, version=1)
    cluster.settle()
    assert (deployment(cluster).kills, deployment(cluster).breakdowns) == (0, 0)
