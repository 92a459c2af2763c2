"""An engine's own health checks, its first tokens, and its devices: what comes of each for the replica."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from types import SimpleNamespace

import pytest

from holdfast.actors.devices import DeviceFailed, InjectedEvents, watch_devices
from holdfast.actors.engines.mock import MockEngine, MockSettings
from holdfast.actors.health import HealthChecks, NoToken, warm_up
from holdfast.actors.specification import Checked, Failed, ReplicaSpecification, Report
from holdfast.core.config import EngineConfig
from tests.unit.actors.test_replica_run import Told, in_virtual_time, specification, stdin
from tests.unit.support.virtual_time import now_s, virtual_time

PERIOD_S, TIMEOUT_S, FAILURES = 10.0, 30.0, 3


def told(**more: object) -> ReplicaSpecification:
    settings: dict[str, object] = {
        "health_check_period_s": PERIOD_S,
        "health_check_timeout_s": TIMEOUT_S,
        "health_check_failures": FAILURES,
        **more,
    }
    return ReplicaSpecification("c", "a.b.1", "b", "127.0.0.1", EngineConfig("mock"), 5.0, **settings)  # type: ignore[arg-type]


class Checking:
    """Runs health checks; `reports` are what came, with their times."""

    def __init__(self, check: object) -> None:
        self.reports: list[tuple[float, Report]] = []
        engine = SimpleNamespace(check_health=check)
        self.checks = HealthChecks(engine, told(), lambda report: self.reports.append((now_s(), report)))

    async def run(self, seconds: float) -> list[tuple[float, Report]]:
        running = asyncio.create_task(self.checks.run())
        await asyncio.sleep(seconds)
        running.cancel()
        await asyncio.wait([running])
        return self.reports


@virtual_time
async def test_a_check_that_raises_three_times_in_a_row_is_told_with_its_exception() -> None:
    async def check() -> None:
        raise RuntimeError("a shard is gone")

    checking = Checking(check)
    message = "check_health raised RuntimeError: a shard is gone"
    assert await checking.run(FAILURES * PERIOD_S + 1) == [(FAILURES * PERIOD_S, Checked(message))]
    assert checking.checks.failing == message


@virtual_time
async def test_one_failure_among_others_is_nothing() -> None:
    calls = 0

    async def check() -> None:
        nonlocal calls
        calls += 1
        if calls % FAILURES:
            raise RuntimeError("cold")

    checking = Checking(check)
    reports = await checking.run(20 * PERIOD_S)
    assert calls >= 19
    assert {report for _at_s, report in reports} == {Checked("")}


@virtual_time
async def test_a_check_that_hangs_fails_by_its_timeout() -> None:
    async def check() -> None:
        await asyncio.sleep(3600)

    ((at_s, report),) = await Checking(check).run(FAILURES * (PERIOD_S + TIMEOUT_S) + 1)
    assert at_s == FAILURES * (PERIOD_S + TIMEOUT_S)
    assert report == Checked("check_health did not return within 30 s")


@virtual_time
async def test_a_check_that_ends_well_but_too_late_each_time_fails() -> None:
    calls = 0

    async def check() -> None:
        nonlocal calls
        calls += 1
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        await asyncio.sleep(PERIOD_S / 2)

    ((at_s, report),) = await Checking(check).run(FAILURES * (PERIOD_S + TIMEOUT_S) + 1)
    assert at_s == FAILURES * (PERIOD_S + TIMEOUT_S)
    assert report == Checked("check_health did not return within 30 s")
    assert calls == FAILURES


@virtual_time
async def test_one_that_is_well_again_is_told() -> None:
    sick = True

    async def check() -> None:
        if sick:
            raise RuntimeError("cold")

    checking = Checking(check)
    await checking.run(FAILURES * PERIOD_S + 1)
    sick = False
    assert (await checking.run(PERIOD_S + 1))[-1][1] == Checked("")
    assert checking.checks.failing == ""


@virtual_time
async def test_an_engine_without_a_check_is_not_checked() -> None:
    assert await Checking(None).run(10 * PERIOD_S) == []


async def test_a_check_that_is_no_coroutine_runs_in_a_thread_of_its_own() -> None:
    threads: list[threading.Thread] = []
    engine = SimpleNamespace(check_health=lambda: threads.append(threading.current_thread()))
    reports: asyncio.Queue[Report] = asyncio.Queue()
    checks = HealthChecks(engine, told(health_check_period_s=0.001), reports.put_nowait)
    running = asyncio.create_task(checks.run())
    assert await reports.get() == Checked("")
    running.cancel()
    await asyncio.wait([running])
    assert threads[0] is not threading.main_thread()
    assert threads[0].daemon


@pytest.mark.parametrize(
    ("raised", "says"),
    [(SystemExit(3), "RuntimeError: SystemExit: 3"), (ValueError("cold"), "ValueError: cold")],
)
async def test_a_check_that_is_no_coroutine_may_raise_anything_or_hand_on_a_coroutine(
    raised: BaseException, says: str
) -> None:
    async def sick() -> None:
        raise raised

    def raises() -> None:
        raise raised

    for check in (raises, lambda: sick()) if isinstance(raised, Exception) else (raises,):
        reports: asyncio.Queue[Report] = asyncio.Queue()
        specification = told(health_check_period_s=0.001, health_check_failures=1)
        checks = HealthChecks(SimpleNamespace(check_health=check), specification, reports.put_nowait)
        running = asyncio.create_task(checks.run())
        assert await reports.get() == Checked(f"check_health raised {says}")
        running.cancel()
        await asyncio.wait([running])


# --- first tokens ---------------------------------------------------------------------------------------


@virtual_time
async def test_an_engine_makes_its_first_tokens_before_it_is_ready() -> None:
    engine = MockEngine(MockSettings(itl_ms=50), "b", random.Random(1))
    assert await warm_up(engine, told(warm_up_prompt="Hello"))
    assert (engine.load().step, engine.load().running, engine.load().kv_blocks_used) == (3, 0, 0)
    assert not await warm_up(engine, told())


@virtual_time
async def test_an_engine_that_makes_no_first_token_is_not_ready() -> None:
    engine = MockEngine(MockSettings(), "b", random.Random(1))
    engine.hang()
    with pytest.raises(NoToken, match="did not make 3 tokens within 6 s"):
        await warm_up(engine, told(warm_up_prompt="Hello", engine_first_step_timeout_s=2.0))


@virtual_time
async def test_time_in_which_the_replica_stood_still_is_not_its_engines() -> None:
    engine = MockEngine(MockSettings(itl_ms=500), "b", random.Random(1))
    loop = asyncio.get_running_loop()
    warming = asyncio.create_task(warm_up(engine, told(warm_up_prompt="Hello", engine_first_step_timeout_s=2.0)))
    await asyncio.sleep(0.7)
    loop._jumping.now_s += 60.0  # type: ignore[attr-defined]
    assert await warming
    engine.hang()
    began_s = now_s()
    warming = asyncio.create_task(warm_up(engine, told(warm_up_prompt="Hello", engine_first_step_timeout_s=2.0)))
    await asyncio.sleep(0.7)
    loop._jumping.now_s += 60.0  # type: ignore[attr-defined]
    with pytest.raises(NoToken, match="did not make 3 tokens within 6 s"):
        await warming
    assert 65.0 <= now_s() - began_s <= 66.0


@virtual_time
async def test_an_engine_that_refuses_its_first_prompt_says_what_to_do() -> None:
    engine = MockEngine(MockSettings(context_tokens_max=4), "b", random.Random(1))
    with pytest.raises(NoToken, match="Give it another one, or set canary to false"):
        await warm_up(engine, told(warm_up_prompt="one two three four five"))


# --- devices --------------------------------------------------------------------------------------------


@virtual_time
async def test_a_fatal_xid_ends_the_replica_with_the_reason_and_others_do_not() -> None:
    engine = MockEngine(MockSettings(faults=True), "b", random.Random(1))
    engine.device_events.inject(13)
    watching = asyncio.create_task(watch_devices(engine))
    await asyncio.sleep(1)
    assert not watching.done()
    engine.device_events.inject(79)
    with pytest.raises(DeviceFailed, match="XID 79 on device 0: the GPU has fallen off the bus"):
        await watching


def test_the_replica_says_why_and_ends_with_1() -> None:
    async def scenario() -> None:
        from holdfast.actors.replica_main import run

        engine = MockEngine(MockSettings(), "b", random.Random(1))

        async def load(_specification: ReplicaSpecification) -> MockEngine:
            return engine

        channel = Told()
        running = asyncio.create_task(run(channel, stdin(specification()), load))
        await asyncio.sleep(1)
        engine.device_events.inject(48)
        assert await running == 1
        assert channel.reports[-1] == Failed("DeviceFailed: XID 48 on device 0: double bit ECC error")

    in_virtual_time(scenario())


def test_what_is_injected_is_heard_in_order() -> None:
    async def scenario() -> None:
        events = InjectedEvents()
        events.inject(1)
        events.inject(2)
        assert [(await events.next()).xid, (await events.next()).xid] == [1, 2]

    in_virtual_time(scenario())
