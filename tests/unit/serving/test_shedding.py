"""A gateway under more load than its replicas can take: what it rejects, in whose favour, and what the log hears."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import msgspec
import pytest

from holdfast.actors.engines.base import ENGINE_OVERLOADED
from holdfast.actors.metric_families import HEALTH_TRANSITIONS
from holdfast.core.admission import Priority, Reason
from holdfast.core.errors import Overloaded
from holdfast.core.events import (
    BusyThresholdSet,
    Fact,
    RejectionsBegan,
    RejectionsEnded,
    ReplicaEjected,
    ReplicaHealthy,
    ReplicaReinstated,
    ReplicaUnhealthy,
)
from holdfast.core.frames import Refused
from holdfast.core.outliers import USUAL
from holdfast.core.thresholds import Thresholds
from holdfast.gateway import spells
from holdfast.gateway.backend import Claim, Session
from holdfast.gateway.serving import Serving
from holdfast.gateway.spells import Spells
from tests.unit.support.history import application
from tests.unit.support.replicas import Answer, Site, answer_to, ask, eventually, opened


@pytest.fixture
def site() -> Site:
    return Site()


BATCH, DEFAULT, CRITICAL = (Claim(priority) for priority in Priority)


async def crowded(site: Site, stack: AsyncExitStack, *, queued: int = 4, waiting: tuple[Claim, ...] = ()) -> Serving:
    """A gateway whose only replica has the one stream that it may have, and behind it these wait."""
    site.deploy(application(replicas=1, max_ongoing_requests=1, max_queued_requests=queued))
    replica = await site.replica()
    replica.engine.hang()
    gateway = await site.gateway()
    for claim in (DEFAULT, *waiting):
        await enter(gateway, stack, claim)
    return gateway


async def enter(gateway: Serving, stack: AsyncExitStack, claim: Claim = DEFAULT, streams: int = 1) -> Session:
    return await stack.enter_async_context(gateway.open("tiny", [ask()] * streams, stops=[], claim=claim))


async def rejection_of(session: Session) -> Overloaded:
    with pytest.raises(Overloaded) as rejection:
        async with asyncio.timeout(5):
            await session.next()
    return rejection.value


def queued(gateway: Serving) -> int:
    return gateway.pools()[0].queued


async def test_a_critical_request_takes_the_place_of_the_batch_request_that_came_last(site: Site) -> None:
    async with site, AsyncExitStack() as stack:
        gateway = await crowded(site, stack)
        batch = [await enter(gateway, stack, BATCH) for _ in range(3)]
        await enter(gateway, stack)
        assert queued(gateway) == 4
        await enter(gateway, stack, CRITICAL)
        assert queued(gateway) == 4
        assert (await rejection_of(batch[2])).reason == Reason.DISPLACED
        await enter(gateway, stack, CRITICAL, streams=2)
        for session in batch[:2]:
            assert (await rejection_of(session)).reason == Reason.DISPLACED


async def test_who_goes_no_earlier_takes_nobodys_place(site: Site) -> None:
    async with site, AsyncExitStack() as stack:
        gateway = await crowded(site, stack, waiting=(CRITICAL, CRITICAL, DEFAULT, DEFAULT))
        for claim, streams in ((DEFAULT, 1), (BATCH, 1), (CRITICAL, 3)):
            with pytest.raises(Overloaded) as rejection:
                gateway.open("tiny", [ask()] * streams, stops=[], claim=claim)
            assert rejection.value.reason == Reason.QUEUE_FULL
        assert queued(gateway) == 4


async def test_a_tenant_with_less_takes_the_place_of_one_with_more(site: Site) -> None:
    greedy, modest = Claim(tenant="greedy"), Claim(tenant="modest")
    async with site, AsyncExitStack() as stack:
        gateway = await crowded(site, stack)
        sessions = [await enter(gateway, stack, greedy) for _ in range(4)]
        for session in reversed(sessions[2:]):
            await enter(gateway, stack, modest)
            assert (await rejection_of(session)).reason == Reason.DISPLACED
        for claim in (greedy, modest):
            with pytest.raises(Overloaded):
                gateway.open("tiny", [ask()], stops=[], claim=claim)
        assert gateway._pools["tiny"].usage == {"": 1, "greedy": 2, "modest": 2}
    await gateway.idle()
    assert not gateway._pools["tiny"].usage


async def test_a_tenant_that_asks_for_several_choices_gets_its_share_too(site: Site) -> None:
    greedy, modest = Claim(tenant="greedy"), Claim(tenant="modest")
    async with site, AsyncExitStack() as stack:
        gateway = await crowded(site, stack)
        sessions = [await enter(gateway, stack, greedy) for _ in range(4)]
        await enter(gateway, stack, modest, streams=2)
        for session in sessions[2:]:
            assert (await rejection_of(session)).reason == Reason.DISPLACED
        with pytest.raises(Overloaded):
            gateway.open("tiny", [ask()] * 2, stops=[], claim=modest)
        assert gateway._pools["tiny"].usage == {"": 1, "greedy": 2, "modest": 2}


async def test_a_request_of_which_a_choice_has_begun_gives_way_to_nobody(site: Site) -> None:
    async with site, AsyncExitStack() as stack:
        site.deploy(application(replicas=1, max_ongoing_requests=1, max_queued_requests=2))
        replica = await site.replica(itl_ms=1)
        gateway = await site.gateway()
        batch = Claim(Priority.BATCH, "greedy")
        begun = await enter(gateway, stack, batch, streams=3)
        await Answer().read(begun, tokens=1)
        replica.engine.hang()
        assert queued(gateway) == 2
        for claim in (CRITICAL, Claim(Priority.BATCH, "modest")):
            with pytest.raises(Overloaded) as rejection:
                gateway.open("tiny", [ask()], stops=[], claim=claim)
            assert rejection.value.reason == Reason.QUEUE_FULL
        for run in gateway._pools["tiny"].queue:
            run.patience_s = 0.0
        replica.engine.resume()
        assert (await Answer().read(begun)).reasons == {0: "length", 1: "length", 2: "length"}


async def test_a_queue_is_no_longer_than_what_drains_in_its_age(site: Site) -> None:
    async with site, AsyncExitStack() as stack:
        gateway = await crowded(site, stack, queued=100)
        service = gateway._pools["tiny"].service
        service.stayed(1.0)
        service.first_token(7.0)
        assert service.drain_per_s(1, Priority.DEFAULT, 0.0) == 1.0
        for _ in range(3):
            await enter(gateway, stack)
        with pytest.raises(Overloaded) as rejection:
            gateway.open("tiny", [ask()], stops=[])
        assert rejection.value.reason == Reason.QUEUE_AGE
        assert gateway.crowded()
        with pytest.raises(Overloaded):
            gateway.check_open("tiny", DEFAULT)
        await enter(gateway, stack, CRITICAL)
        assert queued(gateway) == 3


async def test_before_any_stream_has_ended_a_queue_is_bounded_by_how_long_they_run(site: Site) -> None:
    async with site, AsyncExitStack() as stack:
        site.deploy(application(replicas=1, max_ongoing_requests=2))
        replica = await site.replica(itl_ms=1)
        gateway = await site.gateway()
        service = gateway._pools["tiny"].service
        for _ in range(2):
            await Answer().read(await enter(gateway, stack), tokens=1)
        replica.engine.hang()
        assert service.stay_s is None
        await eventually(lambda: (service.drain_per_s(2, DEFAULT.priority, gateway_time()) or 0.0) < 100.0)
        service.first_s = 0.01
        await enter(gateway, stack)
        with pytest.raises(Overloaded) as rejection:
            gateway.open("tiny", [ask()] * 3, stops=[])
        assert rejection.value.reason in (Reason.QUEUE_AGE, Reason.IN_FLIGHT)
        assert queued(gateway) == 1


def gateway_time() -> float:
    return asyncio.get_running_loop().time()


async def test_a_replica_above_a_threshold_gets_nothing_new_and_who_is_rejected_is_told_why(site: Site) -> None:
    async with site, AsyncExitStack() as stack:
        low = Thresholds(active_decode_blocks_threshold=0.0)
        site.deploy(application(replicas=1, max_queued_requests=1, thresholds=low))
        replica = await site.replica(itl_ms=1)
        gateway = await site.gateway()
        first = await enter(gateway, stack)
        await Answer().read(first, tokens=1)
        replica.engine.hang()
        await eventually(lambda: gateway._links[replica.name].kv_used > 0)
        await enter(gateway, stack)
        assert queued(gateway) == 1
        with pytest.raises(Overloaded, match=r"kv_blocks|queue_full"):
            gateway.open("tiny", [ask()], stops=[])
        site.decide(BusyThresholdSet("tiny", Thresholds(active_decode_blocks_threshold=1.0)))
        await eventually(lambda: queued(gateway) == 0)


async def test_rejections_are_told_as_spells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spells, "QUIET_S", 0.05)
    told: list[tuple[Fact, str | None]] = []
    over = asyncio.Event()

    def report(fact: Fact, cause: str | None) -> str:
        told.append((fact, cause))
        if isinstance(fact, RejectionsEnded):
            over.set()
        return f"e{len(told)}"

    found = Spells("g", report)
    for reason in ("queue_age", "queue_age", "displaced"):
        found.rejected("tiny", reason)
    await asyncio.wait_for(over.wait(), 5)
    found.rejected("tiny", "queue_full")
    (began, none), (ended, cause), (again, _) = told
    assert (began, none) == (RejectionsBegan("g", "tiny", "queue_age"), None)
    assert isinstance(ended, RejectionsEnded)
    assert (ended.rejected, cause) == ({"queue_age": 2, "displaced": 1}, "e1")
    assert again == RejectionsBegan("g", "tiny", "queue_full")


async def test_a_replica_that_serves_far_worse_than_the_others_is_passed_over_and_taken_back(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=3))
        for _ in range(3):
            await site.replica()
        gateway, told = await site.gateway(), list[Fact]()
        ejector, pool = gateway._ejector, gateway._pools["tiny"]
        ejector._report = lambda fact, _cause: told.append(fact)
        bad, *others = pool.links

        def shown(failed: int) -> None:
            bad.record.failed = failed
            for link in pool.links:
                link.record.well = 2 * USUAL.requests_min

        shown(10 * USUAL.requests_min)
        ejector._look("tiny", pool)
        assert bad.passed_over
        assert not bad.room
        assert [(type(fact), fact.replica) for fact in told if isinstance(fact, ReplicaEjected)] == [
            (ReplicaEjected, bad.replica)
        ]
        async with opened(gateway, *[ask(tokens=10_000)] * 12) as session:
            await Answer().read(session, tokens=1)
            assert bad.in_flight == 0
            assert sum(link.in_flight for link in others) == 12
        (ejection,) = ejector._outliers["tiny"].ejected.values()
        ejector._outliers["tiny"].ejected[bad.replica] = msgspec.structs.replace(ejection, until_s=0.0)
        shown(0)
        ejector._look("tiny", pool)
        assert told[-1] == ReplicaReinstated("g", ejection.replica)
        for to, reason in (("ejected", "outlier"), ("reinstated", "time")):
            assert gateway.ledger.value(HEALTH_TRANSITIONS, "tiny", to, reason) == 1
        assert bad.room


async def test_who_was_used_while_all_others_were_gone_is_passed_over_again_once_they_are_back(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=2))
        for _ in range(2):
            await site.replica()
        gateway = await site.gateway()
        ejector, pool = gateway._ejector, gateway._pools["tiny"]
        bad, other = pool.links
        for link in pool.links:
            link.record.well = 2 * USUAL.requests_min
        bad.record.failed = 10 * USUAL.requests_min
        ejector._look("tiny", pool)
        other._draining = True
        (await answer_to(gateway, ask())).check(ask())
        assert not bad.passed_over
        other._draining = False
        ejector._look("tiny", pool)
        assert bad.passed_over


async def test_a_replica_that_was_away_is_not_passed_over_for_what_it_did_before(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=2))
        for _ in range(2):
            await site.replica()
        gateway = await site.gateway()
        ejector, pool, loop = gateway._ejector, gateway._pools["tiny"], asyncio.get_running_loop()
        ejector._rules = msgspec.structs.replace(USUAL, window_s=0.0)
        bad, other = pool.links
        bad.record.failed = 10 * USUAL.requests_min
        bad._contact.welcomed = False
        for _ in range(2):
            looked_s = loop.time()
            ejector._look("tiny", pool)
            await eventually(lambda: loop.time() > looked_s)  # noqa: B023 - within the loop's round
        bad._contact.welcomed = True
        other.record.reset()
        other.record.well = 10 * USUAL.requests_min
        ejector._look("tiny", pool)
        assert not bad.passed_over


async def test_a_replica_whose_time_is_over_and_that_is_still_the_worst_is_passed_over_again(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=3))
        for _ in range(3):
            await site.replica()
        gateway, told = await site.gateway(), list[tuple[Fact, str | None]]()
        ejector, pool, pumped = gateway._ejector, gateway._pools["tiny"], list[bool]()
        bad = pool.links[0]

        def report(fact: Fact, cause: str | None) -> str:
            told.append((fact, cause))
            return str(len(told))

        ejector._report = report
        ejector._pump = lambda _pool: pumped.append(bad.passed_over)
        for _ in range(2):
            for link in pool.links:
                link.record.well = 2 * USUAL.requests_min
            bad.record.failed = 10 * USUAL.requests_min
            ejector._look("tiny", pool)
            assert bad.passed_over
            (ejection,) = ejector._outliers["tiny"].ejected.values()
            ejector._outliers["tiny"].ejected[bad.replica] = msgspec.structs.replace(ejection, until_s=0.0)
        assert [type(fact) for fact, _ in told] == [ReplicaEjected, ReplicaReinstated, ReplicaEjected]
        assert [cause for _, cause in told] == [None, "1", None]
        assert pumped == [True], "who waits does not get it in between"


async def test_a_replica_without_room_is_not_taken_for_one_that_fails(site: Site) -> None:
    async with site, AsyncExitStack() as stack:
        site.deploy(application(replicas=1))
        replica = await site.replica()
        gateway = await site.gateway()
        link = gateway._links[replica.name]
        replica.engine.hang()
        for _ in range(2):
            await enter(gateway, stack)
        first, _second = link.runs()
        link._on_refused(Refused(first.attempt, ENGINE_OVERLOADED, "no room", None, retry=True))
        assert (queued(gateway), link.in_flight, link.record.failed) == (1, 1, 0)
        replica.cut()
        await eventually(lambda: link.record.failed == 1)


async def test_a_replica_that_its_node_finds_unhealthy_gets_nothing_new_while_there_are_others(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=2))
        first, second = await site.replica(), await site.replica()
        gateway = await site.gateway()
        sick, well = gateway._links[first.name], gateway._links[second.name]
        site.fact(ReplicaUnhealthy(first.name, "a", "canary", "no token came"), by="node.a")
        await eventually(lambda: sick.sick)
        async with opened(gateway, *[ask(tokens=10_000)] * 8) as session:
            await Answer().read(session, tokens=1)
            assert (sick.in_flight, well.in_flight) == (0, 8)
        site.fact(ReplicaHealthy(first.name, "a"), by="node.a")
        await eventually(lambda: sick.room)
        site.fact(ReplicaUnhealthy(first.name, "a", "canary", "no token came"), by="node.a")
        await eventually(lambda: sick.sick)
        await second.kill()
        site.exits(second.name)
        (await answer_to(gateway, ask())).check(ask())


async def test_a_replica_that_is_passed_over_is_used_when_all_others_are_gone(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=2))
        first, second = await site.replica(), await site.replica()
        gateway = await site.gateway()
        gateway._links[first.name].passed_over = True
        await second.kill()
        site.exits(second.name)
        (await answer_to(gateway, ask())).check(ask())


async def test_streams_without_a_token_begin_again_only_within_the_budget_and_others_always(site: Site) -> None:
    async with site, AsyncExitStack() as stack:
        site.deploy(application(replicas=1))
        replica = await site.replica(itl_ms=5)
        gateway = await site.gateway()
        begun = await enter(gateway, stack)
        await Answer().read(begun, tokens=1)
        replica.engine.hang()
        fresh = await enter(gateway, stack)
        await eventually(lambda: gateway._links[replica.name].in_flight == 2)
        gateway._retries._held = 0.0
        gateway._retries._per_s = 0.0
        replica.cut()
        assert (await rejection_of(fresh)).reason == Reason.RETRY_BUDGET
        replica.engine.resume()
        answer = await Answer().read(begun)
        assert answer.reasons == {0: "length"}


async def test_the_last_free_places_are_left_to_a_higher_priority_while_such_requests_are_rejected(site: Site) -> None:
    async with site, AsyncExitStack() as stack:
        site.deploy(application(replicas=1, max_ongoing_requests=2, max_queued_requests=0))
        replica = await site.replica()
        replica.engine.hang()
        gateway = await site.gateway()
        first = await stack.enter_async_context(AsyncExitStack())
        await enter(gateway, first)
        await enter(gateway, stack)
        with pytest.raises(Overloaded):
            gateway.open("tiny", [ask()], stops=[])
        await first.aclose()
        with pytest.raises(Overloaded) as rejection:
            gateway.open("tiny", [ask()], stops=[], claim=BATCH)
        assert rejection.value.reason == Reason.PRIORITY
        gateway._pools["tiny"].admission._highest_s -= 10.0
        await enter(gateway, stack, BATCH)
