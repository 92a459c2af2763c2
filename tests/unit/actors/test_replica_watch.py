"""What a node tells the log of a replica's health, out of what its checks and its canary say."""

from __future__ import annotations

import asyncio

import msgspec

from holdfast.actors.canary import LOOK_S, SILENT, Verdict
from holdfast.actors.replica_watch import CHECK_HEALTH, START, ReplicaWatch
from holdfast.core.barren import NO_TOKEN
from holdfast.core.cluster import DeploymentState
from holdfast.core.config import DeploymentConfig, EngineConfig
from holdfast.core.events import Fact, ReplicaHealthy, ReplicaUnhealthy
from tests.unit.support.virtual_time import now_s, virtual_time

START_TIMEOUT_S = 20.0
DEPLOYMENT = DeploymentState(
    DeploymentConfig("m", EngineConfig("mock"), canary=False, start_timeout_s=START_TIMEOUT_S), "e"
)


def test_a_change_is_told_once_with_its_reason_and_an_end_once_no_check_fails() -> None:
    told: list[tuple[Fact, str]] = []
    watch = ReplicaWatch("c", "a", "r", lambda: None, lambda fact, cause: told.append((fact, cause)))
    watch.ready("h:1", "cause")

    watch._canary_tells(Verdict(NO_TOKEN, "no token within 3 s"))
    watch._canary_tells(Verdict(NO_TOKEN, "no token within 3 s"))
    assert told == [(ReplicaUnhealthy("r", "a", NO_TOKEN, "no token within 3 s"), "cause")]

    watch.checked("ValueError: sick")
    watch._canary_tells(Verdict("", ""))
    assert told[1:] == [(ReplicaUnhealthy("r", "a", CHECK_HEALTH, "ValueError: sick"), "cause")]

    watch.checked("")
    watch.checked("")
    assert told[2:] == [(ReplicaHealthy("r", "a"), "cause")]


def test_one_that_answers_again_but_makes_no_token_is_told_of_with_what_fails_now() -> None:
    told: list[Fact] = []
    watch = ReplicaWatch("c", "a", "r", lambda: None, lambda fact, _cause: told.append(fact))
    watch._canary_tells(Verdict(SILENT, "no answer"))
    watch._canary_tells(Verdict(NO_TOKEN, "no token"))
    assert told == [ReplicaUnhealthy("r", "a", SILENT, "no answer"), ReplicaUnhealthy("r", "a", NO_TOKEN, "no token")]


class Starting:
    """A replica that was started just now, and what is told of it, with the time."""

    def __init__(self) -> None:
        self.told: list[tuple[float, Fact, str]] = []
        self.deployment: DeploymentState | None = DEPLOYMENT
        self.watch = ReplicaWatch("c", "a", "r", lambda: self.deployment, self._tells)

    def _tells(self, fact: Fact, cause: str) -> None:
        self.told.append((now_s(), fact, cause))


LATE = ReplicaUnhealthy("r", "a", START, "it did not get ready within 20 s (start_timeout_s)")


@virtual_time
async def test_a_replica_that_does_not_get_ready_in_time_is_told_of_once() -> None:
    start = Starting()
    watching = asyncio.create_task(start.watch.run("started"))
    await asyncio.sleep(10 * START_TIMEOUT_S)
    watching.cancel()
    assert start.told == [(START_TIMEOUT_S, LATE, "started")]


@virtual_time
async def test_a_replica_that_gets_ready_in_time_is_not_told_of() -> None:
    start = Starting()
    watching = asyncio.create_task(start.watch.run("started"))
    await asyncio.sleep(START_TIMEOUT_S - LOOK_S)
    start.watch.ready("h:1", "ready")
    await asyncio.sleep(10 * START_TIMEOUT_S)
    watching.cancel()
    assert start.told == []


@virtual_time
async def test_time_in_which_the_node_stands_still_is_not_its_replicas() -> None:
    start, loop = Starting(), asyncio.get_running_loop()
    watching = asyncio.create_task(start.watch.run("started"))
    await asyncio.sleep(1.0)
    loop._jumping.now_s += 10 * START_TIMEOUT_S  # type: ignore[attr-defined]
    await asyncio.sleep(START_TIMEOUT_S - 2.0)
    assert start.told == []
    await asyncio.sleep(2.0)
    watching.cancel()
    assert [fact for _at, fact, _cause in start.told] == [LATE]


@virtual_time
async def test_who_is_given_more_time_meanwhile_has_it() -> None:
    start = Starting()
    watching = asyncio.create_task(start.watch.run("started"))
    await asyncio.sleep(START_TIMEOUT_S - 1.0)
    config = msgspec.structs.replace(DEPLOYMENT.config, start_timeout_s=2 * START_TIMEOUT_S)
    start.deployment = msgspec.structs.replace(DEPLOYMENT, config=config)
    await asyncio.sleep(START_TIMEOUT_S)
    assert start.told == []
    await asyncio.sleep(2.0)
    watching.cancel()
    assert len(start.told) == 1
