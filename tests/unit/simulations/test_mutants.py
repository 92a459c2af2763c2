"""Every guard that a mutant takes out is missed by a test, and is there again afterwards."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest

from holdfast.actors.follower import Follower
from holdfast.actors.replica import Replica
from holdfast.core import events as ev
from holdfast.core.config import DeploymentConfig, EngineConfig
from holdfast.core.detector import LeaseEvidence
from holdfast.core.errors import DeadlineExceeded, Overloaded
from holdfast.core.frames import Stop
from holdfast.core.liveness import Liveness, Suspicion
from holdfast.core.placement import occupancy
from holdfast.core.ports import LogEntry
from holdfast.core.requests import EngineLoad, EngineRequest
from holdfast.core.stream import Stream
from holdfast.gateway.asking import ask_completion
from holdfast.gateway.backend import DEFAULT_CLAIM
from holdfast.gateway.gateway_process import GatewayProcess
from holdfast.gateway.http_settings import HttpSettings
from holdfast.gateway.kinship import Kinship
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.link_settings import LinkSettings
from holdfast.gateway.peers import Answer as PeerAnswer
from holdfast.gateway.peers import Peers
from holdfast.gateway.pool import Pool
from holdfast.gateway.requests import OpenRequest, Requests
from holdfast.gateway.resuming import Resume, resumed
from holdfast.gateway.serving import Serving
from holdfast.gateway.serving_settings import ServingSettings
from holdfast.gateway.session import StreamRun, StreamSession
from holdfast.simulations.mutants import MUTANTS, NoSuchMutant, removed
from holdfast.simulations.mutants.edits import Constant, StaleEdit, edit
from holdfast.simulations.nats.client import dialler
from holdfast.simulations.nats.jetstream import JetStream
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import World
from holdfast.store.jetstream import JetStreamLog
from holdfast.store.memory import MemoryLogServer
from tests.contract import test_log
from tests.contract.worlds import jetstream_settings
from tests.unit.actors import (
    test_controller,
    test_draining,
    test_leasing,
    test_node,
    test_reach,
    test_replica_run,
    test_replica_watch,
)
from tests.unit.core import test_drains, test_overloads, test_reconcile, test_state, test_stream, test_unhealthy
from tests.unit.gateway import test_draining as test_gateway_draining
from tests.unit.serving import test_waiting
from tests.unit.simulations.stream_witnesses import STREAM_WITNESSES
from tests.unit.simulations.telling_witnesses import TELLING_WITNESSES
from tests.unit.simulations.test_jetstream_contract import test_the_contract_holds as holds_in_simulation
from tests.unit.simulations.wish_witnesses import WISH_WITNESSES
from tests.unit.support.history import INFO, History, application
from tests.unit.support.replicas import Site
from tests.unit.support.virtual_time import settle, virtual_time
from tests.unit.support.world import World as Cluster
from tests.unit.support.world import identity_of

UNTIL_S = 120.0


# --- edits ----------------------------------------------------------------------------------------------


def greeting(name: str, times: int = 1) -> str:
    """What is said."""
    return f"hello {name} " * times


class Shown:
    @property
    def what(self) -> str:
        return "all"

    async def later(self) -> list[str]:
        return [self.what for _ in range(2)]


def test_an_edit_takes_effect_under_every_name_and_is_undone() -> None:
    alias, shown = greeting, Shown()
    with edit(greeting, ("hello", "good bye"), ("* times", "")).applied():
        assert alias("you", 3) == "good bye you "
    assert alias("you", 2) == "hello you hello you "
    with edit(Shown.what, ('"all"', '"nothing"')).applied(), edit(Shown.later, ("range(2)", "range(1)")).applied():
        assert asyncio.run(shown.later()) == ["nothing"]
    assert asyncio.run(shown.later()) == ["all", "all"]


def test_an_edit_is_undone_after_a_failure() -> None:
    with pytest.raises(KeyError), edit(greeting, ("hello", "good bye")).applied():
        raise KeyError
    assert greeting("you") == "hello you "


@pytest.mark.parametrize("old", ["no such text", "e"])
def test_an_edit_of_text_that_is_not_there_exactly_once_is_an_error(old: str) -> None:
    with pytest.raises(StaleEdit, match="times what is to be replaced"), edit(greeting, (old, "")).applied():
        pass


def test_a_constant_is_exchanged_and_must_be_there() -> None:
    import holdfast.core.stream as module

    with Constant(module, "FINISH_STOP", "halt").applied():
        assert module.FINISH_STOP == "halt"
    assert module.FINISH_STOP == "stop"
    with pytest.raises(AttributeError), Constant(module, "NO_SUCH", 1).applied():
        pass


def test_an_unknown_mutant_is_named() -> None:
    with pytest.raises(NoSuchMutant, match="there is no mutant nonsense; there are expected-sequence, "):
        removed("nonsense")


# --- what misses each guard -----------------------------------------------------------------------------


def contract(test: Any, world: str = "log_world") -> Callable[[], None]:
    """A test of the log's contract, on a simulated server."""
    return lambda: holds_in_simulation(test, world, {}, 1)


def on_a_server(scenario: Callable[[JetStream, JetStreamLog], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A scenario with a log on a simulated server; it must come to its end."""

    def witness() -> None:
        ended: list[bool] = []

        async def main(process: SimProcess) -> None:
            servers = JetStream(process.world, ["n0"])
            servers.start(0)
            settings = jetstream_settings(*servers.urls, name="test", replicas=1)
            log = await JetStreamLog.open(settings, dial=dialler(process, process.rng), chance=process.rng)
            await scenario(servers, log)
            await log.close()
            ended.append(True)

        world = World("witness")
        world.on_unhandled = lambda _process, _text: None
        world.spawn("test", "t", main)
        world.scheduler.run(UNTIL_S)
        world.close()
        assert ended, "it did not come to its end"

    return witness


async def _append(log: JetStreamLog, last: int, count: int) -> int:
    for _ in range(count):
        last = await log.append("facts.a", b"x", message_id=f"id{last + 1}", expected_last=last)
    return last


async def _lost_answer(servers: JetStream, log: JetStreamLog) -> None:
    await _append(log, 0, 1)
    servers.trouble("append refused", 2.0, random.Random(1))
    servers.trouble("api mute", 2.0, random.Random(1))
    servers.members[0].server.process.freeze()  # type: ignore[union-attr]
    appending = asyncio.create_task(_append(log, 1, 1))
    await asyncio.sleep(3.0)
    assert not appending.done()
    servers.members[0].server.process.thaw()  # type: ignore[union-attr]
    await appending
    assert len(servers.entries("test")) == 2


async def _skipped(servers: JetStream, log: JetStreamLog) -> None:
    last = await _append(log, 0, 2)
    got: list[int] = []
    async for entry in log.follow():
        got.append(entry.sequence)
        if len(got) == 2:
            servers.skip_deliveries(random.Random(1))
            last = await _append(log, last, 3)
        if entry.sequence == 5:
            break
    assert got == [1, 2, 3, 4, 5]


async def _stalled(servers: JetStream, log: JetStreamLog) -> None:
    last = await _append(log, 0, 1)
    async for entry in log.follow():
        if entry.sequence == 1:
            servers.stall_consumers(10 * UNTIL_S, random.Random(1))
            await _append(log, last, 1)
        else:
            break


def _one_node() -> History:
    """As the fixture `running` of the state's tests."""
    history = History()
    history.fact(ev.NodeJoined("a", "host", 1, "0", 9), by="node.a")
    history.decide(ev.LeaderElected("a", "1"), epoch=10)
    history.decide(ev.ApplicationDeployed(application()))
    history.decide(ev.ReplicaPlaced("app.tiny.1", "app", "tiny", "a", "1"))
    history.fact(ev.ReplicaReady("app.tiny.1", "a", "h:1", INFO), by="node.a")
    return history


def _deposed() -> None:
    history = _one_node()
    history.decide(ev.LeaderElected("b", "1"), epoch=20)
    history.decide(ev.ReplicaStopOrdered("app.tiny.1", "I still lead"), epoch=10)
    assert history.state.replicas["app.tiny.1"].live


def _restarted() -> None:
    history = _one_node()
    history.fact(ev.NodeJoined("a", "host", 2, "0", 9), by="node.a", incarnation="2")
    assert not history.state.replicas["app.tiny.1"].live


def _placed_on_gone() -> None:
    history = _one_node()
    history.fact(ev.NodeLeft("a"), by="node.a")
    history.decide(ev.ReplicaPlaced("app.tiny.2", "app", "tiny", "a", "1"))
    assert not history.state.replicas["app.tiny.2"].live


def _comes_back() -> None:
    history = _one_node()
    history.decide(ev.ApplicationDeleted("app"))
    history.decide(ev.ApplicationDeployed(application()))
    assert history.state.applications["app"].deployments["tiny"].replicas_placed == 1


def _stopping() -> None:
    history = _one_node()
    history.decide(ev.ReplicaStopOrdered("app.tiny.1", "fewer are wanted"))
    assert occupancy(history.state) == {"a": 1}


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


def _link() -> ReplicaLink:
    settings = LinkSettings("test", "g")
    return ReplicaLink(
        "r", "h:1", 1, settings, random.Random(1), on_capacity=lambda _link: None, on_orphans=lambda _runs, _cause: None
    )


class _Run:
    link, attempt, name, ordinal, claim, awaits_first, began_s = None, 0, "", 0, DEFAULT_CLAIM, False, 0.0


def _run() -> StreamRun:
    return cast(StreamRun, _Run())


@virtual_time
async def _numbers() -> None:
    link, first, second = _link(), _run(), _run()
    link._take(first)
    link.end(first)
    assert link._take(second) != first.attempt


@virtual_time
async def _no_room() -> None:
    link = _link()
    link._contact.welcomed = True
    assert link.room
    link._take(_run())
    assert not link.room


@virtual_time
async def _told_to_stop() -> None:
    link, run, sent = _link(), _run(), list[object]()
    link._contact.connection = cast(Any, SimpleNamespace(send=sent.append))
    run.name, run.ordinal = "s", 1
    attempt = link._take(run)
    link.end(run)
    assert sent == [Stop(attempt)]
    assert len(link._contact.fences) == 1


@virtual_time
async def _takes_with_it() -> None:
    requests, ended = Requests("g"), list[str]()
    for name, parent in (("p", ""), ("c", "p")):
        request = OpenRequest(name, "", "", None, 0.0, 60.0)
        request.parent = parent
        session = SimpleNamespace(
            timeout_s=60.0,
            replicas=[],
            prompt_tokens=0,
            completion_tokens=0,
            fail=lambda _cause, name=name: ended.append(name),
        )
        requests.opened(request, "", "m", cast(Any, session))
    requests.cancel("", "p", "kill")
    assert ended == ["p", "c"]


@virtual_time
async def _tells_others() -> None:
    asked: list[str] = []

    async def noted(method: str, url: str, _headers: object, _timeout_s: float) -> PeerAnswer:
        asked.append(f"{method} {url}")
        return PeerAnswer(200, b"{}")

    requests = Requests("g")
    kinship = Kinship(requests, Peers("g", lambda: {"g": "http://g", "h": "http://h"}, cast(Any, noted)))
    request = OpenRequest("p", "", "", None, 0.0, 60.0)
    request.elsewhere.add("h")
    running = asyncio.create_task(kinship.run())
    await settle()
    requests.tell(request, "kill")
    await settle()
    running.cancel()
    assert asked == ["DELETE http://h/v1/requests/p?mode=kill&told=children"]


def _notices() -> None:
    link = _link()
    link._contact.connection = cast(Any, SimpleNamespace(last_received_s=0.0))
    assert link._lost_touch(100.0)


@virtual_time
async def _dials_again() -> None:
    link, tries = _link(), 0

    async def connect() -> None:
        nonlocal tries
        tries += 1
        raise OSError("no route")

    link._contact._dial = connect  # type: ignore[method-assign]
    running = asyncio.create_task(link.run())
    await asyncio.sleep(10)
    running.cancel()
    assert tries > 3


def _same_seed() -> None:
    asked = ask_completion(b'{"model": "m", "prompt": "p", "stream": true, "seed": 5}', HttpSettings())
    assert resumed(asked, Resume("id", 7, (1,))).choices[0].sampling.seed == 7


@virtual_time
async def _ends() -> None:
    def nothing(_run: StreamRun) -> None:
        return None

    async with StreamSession([EngineRequest(prompt="x")], [], 3, nothing, nothing, 5.0) as session:
        with pytest.raises(DeadlineExceeded):
            await session.next()


@virtual_time
async def _turned_away() -> None:
    follower = Follower(MemoryLogServer().client())
    follower.state = _one_node().state
    serving = Serving(follower, "test", "g", ServingSettings(), random.Random(1))
    serving._sync_pools(follower.state)
    for _ in range(serving._pools["tiny"].config.max_queued_requests):
        serving._pools["tiny"].queue.append(_run())
    with pytest.raises(Overloaded):
        serving.open("tiny", [EngineRequest(prompt="x")], stops=[])


@virtual_time
async def _serves() -> None:
    follower = Follower(MemoryLogServer().client())
    follower.state = _one_node().state
    serving = Serving(follower, "test", "g", ServingSettings(), random.Random(1))
    serving._sync_pools(follower.state)
    serving.check_open("tiny", DEFAULT_CLAIM)


def _pool() -> Pool:
    link = _link()
    link._contact.welcomed = True
    pool = Pool(DeploymentConfig("tiny", EngineConfig("mock")))
    pool.links.append(link)
    return pool


def _new() -> StreamRun:
    stream = SimpleNamespace(suspect=False, attempts=0, accepted=[])
    return cast(StreamRun, SimpleNamespace(stream=stream, avoid=None, was_held=False))


@virtual_time
async def _begins() -> None:
    pool = _pool()
    assert pool.choose(_new(), lambda _below: 0) is pool.links[0]


@virtual_time
async def _has_room_again() -> None:
    pool = _pool()
    taken = _run()
    pool.links[0]._take(taken)
    assert pool.choose(_new(), lambda _below: 0) is None
    pool.links[0].end(taken)
    pool.has_room()
    assert pool.choose(_new(), lambda _below: 0) is pool.links[0]


def _obeys() -> None:
    async def scenario() -> None:
        site = Site()
        site.deploy(application())
        await test_gateway_draining.test_a_drained_gateway_refuses_requests_and_serves_again_when_the_drain_is_lifted(
            site
        )

    asyncio.run(scenario())


WITNESSES: dict[str, Callable[[], object]] = {
    "expected-sequence": contract(test_log.test_a_stale_expectation_is_refused_and_appends_nothing),
    "entry-of-another": contract(test_log.test_a_stale_expectation_is_refused_and_appends_nothing),
    "own-entry": contract(test_log.test_the_same_append_again_returns_the_same_sequence),
    "unknown-outcome": on_a_server(_lost_answer),
    "log-contiguity": on_a_server(_skipped),
    "hole-in-the-fold": lambda: test_state.test_a_record_that_is_not_the_next_one_is_refused(_one_node(), 99),
    "silent-consumer": on_a_server(_stalled),
    "log-redial": contract(test_log.test_follow_and_appends_ride_out_a_crash, "frail_log_world"),
    "deposed-leader": test_controller.test_a_leader_without_its_lease_steps_down_and_may_lead_again,
    "epoch-check": _deposed,
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
    "restarted-node": _restarted,
    "gone-node": _placed_on_gone,
    "disowned": test_node.test_a_replica_that_is_told_to_stop_before_its_node_had_read_of_it_is_disowned,
    "free-slots": test_reconcile.test_what_finds_no_room_waits_for_a_node,
    "stopping-holds-slot": _stopping,
    "one-at-a-time": test_reconcile.test_a_rolling_update_goes_one_by_one_and_never_below_the_number_wanted,
    "never-below-wanted": test_reconcile.test_a_rolling_update_goes_one_by_one_and_never_below_the_number_wanted,
    "drain-before-stop": _drains,
    "replaced-first": test_drains.test_replicas_of_a_drained_node_go_elsewhere_before_they_stop,
    "relieved-first": test_draining.test_a_node_that_stops_waits_until_others_run_what_it_ran,
    "gateway-obeys": _obeys,
    "undrained": test_drains.test_a_drained_node_gets_nothing_until_it_is_undrained_and_then_like_any_other,
    "numbers-go-on": _comes_back,
    "attempt-fence": _numbers,
    "token-contiguity": test_stream.test_a_token_from_the_future_is_the_replicas_violation_and_changes_nothing,
    "token-once": _twice,
    "held-back-text": _held_back,
    "resumed-position": _delivered,
    "resumed-seed": _same_seed,
    "deadline": _ends,
    "queue-bound": _turned_away,
    "lowest-first": test_waiting.test_the_last_that_came_of_the_lowest_priority_gives_way,
    "made-to-what-holds": (
        test_overloads.test_changes_that_are_asked_for_at_once_all_hold_in_the_end_each_by_its_own_decision
    ),
    "streams-per-replica": _no_room,
    "redial": _dials_again,
    "silence": _notices,
    "engine-watch": _stuck,
    "start-pause": test_reconcile.test_failed_starts_are_tried_again_after_longer_and_longer_waits,
    "lost-gateways": lambda: test_reconcile.test_a_gateway_whose_lease_expired_is_given_up_once(False),
    **STREAM_WITNESSES,
    **WISH_WITNESSES,
    **TELLING_WITNESSES,
    "canary": test_replica_watch.test_a_change_is_told_once_with_its_reason_and_an_end_once_no_check_fails,
    "health-budget": test_unhealthy.test_only_one_goes_at_a_time_where_a_part_would_be_less_than_one,
    "stop-told": _told_to_stop,
    "children-end-too": _takes_with_it,
    "children-elsewhere": _tells_others,
    "known-models": _serves,
    "replica-chosen": _begins,
    "room-again": _has_room_again,
}


@pytest.mark.parametrize("name", list(MUTANTS))
def test_a_guard_is_missed(name: str) -> None:
    witness = WITNESSES[name]
    witness()
    with removed(name), pytest.raises(BaseException):  # noqa: B017, PT011 - whatever breaks
        witness()
    witness()
